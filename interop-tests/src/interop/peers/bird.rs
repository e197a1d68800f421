//! BIRD 2 and 3.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Context, bail, ensure};
use ipnetwork::IpNetwork;

use super::Kind;
use crate::daemon::bird::{CONFIG, ask, launch};
use crate::daemon::seat::Seat;
use crate::interop::peer::{Capability, Path, Peer, SessionView};
use crate::interop::setup::{Announced, AsWidth, Family, Kernel, Opening, Remote, Session, Setup};
use crate::lab::Lab;
use crate::process::Process;

/// A running BIRD.
pub(super) struct Bird {
    seat: Seat,
    setup: Setup,
    major: u32,
    process: Option<Process>,
}

impl Bird {
    pub(super) fn start(lab: &Lab, seat: Seat, setup: Setup) -> anyhow::Result<Self> {
        seat.write(CONFIG, &config(&setup))?;
        let major = Kind::Bird.major(&seat.installation)?;
        let process = Some(launch(lab, &seat, &[])?);
        Ok(Self {
            seat,
            setup,
            major,
            process,
        })
    }

    fn reconfigure(&self) -> anyhow::Result<()> {
        self.seat.write(CONFIG, &config(&self.setup))?;
        let answer = ask(&self.seat, "configure")?;
        ensure!(answer.contains("Reconfigur"), "birdc configure: {answer}");
        Ok(())
    }

    /// The protocol of a session: dynamic ones are named by BIRD.
    fn protocol(&self, session: &str) -> anyhow::Result<String> {
        let known = self.setup.sessions.iter().find(|s| s.name == session);
        if matches!(known.map(|s| &s.remote), Some(Remote::Address(_))) {
            return Ok(protocol_name(session));
        }
        let session = protocol_name(session);
        let text = ask(&self.seat, "show protocols")?;
        let name = text
            .lines()
            .filter_map(|line| line.split_ascii_whitespace().next())
            .find(|name| {
                name.strip_prefix(session.as_str())
                    .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
            });
        name.map(str::to_owned)
            .with_context(|| format!("no dynamic session {session} in {text}"))
    }
}

impl Peer for Bird {
    fn session(&self, name: &str) -> anyhow::Result<SessionView> {
        let protocol = match self.protocol(name) {
            Ok(protocol) => protocol,
            Err(error) => return Ok(SessionView::unknown(error)),
        };
        Ok(parse_protocol(&ask(
            &self.seat,
            &format!("show protocols all {protocol}"),
        )?))
    }

    fn prefixes(&self, family: Family) -> anyhow::Result<BTreeSet<IpNetwork>> {
        let text = ask(&self.seat, "show route where source = RTS_BGP")?;
        let prefixes = parse_prefixes(&text)?;
        Ok(prefixes
            .into_iter()
            .filter(|prefix| Family::of(*prefix) == family)
            .collect())
    }

    fn paths(&self, prefix: IpNetwork) -> anyhow::Result<Vec<Path>> {
        let text = ask(
            &self.seat,
            &format!("show route all where net = {prefix} && source = RTS_BGP"),
        )?;
        parse_paths(&text)
    }

    fn announce(&mut self, route: &Announced) -> anyhow::Result<()> {
        self.setup.announce(route);
        self.reconfigure()
    }

    fn withdraw(&mut self, prefix: IpNetwork) -> anyhow::Result<()> {
        self.setup.withdraw(prefix);
        self.reconfigure()
    }

    fn refresh(&self, session: &str) -> anyhow::Result<()> {
        let what = if self.major < 3 { "reload" } else { "reload bgp" };
        let answer = ask(&self.seat, &format!("{what} in {}", self.protocol(session)?))?;
        ensure!(answer.contains(": reloading"), "birdc {what} in: {answer}");
        Ok(())
    }

    fn shut_down(&self, session: &str, text: &str) -> anyhow::Result<()> {
        let answer = ask(
            &self.seat,
            &format!("disable {} \"{text}\"", self.protocol(session)?),
        )?;
        ensure!(answer.contains("disabled"), "birdc disable: {answer}");
        Ok(())
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("BIRD runs")?.kill()
    }

    fn launch(&mut self, lab: &Lab) -> anyhow::Result<()> {
        // -R: graceful restart recovery.
        self.process = Some(launch(lab, &self.seat, &["-R"])?);
        Ok(())
    }
}

fn config(setup: &Setup) -> String {
    let mut text = format!(
        "log stderr all;\nrouter id {};\nprotocol device {{ scan time 2; }}\n",
        setup.router_id
    );
    for family in setup.families() {
        let word = family.word();
        if setup.kernel == Kernel::Programmed {
            let _ = writeln!(
                text,
                "protocol kernel {{ persist; {word} {{ import none; export where source = RTS_BGP; }}; }}"
            );
        }
        let _ = writeln!(text, "protocol static static_{word} {{ {word};");
        for route in setup.routes_of(family) {
            let _ = writeln!(text, "\troute {} blackhole{}", route.prefix, attributes(route));
        }
        text.push_str("}\n");
    }
    for session in &setup.sessions {
        text.push_str(&protocol(setup, session));
    }
    text
}

