//! GoBGP.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use anyhow::{Context, ensure};
use ipnetwork::IpNetwork;
use serde_json::Value;

use super::mrt;
use crate::daemon::READY_WITHIN;
use crate::daemon::gobgp::{CONFIG, ask, ask_json, launch};
use crate::daemon::seat::Seat;
use crate::eventually::eventually;
use crate::interop::peer::{Capability, Path, Peer, SessionView, peer_cannot};
use crate::interop::setup::{Announced, AsWidth, Family, Kernel, Opening, Remote, Session, Setup};
use crate::lab::Lab;
use crate::process::{Process, tail};

/// So many routes go in one by one; more in a file.
const FEW: usize = 20;

/// A running GoBGP.
pub(super) struct Gobgp {
    seat: Seat,
    setup: Setup,
    process: Option<Process>,
}

impl Gobgp {
    pub(super) fn start(lab: &Lab, seat: Seat, setup: Setup) -> anyhow::Result<Self> {
        refuse(&setup)?;
        seat.write(CONFIG, &config(&setup))?;
        let process = Some(launch(lab, &seat, &[])?);
        let gobgp = Self { seat, setup, process };
        gobgp.announce_all()?;
        Ok(gobgp)
    }

    fn announce_all(&self) -> anyhow::Result<()> {
        if self.setup.routes.len() <= FEW {
            return self.setup.routes.iter().try_for_each(|route| self.add(route));
        }
        let file = self.seat.folder.join("routes.mrt");
        let next_hop = self
            .setup
            .sessions
            .iter()
            .find_map(|session| match session.local {
                Some(IpAddr::V4(address)) => Some(address),
                _ => None,
            });
        let next_hop = next_hop.context("large tables go over IPv4")?;
        let prefixes: Vec<IpNetwork> = self.setup.routes.iter().map(|route| route.prefix).collect();
        // `gobgp` ends before the last routes are through: the file has all of them twice.
        let twice = [prefixes.as_slice(), &prefixes].concat();
        std::fs::write(&file, mrt::table_dump(&twice, next_hop, self.setup.router_id)?)?;
        let path = file.display().to_string();
        ask(
            &self.seat,
            &["mrt", "inject", "global", &path, "--only-best", "--no-ipv6"],
        )?;
        eventually("GoBGP has its routes", READY_WITHIN, || {
            let summary = ask(&self.seat, &["global", "rib", "summary"])?;
            ensure!(
                summary.contains(&format!("Destination: {}", prefixes.len())),
                "{summary}"
            );
            Ok(())
        })
    }

    fn add(&self, route: &Announced) -> anyhow::Result<()> {
        let mut words = vec!["global", "rib", "add", "-a", Family::of(route.prefix).word()]
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        words.push(route.prefix.to_string());
        for (name, items) in [
            ("community", route.community_words()),
            ("large-community", route.large_community_words()),
        ] {
            if !items.is_empty() {
                words.extend([name.to_owned(), items.join(",")]);
            }
        }
        for target in route.route_target_words() {
            words.extend(["rt".to_owned(), target]);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let answer = ask(&self.seat, &words)?;
        ensure!(answer.trim().is_empty(), "gobgp {words:?}: {answer}");
        Ok(())
    }

    /// How `gobgp` finds a neighbour: by its address.
    fn neighbor(&self, name: &str) -> anyhow::Result<String> {
        let session = self.setup.sessions.iter().find(|session| session.name == name);
        if let Some(Remote::Address(address)) = session.map(|session| &session.remote) {
            return Ok(address.to_string());
        }
        let all = ask_json(&self.seat, &["neighbor"])?;
        let first = all.as_array().and_then(|neighbors| neighbors.first());
        first
            .and_then(|neighbor| neighbor["state"]["neighbor_address"].as_str())
            .map(str::to_owned)
            .with_context(|| format!("GoBGP has no dynamic neighbor: {all}"))
    }
}

/// What GoBGP has no means for.
fn refuse(setup: &Setup) -> anyhow::Result<()> {
    if setup.kernel == Kernel::Programmed {
        return peer_cannot("GoBGP programs no routes into the kernel by itself");
    }
    for session in &setup.sessions {
        if session.role.is_some() {
            return peer_cannot("roles are not implemented");
        }
        if session.as_width == AsWidth::TwoOctets {
            return peer_cannot("the 4-octet AS capability cannot be switched off");
        }
        if let Remote::Interface(_) = session.remote {
            return peer_cannot("GoBGP sends no router advertisements by which it could be found");
        }
    }
    Ok(())
}

impl Peer for Gobgp {
    fn session(&self, name: &str) -> anyhow::Result<SessionView> {
        let neighbor = match self.neighbor(name) {
            Ok(neighbor) => neighbor,
            Err(error) => return Ok(SessionView::unknown(error)),
        };
        let answer = ask_json(&self.seat, &["neighbor", &neighbor])?;
        let log = tail(&self.seat.folder.join("gobgpd.log"), 50);
        let words: Vec<&str> = log.lines().filter(|line| line.contains("otification")).collect();
        Ok(view(&answer, &words.join("\n")))
    }

