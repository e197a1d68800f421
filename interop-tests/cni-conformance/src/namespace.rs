//! Network namespaces that cannot be left behind, and what is in them.
//!
//! Invariant: a namespace lives exactly as long as its holder, a child process that ends when this process does (its
//! stdin is a pipe from here), however that happens. Nothing is mounted and no name is taken; the path is
//! `/proc/PID/ns/net`. Reading goes through `ip -json`, so that the judge shares no netlink code with anybody.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use ipnetwork::IpNetwork;
use serde_json::Value;

/// A network namespace.
pub(crate) struct Namespace {
    path: String,
    holder: Option<Mutex<Child>>,
}

/// A link as `ip -json address` shows it.
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) mac: String,
    pub(crate) up: bool,
    pub(crate) mtu: u64,
    pub(crate) addresses: BTreeSet<IpNetwork>,
}

/// A route as `ip -json route` shows it.
pub(crate) struct Route {
    pub(crate) dst: IpNetwork,
    pub(crate) gateway: Option<IpAddr>,
}

impl Namespace {
    /// A new namespace with its loopback up.
    pub(crate) fn create() -> Result<Self> {
        let mut holder = Command::new("unshare")
            .args([
                "--net",
                "--",
                "sh",
                "-c",
                "ip link set lo up && echo ready && exec cat",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start unshare (util-linux)")?;
        let mut line = String::new();
        if let Some(stdout) = holder.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line.trim() != "ready" {
            let _ = holder.kill();
            let _ = holder.wait();
            bail!("cannot make a network namespace: this needs root (CAP_SYS_ADMIN) and iproute2");
        }
        Ok(Self {
            path: format!("/proc/{}/ns/net", holder.id()),
            holder: Some(Mutex::new(holder)),
        })
    }

    /// A namespace that somebody else made and keeps.
    pub(crate) fn existing(path: String) -> Self {
        Self { path, holder: None }
    }

    /// Its path.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Ends the namespace; its path names nothing from now on.
    pub(crate) fn destroy(&self) {
        if let Some(holder) = &self.holder {
            let mut holder = holder.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }

    /// A command that will run inside.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path)).arg("--").arg(program);
        command
    }

    /// Runs `ip` with these words and returns what it printed.
    pub(crate) fn ip(&self, words: &str) -> Result<String> {
        let output = self
            .command("ip")
            .args(words.split_whitespace())
            .output()
            .context("cannot run nsenter")?;
        ensure!(
            output.status.success(),
            "ip {words}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// All links.
    pub(crate) fn links(&self) -> Result<Vec<Link>> {
        let links: Vec<Value> = serde_json::from_str(&self.ip("-json address show")?)?;
        Ok(links.iter().map(Link::from_json).collect())
    }

    /// The link with this name.
    pub(crate) fn link(&self, name: &str) -> Result<Option<Link>> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    /// The names of all links.
    pub(crate) fn link_names(&self) -> Result<BTreeSet<String>> {
        Ok(self.links()?.into_iter().map(|link| link.name).collect())
    }

    /// All unicast routes of every table except the kernel's own `local`.
    pub(crate) fn routes(&self) -> Result<Vec<Route>> {
        let mut routes = Vec::new();
        for (family, default) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
            let text = self.ip(&format!("{family} -json route show table all"))?;
            let list: Vec<Value> = if text.trim().is_empty() {
                Vec::new()
            } else {
                serde_json::from_str(&text)?
            };
            let unicast = list.iter().filter(|route| route["table"] != "local");
            routes.extend(unicast.filter_map(|route| Route::from_json(route, default)));
        }
        Ok(routes)
    }

    /// Makes a veth pair whose first end is `name`, up, with `address`. (Not every kernel has dummy links.)
    pub(crate) fn add_link(&self, name: &str, address: &str) -> Result<()> {
        self.ip(&format!("link add {name} type veth peer name {name}-p"))?;
        self.ip(&format!("link set {name}-p up"))?;
        self.ip(&format!("address add {address} dev {name}"))?;
        self.ip(&format!("link set {name} up"))?;
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.destroy();
    }
}

impl Link {
    fn from_json(link: &Value) -> Self {
        let text = |key: &str| link[key].as_str().unwrap_or_default().to_owned();
        let addresses = link["addr_info"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|address| {
                let ip = address["local"].as_str()?.parse().ok()?;
                IpNetwork::new(ip, u8::try_from(address["prefixlen"].as_u64()?).ok()?).ok()
            });
        Self {
            name: text("ifname"),
            mac: text("address"),
            up: link["flags"]
                .as_array()
                .is_some_and(|flags| flags.iter().any(|flag| flag == "UP")),
            mtu: link["mtu"].as_u64().unwrap_or_default(),
            addresses: addresses.collect(),
        }
    }
}

impl Route {
    fn from_json(route: &Value, default: &str) -> Option<Self> {
        let gateway = route["gateway"].as_str().and_then(|gateway| gateway.parse().ok());
        let dst = match route["dst"].as_str()? {
            "default" => default,
            dst => dst,
        };
        let dst = dst.parse().ok()?;
        Some(Self { dst, gateway })
    }
}
