//! FRRouting: zebra (the kernel's side) and bgpd, started directly and as their own user, with sockets in a folder
//! of their own that `vtysh` is pointed to.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::unix::fs::chown;

use anyhow::{Context, bail};
use serde::Deserialize;

use super::seat::{Installation, Seat};
use super::{READY_WITHIN, Router, RouterConfig, Routes};
use crate::eventually::eventually;
use crate::lab::Lab;
use crate::netns::{self, Namespace};
use crate::process::Process;

/// Where Debian's package keeps the daemons.
const DAEMONS: &str = "/usr/lib/frr";
/// The user and group that they drop their privileges to.
const USER: &str = "frr";

/// A running FRR.
#[derive(Debug)]
pub struct Frr {
    config: RouterConfig,
    seat: Seat,
    processes: Vec<Process>,
}

impl Frr {
    /// Writes the configuration, starts zebra and bgpd and returns when both answer.
    ///
    /// # Errors
    /// When one does not start; with the end of its log.
    pub fn start(lab: &Lab, namespace: &Namespace, config: RouterConfig) -> anyhow::Result<Self> {
        let seat = Seat::take(lab, &config.name, namespace, &Installation::Machine)?;
        write_configs(&seat, &config_text(&config))?;
        let mut frr = Self {
            config,
            seat,
            processes: Vec::new(),
        };
        frr.launch(lab)?;
        Ok(frr)
    }

    /// Runs one `vtysh` command and returns what it printed.
    ///
    /// # Errors
    /// When the daemons do not answer, or refuse the command.
    pub fn vtysh(&self, words: &str) -> anyhow::Result<String> {
        ask(&self.seat, &[words])
    }

    fn launch(&mut self, lab: &Lab) -> anyhow::Result<()> {
        for daemon in [Daemon::Zebra, Daemon::Bgpd] {
            self.processes.push(launch(lab, &self.seat, daemon, &[])?);
        }
        Ok(())
    }
}

/// The daemons of FRR that a lab runs. bgpd gives up on a zebra that does not listen yet only to try again seconds later,
/// hence one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// The kernel's side.
    Zebra,
    /// BGP.
    Bgpd,
}

/// Writes both daemons' configurations into the folder of a seat, which they get as their own.
///
/// # Errors
/// When a file cannot be written, or there is no user `frr`.
pub fn write_configs(seat: &Seat, bgpd: &str) -> anyhow::Result<()> {
    seat.write("zebra.conf", &format!("hostname {}\n", seat.member))?;
    seat.write("bgpd.conf", bgpd)?;
    give_to_frr(seat)
}

/// Starts a daemon with its configuration in the folder and returns when it answers.
///
/// # Errors
/// When it does not; with the end of its log.
pub fn launch(lab: &Lab, seat: &Seat, daemon: Daemon, options: &[&str]) -> anyhow::Result<Process> {
    let (name, question) = match daemon {
        Daemon::Zebra => ("zebra", "show zebra"),
        Daemon::Bgpd => ("bgpd", "show bgp summary json"),
    };
    let mut command = seat.command(&format!("{DAEMONS}/{name}"));
    command.args(["-u", USER, "-g", USER, "-P", "0"]);
    command
        .args(["--log", "stdout", "--log-level", "info"])
        .args(options);
    command.arg("--vty_socket").arg(&seat.folder);
    command.arg("-z").arg(seat.folder.join("zserv.api"));
    command.arg("-i").arg(seat.folder.join(format!("{name}.pid")));
    command.arg("-f").arg(seat.folder.join(format!("{name}.conf")));
    let mut process = seat.start(lab, name, &mut command)?;
    eventually(&format!("{name} answers"), READY_WITHIN, || {
        process.check_alive()?;
        match ask(seat, &[question])? {
            empty if empty.trim().is_empty() => bail!("no answer"),
            answer => Ok(answer),
        }
    })?;
    Ok(process)
}

