//! What the kernel of a namespace has, as `ip -j` tells it, and what it changes, as `ip monitor` tells it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use serde::Deserialize;

use crate::lab::Lab;
use crate::netns::Namespace;
use crate::process::Process;

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Route {
    /// Destination: a prefix, an address (without a length), or `default`.
    pub dst: String,
    /// `blackhole` and the like; unicast routes have none.
    #[serde(rename = "type", default)]
    pub kind: Option<String>,
    /// Next hop.
    #[serde(default)]
    pub gateway: Option<String>,
    /// Interface.
    #[serde(default)]
    pub dev: Option<String>,
    /// Who made it, by name or number.
    #[serde(default)]
    pub protocol: Option<String>,
    /// `link`, `host`; global if absent.
    #[serde(default)]
    pub scope: Option<String>,
    /// The next hops of a multipath route.
    #[serde(default)]
    pub nexthops: Vec<NextHop>,
}

/// One next hop of a multipath route.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NextHop {
    /// The address.
    #[serde(default)]
    pub gateway: Option<String>,
    /// Interface.
    #[serde(default)]
    pub dev: Option<String>,
}

impl Route {
    /// All gateways of the route.
    #[must_use]
    pub fn gateways(&self) -> Vec<&str> {
        let more = self.nexthops.iter().map(|hop| &hop.gateway);
        std::iter::once(&self.gateway)
            .chain(more)
            .filter_map(Option::as_deref)
            .collect()
    }
}

/// The IPv4 routes of a namespace's main table.
///
/// # Errors
/// When `ip` fails or prints something unexpected.
pub fn routes(namespace: &Namespace) -> anyhow::Result<Vec<Route>> {
    let text = namespace.ip("-j -4 route show")?;
    serde_json::from_str(&text).with_context(|| format!("ip -j route in {}: {text:?}", namespace.name()))
}

/// The names of a namespace's interfaces.
///
/// # Errors
/// When `ip` fails or prints something unexpected.
pub fn links(namespace: &Namespace) -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Link {
        ifname: String,
    }
    let text = namespace.ip("-j link show")?;
    let links: Vec<Link> = serde_json::from_str(&text)
        .with_context(|| format!("ip -j link in {}: {text:?}", namespace.name()))?;
    Ok(links.into_iter().map(|link| link.ifname).collect())
}

/// A running `ip monitor route`: every change that the kernel makes known.
#[derive(Debug)]
pub struct RouteMonitor {
    process: Process,
}

impl RouteMonitor {
    /// Starts to listen in a namespace. Each monitor of a lab needs a name of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(lab: &Lab, member: &str, name: &str, namespace: &Namespace) -> anyhow::Result<Self> {
        let mut command = Command::new("ip");
        command.args(["-ts", "monitor", "route"]);
        let process = lab.start(member, name, namespace, &mut command)?;
        let monitor = Self { process };
        monitor.wait_until_it_hears(namespace)?;
        Ok(monitor)
    }

    /// What it heard so far, one change a line, without what the kernel does by itself some time after a link came
    /// up: IPv6 link-local and multicast routes.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn heard(&self) -> anyhow::Result<Vec<String>> {
        let log: PathBuf = self.process.log().to_owned();
        let text = std::fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
        let by_itself = |line: &str| line.contains("fe80::") || line.contains("ff00::");
        let lines = text
            .lines()
            .filter(|line| !line.contains(PROBE) && !by_itself(line));
        Ok(lines.map(str::to_owned).collect())
    }

    /// Stops listening.
    ///
    /// # Errors
    /// When the process does not go.
    pub fn stop(self) -> anyhow::Result<()> {
        self.process.kill()
    }

    /// It listens once it reports a route of ours, made on the loopback interface for that and removed again.
    fn wait_until_it_hears(&self, namespace: &Namespace) -> anyhow::Result<()> {
        let within = std::time::Duration::from_secs(5);
        crate::eventually::eventually("ip monitor hears", within, || {
            namespace.ip(&format!("route add {PROBE} dev lo"))?;
            namespace.ip(&format!("route del {PROBE} dev lo"))?;
            let text = std::fs::read_to_string(self.process.log())?;
            anyhow::ensure!(text.contains(PROBE), "nothing yet: {text:?}");
            Ok(())
        })
    }
}

/// A destination that nothing in a lab uses (RFC 5737 has no more networks to spare; 192.88.99.0/24 is deprecated by
/// RFC 7526).
const PROBE: &str = "192.88.99.1";
