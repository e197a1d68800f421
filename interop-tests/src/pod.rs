//! A pod: a namespace that a runtime has connected, with a server in it.

use std::io::Read;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::binaries::Binaries;
use crate::cni::{Added, Attachment, Runtime};
use crate::eventually::{Stopwatch, closely, eventually};
use crate::http::{self, Answer};
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::process::Process;

/// How long one request may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How long one request may take while the first answer is waited for: short, to see the moment.
const TRY_FOR: Duration = Duration::from_millis(50);
/// How long a server may take to start.
const SERVES_WITHIN: Duration = Duration::from_secs(10);

/// A pod that runs.
#[derive(Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// The name of its node.
    pub node: String,
    /// Its namespace.
    pub namespace: Namespace,
    /// What the runtime knows of its interface.
    pub attachment: Attachment,
    /// What the plugin said.
    pub added: Added,
    /// Its address.
    pub address: IpAddr,
}

impl Pod {
    /// Makes a namespace with a server in it, then has the runtime connect it.
    ///
    /// # Errors
    /// When any step fails; what was made goes with the lab.
    pub fn start(
        lab: &Lab,
        binaries: &Binaries,
        (node, runtime): (&str, &Runtime),
        name: &str,
    ) -> anyhow::Result<Self> {
        let namespace = lab.namespace(name)?;
        start_server(lab, binaries, name, &namespace)?;
        let attachment = attachment(name, &namespace)?;
        let added = runtime
            .add(&attachment)
            .with_context(|| format!("add pod {name}"))?;
        let address = first_address(&added.result)?.ip();
        Ok(Self {
            name: name.to_owned(),
            node: node.to_owned(),
            namespace,
            attachment,
            added,
            address,
        })
    }

    /// Asks the server at `address` from inside the pod.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask(&self, address: IpAddr) -> anyhow::Result<Answer> {
        ask(&self.namespace, address)
    }
}

/// Asks the server at `address` from inside a namespace.
///
/// # Errors
/// When it does not answer.
pub fn ask(from: &Namespace, address: IpAddr) -> anyhow::Result<Answer> {
    from.enter(|| http::ask(address, ANSWER_WITHIN))?
}

/// How long it takes from now until the server at `address` answers a client in a namespace.
///
/// # Errors
/// When it does not within `within`.
pub fn time_until_answer(from: &Namespace, address: IpAddr, within: Duration) -> anyhow::Result<Duration> {
    let watch = Stopwatch::start();
    let what = format!("{address} answers {}", from.name());
    from.enter(|| closely(&what, within, || http::ask(address, TRY_FOR)))??;
    Ok(watch.elapsed())
}

/// Starts the server of a member and returns when it answers.
///
/// # Errors
/// When it does not start.
pub fn start_server(
    lab: &Lab,
    binaries: &Binaries,
    member: &str,
    namespace: &Namespace,
) -> anyhow::Result<Process> {
    let mut command = Command::new(&binaries.lab);
    command.args(["serve", "--name", member]);
    let mut process = lab.start(member, "server", namespace, &mut command)?;
    let loopback = IpAddr::from([127, 0, 0, 1]);
    eventually(&format!("the server of {member} answers"), SERVES_WITHIN, || {
        process.check_alive()?;
        ask(namespace, loopback)
    })?;
    Ok(process)
}

/// A container ID as runtimes make them, and the rest of what a plugin is told.
///
/// # Errors
/// When no random numbers can be had.
pub fn attachment(pod: &str, namespace: &Namespace) -> anyhow::Result<Attachment> {
    let mut random = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(Attachment {
        container_id: random.iter().map(|byte| format!("{byte:02x}")).collect(),
        netns: namespace.path(),
        interface: "eth0".to_owned(),
        pod: Some(("demo".to_owned(), pod.to_owned())),
    })
}

/// The first address of an ADD's result, as the plugin says it.
///
/// # Errors
/// When there is none.
pub fn first_address(result: &Value) -> anyhow::Result<IpNetwork> {
    let Some(address) = result.pointer("/ips/0/address").and_then(Value::as_str) else {
        bail!("the result of ADD has no address: {result}");
    };
    address
        .parse()
        .with_context(|| format!("the result of ADD has the address {address:?}"))
}