fn attributes(route: &Announced) -> String {
    let mut text = String::new();
    for (high, low) in &route.communities {
        let _ = write!(text, " bgp_community.add(({high},{low}));");
    }
    for (asn, number) in &route.route_targets {
        let _ = write!(text, " bgp_ext_community.add((rt,{asn},{number}));");
    }
    for (global, one, two) in &route.large_communities {
        let _ = write!(text, " bgp_large_community.add(({global},{one},{two}));");
    }
    if text.is_empty() {
        ";".to_owned()
    } else {
        format!(" {{{text} }};")
    }
}

/// "us" alone would be microseconds to BIRD.
fn protocol_name(session: &str) -> String {
    format!("with_{session}")
}

fn protocol(setup: &Setup, session: &Session) -> String {
    let name = protocol_name(session.name);
    let mut text = match &session.remote {
        Remote::Interface(interface) => format!(
            "protocol radv {{ interface \"{interface}\" {{ min ra interval 3; max ra interval 4; }}; }}\nprotocol bgp {name} {{\n\
             \tneighbor range fe80::/10 as {}; interface \"{interface}\"; dynamic name \"{name}\";\n",
            session.remote_as
        ),
        Remote::Range(range) => format!(
            "protocol bgp {name} {{\n\tneighbor range {range} as {}; dynamic name \"{name}\";\n",
            session.remote_as
        ),
        Remote::Address(address) => format!(
            "protocol bgp {name} {{\n\tneighbor {address} as {};\n",
            session.remote_as
        ),
    };
    let local = session.local.map(|local| local.to_string()).unwrap_or_default();
    let _ = writeln!(text, "\tlocal {local} as {};", setup.asn);
    let _ = writeln!(
        text,
        "\thold time {}; keepalive time {};\n\tconnect delay time 1; connect retry time 1; error wait time 1, 2;",
        session.hold_time,
        (session.hold_time / 3).max(1)
    );
    if session.opening == Opening::Passive {
        text.push_str("\tpassive;\n");
    }
    if session.remote_as == setup.asn {
        text.push_str(if session.reflector_client {
            "\trr client;\n"
        } else {
            ""
        });
    }
    if let Some(password) = session.password {
        let _ = writeln!(text, "\tpassword \"{password}\";");
    }
    if session.gtsm {
        text.push_str("\tttl security on;\n");
    }
    match session.graceful_restart {
        Some(time) => _ = writeln!(text, "\tgraceful restart on; graceful restart time {time};"),
        None => text.push_str("\tgraceful restart off;\n"),
    }
    if let Some(time) = session.long_lived {
        let _ = writeln!(
            text,
            "\tlong lived graceful restart on; long lived stale time {time};"
        );
    }
    if let Some(role) = session.role {
        let _ = writeln!(text, "\tlocal role {};", role.replace('-', "_"));
    }
    if session.as_width == AsWidth::TwoOctets {
        text.push_str("\tenable as4 off;\n");
    }
    text.push_str("\tenable extended messages on;\n");
    for family in &session.families {
        text.push_str(&channel(session, *family));
    }
    text.push_str("}\n");
    text
}

fn channel(session: &Session, family: Family) -> String {
    let mut text = format!("\t{} {{ import all; export all;", family.word());
    if session.add_path {
        text.push_str(" add paths on;");
    }
    if session.extended_next_hop && family == Family::Ipv4 {
        text.push_str(" extended next hop on;");
    }
    if let Some(max) = session.max_prefixes {
        let _ = write!(text, " receive limit {max} action disable;");
    }
    text.push_str(" };\n");
    text
}

/// What a protocol's last section heading is called, and the capability it shows.
const SHOWN: [(&str, Capability); 9] = [
    ("Route refresh", Capability::RouteRefresh),
    ("Enhanced refresh", Capability::EnhancedRefresh),
    ("4-octet AS numbers", Capability::FourOctetAs),
    ("Extended message", Capability::ExtendedMessage),
    ("Graceful restart", Capability::GracefulRestart),
    ("Long-lived graceful restart", Capability::LongLived),
    ("ADD-PATH", Capability::AddPath),
    ("Extended next hop", Capability::ExtendedNextHop),
    ("Role", Capability::Role),
];

/// Reads `show protocols all NAME`.
fn parse_protocol(text: &str) -> SessionView {
    let value = |key: &str| {
        let line = text
            .lines()
            .map(str::trim)
            .find_map(|line| line.strip_prefix(key))?;
        Some(line.trim_start_matches(':').trim().to_owned())
    };
    let state = value("BGP state").unwrap_or_else(|| text.to_owned());
    let mut view = SessionView {
        established: state == "Established",
        state,
        last_error: [value("Message"), value("Last error")]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(": "),
        ..SessionView::default()
    };
    let Some((_, neighbor)) = text.split_once("Neighbor capabilities") else {
        return view;
    };
    let neighbor = neighbor.split("Session:").next().unwrap_or_default();
    let headings: Vec<&str> = neighbor.lines().map(str::trim).collect();
    for (heading, capability) in SHOWN {
        let came = headings
            .iter()
            .any(|line| line.split(':').next() == Some(heading));
        view.received.insert(capability, came);
    }
    let families = headings
        .iter()
        .find_map(|line| line.strip_prefix("AF announced:"));
    for (word, capability) in [("ipv4", Capability::Ipv4), ("ipv6", Capability::Ipv6)] {
        let came = families.is_some_and(|families| families.split_ascii_whitespace().any(|f| f == word));
        view.received.insert(capability, came);
    }
    view
}

