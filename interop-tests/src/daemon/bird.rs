//! BIRD 2: one process, one configuration file, one control socket that `birdc` talks to.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};

use super::seat::{Installation, Seat};
use super::{ESTABLISHED, READY_WITHIN, Router, RouterConfig, Routes};
use crate::eventually::eventually;
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::process::Process;

/// A running BIRD.
#[derive(Debug)]
pub struct Bird {
    seat: Seat,
    process: Option<Process>,
}

impl Bird {
    /// Writes the configuration, starts BIRD and returns when it answers.
    ///
    /// # Errors
    /// When it does not start; with the end of its log.
    pub fn start(lab: &Lab, namespace: &Namespace, config: &RouterConfig) -> anyhow::Result<Self> {
        let seat = Seat::take(lab, &config.name, namespace, &Installation::Machine)?;
        seat.write(CONFIG, &config_text(config))?;
        let process = Some(launch(lab, &seat, &[])?);
        Ok(Self { seat, process })
    }

    /// Ends it as a crash would: without a word to its peers.
    ///
    /// # Errors
    /// When it does not go.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().map_or(Ok(()), Process::kill)
    }

    /// Runs one `birdc` command and returns what it printed.
    ///
    /// # Errors
    /// When BIRD does not answer.
    pub fn birdc(&self, words: &str) -> anyhow::Result<String> {
        ask(&self.seat, words)
    }
}

/// The name of the configuration file in the folder of a seat.
pub const CONFIG: &str = "bird.conf";

/// Starts BIRD with the configuration in its folder and returns when it answers.
///
/// # Errors
/// When it does not; with the end of its log.
pub fn launch(lab: &Lab, seat: &Seat, options: &[&str]) -> anyhow::Result<Process> {
    let mut command = seat.command("bird");
    command
        .arg("-f")
        .args(options)
        .arg("-c")
        .arg(seat.folder.join(CONFIG));
    command
        .arg("-s")
        .arg(socket(seat))
        .arg("-P")
        .arg(seat.folder.join("bird.pid"));
    let mut process = seat.start(lab, "bird", &mut command)?;
    eventually("BIRD answers", READY_WITHIN, || {
        process.check_alive()?;
        ask(seat, "show status")
    })?;
    Ok(process)
}

/// Runs one `birdc` command and returns what it printed.
///
/// # Errors
/// When BIRD does not answer.
pub fn ask(seat: &Seat, words: &str) -> anyhow::Result<String> {
    let mut command = seat.command("birdc");
    command
        .arg("-s")
        .arg(socket(seat))
        .args(words.split_ascii_whitespace());
    seat.run(&mut command)
}

fn socket(seat: &Seat) -> PathBuf {
    seat.folder.join("bird.ctl")
}

impl Router for Bird {
    fn sessions(&self) -> anyhow::Result<BTreeMap<String, String>> {
        Ok(parse_protocols(&self.birdc("show protocols")?))
    }

    fn routes(&self) -> anyhow::Result<Routes> {
        parse_routes(&self.birdc("show route primary")?)
    }

    fn show_routes(&self) -> anyhow::Result<String> {
        self.birdc("show route")
    }

    fn clear(&self, neighbor: &str) -> anyhow::Result<()> {
        let answer = self.birdc(&format!("restart {neighbor}"))?;
        if answer.contains("restarted") {
            Ok(())
        } else {
            bail!("birdc restart {neighbor}: {answer}")
        }
    }

    fn restart(&mut self, lab: &Lab) -> anyhow::Result<()> {
        self.kill()?;
        self.process = Some(launch(lab, &self.seat, &[])?);
        Ok(())
    }

    fn look_inside(&self) -> Vec<String> {
        let birdc = format!("birdc -s {}", socket(&self.seat).display());
        vec![format!("{birdc} show protocols"), format!("{birdc} show route")]
    }
}

