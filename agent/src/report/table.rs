//! The status for people: short sections with aligned columns.

use std::fmt;

use super::{BgpReport, StatusReport};

/// Learned routes shown; JSON has them all.
const MAX_ROUTES: usize = 20;
/// Other ends of tunnels shown; JSON has them all.
const MAX_REMOTES: usize = 20;

impl fmt::Display for StatusReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "node        {}", self.node)?;
        match self.not_ready.as_slice() {
            [] => writeln!(f, "ready       yes")?,
            reasons => writeln!(f, "ready       NO: {}", reasons.join("; "))?,
        }
        writeln!(
            f,
            "agent       calidris {}, pid {}, up {}",
            self.version,
            self.pid,
            Age(self.uptime_seconds)
        )?;
        writeln!(f, "datastore   {}", self.datastore_line())?;
        writeln!(
            f,
            "kernel      {} operations in {} turns, {} failing",
            self.dataplane.operations,
            self.dataplane.turns,
            self.dataplane.failures.len()
        )?;
        for failure in &self.dataplane.failures {
            writeln!(f, "            FAILING: {failure}")?;
        }
        writeln!(
            f,
            "cni         {} answered, {} failed, {} in progress",
            self.cni.answered, self.cni.failed, self.cni.in_progress
        )?;
        if let Some(bgp) = &self.bgp {
            write_bgp(f, bgp, self.bgp_in_sync)?;
        }
        self.write_addresses(f)?;
        self.write_tunnels(f)?;
        self.write_routes(f)
    }
}

impl StatusReport {
    fn datastore_line(&self) -> String {
        let datastore = &self.datastore;
        let urls = datastore.endpoints.join(" ");
        let malformed = match datastore.malformed_values {
            0 => String::new(),
            count => format!(", {count} MALFORMED VALUES (see the log)"),
        };
        match (&datastore.error, datastore.connected) {
            (_, true) => format!("{urls} connected, revision {}{malformed}", datastore.revision),
            (Some(error), false) => format!("{urls} NOT CONNECTED: {error}{malformed}"),
            (None, false) => format!("{urls} connecting"),
        }
    }

    fn write_addresses(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pools = self.pools.iter().map(|(name, pool)| {
            vec![
                name.clone(),
                pool.cidr.to_string(),
                yes(pool.nat_outgoing).to_owned(),
                pool.encapsulation.clone(),
                yes(!pool.disable_bgp_export).to_owned(),
            ]
        });
        write_table(
            f,
            &["POOL", "CIDR", "NAT", "ENCAPSULATION", "BGP"],
            pools.collect(),
        )?;
        let blocks = self.own_blocks.iter().map(|block| {
            vec![
                block.cidr.to_string(),
                block.used_here.to_string(),
                yes(block.announced).to_owned(),
            ]
        });
        write_table(f, &["OWN BLOCK", "USED HERE", "ANNOUNCED"], blocks.collect())?;
        let endpoints = self.endpoints.iter().map(|endpoint| {
            let workload = match (&endpoint.namespace, &endpoint.pod) {
                (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
                _ => endpoint.container_id.chars().take(12).collect(),
            };
            let addresses: Vec<String> = endpoint.addresses.iter().map(ToString::to_string).collect();
            vec![
                workload,
                endpoint.ifname.clone(),
                endpoint.host_interface.clone(),
                addresses.join(" "),
            ]
        });
        write_table(
            f,
            &["ENDPOINT", "INTERFACE", "ON HOST", "ADDRESSES"],
            endpoints.collect(),
        )
    }

    fn write_tunnels(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let tunnels = self.tunnels.iter().map(|tunnel| {
            let number = tunnel.vni.zip(tunnel.port);
            vec![
                tunnel.device.clone(),
                tunnel.state.clone(),
                tunnel.mode.clone(),
                text(number.map(|(vni, port)| format!("{vni}/{port}"))),
                text(tunnel.address.map(|address| address.to_string())),
                text(tunnel.local.map(|address| address.to_string())),
                text(tunnel.mtu.map(|mtu| mtu.to_string())),
                tunnel.remotes.len().to_string(),
            ]
        });
        let columns = [
            "TUNNEL", "STATE", "MODE", "VNI/PORT", "ADDRESS", "FROM", "MTU", "NODES",
        ];
        write_table(f, &columns, tunnels.collect())?;
        let remotes: Vec<Vec<String>> = self
            .tunnels
            .iter()
            .flat_map(|tunnel| {
                tunnel
                    .remotes
                    .iter()
                    .map(move |(name, remote)| (tunnel, name, remote))
            })
            .map(|(tunnel, name, remote)| {
                vec![
                    name.clone(),
                    tunnel.device.clone(),
                    remote.address.to_string(),
                    remote.node.to_string(),
                ]
            })
            .collect();
        let more = remotes.len().saturating_sub(MAX_REMOTES);
        let shown = remotes.into_iter().take(MAX_REMOTES).collect();
        write_table(f, &["NODE", "TUNNEL", "ADDRESS", "AT"], shown)?;
        more_in_json(f, more)
    }

    fn write_routes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes = self
            .learned_routes
            .iter()
            .take(MAX_ROUTES)
            .map(|(prefix, next_hops)| {
                let next_hops: Vec<String> = next_hops.iter().map(ToString::to_string).collect();
                let via = if next_hops.is_empty() {
                    "dropped".to_owned()
                } else {
                    next_hops.join(" ")
                };
                vec![prefix.to_string(), via]
            });
        write_table(f, &["LEARNED ROUTE", "VIA"], routes.collect())?;
        more_in_json(f, self.learned_routes.len().saturating_sub(MAX_ROUTES))
    }
}