fn parse_prefixes(text: &str) -> anyhow::Result<BTreeSet<IpNetwork>> {
    let mut prefixes = BTreeSet::new();
    for line in text.lines() {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        if line.starts_with(|c: char| c.is_ascii_hexdigit() || c == ':') && first.contains('/') {
            prefixes.insert(
                first
                    .parse()
                    .with_context(|| format!("birdc show route: {line:?}"))?,
            );
        }
    }
    Ok(prefixes)
}

/// Reads `show route all` of one prefix: a path begins with a line that has `[PROTOCOL TIME]`; its attributes follow, called
/// `BGP.as_path` by BIRD 2 and `bgp_path` by BIRD 3.
fn parse_paths(text: &str) -> anyhow::Result<Vec<Path>> {
    let mut paths: Vec<BTreeMap<&str, &str>> = Vec::new();
    for line in text.lines() {
        if line.contains(" [") && !line.starts_with('\t') {
            let stale = line.contains("s) [");
            paths.push(BTreeMap::from([("stale", if stale { "yes" } else { "" })]));
        } else if let (Some(path), Some((key, value))) = (paths.last_mut(), line.trim().split_once(':')) {
            let key = key
                .strip_prefix("BGP.")
                .or(key.strip_prefix("bgp_"))
                .unwrap_or(key);
            path.insert(key, value.trim());
        }
    }
    paths.iter().map(path).collect()
}

fn path(fields: &BTreeMap<&str, &str>) -> anyhow::Result<Path> {
    let field = |names: [&str; 2]| {
        names
            .iter()
            .find_map(|name| fields.get(name).copied())
            .unwrap_or_default()
    };
    let next_hop = field(["next_hop", "next_hop"]).split_ascii_whitespace().next();
    let mut communities = BTreeSet::new();
    for name in ["community", "ext_community", "large_community"] {
        let list = fields.get(name).copied().unwrap_or_default();
        for item in list.split(')').map(|item| item.trim().trim_start_matches('(')) {
            if !item.is_empty() {
                communities.insert(item.replace(", ", ",").replace(',', ":"));
            }
        }
    }
    Ok(Path {
        next_hop: match next_hop {
            Some(hop) => Some(hop.parse().with_context(|| format!("BIRD next hop {hop:?}"))?),
            None => bail!("no next hop in {fields:?}"),
        },
        as_path: field(["as_path", "path"]).to_owned(),
        communities,
        stale: fields.get("stale") == Some(&"yes"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_read_with_what_the_neighbor_offered() {
        let view = parse_protocol(
            "Name Proto\nus BGP --- up 21:53 Established\n  BGP state:          Established\n    Local capabilities\n      Role: peer\n    \
             Neighbor capabilities\n      Multiprotocol\n        AF announced: ipv4\n      Route refresh\n      Graceful restart\n        \
             Restart time: 120\n      4-octet AS numbers\n    Session:          external AS4\n",
        );
        assert!(view.established);
        assert_eq!(
            view.came(),
            [
                Capability::Ipv4,
                Capability::RouteRefresh,
                Capability::FourOctetAs,
                Capability::GracefulRestart
            ]
        );
        assert!(!view.received[&Capability::Role]);
    }

    #[test]
    fn paths_of_both_versions_are_read() {
        let two = "BIRD 2.0.12 ready.\nTable master4:\n10.3.0.0/24          unicast [us 21:53:51.902] * (100s) [AS65003i]\n\tvia 192.0.2.3 on lan\n\
                   \tType: BGP univ\n\tBGP.as_path: 65003 7\n\tBGP.next_hop: 192.0.2.3\n\tBGP.community: (65003,1) (65003,2)\n\
                   \tBGP.ext_community: (rt, 65003, 1)\n\tBGP.large_community: (65003, 1, 2)\n";
        let path = &parse_paths(two).unwrap()[0];
        assert_eq!(path.as_path, "65003 7");
        assert!(path.stale);
        assert_eq!(
            path.communities.iter().map(String::as_str).collect::<Vec<_>>(),
            ["65003:1", "65003:1:2", "65003:2", "rt:65003:1"]
        );
        let three = "10.3.0.0/24          unicast [us 21:53:51.902] * (100) [AS65003i]\n\tvia 192.0.2.3 on lan\n\tbgp_path: 65003\n\
                     \tbgp_next_hop: 192.0.2.3\n                     unicast [us 21:53:51.902] (100) [AS65003i]\n\tbgp_path: 1\n\tbgp_next_hop: fe80::1 \n";
        let paths = parse_paths(three).unwrap();
        assert_eq!(paths.len(), 2);
        assert_eq!(paths[1].next_hop, Some("fe80::1".parse().unwrap()));
    }
}
