//! OpenBGPD.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::{Context, ensure};
use ipnetwork::IpNetwork;
use serde_json::Value;

use super::Kind;
use crate::daemon::openbgpd::{CONFIG, ask, ask_json, launch, socket_line};
use crate::daemon::seat::Seat;
use crate::interop::peer::{Capability, Path, Peer, SessionView, peer_cannot};
use crate::interop::setup::{Announced, AsWidth, Family, Kernel, Opening, Remote, Session, Setup};
use crate::lab::Lab;
use crate::process::{Process, tail};

/// A running OpenBGPD.
pub(super) struct Openbgpd {
    seat: Seat,
    setup: Setup,
    major: u32,
    process: Option<Process>,
}

impl Openbgpd {
    pub(super) fn start(lab: &Lab, seat: Seat, setup: Setup) -> anyhow::Result<Self> {
        let major = Kind::Openbgpd.major(&seat.installation)?;
        refuse(&setup, major)?;
        seat.write(CONFIG, &config(&seat, &setup, major))?;
        let process = Some(launch(lab, &seat)?);
        Ok(Self {
            seat,
            setup,
            major,
            process,
        })
    }

    fn reload(&self) -> anyhow::Result<()> {
        refuse(&self.setup, self.major)?;
        self.seat
            .write(CONFIG, &config(&self.seat, &self.setup, self.major))?;
        ask(&self.seat, &["reload"])?;
        Ok(())
    }

    /// How `bgpctl` finds a neighbour: by its address.
    fn neighbor(&self, name: &str) -> anyhow::Result<String> {
        let all = ask_json(&self.seat, &["show", "neighbor"])?;
        let found = all["neighbors"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|neighbor| neighbor["description"] == name && neighbor["config"]["template"] != true);
        found
            .and_then(|neighbor| neighbor["remote_addr"].as_str())
            .map(str::to_owned)
            .with_context(|| format!("OpenBGPD has no neighbor {name}: {all}"))
    }
}

/// What OpenBGPD on Linux has no means for.
fn refuse(setup: &Setup, major: u32) -> anyhow::Result<()> {
    if setup.kernel == Kernel::Programmed {
        return peer_cannot("the portable OpenBGPD programs no routes into the kernel of Linux");
    }
    for session in &setup.sessions {
        if session.long_lived.is_some() {
            return peer_cannot("long-lived graceful restart is not implemented");
        }
        if let Remote::Interface(_) = session.remote {
            return peer_cannot("a neighbour is named by its address only");
        }
        if session.extended_next_hop && major < 8 {
            return peer_cannot("IPv4 routes with IPv6 next hops came with version 8");
        }
    }
    Ok(())
}

impl Peer for Openbgpd {
    fn session(&self, name: &str) -> anyhow::Result<SessionView> {
        let neighbor = match self.neighbor(name) {
            Ok(neighbor) => neighbor,
            Err(error) => return Ok(SessionView::unknown(error)),
        };
        let all = ask_json(&self.seat, &["show", "neighbor", &neighbor])?;
        let log = tail(&self.seat.folder.join("openbgpd.log"), 20);
        Ok(view(&all["neighbors"][0], &log))
    }

    fn prefixes(&self, family: Family) -> anyhow::Result<BTreeSet<IpNetwork>> {
        let rib = ask_json(&self.seat, &["show", "rib", family.word()])?;
        let learnt = rib["rib"].as_array().into_iter().flatten().filter(is_learnt);
        learnt
            .filter_map(|path| path["prefix"].as_str())
            .map(|prefix| {
                prefix
                    .parse()
                    .with_context(|| format!("OpenBGPD prefix {prefix:?}"))
            })
            .collect()
    }

    fn paths(&self, prefix: IpNetwork) -> anyhow::Result<Vec<Path>> {
        let rib = ask_json(&self.seat, &["show", "rib", "detail", &prefix.to_string()])?;
        let learnt = rib["rib"].as_array().into_iter().flatten().filter(is_learnt);
        let exact = learnt.filter(|path| path["prefix"] == prefix.to_string());
        Ok(exact.map(path).collect())
    }