fn more_in_json(f: &mut fmt::Formatter<'_>, more: usize) -> fmt::Result {
    match more {
        0 => Ok(()),
        more => writeln!(f, "… and {more} more (-o json shows all)"),
    }
}

fn write_bgp(f: &mut fmt::Formatter<'_>, bgp: &BgpReport, in_sync: bool) -> fmt::Result {
    let sync = if in_sync {
        "in sync"
    } else {
        "waiting for peers' routes"
    };
    writeln!(
        f,
        "bgp         AS {}, router ID {}, {sync}",
        bgp.local_as, bgp.router_id
    )?;
    let peers = bgp.peers.iter().map(|peer| {
        vec![
            peer.name.clone(),
            peer.address.to_string(),
            peer.remote_as.to_string(),
            peer.state.clone(),
            Age(peer.since_seconds).to_string(),
            format!("{}/{}", peer.accepted, peer.received),
            peer.announced.to_string(),
            peer.last_error.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    let columns = [
        "PEER",
        "ADDRESS",
        "AS",
        "STATE",
        "SINCE",
        "ACCEPTED",
        "ANNOUNCED",
        "LAST ERROR",
    ];
    write_table(f, &columns, peers.collect())
}

/// Nothing for no rows; otherwise an empty line, the titles and the rows, each column as wide as its widest cell.
pub(crate) fn write_table(f: &mut impl fmt::Write, titles: &[&str], rows: Vec<Vec<String>>) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    let titles: Vec<String> = titles.iter().map(|title| (*title).to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(titles).chain(rows).collect();
    let columns = lines.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            lines
                .iter()
                .filter_map(|line| line.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    writeln!(f)?;
    for line in &lines {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        writeln!(f, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// Seconds as people say them: the two largest units.
pub(crate) struct Age(pub(crate) u64);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, hours, minutes, seconds) =
            (self.0 / 86_400, self.0 / 3600 % 24, self.0 / 60 % 60, self.0 % 60);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{seconds}s"),
            (0, 0, _) => write!(f, "{minutes}m{seconds}s"),
            (0, _, _) => write!(f, "{hours}h{minutes}m"),
            _ => write!(f, "{days}d{hours}h"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::*;

    fn report() -> StatusReport {
        StatusReport {
            format: StatusReport::FORMAT,
            node: "node1".into(),
            version: "0.1.0".into(),
            pid: 7,
            uptime_seconds: 3725,
            not_ready: Vec::new(),
            datastore: DatastoreReport {
                endpoints: vec!["http://192.0.2.5:2379".into()],
                connected: true,
                revision: 42,
                ..DatastoreReport::default()
            },
            datastore_in_sync: true,
            bgp_in_sync: true,
            pools: BTreeMap::new(),
            tunnels: vec![TunnelReport {
                device: "vxlan.calico".into(),
                mode: "vxlan".into(),
                state: "up".into(),
                vni: Some(4096),
                port: Some(4789),
                address: Some("10.244.0.65".parse().unwrap()),
                local: Some("192.0.2.11".parse().unwrap()),
                mtu: Some(1450),
                remotes: BTreeMap::from([(
                    "node2".into(),
                    RemoteReport {
                        address: "10.244.1.65".parse().unwrap(),
                        node: "192.0.2.12".parse().unwrap(),
                    },
                )]),
            }],
            own_blocks: vec![BlockReport {
                cidr: "10.244.0.64/26".parse().unwrap(),
                used_here: 2,
                announced: true,
            }],
            endpoints: Vec::new(),
            learned_routes: BTreeMap::new(),
            bgp: Some(BgpReport {
                local_as: 64512,
                router_id: "192.0.2.11".parse().unwrap(),
                originated: Vec::new(),
                peers: vec![PeerReport {
                    name: "tor".into(),
                    address: "192.0.2.1".parse().unwrap(),
                    remote_as: 65001,
                    state: "Established".into(),
                    since_seconds: 59,
                    received: 5,
                    accepted: 4,
                    announced: 1,
                    established_count: 1,
                    last_error: None,
                }],
            }),
            dataplane: DataplaneReport::default(),
            cni: CniReport::default(),
        }
    }

    #[test]
    fn the_table_has_aligned_columns() {
        let expected = "\
node        node1
ready       yes
agent       calidris 0.1.0, pid 7, up 1h2m
datastore   http://192.0.2.5:2379 connected, revision 42
kernel      0 operations in 0 turns, 0 failing
cni         0 answered, 0 failed, 0 in progress
bgp         AS 64512, router ID 192.0.2.11, in sync

PEER  ADDRESS    AS     STATE        SINCE  ACCEPTED  ANNOUNCED  LAST ERROR
tor   192.0.2.1  65001  Established  59s    4/5       1          -

OWN BLOCK       USED HERE  ANNOUNCED
10.244.0.64/26  2          yes

TUNNEL        STATE  MODE   VNI/PORT   ADDRESS      FROM        MTU   NODES
vxlan.calico  up     vxlan  4096/4789  10.244.0.65  192.0.2.11  1450  1

NODE   TUNNEL        ADDRESS      AT
node2  vxlan.calico  10.244.1.65  192.0.2.12
";
        assert_eq!(report().to_string(), expected);
    }

    #[test]
    fn what_is_wrong_is_in_capitals() {
        let mut report = report();
        report.not_ready = vec!["the datastore is not connected".into(), "one more thing".into()];
        report.datastore.connected = false;
        report.datastore.error = Some("connection refused".into());
        report.dataplane.failures = vec!["route 10.0.0.1/32: exists".into()];
        let text = report.to_string();
        assert!(
            text.contains("ready       NO: the datastore is not connected; one more thing\n"),
            "{text}"
        );
        assert!(text.contains("NOT CONNECTED: connection refused\n"), "{text}");
        assert!(text.contains("FAILING: route 10.0.0.1/32: exists\n"), "{text}");
    }

    #[test]
    fn only_the_first_routes_are_listed() {
        let mut report = report();
        let via = vec![IpAddr::from([192, 0, 2, 1])];
        report.learned_routes = (0..25)
            .map(|n| (format!("10.0.{n}.0/24").parse().unwrap(), via.clone()))
            .collect();
        let text = report.to_string();
        assert!(text.ends_with("… and 5 more (-o json shows all)\n"), "{text}");
    }

    #[test]
    fn json_reads_back() {
        let text = serde_json::to_string(&report()).unwrap();
        assert_eq!(serde_json::from_str::<StatusReport>(&text).unwrap(), report());
    }
}
