//! FRRouting: zebra and bgpd.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::{Context, ensure};
use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::daemon::frr::{Daemon, ask, launch, write_configs};
use crate::daemon::seat::Seat;
use crate::interop::peer::{Capability, Path, Peer, SessionView};
use crate::interop::setup::{Announced, AsWidth, Family, Kernel, Opening, Remote, Session, Setup};
use crate::lab::Lab;
use crate::process::Process;

/// A running FRR.
pub(super) struct Frr {
    seat: Seat,
    setup: Setup,
    processes: Vec<Process>,
}

impl Frr {
    pub(super) fn start(lab: &Lab, seat: Seat, setup: Setup) -> anyhow::Result<Self> {
        write_configs(&seat, &config(&setup))?;
        let mut frr = Self {
            seat,
            setup,
            processes: Vec::new(),
        };
        frr.launch(lab)?;
        Ok(frr)
    }

    fn json(&self, words: &str) -> anyhow::Result<Value> {
        let text = ask(&self.seat, &[words])?;
        serde_json::from_str(&text).with_context(|| format!("vtysh {words}: {text:?}"))
    }

    /// What bgpd calls the neighbour.
    fn neighbor(&self, name: &str) -> anyhow::Result<String> {
        let session = self.setup.session(name)?;
        if let Remote::Range(_) = session.remote {
            let neighbors = self.json("show bgp neighbors json")?;
            let first = neighbors.as_object().and_then(|object| {
                object
                    .iter()
                    .find(|(_, neighbor)| neighbor["remoteAs"] == session.remote_as)
            });
            return first
                .map(|(address, _)| address.clone())
                .with_context(|| format!("no dynamic neighbor: {neighbors}"));
        }
        Ok(label(session))
    }

    fn configure(&self, lines: &[String]) -> anyhow::Result<()> {
        let router = format!("router bgp {}", self.setup.asn);
        let mut commands = vec!["configure terminal", router.as_str()];
        commands.extend(lines.iter().map(String::as_str));
        let answer = ask(&self.seat, &commands)?;
        ensure!(!answer.contains("% "), "vtysh {lines:?}: {answer}");
        Ok(())
    }
}

impl Peer for Frr {
    fn session(&self, name: &str) -> anyhow::Result<SessionView> {
        let neighbor = match self.neighbor(name) {
            Ok(neighbor) => neighbor,
            Err(error) => return Ok(SessionView::unknown(error)),
        };
        let all = self.json(&format!("show bgp neighbors {neighbor} json"))?;
        Ok(view(&all[neighbor.as_str()]))
    }

    fn prefixes(&self, family: Family) -> anyhow::Result<BTreeSet<IpNetwork>> {
        let table = self.json(&format!("show bgp {} unicast json", family.word()))?;
        let mut prefixes = BTreeSet::new();
        for (prefix, paths) in table["routes"].as_object().into_iter().flatten() {
            // Its own routes come from no peer.
            let learnt = |path: &Value| path["peerId"].as_str().is_some_and(|id| id != "(unspec)");
            if paths.as_array().is_some_and(|paths| paths.iter().any(learnt)) {
                prefixes.insert(prefix.parse().with_context(|| format!("FRR prefix {prefix:?}"))?);
            }
        }
        Ok(prefixes)
    }

    fn paths(&self, prefix: IpNetwork) -> anyhow::Result<Vec<Path>> {
        let words = format!("show bgp {} unicast {prefix} json", Family::of(prefix).word());
        let table = self.json(&words)?;
        let paths = table["paths"].as_array().into_iter().flatten();
        let learnt = paths.filter(|path| path["peer"]["peerId"].as_str() != Some("0.0.0.0"));
        Ok(learnt.map(path).collect())
    }

    fn announce(&mut self, route: &Announced) -> anyhow::Result<()> {
        self.setup.announce(route);
        ensure!(route.is_plain(), "announced without communities only");
        let family = Family::of(route.prefix).word();
        self.configure(&[
            format!("address-family {family} unicast"),
            format!("network {}", route.prefix),
        ])
    }

    fn withdraw(&mut self, prefix: IpNetwork) -> anyhow::Result<()> {
        self.setup.withdraw(prefix);
        let family = Family::of(prefix).word();
        self.configure(&[
            format!("address-family {family} unicast"),
            format!("no network {prefix}"),
        ])
    }

    fn refresh(&self, session: &str) -> anyhow::Result<()> {
        let answer = ask(
            &self.seat,
            &[&format!("clear bgp {} soft in", self.neighbor(session)?)],
        )?;
        ensure!(answer.trim().is_empty(), "clear bgp: {answer}");
        Ok(())
    }

    fn shut_down(&self, session: &str, text: &str) -> anyhow::Result<()> {
        self.configure(&[format!(
            "neighbor {} shutdown message {text}",
            self.neighbor(session)?
        )])
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        while let Some(process) = self.processes.pop() {
            process.kill()?;
        }
        Ok(())
    }