/// The configuration file. Interface subnets come in by `direct`, what is announced is chosen at the export to BGP,
/// and everything learnt goes to the kernel.
fn config_text(config: &RouterConfig) -> String {
    let announced: Vec<String> = config.announce.iter().map(ToString::to_string).collect();
    let announced = match announced.len() {
        0 => "false".to_owned(),
        _ => format!("net ~ [ {} ]", announced.join(", ")),
    };
    let mut text = format!(
        "log stderr all;\n\
         router id {router_id};\n\
         protocol device {{ scan time 2; }}\n\
         protocol direct {{ ipv4; }}\n\
         protocol kernel {{ ipv4 {{ import none; export where source = RTS_BGP; }}; }}\n\
         template bgp neighbor_of_{as_number} {{\n\
         \tlocal as {as_number};\n\
         \thold time {hold};\n\
         \tkeepalive time {keepalive};\n\
         \tconnect delay time 1;\n\
         \tconnect retry time 2;\n\
         \terror wait time 1, 4;\n\
         \tipv4 {{\n\
         \t\timport all;\n\
         \t\texport where source = RTS_BGP || {announced};\n\
         \t\tnext hop self ebgp;\n\
         \t}};\n\
         }}\n",
        router_id = config.router_id,
        as_number = config.as_number,
        hold = config.hold_time,
        keepalive = (config.hold_time / 3).max(1),
    );
    for neighbor in &config.neighbors {
        let client = if neighbor.as_number == config.as_number {
            " rr client;"
        } else {
            ""
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "protocol bgp {} from neighbor_of_{} {{ neighbor {} as {};{client} }}",
            neighbor.name, config.as_number, neighbor.address, neighbor.as_number
        );
    }
    text
}

/// Reads `show protocols`: name, protocol, table, state, since, and for BGP the session's state.
fn parse_protocols(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match words.as_slice() {
                [name, "BGP", _, _, _, state @ ..] => {
                    let up = state.first() == Some(&ESTABLISHED);
                    let state = if up {
                        ESTABLISHED.to_owned()
                    } else {
                        state.join(" ")
                    };
                    Some(((*name).to_owned(), state))
                }
                _ => None,
            }
        })
        .collect()
}

/// Reads `show route primary`: a line that begins with a prefix, then indented lines with the next hops.
fn parse_routes(text: &str) -> anyhow::Result<Routes> {
    let mut routes = Routes::new();
    let mut current = None;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if line.starts_with(|c: char| c.is_ascii_hexdigit()) && first.contains('/') {
            let prefix = first
                .parse()
                .with_context(|| format!("birdc show route: prefix in {line:?}"))?;
            routes.insert(prefix, Vec::new());
            current = Some(prefix);
        } else if first == "via" {
            let hop = words.next().unwrap_or_default();
            let hop = hop
                .parse()
                .with_context(|| format!("birdc show route: next hop in {line:?}"))?;
            let prefix = current.with_context(|| format!("birdc show route: no prefix before {line:?}"))?;
            routes.entry(prefix).or_default().push(hop);
        }
    }
    Ok(routes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_read_from_show_protocols() {
        let text = "BIRD 2.0.12 ready.\n\
            Name       Proto      Table      State  Since         Info\n\
            device1    Device     ---        up     03:28:13.000  \n\
            node1      BGP        ---        up     03:28:14.100  Established   \n\
            router2    BGP        ---        start  03:28:13.000  Connect       Socket: Connection refused\n";
        let sessions = parse_protocols(text);
        assert_eq!(sessions.get("node1").map(String::as_str), Some("Established"));
        assert_eq!(
            sessions.get("router2").map(String::as_str),
            Some("Connect Socket: Connection refused")
        );
        assert_eq!(sessions.len(), 2);
    }

    #[test]
    fn best_routes_are_read_with_all_their_next_hops() {
        let text = "BIRD 2.0.12 ready.\nTable master4:\n\
            10.244.1.0/26        unicast [node1 03:28:13.000] * (100) [i]\n\
            \tvia 192.0.2.11 on rack1\n\
            10.244.2.0/26        unicast [node2 03:28:13.000] * (100) [i]\n\
            \tvia 192.0.2.12 on rack1 weight 1\n\
            \tvia 192.0.2.13 on rack1 weight 1\n\
            192.0.2.0/24         unicast [direct1 03:28:12.000] * (240)\n\
            \tdev rack1\n";
        let routes = parse_routes(text).unwrap();
        let hops = |prefix: &str| {
            routes[&prefix.parse().unwrap()]
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(hops("10.244.1.0/26"), ["192.0.2.11"]);
        assert_eq!(hops("10.244.2.0/26"), ["192.0.2.12", "192.0.2.13"]);
        assert!(hops("192.0.2.0/24").is_empty());
        assert_eq!(routes.len(), 3);
    }
}
