//! Our speaker in a case: `calidris speaker` as a process, asked by `calidris bgp`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::peer::WeCannot;
use super::setup::Announced;
use crate::eventually::eventually;
use crate::lab::Lab;
use crate::netns::{self, Namespace};
use crate::process::Process;

/// What our speaker is to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our AS.
    pub asn: u32,
    /// Our BGP Identifier.
    pub router_id: Ipv4Addr,
    /// More keys of `[bgp]`, with their values as TOML writes them.
    pub keys: BTreeMap<String, String>,
    /// What we announce.
    pub routes: Vec<Route>,
    /// Our peers.
    pub peers: Vec<PeerKeys>,
    /// Ranges that peers may connect from: `[[bgp.dynamic]]`.
    pub dynamic: Vec<PeerKeys>,
}

/// A `[[bgp.routes]]`.
#[derive(Clone, Debug)]
pub struct Route {
    /// The prefix and its communities; route targets cannot be configured.
    pub announced: Announced,
    /// Next hop; ourselves when absent.
    pub next_hop: Option<IpAddr>,
}

/// A `[[bgp.peers]]`: keys, with their values as TOML writes them.
#[derive(Clone, Debug, Default)]
pub struct PeerKeys(pub BTreeMap<String, String>);

impl PeerKeys {
    /// The peer in cases: everything passes in both directions, IPv4 only.
    #[must_use]
    pub fn new(name: &str, address: IpAddr, asn: u32) -> Self {
        let mut keys = Self::default();
        keys.text("name", name);
        keys.text("address", address);
        keys.set("as_number", asn);
        keys.set("families", "[\"ipv4\"]");
        for (key, value) in [
            ("hold_time", "30s"),
            ("connect_retry", "1s"),
            ("import", "accept"),
            ("export", "accept"),
        ] {
            keys.text(key, value);
        }
        keys
    }

    /// Sets a key to a value written as in TOML.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "numbers and words read best without a sign before them"
    )]
    pub fn set(&mut self, key: &str, value: impl ToString) -> &mut Self {
        self.0.insert(key.to_owned(), value.to_string());
        self
    }

    /// Sets a key to a text.
    #[expect(clippy::needless_pass_by_value, reason = "as above")]
    pub fn text(&mut self, key: &str, value: impl ToString) -> &mut Self {
        self.set(key, format!("{:?}", value.to_string()))
    }

    /// Takes a key out.
    pub fn unset(&mut self, key: &str) -> &mut Self {
        self.0.remove(key);
        self
    }
}

impl Config {
    /// The only peer of most cases.
    ///
    /// # Errors
    /// When there is none.
    pub fn peer(&mut self) -> anyhow::Result<&mut PeerKeys> {
        self.peers.first_mut().context("the case has a peer")
    }

    fn text(&self, socket: &Path) -> String {
        let mut text = format!(
            "[bgp]\nas_number = {}\nrouter_id = \"{}\"\n",
            self.asn, self.router_id
        );
        for (key, value) in &self.keys {
            let _ = writeln!(text, "{key} = {value}");
        }
        for Route { announced, next_hop } in &self.routes {
            let _ = writeln!(text, "[[bgp.routes]]\nprefix = \"{}\"", announced.prefix);
            if let Some(hop) = next_hop {
                let _ = writeln!(text, "next_hop = \"{hop}\"");
            }
            for (key, list) in [
                ("communities", announced.community_words()),
                ("large_communities", announced.large_community_words()),
            ] {
                if !list.is_empty() {
                    let _ = writeln!(text, "{key} = {list:?}");
                }
            }
        }
        for (section, list) in [("peers", &self.peers), ("dynamic", &self.dynamic)] {
            for PeerKeys(keys) in list {
                let _ = writeln!(text, "[[bgp.{section}]]");
                for (key, value) in keys {
                    let _ = writeln!(text, "{key} = {value}");
                }
            }
        }
        let _ = write!(
            text,
            "[control]\nsocket = \"{}\"\n[log]\nlevel = \"info,calidris_bgp=debug\"\n",
            socket.display()
        );
        text
    }
}

/// Our speaker.
#[derive(Debug)]
pub struct Ours {
    program: PathBuf,
    namespace: Namespace,
    folder: PathBuf,
    process: Option<Process>,
}

impl Ours {
    /// Checks and writes the configuration, starts the speaker and returns when it answers.
    ///
    /// # Errors
    /// [`WeCannot`] when there is no such key; anything that keeps it from starting.
    pub fn start(lab: &Lab, program: &Path, namespace: &Namespace, config: &Config) -> anyhow::Result<Self> {
        let mut ours = Self::seated(lab, program, namespace)?;
        ours.write(config)?;
        ours.launch(lab)?;
        Ok(ours)
    }

