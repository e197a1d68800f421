//! etcd: one member, its data in the lab's folder; `etcdctl` reads and writes it as an operator would.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use rustix::process::Signal;
use serde::Deserialize;

use super::READY_WITHIN;
use crate::eventually::eventually;
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::process::Process;

/// The name of the folder and namespace of the cluster's datastore in a lab.
pub const MEMBER: &str = "etcd";

/// A running etcd.
#[derive(Debug)]
pub struct Etcd {
    member: String,
    namespace: Namespace,
    endpoint: String,
    process: Option<Process>,
}

impl Etcd {
    /// Starts etcd on `address` and returns when it is healthy.
    ///
    /// # Errors
    /// When it does not start; with the end of its log.
    pub fn start(lab: &Lab, namespace: &Namespace, address: IpAddr) -> anyhow::Result<Self> {
        Self::start_for(lab, MEMBER, namespace, address)
    }

    /// As [`Etcd::start`], in the folder of another member of the lab, which has an etcd for itself.
    ///
    /// # Errors
    /// When it does not start; with the end of its log.
    pub fn start_for(
        lab: &Lab,
        member: &str,
        namespace: &Namespace,
        address: IpAddr,
    ) -> anyhow::Result<Self> {
        let endpoint = match address {
            IpAddr::V4(address) => format!("http://{address}:2379"),
            IpAddr::V6(address) => format!("http://[{address}]:2379"),
        };
        let mut etcd = Self {
            member: member.to_owned(),
            namespace: namespace.clone(),
            endpoint,
            process: None,
        };
        etcd.launch(lab)?;
        Ok(etcd)
    }

    /// Where clients connect to.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Stores a value.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn put(&self, key: &str, value: &str) -> anyhow::Result<()> {
        put(&self.namespace, self.etcdctl(), key, value)
    }

    /// All keys with a prefix, and their values. Values with line breaks, which nothing in a lab writes, are refused.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn get_prefix(&self, prefix: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let text = self
            .namespace
            .run(self.etcdctl().args(["get", "--prefix", prefix]))?;
        let mut lines = text.lines();
        let mut pairs = BTreeMap::new();
        while let Some(key) = lines.next() {
            let value = lines
                .next()
                .with_context(|| format!("etcdctl get: no value after {key:?}"))?;
            ensure!(
                key.starts_with(prefix),
                "etcdctl get: expected a key below {prefix}, found {key:?}"
            );
            pairs.insert(key.to_owned(), value.to_owned());
        }
        Ok(pairs)
    }

    /// Deletes all keys with a prefix.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn delete_prefix(&self, prefix: &str) -> anyhow::Result<()> {
        self.namespace
            .run(self.etcdctl().args(["del", "--prefix", prefix]))?;
        Ok(())
    }

    /// Forgets the history up to now: who watches from an earlier revision must read everything anew.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn compact(&self) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Status {
            #[serde(rename = "Status")]
            status: Inner,
        }
        #[derive(Deserialize)]
        struct Inner {
            header: Header,
        }
        #[derive(Deserialize)]
        struct Header {
            revision: u64,
        }
        let text = self
            .namespace
            .run(self.etcdctl().args(["endpoint", "status", "-w", "json"]))?;
        let all: Vec<Status> =
            serde_json::from_str(&text).with_context(|| format!("etcdctl endpoint status: {text:?}"))?;
        let revision = all
            .first()
            .context("etcdctl endpoint status: no endpoint")?
            .status
            .header
            .revision;
        self.namespace
            .run(self.etcdctl().args(["compact", &revision.to_string()]))?;
        Ok(())
    }

    /// Stops it in its tracks (SIGSTOP): connections stay open and nothing answers.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.process
            .as_ref()
            .context("etcd does not run")?
            .signal(Signal::STOP)
    }

    /// Lets it go on after [`Etcd::freeze`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.process
            .as_ref()
            .context("etcd does not run")?
            .signal(Signal::CONT)
    }

    /// Kills it: connections are reset and new ones refused.
    ///
    /// # Errors
    /// When it does not go.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("etcd does not run")?.kill()
    }

    /// Starts it again on the same data and returns when it is healthy.
    ///
    /// # Errors
    /// When it does not start; with the end of its log.
    pub fn launch(&mut self, lab: &Lab) -> anyhow::Result<()> {
        let data = lab.folder(&self.member)?.join("data");
        let mut command = Command::new("etcd");
        command.args(["--name", "lab", "--logger", "zap", "--log-level", "warn"]);
        command.arg("--data-dir").arg(data);
        for flag in ["--listen-client-urls", "--advertise-client-urls"] {
            command.args([flag, &self.endpoint]);
        }
        for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
            command.args([flag, "http://127.0.0.1:2380"]);
        }
        command.args(["--initial-cluster", "lab=http://127.0.0.1:2380"]);
        let mut process = lab.start(&self.member, "etcd", &self.namespace, &mut command)?;
        eventually("etcd is healthy", READY_WITHIN, || {
            process.check_alive()?;
            self.namespace.run(self.etcdctl().args(["endpoint", "health"]))
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Commands that a person can type to look inside.
    #[must_use]
    pub fn look_inside(&self) -> Vec<String> {
        vec![format!(
            "ip netns exec {} etcdctl --endpoints {} get --prefix /calico/",
            self.namespace.name(),
            self.endpoint
        )]
    }

    fn etcdctl(&self) -> Command {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoint, "--command-timeout", "3s"]);
        command
    }
}

/// Stores a value with `etcdctl`, a command that names its endpoint and deadlines. The value goes in by standard input: an
/// argument would end at 128 kB and could begin with a dash.
///
/// # Errors
/// When etcd refuses it or does not answer, with etcdctl's words.
pub(crate) fn put(namespace: &Namespace, mut etcdctl: Command, key: &str, value: &str) -> anyhow::Result<()> {
    etcdctl
        .args(["put", key])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = namespace.spawn(&mut etcdctl)?;
    child
        .stdin
        .take()
        .context("no pipe to etcdctl")?
        .write_all(value.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "etcdctl put {key}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
