//! ExaBGP, which keeps no table: what it learnt is what it heard.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use anyhow::Context;
use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::daemon::exabgp::{CONFIG, command, heard, helpers, launch};
use crate::daemon::seat::Seat;
use crate::interop::peer::{Capability, Path, Peer, SessionView, peer_cannot};
use crate::interop::setup::{Announced, AsWidth, Family, Kernel, Opening, Remote, Session, Setup};
use crate::lab::Lab;
use crate::process::{Process, tail};

/// A running ExaBGP.
pub(super) struct Exabgp {
    seat: Seat,
    setup: Setup,
    process: Option<Process>,
}

impl Exabgp {
    pub(super) fn start(lab: &Lab, seat: Seat, setup: Setup) -> anyhow::Result<Self> {
        refuse(&setup)?;
        let text = helpers(&seat)?
            + &setup
                .sessions
                .iter()
                .map(|session| neighbor(&setup, session))
                .collect::<String>();
        seat.write(CONFIG, &text)?;
        let mut exabgp = Self {
            seat,
            setup,
            process: None,
        };
        exabgp.launch(lab)?;
        Ok(exabgp)
    }

    fn tell_all(&self, what: &str) -> anyhow::Result<()> {
        for session in &self.setup.sessions {
            command(&self.seat, &format!("neighbor {} {what}", session.address()?))?;
        }
        Ok(())
    }
}

/// What ExaBGP has no means for.
fn refuse(setup: &Setup) -> anyhow::Result<()> {
    if setup.kernel == Kernel::Programmed {
        return peer_cannot("ExaBGP programs no routes into the kernel");
    }
    if setup.sessions.len() > 1 {
        return peer_cannot("ExaBGP passes no routes on from one neighbour to another");
    }
    for session in &setup.sessions {
        if session.long_lived.is_some() {
            return peer_cannot("long-lived graceful restart is not implemented");
        }
        if session.role.is_some() {
            return peer_cannot("roles are not implemented");
        }
        if session.max_prefixes.is_some() {
            return peer_cannot("there is no prefix limit");
        }
        if session.reflector_client {
            return peer_cannot("ExaBGP passes no routes on from one neighbour to another");
        }
        if let Remote::Interface(_) = session.remote {
            return peer_cannot("a neighbour is named by its address only");
        }
    }
    Ok(())
}

impl Peer for Exabgp {
    fn session(&self, name: &str) -> anyhow::Result<SessionView> {
        self.setup.session(name)?;
        let log = tail(&self.seat.folder.join("exabgp.log"), 5);
        Ok(view(&heard(&self.seat)?, &log))
    }

    fn prefixes(&self, family: Family) -> anyhow::Result<BTreeSet<IpNetwork>> {
        let table = table(&heard(&self.seat)?);
        Ok(table
            .into_keys()
            .map(|(prefix, _)| prefix)
            .filter(|prefix| Family::of(*prefix) == family)
            .collect())
    }

    fn paths(&self, prefix: IpNetwork) -> anyhow::Result<Vec<Path>> {
        let table = table(&heard(&self.seat)?);
        Ok(table
            .into_iter()
            .filter(|((known, _), _)| *known == prefix)
            .map(|(_, path)| path)
            .collect())
    }

    fn announce(&mut self, route: &Announced) -> anyhow::Result<()> {
        self.setup.announce(route);
        self.tell_all(&format!("announce {}", route_text(&self.setup, route)))
    }

    fn withdraw(&mut self, prefix: IpNetwork) -> anyhow::Result<()> {
        self.setup.withdraw(prefix);
        self.tell_all(&format!("withdraw route {prefix} next-hop self"))
    }

    fn refresh(&self, session: &str) -> anyhow::Result<()> {
        let address = self.setup.session(session)?.address()?;
        command(
            &self.seat,
            &format!("neighbor {address} announce route-refresh ipv4 unicast"),
        )
    }

    fn shut_down(&self, _session: &str, _text: &str) -> anyhow::Result<()> {
        peer_cannot("a session is ended without words")
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("ExaBGP runs")?.kill()
    }

    fn launch(&mut self, lab: &Lab) -> anyhow::Result<()> {
        let addresses: Vec<String> = self
            .setup
            .sessions
            .iter()
            .filter_map(|s| s.local)
            .map(|a| a.to_string())
            .collect();
        self.process = Some(launch(lab, &self.seat, &addresses)?);
        Ok(())
    }

    fn send_attributes(&mut self, prefix: IpNetwork, attributes: &str) -> anyhow::Result<()> {
        self.tell_all(&format!("announce route {prefix} next-hop self {attributes}"))
    }
}