    fn launch(&mut self, lab: &Lab) -> anyhow::Result<()> {
        // -K: routes of a former zebra stay for so many seconds; -n: no route goes to zebra.
        self.processes
            .push(launch(lab, &self.seat, Daemon::Zebra, &["-K", "120"])?);
        let options: &[&str] = match self.setup.kernel {
            Kernel::Programmed => &[],
            Kernel::Untouched => &["-n"],
        };
        self.processes
            .push(launch(lab, &self.seat, Daemon::Bgpd, options)?);
        Ok(())
    }
}

/// How the configuration calls the neighbour.
fn label(session: &Session) -> String {
    match &session.remote {
        Remote::Address(address) => address.to_string(),
        Remote::Interface(interface) => (*interface).to_owned(),
        Remote::Range(_) => session.name.to_owned(),
    }
}

fn config(setup: &Setup) -> String {
    let mut text = format!(
        "router bgp {}\n bgp router-id {}\n no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n no bgp network import-check\n",
        setup.asn, setup.router_id
    );
    if let Some(time) = setup.sessions.iter().find_map(|session| session.graceful_restart) {
        let _ = write!(
            text,
            " bgp graceful-restart\n bgp graceful-restart restart-time {time}\n bgp graceful-restart preserve-fw-state\n \
             bgp graceful-restart select-defer-time 10\n bgp graceful-restart rib-stale-time 60\n"
        );
    }
    if let Some(time) = setup.sessions.iter().find_map(|session| session.long_lived) {
        let _ = writeln!(text, " bgp long-lived-graceful-restart stale-time {time}");
    }
    for session in &setup.sessions {
        text.push_str(&neighbor(session));
    }
    let mut maps = String::new();
    for family in setup.families() {
        let _ = writeln!(text, " address-family {} unicast", family.word());
        for session in setup
            .sessions
            .iter()
            .filter(|session| session.families.contains(&family))
        {
            text.push_str(&activation(setup, session));
        }
        for (index, route) in setup.routes.iter().enumerate() {
            if Family::of(route.prefix) != family {
                continue;
            }
            maps.push_str(&on_the_way_out(index, route));
            if route.is_plain() || !route.well_known_words().is_empty() {
                let _ = writeln!(text, "  network {}", route.prefix);
            } else {
                let _ = writeln!(text, "  network {} route-map R{index}", route.prefix);
                maps.push_str(&route_map(index, route));
            }
        }
        text.push_str(" exit-address-family\n");
    }
    text + "exit\n" + &maps
}

fn neighbor(session: &Session) -> String {
    let label = label(session);
    let remote_as = session.remote_as;
    let mut text = match &session.remote {
        Remote::Address(_) => format!(" neighbor {label} remote-as {remote_as}\n"),
        Remote::Interface(interface) => format!(" neighbor {interface} interface remote-as {remote_as}\n"),
        Remote::Range(range) => format!(
            " neighbor {label} peer-group\n neighbor {label} remote-as {remote_as}\n bgp listen range {range} peer-group {label}\n"
        ),
    };
    let mut line = |words: String| text.push_str(&format!(" neighbor {label} {words}\n"));
    line(format!(
        "timers {} {}",
        (session.hold_time / 3).max(1),
        session.hold_time
    ));
    line("advertisement-interval 0".to_owned());
    if !matches!(session.remote, Remote::Range(_)) {
        line("timers connect 1".to_owned());
    }
    if session.opening == Opening::Passive {
        line("passive".to_owned());
    }
    if let Some(password) = session.password {
        line(format!("password {password}"));
    }
    if session.gtsm {
        line("ttl-security hops 1".to_owned());
    }
    if let Some(role) = session.role {
        line(format!(
            "local-role {}",
            role.replace("route-server", "rs-server")
                .replace("rs-server-client", "rs-client")
        ));
    }
    if session.extended_next_hop {
        line("capability extended-nexthop".to_owned());
    }
    if session.as_width == AsWidth::TwoOctets {
        line("dont-capability-negotiate".to_owned());
        // Since version 10 it compares the AS_TRANS in our paths with the long number that it took from our OPEN all the same.
        text.push_str(&format!(" no neighbor {label} enforce-first-as\n"));
    }
    text
}

fn activation(setup: &Setup, session: &Session) -> String {
    let label = label(session);
    let mut text = format!("  neighbor {label} activate\n");
    if setup
        .routes
        .iter()
        .any(|route| !route.well_known_words().is_empty())
    {
        let _ = writeln!(text, "  neighbor {label} route-map OUT out");
    }
    if session.add_path {
        let _ = writeln!(text, "  neighbor {label} addpath-tx-all-paths");
    }
    if let Some(max) = session.max_prefixes {
        let _ = writeln!(text, "  neighbor {label} maximum-prefix {max}");
    }
    if session.reflector_client && session.remote_as == setup.asn {
        let _ = writeln!(text, "  neighbor {label} route-reflector-client");
    }
    text
}