/// Runs `vtysh` commands, in order, and returns what they printed.
///
/// # Errors
/// When the daemons do not answer, or refuse a command.
pub fn ask(seat: &Seat, commands: &[&str]) -> anyhow::Result<String> {
    let mut command = seat.command("vtysh");
    command.arg("--vty_socket").arg(&seat.folder);
    for words in commands {
        command.arg("-c").arg(words);
    }
    seat.run(&mut command)
}

impl Router for Frr {
    fn sessions(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let states = parse_summary(&self.vtysh("show bgp summary json")?)?;
        let named = self.config.neighbors.iter().map(|neighbor| {
            let state = states.get(&neighbor.address.to_string()).cloned();
            (
                neighbor.name.clone(),
                state.unwrap_or_else(|| "unknown to bgpd".to_owned()),
            )
        });
        Ok(named.collect())
    }

    fn routes(&self) -> anyhow::Result<Routes> {
        parse_routes(&self.vtysh("show bgp ipv4 unicast json")?)
    }

    fn show_routes(&self) -> anyhow::Result<String> {
        self.vtysh("show bgp ipv4 unicast")
    }

    fn clear(&self, neighbor: &str) -> anyhow::Result<()> {
        let neighbor = self.config.neighbors.iter().find(|n| n.name == neighbor);
        let neighbor = neighbor.with_context(|| format!("{} has no such neighbor", self.config.name))?;
        self.vtysh(&format!("clear bgp {}", neighbor.address))?;
        Ok(())
    }

    fn restart(&mut self, lab: &Lab) -> anyhow::Result<()> {
        while let Some(process) = self.processes.pop() {
            process.kill()?;
        }
        self.launch(lab)
    }

    fn look_inside(&self) -> Vec<String> {
        let vtysh = format!("vtysh --vty_socket {}", self.seat.folder.display());
        vec![
            format!("{vtysh} -c 'show bgp summary'"),
            format!("{vtysh} -c 'show bgp ipv4 unicast'"),
        ]
    }
}

/// The daemons run as their own user and make sockets and pid files in the folder.
fn give_to_frr(seat: &Seat) -> anyhow::Result<()> {
    let id = |flag: &str| -> anyhow::Result<u32> {
        let text = netns::run(seat.command("id").args([flag, USER]))?;
        text.trim()
            .parse()
            .with_context(|| format!("id {flag} {USER}: {text:?}"))
    };
    let (uid, gid) = (id("-u")?, id("-g")?);
    let folder = &seat.folder;
    for path in [folder, &folder.join("zebra.conf"), &folder.join("bgpd.conf")] {
        chown(path, Some(uid), Some(gid)).with_context(|| format!("give {} to {USER}", path.display()))?;
    }
    Ok(())
}

/// bgpd's configuration file.
fn config_text(config: &RouterConfig) -> String {
    let mut text = format!(
        "hostname {name}\n\
         router bgp {as_number}\n \
         bgp router-id {router_id}\n \
         no bgp ebgp-requires-policy\n \
         timers bgp {keepalive} {hold}\n",
        name = config.name,
        as_number = config.as_number,
        router_id = config.router_id,
        keepalive = (config.hold_time / 3).max(1),
        hold = config.hold_time,
    );
    let mut family = String::from(" address-family ipv4 unicast\n");
    // Writing to a String cannot fail.
    for network in &config.announce {
        let _ = writeln!(family, "  network {network}");
    }
    for neighbor in &config.neighbors {
        let address = neighbor.address;
        let _ = writeln!(text, " neighbor {address} remote-as {}", neighbor.as_number);
        let _ = writeln!(text, " neighbor {address} description {}", neighbor.name);
        let _ = writeln!(text, " neighbor {address} timers connect 1");
        let _ = writeln!(text, " neighbor {address} advertisement-interval 0");
        if neighbor.as_number == config.as_number {
            let _ = writeln!(family, "  neighbor {address} route-reflector-client");
            let _ = writeln!(family, "  neighbor {address} next-hop-self");
        }
    }
    text + &family + " exit-address-family\n"
}