    /// Starts it with a configuration as it is written, which says nothing of a control socket.
    ///
    /// # Errors
    /// See [`Ours::start`].
    pub fn start_with(lab: &Lab, program: &Path, namespace: &Namespace, text: &str) -> anyhow::Result<Self> {
        let mut ours = Self::seated(lab, program, namespace)?;
        let control = format!("[control]\nsocket = \"{}\"\n", ours.socket().display());
        std::fs::write(ours.file(), format!("{text}\n{control}"))?;
        ours.launch(lab)?;
        Ok(ours)
    }

    fn seated(lab: &Lab, program: &Path, namespace: &Namespace) -> anyhow::Result<Self> {
        Ok(Self {
            program: program.to_owned(),
            namespace: namespace.clone(),
            folder: lab.folder("us")?,
            process: None,
        })
    }

    /// Starts it, or starts it again after [`Ours::kill`]; returns when it answers.
    ///
    /// # Errors
    /// When it does not; with the end of its log.
    pub fn launch(&mut self, lab: &Lab) -> anyhow::Result<()> {
        let mut command = Command::new(&self.program);
        command.args(["speaker", "--config"]).arg(self.file());
        let mut process = lab.start("us", "calidris", &self.namespace, &mut command)?;
        eventually("our speaker answers", super::site::SOON, || {
            process.check_alive()?;
            self.bgp(&["peers"])
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// When it does not go.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("our speaker runs")?.kill()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.process.as_ref().context("our speaker runs")?.signal(signal)
    }

    /// Its process number.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.process.as_ref().context("our speaker runs")?.id().pid)
    }

    /// Its log so far.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&self) -> anyhow::Result<String> {
        let path = self.folder.join("calidris.log");
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Changes the configuration while it runs.
    ///
    /// # Errors
    /// When it is refused.
    pub fn reload(&self, config: &Config) -> anyhow::Result<Value> {
        self.write(config)?;
        self.bgp(&["reload"])
    }

    /// Runs `calidris bgp` with these words and reads the JSON it prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn bgp(&self, words: &[&str]) -> anyhow::Result<Value> {
        let mut command = Command::new(&self.program);
        command
            .arg("bgp")
            .args(words)
            .args(["-o", "json", "--socket"])
            .arg(self.socket());
        let text = netns::run(&mut command)?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("calidris bgp {words:?}: {text:?}"))
    }

    /// What it knows of a peer.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn peer(&self, name: &str) -> anyhow::Result<Value> {
        self.bgp(&["peer", name])
    }

    /// The candidates of a prefix; none when it is unknown.
    ///
    /// # Errors
    /// When the speaker does not answer.
    pub fn candidates(&self, prefix: &str) -> anyhow::Result<Vec<Value>> {
        let routes = self.bgp(&["routes", "--all", "--within", prefix])?;
        let exact = routes
            .as_array()
            .into_iter()
            .flatten()
            .find(|route| route["prefix"] == prefix);
        Ok(exact
            .and_then(|route| route["candidates"].as_array().cloned())
            .unwrap_or_default())
    }

    fn write(&self, config: &Config) -> anyhow::Result<()> {
        std::fs::write(self.file(), config.text(&self.socket()))?;
        let mut command = Command::new(&self.program);
        let output = command
            .args(["speaker", "--check", "--config"])
            .arg(self.file())
            .output()
            .context("run calidris speaker --check")?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if let Some((_, rest)) = text.split_once("unknown field `") {
            let key = rest.split('`').next().unwrap_or_default();
            return Err(WeCannot(format!("our speaker has no key `{key}`")).into());
        }
        if let Some((_, rest)) = text.split_once("unknown variant `") {
            let value = rest.split('`').next().unwrap_or_default();
            return Err(WeCannot(format!("our speaker knows no `{value}`")).into());
        }
        bail!("our configuration is refused: {text}")
    }

    fn file(&self) -> PathBuf {
        self.folder.join("speaker.toml")
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("control.sock")
    }
}

/// A path as our speaker tells it: next hop, AS_PATH, communities in our notation.
///
/// # Errors
/// When it is no candidate.
pub fn path_of(candidate: &Value) -> anyhow::Result<super::peer::Path> {
    let attributes = match &candidate["received"] {
        Value::Null => &candidate["attributes"],
        received => received,
    };
    ensure!(attributes.is_object(), "no attributes in {candidate}");
    let communities = attributes["communities"].as_array().into_iter().flatten();
    Ok(super::peer::Path {
        next_hop: attributes["next_hop"].as_str().and_then(|hop| hop.parse().ok()),
        as_path: attributes["as_path"].as_str().unwrap_or_default().to_owned(),
        communities: communities.filter_map(Value::as_str).map(str::to_owned).collect(),
        stale: candidate["stale"] == true,
    })
}