fn neighbor(setup: &Setup, session: &Session) -> String {
    let enable = |yes: bool| if yes { "enable" } else { "disable" };
    let remote = &session.remote;
    let mut text = format!(
        "neighbor {remote} {{\n\trouter-id {}; local-as {}; peer-as {}; hold-time {};\n",
        setup.router_id, setup.asn, session.remote_as, session.hold_time
    );
    if let Some(local) = session.local {
        let _ = writeln!(text, "\tlocal-address {local};");
    }
    let _ = writeln!(text, "\tpassive {};", session.opening != Opening::Eager);
    if let Some(password) = session.password {
        let _ = writeln!(text, "\tmd5-password \"{password}\";");
    }
    if session.gtsm {
        text.push_str("\toutgoing-ttl 255;\n\tincoming-ttl 255;\n");
    }
    let _ = writeln!(
        text,
        "\tcapability {{ asn4 {}; route-refresh enable; add-path {}; extended-message enable; nexthop {}; multi-session disable; \
         operational disable; aigp disable;{} }}",
        enable(session.as_width == AsWidth::FourOctets),
        if session.add_path {
            "send/receive"
        } else {
            "disable"
        },
        enable(session.extended_next_hop),
        session
            .graceful_restart
            .map(|time| format!(" graceful-restart {time};"))
            .unwrap_or_default(),
    );
    let mut families = session.families.clone();
    if session.extended_next_hop && !families.contains(&Family::Ipv6) {
        // Without the family of the next hop it says nothing of the next hop either.
        families.push(Family::Ipv6);
    }
    let families: String = families
        .iter()
        .map(|family| format!(" {} unicast;", family.word()))
        .collect();
    let _ = writeln!(text, "\tfamily {{{families} }}");
    if session.add_path {
        let _ = writeln!(text, "\tadd-path {{{families} }}");
    }
    if session.extended_next_hop {
        text.push_str("\tnexthop { ipv4 unicast ipv6; }\n");
    }
    text.push_str(
        "\tapi { processes [ heard commands ]; neighbor-changes; receive { parsed; open; update; notification; refresh; } }\n\tstatic {\n",
    );
    for route in &setup.routes {
        let _ = writeln!(text, "\t\t{};", route_text(setup, route));
    }
    text + "\t}\n}\n"
}

fn route_text(setup: &Setup, route: &Announced) -> String {
    let over_v6 = setup.sessions.iter().any(|session| session.extended_next_hop);
    let explicit = setup
        .explicit_next_hop(route.prefix)
        .or(over_v6.then_some(setup.next_hop_v6));
    let mut text = match explicit {
        Some(hop) => format!("route {} next-hop {hop}", route.prefix),
        None => format!("route {} next-hop self", route.prefix),
    };
    let mut list = |name: &str, items: Vec<String>| {
        if !items.is_empty() {
            let _ = write!(text, " {name} [ {} ]", items.join(" "));
        }
    };
    list("community", route.community_words());
    let targets = route.route_target_words();
    list(
        "extended-community",
        targets.iter().map(|words| format!("target:{words}")).collect(),
    );
    list("large-community", route.large_community_words());
    text
}

/// The codes under which it lists the capabilities of an OPEN.
const SHOWN: [(Capability, &str); 9] = [
    (Capability::RouteRefresh, "2"),
    (Capability::ExtendedNextHop, "5"),
    (Capability::ExtendedMessage, "6"),
    (Capability::Role, "9"),
    (Capability::GracefulRestart, "64"),
    (Capability::FourOctetAs, "65"),
    (Capability::AddPath, "69"),
    (Capability::EnhancedRefresh, "70"),
    (Capability::LongLived, "71"),
];

/// The state after all that was heard.
fn view(events: &[Value], log: &str) -> SessionView {
    let mut view = SessionView::default();
    for event in events {
        let neighbor = &event["neighbor"];
        match event["type"].as_str() {
            Some("state") => {
                let state = neighbor["state"].as_str().unwrap_or_default();
                view.established = state == "up";
                state.clone_into(&mut view.state);
                if let Some(reason) = neighbor["reason"].as_str() {
                    let _ = write!(view.last_error, " {reason}");
                }
            }
            Some("open") if neighbor["direction"] == "receive" => {
                let capabilities = &neighbor["open"]["capabilities"];
                for (capability, code) in SHOWN {
                    view.received.insert(capability, capabilities.get(code).is_some());
                }
                let families = capabilities["1"]["families"].to_string();
                view.received
                    .insert(Capability::Ipv4, families.contains("ipv4/unicast"));
                view.received
                    .insert(Capability::Ipv6, families.contains("ipv6/unicast"));
            }
            Some("notification") => {
                let notification = &neighbor["notification"];
                let data = notification["data"].as_str().unwrap_or_default();
                view.last_error = format!(
                    "NOTIFICATION ({},{}) {}",
                    notification["code"],
                    notification["subcode"],
                    text_of(data)
                );
            }
            _ => {}
        }
    }
    let _ = write!(view.last_error, " {log}");
    view
}