    fn prefixes(&self, family: Family) -> anyhow::Result<BTreeSet<IpNetwork>> {
        let rib = ask_json(&self.seat, &["global", "rib", "-a", family.word()])?;
        let mut prefixes = BTreeSet::new();
        for (prefix, paths) in rib.as_object().into_iter().flatten() {
            if paths.as_array().is_some_and(|paths| paths.iter().any(is_learnt)) {
                prefixes.insert(
                    prefix
                        .parse()
                        .with_context(|| format!("GoBGP prefix {prefix:?}"))?,
                );
            }
        }
        Ok(prefixes)
    }

    fn paths(&self, prefix: IpNetwork) -> anyhow::Result<Vec<Path>> {
        let rib = ask_json(&self.seat, &["global", "rib", "-a", Family::of(prefix).word()])?;
        let paths = rib[prefix.to_string()].as_array().cloned().unwrap_or_default();
        Ok(paths.iter().filter(|path| is_learnt(path)).map(path).collect())
    }

    fn announce(&mut self, route: &Announced) -> anyhow::Result<()> {
        self.setup.announce(route);
        self.add(route)
    }

    fn withdraw(&mut self, prefix: IpNetwork) -> anyhow::Result<()> {
        self.setup.withdraw(prefix);
        let family = Family::of(prefix).word();
        ask(
            &self.seat,
            &["global", "rib", "del", "-a", family, &prefix.to_string()],
        )?;
        Ok(())
    }

    fn refresh(&self, _session: &str) -> anyhow::Result<()> {
        peer_cannot("a soft reset looks again at what was kept of the neighbour; no ROUTE-REFRESH is sent")
    }

    fn shut_down(&self, session: &str, text: &str) -> anyhow::Result<()> {
        let neighbor = self.neighbor(session)?;
        // "disable" takes a reason as well, and says nothing of it to the neighbour.
        ask(&self.seat, &["neighbor", &neighbor, "shutdown", "--reason", text])?;
        Ok(())
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("GoBGP runs")?.kill()
    }