    fn announce(&mut self, route: &Announced) -> anyhow::Result<()> {
        self.setup.announce(route);
        self.reload()
    }

    fn withdraw(&mut self, prefix: IpNetwork) -> anyhow::Result<()> {
        self.setup.withdraw(prefix);
        self.reload()
    }

    fn refresh(&self, session: &str) -> anyhow::Result<()> {
        let answer = ask(&self.seat, &["neighbor", &self.neighbor(session)?, "refresh"])?;
        ensure!(answer.contains("processed"), "bgpctl refresh: {answer}");
        Ok(())
    }

    fn shut_down(&self, session: &str, text: &str) -> anyhow::Result<()> {
        let answer = ask(&self.seat, &["neighbor", &self.neighbor(session)?, "down", text])?;
        ensure!(answer.contains("processed"), "bgpctl down: {answer}");
        Ok(())
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        // Its two helpers end by themselves when their pipes close.
        self.process.take().context("OpenBGPD runs")?.kill()
    }

    fn launch(&mut self, lab: &Lab) -> anyhow::Result<()> {
        self.process = Some(launch(lab, &self.seat)?);
        Ok(())
    }
}

fn is_learnt(path: &&Value) -> bool {
    path["neighbor"]["description"] != "LOCAL"
}

fn config(seat: &Seat, setup: &Setup, major: u32) -> String {
    let mut text = format!(
        "AS {}\nrouter-id {}\n{}fib-update no\nconnect-retry 1\nholdtime min 3\n",
        setup.asn,
        setup.router_id,
        socket_line(seat)
    );
    let locals: BTreeSet<_> = setup
        .sessions
        .iter()
        .filter_map(|session| session.local)
        .collect();
    for local in locals {
        let _ = writeln!(text, "listen on {local}");
    }
    for route in &setup.routes {
        let _ = writeln!(text, "network {}{}", route.prefix, attributes(setup, route));
    }
    for session in &setup.sessions {
        text.push_str(&neighbor(setup, session, major));
    }
    text.push_str("allow from any\nallow to any\n");
    for route in &setup.routes {
        for word in route.well_known_words() {
            let _ = writeln!(text, "match to any prefix {} set community {word}", route.prefix);
        }
    }
    text
}

fn attributes(setup: &Setup, route: &Announced) -> String {
    let mut text = String::new();
    if let Some(hop) = setup.explicit_next_hop(route.prefix) {
        let _ = write!(text, " nexthop {hop}");
    }
    for (what, words) in [
        ("community", route.plain_community_words()),
        ("ext-community rt", route.route_target_words()),
        ("large-community", route.large_community_words()),
    ] {
        for word in words {
            let _ = write!(text, " {what} {word}");
        }
    }
    if text.is_empty() {
        text
    } else {
        format!(" set {{{text} }}")
    }
}

fn neighbor(setup: &Setup, session: &Session, major: u32) -> String {
    let remote = &session.remote;
    let mut text = format!(
        "neighbor {remote} {{\n\tremote-as {}\n\tdescr {}\n\tholdtime {}\n",
        session.remote_as, session.name, session.hold_time
    );
    let mut line = |words: String| text.push_str(&format!("\t{words}\n"));
    if let Some(local) = session.local {
        line(format!("local-address {local}"));
    }
    for family in [Family::Ipv4, Family::Ipv6] {
        let what = if session.families.contains(&family) {
            "unicast"
        } else {
            "none"
        };
        line(format!(
            "announce {} {what}",
            if family == Family::Ipv4 { "IPv4" } else { "IPv6" }
        ));
    }
    line("announce enhanced refresh yes".to_owned());
    if session.opening == Opening::Passive {
        line("passive".to_owned());
    }
    if let Some(password) = session.password {
        line(format!("tcp md5sig password {password}"));
    }
    if session.gtsm {
        line("ttl-security yes".to_owned());
    }
    if session.graceful_restart.is_none() {
        line("announce restart no".to_owned());
    }
    if session.add_path {
        line("announce add-path recv yes".to_owned());
        line("announce add-path send all".to_owned());
    }
    if session.extended_next_hop {
        line("announce extended nexthop yes".to_owned());
    }
    if session.as_width == AsWidth::TwoOctets {
        line("announce as-4byte no".to_owned());
        // It would compare the AS_TRANS in our paths with the long number that it expects in our OPEN.
        line("enforce neighbor-as no".to_owned());
    }
    if let Some(role) = session.role {
        let role = role.replace("route-server", "rs");
        if major < 8 {
            line(format!("announce policy {role}"));
        } else {
            line(format!("role {role}"));
            line("announce policy yes".to_owned());
        }
    }
    if let Some(max) = session.max_prefixes {
        line(format!("max-prefix {max}"));
    }
    if session.reflector_client && session.remote_as == setup.asn {
        line("route-reflector".to_owned());
    }
    text + "}\n"
}