/// The part of the map of what is sent that adds well-known communities to one route.
fn on_the_way_out(index: usize, route: &Announced) -> String {
    let words = route.well_known_words();
    if words.is_empty() {
        return String::new();
    }
    format!(
        "ip prefix-list P{index} permit {}\nroute-map OUT permit {}\n match ip address prefix-list P{index}\n set community {} additive\nexit\n\
         route-map OUT permit 65535\nexit\n",
        route.prefix,
        index + 1,
        words.join(" ")
    )
}

fn route_map(index: usize, route: &Announced) -> String {
    let mut text = format!("route-map R{index} permit 10\n");
    for (what, words) in [
        ("community", route.community_words()),
        ("extcommunity rt", route.route_target_words()),
        ("large-community", route.large_community_words()),
    ] {
        if !words.is_empty() {
            let _ = writeln!(text, " set {what} {}", words.join(" "));
        }
    }
    text + "exit\n"
}

/// Reads a neighbour of `show bgp neighbors json`.
fn view(neighbor: &Value) -> SessionView {
    let state = neighbor["bgpState"]
        .as_str()
        .unwrap_or("unknown to bgpd")
        .to_owned();
    let capabilities = &neighbor["neighborCapabilities"];
    let mut view = SessionView {
        established: state == "Established",
        state,
        last_error: [
            "lastNotificationReason",
            "lastShutdownDescription",
            "lastResetDueTo",
        ]
        .iter()
        .filter_map(|key| neighbor[key].as_str())
        .collect::<Vec<_>>()
        .join("; "),
        ..SessionView::default()
    };
    if view.established {
        let families = &capabilities["multiprotocolExtensions"];
        let came = |value: &Value| {
            value.to_string().to_lowercase().contains("rece") || value.to_string().contains("recieved")
        };
        view.note(&ALL, |capability| match capability {
            Capability::Ipv4 => came(&families["ipv4Unicast"]),
            Capability::Ipv6 => came(&families["ipv6Unicast"]),
            Capability::RouteRefresh => came(&capabilities["routeRefresh"]),
            Capability::EnhancedRefresh => came(&capabilities["enhancedRouteRefresh"]),
            Capability::FourOctetAs => came(&capabilities["4byteAs"]),
            Capability::ExtendedMessage => came(&capabilities["extendedMessage"]),
            Capability::GracefulRestart => came(&capabilities["gracefulRestart"]),
            Capability::LongLived => came(&capabilities["longLivedGracefulRestart"]),
            Capability::AddPath => came(&capabilities["addPath"]),
            Capability::ExtendedNextHop => came(&capabilities["extendedNexthop"]),
            Capability::Role => came(&capabilities["role"]),
        });
    }
    view
}

const ALL: [Capability; 11] = [
    Capability::Ipv4,
    Capability::Ipv6,
    Capability::RouteRefresh,
    Capability::EnhancedRefresh,
    Capability::FourOctetAs,
    Capability::ExtendedMessage,
    Capability::GracefulRestart,
    Capability::LongLived,
    Capability::AddPath,
    Capability::ExtendedNextHop,
    Capability::Role,
];

/// Reads a path of `show bgp … PREFIX json`.
fn path(path: &Value) -> Path {
    let mut communities = BTreeSet::new();
    for key in ["community", "extendedCommunity", "largeCommunity"] {
        let list = path[key]["string"].as_str().unwrap_or_default();
        communities.extend(
            list.split_ascii_whitespace()
                .map(|word| word.replace("RT:", "rt:")),
        );
    }
    let hops = path["nexthops"].as_array().into_iter().flatten();
    Path {
        next_hop: hops
            .filter_map(|hop| hop["ip"].as_str())
            .find_map(|ip| ip.parse().ok()),
        as_path: path["aspath"]["string"]
            .as_str()
            .unwrap_or_default()
            .replace("Local", ""),
        communities,
        stale: path["stale"] == true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_neighbor_is_read_with_what_it_offered() {
        let neighbor = json!({"bgpState": "Established", "lastShutdownDescription": "going home", "neighborCapabilities": {
            "4byteAs": "advertisedAndReceived", "extendedMessage": "advertised", "extendedNexthop": "received",
            "addPath": {"ipv4Unicast": {"rxAdvertised": true}},
            "multiprotocolExtensions": {"ipv4Unicast": {"advertisedAndReceived": true}, "ipv6Unicast": {"advertised": true}}}});
        let view = view(&neighbor);
        assert!(view.established && view.last_error.contains("going home"));
        assert_eq!(
            view.came(),
            [
                Capability::Ipv4,
                Capability::FourOctetAs,
                Capability::ExtendedNextHop
            ]
        );
    }

    #[test]
    fn a_path_is_read_with_its_communities() {
        let read = path(
            &json!({"aspath": {"string": "65001 2"}, "nexthops": [{"ip": "192.0.2.1"}], "stale": true,
            "community": {"string": "1:2"}, "extendedCommunity": {"string": "RT:1:2"}, "largeCommunity": {"string": "1:2:3"}}),
        );
        assert_eq!(
            read.communities.iter().map(String::as_str).collect::<Vec<_>>(),
            ["1:2", "1:2:3", "rt:1:2"]
        );
        assert!(read.stale && read.as_path == "65001 2");
    }
}