/// What is used of `show bgp summary json`.
#[derive(Deserialize)]
struct Summary {
    #[serde(rename = "ipv4Unicast")]
    ipv4_unicast: Option<FamilySummary>,
}

#[derive(Deserialize)]
struct FamilySummary {
    peers: BTreeMap<String, PeerSummary>,
}

#[derive(Deserialize)]
struct PeerSummary {
    state: String,
}

/// State by address.
fn parse_summary(text: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let summary: Summary =
        serde_json::from_str(text).with_context(|| format!("vtysh show bgp summary json: {text:?}"))?;
    let peers = summary
        .ipv4_unicast
        .map(|family| family.peers)
        .unwrap_or_default();
    Ok(peers
        .into_iter()
        .map(|(address, peer)| (address, peer.state))
        .collect())
}

/// What is used of `show bgp ipv4 unicast json`.
#[derive(Deserialize)]
struct Table {
    #[serde(default)]
    routes: BTreeMap<String, Vec<BgpPath>>,
}

#[derive(Deserialize)]
struct BgpPath {
    #[serde(default)]
    bestpath: bool,
    #[serde(default)]
    multipath: bool,
    #[serde(default)]
    nexthops: Vec<NextHop>,
}

#[derive(Deserialize)]
struct NextHop {
    ip: std::net::IpAddr,
}

/// Best (and equally good) paths with their next hops; bgpd writes 0.0.0.0 for its own.
fn parse_routes(text: &str) -> anyhow::Result<Routes> {
    let table: Table =
        serde_json::from_str(text).with_context(|| format!("vtysh show bgp ipv4 unicast json: {text:?}"))?;
    let mut routes = Routes::new();
    for (prefix, paths) in table.routes {
        let prefix = prefix
            .parse()
            .with_context(|| format!("bgpd: prefix {prefix:?}"))?;
        let chosen: Vec<&BgpPath> = paths
            .iter()
            .filter(|path| path.bestpath || path.multipath)
            .collect();
        if !chosen.is_empty() {
            let hops = chosen.iter().flat_map(|path| &path.nexthops).map(|hop| hop.ip);
            routes.insert(prefix, hops.filter(|hop| !hop.is_unspecified()).collect());
        }
    }
    Ok(routes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_read_from_the_summary() {
        let text = r#"{"ipv4Unicast":{"as":65002,"peers":{"172.20.0.1":{"remoteAs":65001,"state":"Idle"},
            "198.51.100.13":{"remoteAs":64513,"state":"Established","pfxRcd":1}}}}"#;
        let states = parse_summary(text).unwrap();
        assert_eq!(states["172.20.0.1"], "Idle");
        assert_eq!(states["198.51.100.13"], "Established");
        assert!(parse_summary("{}").unwrap().is_empty());
    }

    #[test]
    fn best_paths_are_read_and_others_left_out() {
        let text = r#"{"routes":{
            "10.244.1.0/26":[{"valid":true,"bestpath":true,"nexthops":[{"ip":"172.20.0.1","used":true}]},
                             {"valid":true,"nexthops":[{"ip":"172.20.0.9"}]}],
            "198.51.100.0/24":[{"bestpath":true,"nexthops":[{"ip":"0.0.0.0"}]}],
            "203.0.113.0/24":[{"valid":false,"nexthops":[{"ip":"172.20.0.1"}]}]}}"#;
        let routes = parse_routes(text).unwrap();
        assert_eq!(
            routes[&"10.244.1.0/26".parse().unwrap()],
            ["172.20.0.1".parse::<std::net::IpAddr>().unwrap()]
        );
        assert!(routes[&"198.51.100.0/24".parse().unwrap()].is_empty());
        assert_eq!(routes.len(), 2);
    }
}