/// Reads a neighbour of `show neighbor`.
fn view(neighbor: &Value, log: &str) -> SessionView {
    let state = neighbor["state"].as_str().unwrap_or("unknown to bgpd").to_owned();
    let mut view = SessionView {
        established: state == "Established",
        state,
        last_error: ["last_shutdown_reason", "last_error_received", "last_error_sent"]
            .iter()
            .filter_map(|key| neighbor[key].as_str())
            .chain([log])
            .collect::<Vec<_>>()
            .join("; "),
        ..SessionView::default()
    };
    let remote = &neighbor["session"]["remote"]["capabilities"];
    if remote.is_object() {
        let shown = [
            Capability::Ipv4,
            Capability::Ipv6,
            Capability::RouteRefresh,
            Capability::EnhancedRefresh,
            Capability::FourOctetAs,
            Capability::GracefulRestart,
            Capability::AddPath,
        ];
        let families = remote["multiprotocol"].to_string();
        view.note(&shown, |capability| match capability {
            Capability::Ipv4 => families.contains("IPv4 unicast"),
            Capability::Ipv6 => families.contains("IPv6 unicast"),
            Capability::RouteRefresh => remote["refresh"] == true,
            Capability::EnhancedRefresh => remote["enhanced_refresh"] == true,
            Capability::FourOctetAs => remote["as4byte"] == true,
            Capability::GracefulRestart => remote["graceful_restart"]["timeout"].is_u64(),
            _ => remote["add-path"]
                .as_array()
                .is_some_and(|families| !families.is_empty()),
        });
    }
    view
}

/// Reads a path of `show rib detail`.
fn path(path: &Value) -> Path {
    let mut communities = BTreeSet::new();
    for key in ["communities", "extended_communities", "large_communities"] {
        let list = path[key]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        communities.extend(list.map(|text| text.replace("rt ", "rt:")));
    }
    Path {
        next_hop: path["exit_nexthop"].as_str().and_then(|hop| hop.parse().ok()),
        as_path: path["aspath"].as_str().unwrap_or_default().to_owned(),
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
        let neighbor = json!({"state": "Established", "last_shutdown_reason": "going home", "session": {"remote": {"capabilities": {
            "as4byte": true, "refresh": true, "multiprotocol": ["IPv4 unicast"], "graceful_restart": {"eor": true, "restart": false}}}}});
        let view = view(&neighbor, "");
        assert!(view.established && view.last_error.contains("going home"));
        assert_eq!(
            view.came(),
            [
                Capability::Ipv4,
                Capability::RouteRefresh,
                Capability::FourOctetAs
            ]
        );
    }

    #[test]
    fn a_path_is_read_with_its_communities() {
        let read = path(
            &json!({"aspath": "65001 2", "exit_nexthop": "192.0.2.1", "communities": ["1:2"],
            "extended_communities": ["rt 1:2"], "large_communities": ["1:2:3"]}),
        );
        assert_eq!(
            read.communities.iter().map(String::as_str).collect::<Vec<_>>(),
            ["1:2", "1:2:3", "rt:1:2"]
        );
        assert_eq!(read.next_hop, Some("192.0.2.1".parse().unwrap()));
    }
}