/// The characters in octets written as `0x…`.
fn text_of(hex: &str) -> String {
    let digits = hex.trim_start_matches("0x").as_bytes();
    let octets = digits
        .chunks(2)
        .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    String::from_utf8_lossy(&octets.collect::<Vec<_>>()).into_owned()
}

/// The routes after all that was heard, by prefix and path identifier.
fn table(events: &[Value]) -> BTreeMap<(IpNetwork, String), Path> {
    let mut table = BTreeMap::new();
    for event in events {
        let neighbor = &event["neighbor"];
        if event["type"] == "state" && neighbor["state"] == "down" {
            table.clear();
        }
        let update = &neighbor["message"]["update"];
        for nlri in update["withdraw"]
            .as_object()
            .into_iter()
            .flat_map(|families| families.values())
        {
            for entry in nlri.as_array().into_iter().flatten() {
                table.retain(|key, _| Some(key) != key_of(entry).as_ref());
            }
        }
        for hops in update["announce"]
            .as_object()
            .into_iter()
            .flat_map(|families| families.values())
        {
            for (hop, nlri) in hops.as_object().into_iter().flatten() {
                let path = path(&update["attribute"], hop.parse().ok());
                for entry in nlri.as_array().into_iter().flatten() {
                    table.extend(key_of(entry).map(|key| (key, path.clone())));
                }
            }
        }
    }
    table
}

fn key_of(entry: &Value) -> Option<(IpNetwork, String)> {
    let prefix = entry["nlri"].as_str()?.parse().ok()?;
    Some((
        prefix,
        entry["path-information"].as_str().unwrap_or_default().to_owned(),
    ))
}

fn path(attributes: &Value, next_hop: Option<IpAddr>) -> Path {
    let numbers = |list: &Value| {
        let numbers = list.as_array().into_iter().flatten().map(Value::to_string);
        numbers.collect::<Vec<_>>()
    };
    let mut communities = BTreeSet::new();
    for key in ["community", "large-community"] {
        communities.extend(
            attributes[key]
                .as_array()
                .into_iter()
                .flatten()
                .map(|item| numbers(item).join(":")),
        );
    }
    let extended = attributes["extended-community"].as_array().into_iter().flatten();
    communities.extend(
        extended
            .filter_map(|item| item["string"].as_str())
            .map(|text| text.replace("target:", "rt:")),
    );
    // Version 5 numbers the segments: {"0": {"element": "as-sequence", "value": […]}}.
    let as_path = match &attributes["as-path"] {
        Value::Object(segments) => segments
            .values()
            .flat_map(|segment| numbers(&segment["value"]))
            .collect(),
        list => numbers(list),
    };
    Path {
        next_hop,
        as_path: as_path.join(" "),
        communities,
        stale: false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(kind: &str, mut neighbor: Value) -> Value {
        neighbor["direction"] = json!("receive");
        json!({"type": kind, "neighbor": neighbor})
    }

    #[test]
    fn the_table_is_what_was_heard_last() {
        let announce = event(
            "update",
            json!({"message": {"update": {"attribute": {"as-path": [65001, 2], "community": [[1, 2]],
            "extended-community": [{"string": "target:1:2"}], "large-community": [[1, 2, 3]]},
            "announce": {"ipv4 unicast": {"192.0.2.1": [{"nlri": "10.1.0.0/24"}, {"nlri": "10.2.0.0/24"}]}}}}}),
        );
        let withdraw = event(
            "update",
            json!({"message": {"update": {"withdraw": {"ipv4 unicast": [{"nlri": "10.1.0.0/24"}]}}}}),
        );
        let mut events = vec![announce, withdraw];
        let newer = path(
            &json!({"as-path": {"0": {"element": "as-sequence", "value": [65001, 2]}}}),
            None,
        );
        assert_eq!(newer.as_path, "65001 2");
        let heard = table(&events);
        let ((prefix, _), path) = heard.iter().next().unwrap();
        assert_eq!(
            (heard.len(), prefix.to_string().as_str(), path.as_path.as_str()),
            (1, "10.2.0.0/24", "65001 2")
        );
        assert_eq!(
            path.communities.iter().map(String::as_str).collect::<Vec<_>>(),
            ["1:2", "1:2:3", "rt:1:2"]
        );
        events.push(event("state", json!({"state": "down"})));
        assert!(table(&events).is_empty());
    }

    #[test]
    fn the_state_is_what_was_heard_last() {
        let open = json!({"open": {"capabilities": {"1": {"families": ["ipv4/unicast"]}, "65": {}}}});
        let view = view(&[event("open", open), event("state", json!({"state": "up"}))], "");
        assert!(view.established && view.came() == [Capability::Ipv4, Capability::FourOctetAs]);
    }
}