    fn launch(&mut self, lab: &Lab) -> anyhow::Result<()> {
        // Its routes come in after the start, and must be there before it tells the neighbour that these are all: until then
        // nobody reaches it.
        let nft = |words: &str| self.seat.run(std::process::Command::new("nft").arg(words));
        nft(
            "add table inet wait; add chain inet wait input { type filter hook input priority 0; }; \
             add rule inet wait input tcp dport 179 drop; add rule inet wait input tcp sport 179 drop",
        )?;
        // -r: the Restart State bit (RFC 4724).
        self.process = Some(launch(lab, &self.seat, &["-r"])?);
        self.announce_all()?;
        nft("delete table inet wait")?;
        Ok(())
    }
}

/// Version 3 calls the neighbour that a path is from `neighbor-ip`, version 4 `peer-address`.
fn is_learnt(path: &Value) -> bool {
    path["neighbor-ip"].is_string() || path["peer-address"].is_string()
}

fn config(setup: &Setup) -> String {
    let mut text = format!(
        "[global.config]\nas = {}\nrouter-id = \"{}\"\n",
        setup.asn, setup.router_id
    );
    for session in &setup.sessions {
        text.push_str(&neighbor(setup, session));
    }
    text
}

/// A section for a neighbour, or for a group and who belongs to it.
fn neighbor(setup: &Setup, session: &Session) -> String {
    let (table, identity) = match &session.remote {
        Remote::Range(range) => (
            "peer-groups",
            format!(
                "[[dynamic-neighbors]]\n[dynamic-neighbors.config]\nprefix = \"{range}\"\npeer-group = \"{0}\"\n\
                 [[peer-groups]]\n[peer-groups.config]\npeer-group-name = \"{0}\"\n",
                session.name
            ),
        ),
        Remote::Address(address) => (
            "neighbors",
            format!("[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{address}\"\n"),
        ),
        Remote::Interface(interface) => (
            "neighbors",
            format!("[[neighbors]]\n[neighbors.config]\nneighbor-interface = \"{interface}\"\n"),
        ),
    };
    let mut text = format!("{identity}peer-as = {}\n", session.remote_as);
    if let Some(password) = session.password {
        let _ = writeln!(text, "auth-password = \"{password}\"");
    }
    let _ = write!(
        text,
        "[{table}.timers.config]\nconnect-retry = 1\nhold-time = {}\nkeepalive-interval = {}\nidle-hold-time-after-reset = 1\n",
        session.hold_time,
        (session.hold_time / 3).max(1)
    );
    let _ = writeln!(
        text,
        "[{table}.transport.config]\npassive-mode = {}",
        session.opening == Opening::Passive
    );
    if let Some(local) = session.local {
        let _ = writeln!(text, "local-address = \"{local}\"");
    }
    if session.gtsm {
        let _ = writeln!(
            text,
            "[{table}.ttl-security.config]\nenabled = true\nttl-min = 255"
        );
    }
    if session.reflector_client && session.remote_as == setup.asn {
        let _ = writeln!(
            text,
            "[{table}.route-reflector.config]\nroute-reflector-client = true\nroute-reflector-cluster-id = \"{}\"",
            setup.router_id
        );
    }
    if let Some(time) = session.graceful_restart {
        let long_lived = session.long_lived.is_some();
        let _ = writeln!(
            text,
            "[{table}.graceful-restart.config]\nenabled = true\nrestart-time = {time}\nlong-lived-enabled = {long_lived}\ndeferral-time = 10"
        );
    }
    for family in &session.families {
        text.push_str(&afi_safi(table, session, *family));
    }
    text
}

fn afi_safi(table: &str, session: &Session, family: Family) -> String {
    let mut text = format!(
        "[[{table}.afi-safis]]\n[{table}.afi-safis.config]\nafi-safi-name = \"{}-unicast\"\n",
        family.word()
    );
    if session.graceful_restart.is_some() {
        let _ = writeln!(
            text,
            "[{table}.afi-safis.mp-graceful-restart.config]\nenabled = true"
        );
    }
    if let Some(time) = session.long_lived {
        let _ = writeln!(
            text,
            "[{table}.afi-safis.long-lived-graceful-restart.config]\nenabled = true\nrestart-time = {time}"
        );
    }
    if session.add_path {
        let _ = writeln!(
            text,
            "[{table}.afi-safis.add-paths.config]\nreceive = true\nsend-max = 8"
        );
    }
    if let Some(max) = session.max_prefixes {
        let _ = writeln!(
            text,
            "[{table}.afi-safis.prefix-limit.config]\nmax-prefixes = {max}"
        );
    }
    text
}

/// How `gobgp` shows a capability: version 3 by what follows `apipb.` in its type and by how its octets begin, in Base64; version 4 by a
/// name and what is to be found in its value.
struct Shown {
    capability: Capability,
    by_type: (&'static str, &'static str),
    by_name: (&'static str, &'static str),
}

const fn shown(
    capability: Capability,
    by_type: (&'static str, &'static str),
    by_name: (&'static str, &'static str),
) -> Shown {
    Shown {
        capability,
        by_type,
        by_name,
    }
}

const SHOWN: [Shown; 11] = [
    shown(
        Capability::Ipv4,
        ("MultiProtocolCapability", "CgQIARAB"),
        ("MultiProtocol", r#""afi":1,"safi":1"#),
    ),
    shown(
        Capability::Ipv6,
        ("MultiProtocolCapability", "CgQIAhAB"),
        ("MultiProtocol", r#""afi":2,"safi":1"#),
    ),
    shown(
        Capability::RouteRefresh,
        ("RouteRefreshCapability", ""),
        ("RouteRefresh", ""),
    ),
    shown(
        Capability::EnhancedRefresh,
        ("EnhancedRouteRefreshCapability", ""),
        ("EnhancedRouteRefresh", ""),
    ),
    shown(
        Capability::FourOctetAs,
        ("FourOctetASNCapability", ""),
        ("FourOctetAsn", ""),
    ),
    shown(
        Capability::GracefulRestart,
        ("GracefulRestartCapability", ""),
        ("GracefulRestart", ""),
    ),
    shown(
        Capability::LongLived,
        ("LongLivedGracefulRestartCapability", ""),
        ("LongLivedGracefulRestart", ""),
    ),
    shown(Capability::AddPath, ("AddPathCapability", ""), ("AddPath", "")),
    shown(
        Capability::ExtendedNextHop,
        ("ExtendedNexthopCapability", ""),
        ("ExtendedNexthop", ""),
    ),
    // Version 3 does not know codes 6 and 9, version 4 not the latter.
    shown(
        Capability::ExtendedMessage,
        ("UnknownCapability", "CAY="),
        ("ExtendedMessage", ""),
    ),
    shown(
        Capability::Role,
        ("UnknownCapability", "CAk"),
        ("Unknown", r#""code":9"#),
    ),
];

impl Shown {
    fn is(&self, entry: &Value) -> bool {
        if let Some((name, value)) = entry["Cap"].as_object().and_then(|cap| cap.iter().next()) {
            return name == self.by_name.0 && value.to_string().contains(self.by_name.1);
        }
        let url = entry["type_url"].as_str().unwrap_or_default();
        let octets = entry["value"].as_str().unwrap_or_default();
        url.rsplit('.').next() == Some(self.by_type.0) && octets.starts_with(self.by_type.1)
    }
}

/// Reads a neighbour as `gobgp neighbor -j` prints it.
fn view(neighbor: &Value, log: &str) -> SessionView {
    let state = neighbor["state"]["session_state"].to_string();
    // The number of ESTABLISHED in GoBGP's interface description.
    let mut view = SessionView {
        established: state == "6",
        state: format!("session_state {state}"),
        last_error: log.to_owned(),
        ..SessionView::default()
    };
    let capabilities = neighbor["state"]["remote_cap"].as_array();
    if let Some(capabilities) = capabilities.filter(|list| view.established && !list.is_empty()) {
        for shown in SHOWN {
            let came = capabilities.iter().any(|entry| shown.is(entry));
            view.received.insert(shown.capability, came);
        }
    }
    view
}

/// Reads a path of `gobgp global rib -j`.
fn path(path: &Value) -> Path {
    let mut read = Path {
        stale: path["stale"] == true,
        ..Path::default()
    };
    for attribute in path["attrs"].as_array().into_iter().flatten() {
        if let Some(hop) = attribute["nexthop"].as_str() {
            read.next_hop = hop.parse().ok();
        }
        for segment in attribute["as_paths"].as_array().into_iter().flatten() {
            let asns = segment["asns"]
                .as_array()
                .into_iter()
                .flatten()
                .map(Value::to_string);
            read.as_path = asns.collect::<Vec<_>>().join(" ");
        }
        for community in attribute["communities"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_u64)
        {
            read.communities
                .insert(format!("{}:{}", community >> 16, community & 0xffff));
        }
        for value in attribute["value"].as_array().into_iter().flatten() {
            if attribute["type"] == 16 && value["subtype"] == 2 {
                read.communities
                    .insert(format!("rt:{}", value["value"].as_str().unwrap_or_default()));
            } else if attribute["type"] == 32 {
                read.communities.insert(format!(
                    "{}:{}:{}",
                    value["ASN"], value["LocalData1"], value["LocalData2"]
                ));
            }
        }
    }
    read
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_neighbor_is_read_with_what_it_offered() {
        let entry = |name: &str, value: &str| json!({"type_url": format!("type.googleapis.com/apipb.{name}"), "value": value});
        let view = view(
            &json!({"state": {"session_state": 6, "remote_cap": [entry("MultiProtocolCapability", "CgQIAhAB"),
                entry("UnknownCapability", "CAY="), entry("RouteRefreshCapability", "")]}}),
            "",
        );
        assert!(view.established);
        assert_eq!(
            view.came(),
            [
                Capability::Ipv6,
                Capability::RouteRefresh,
                Capability::ExtendedMessage
            ]
        );
    }

    #[test]
    fn version_4_names_capabilities() {
        let view = view(
            &json!({"state": {"session_state": 6, "remote_cap": [{"Cap": {"MultiProtocol": {"family": {"afi": 2, "safi": 1}}}},
                {"Cap": {"Unknown": {"code": 9, "value": "Aw=="}}}, {"Cap": {"ExtendedMessage": {}}}]}}),
            "",
        );
        let came = |capability| view.received[&capability];
        assert!(came(Capability::Ipv6) && came(Capability::ExtendedMessage) && came(Capability::Role));
        assert!(!came(Capability::Ipv4) && !came(Capability::RouteRefresh));
    }

    #[test]
    fn a_path_is_read_with_its_communities() {
        let read = path(
            &json!({"stale": true, "attrs": [{"type": 2, "as_paths": [{"segment_type": 2, "asns": [65001, 2]}]},
            {"type": 8, "communities": [65538]}, {"type": 16, "value": [{"type": 0, "subtype": 2, "value": "1:2"}]},
            {"type": 32, "value": [{"ASN": 1, "LocalData1": 2, "LocalData2": 3}]}, {"type": 3, "nexthop": "192.0.2.1"}]}),
        );
        assert_eq!(
            read.communities.iter().map(String::as_str).collect::<Vec<_>>(),
            ["1:2", "1:2:3", "rt:1:2"]
        );
        assert!(read.stale && read.as_path == "65001 2");
    }
}
