//! Three members of etcd, each in a namespace of its own, on one switch with the nodes.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use ipnetwork::IpNetwork;
use rustix::process::Signal;
use serde_json::Value;

use crate::eventually::eventually;
use crate::fabric::Fabric;
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::process::Process;

/// How long a member may take to answer on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A member that runs and is reached answers a question about itself sooner.
const HEARD_WITHIN: Duration = Duration::from_millis(400);
/// How long one that is stopped may still be heard.
const UNHEARD_WITHIN: Duration = Duration::from_secs(2);
/// The switch.
const SUBNET: &str = "lan";
/// What a member may store.
const QUOTA: u64 = 24 << 20;

/// The members.
pub(crate) struct Members {
    fabric: Fabric,
    members: Vec<Member>,
}

struct Member {
    name: String,
    namespace: Namespace,
    endpoint: String,
    process: Option<Process>,
    is_frozen: bool,
    is_cut_off: bool,
}

impl Members {
    pub(crate) fn start(lab: &Lab) -> anyhow::Result<Self> {
        let fabric = Fabric::create(lab)?;
        fabric.add_subnet(SUBNET)?;
        let mut members = Vec::new();
        for number in 1..=3 {
            let name = format!("m{number}");
            let namespace = lab.namespace(&name)?;
            let address: IpNetwork = format!("10.99.0.{number}/24").parse()?;
            fabric.plug((&name, &namespace), SUBNET, address)?;
            members.push(Member {
                name,
                namespace,
                endpoint: format!("http://{}:2379", address.ip()),
                process: None,
                is_frozen: false,
                is_cut_off: false,
            });
        }
        let mut all = Self { fabric, members };
        for index in 0..all.members.len() {
            all.launch(lab, index)?;
        }
        all.wait_until_healthy()?;
        Ok(all)
    }

    /// As many nodes on the same switch.
    pub(crate) fn plug_nodes(&self, lab: &Lab, count: usize) -> anyhow::Result<Vec<Namespace>> {
        (0..count)
            .map(|number| {
                let name = format!("n{number}");
                let namespace = lab.namespace(&name)?;
                let host = u8::try_from(number + 10).context("too many nodes")?;
                let address: IpNetwork = format!("10.99.0.{host}/24").parse()?;
                self.fabric.plug((&name, &namespace), SUBNET, address)?;
                Ok(namespace)
            })
            .collect()
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|member| member.endpoint.clone())
            .collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.members.len()
    }

    /// kill -9
    pub(crate) fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        match self.member(index)?.process.take() {
            Some(process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Starts a member, on the data that it has.
    pub(crate) fn launch(&mut self, lab: &Lab, index: usize) -> anyhow::Result<()> {
        let cluster: Vec<String> = self
            .members
            .iter()
            .map(|member| format!("{}={}", member.name, peer(&member.endpoint)))
            .collect();
        let member = self.member(index)?;
        let mut command = Command::new("etcd");
        command.args(["--name", &member.name, "--logger", "zap", "--log-level", "error"]);
        command
            .arg("--data-dir")
            .arg(lab.folder(&member.name)?.join("data"));
        for flag in ["--listen-client-urls", "--advertise-client-urls"] {
            command.args([flag, &member.endpoint]);
        }
        for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
            command.args([flag, &peer(&member.endpoint)]);
        }
        command.args(["--initial-cluster", &cluster.join(",")]);
        // Processes are killed here, not machines: what was written to the kernel stays.
        command.arg("--unsafe-no-fsync");
        command.args(["--quota-backend-bytes", &QUOTA.to_string()]);
        member.process = Some(lab.start(&member.name, "etcd", &member.namespace, &mut command)?);
        Ok(())
    }

    pub(crate) fn freeze(&mut self, index: usize) -> anyhow::Result<()> {
        let member = self.member(index)?;
        member.is_frozen = true;
        member
            .process
            .as_ref()
            .context("not running")?
            .signal(Signal::STOP)
    }

    pub(crate) fn thaw(&mut self, index: usize) -> anyhow::Result<()> {
        let member = self.member(index)?;
        member.is_frozen = false;
        match &member.process {
            Some(process) => process.signal(Signal::CONT),
            None => Ok(()),
        }
    }

    pub(crate) fn cut_off(&mut self, index: usize) -> anyhow::Result<()> {
        let name = self.member(index)?.name.clone();
        self.fabric.unplug(&name, SUBNET)?;
        self.member(index)?.is_cut_off = true;
        Ok(())
    }

    pub(crate) fn reconnect(&mut self, index: usize) -> anyhow::Result<()> {
        let name = self.member(index)?.name.clone();
        self.fabric.replug(&name, SUBNET)?;
        self.member(index)?.is_cut_off = false;
        Ok(())
    }

    /// The member that leads, as far as any can tell.
    pub(crate) fn leader(&self) -> Option<usize> {
        (0..self.count()).find(|&index| {
            self.status(index)
                .is_ok_and(|status| status["header"]["member_id"] == status["leader"])
        })
    }

    fn status(&self, index: usize) -> anyhow::Result<Value> {
        let text = self.ctl(index, &["endpoint", "status", "-w", "json"])?;
        let all: Value = serde_json::from_str(&text)?;
        Ok(all[0]["Status"].clone())
    }

    /// Hands the leadership on.
    pub(crate) fn move_leader(&self) -> anyhow::Result<()> {
        let leader = self.leader().context("nobody leads")?;
        let next = (leader + 1) % self.count();
        let id = self.status(next)?["header"]["member_id"]
            .as_u64()
            .context("no member ID")?;
        self.ctl(leader, &["move-leader", &format!("{id:x}")])?;
        ensure!(self.leader() == Some(next), "another leads by now");
        Ok(())
    }

    /// Forgets the history.
    pub(crate) fn compact(&self) -> anyhow::Result<()> {
        let index = self.leader().context("nobody leads")?;
        let revision = self.status(index)?["header"]["revision"]
            .as_u64()
            .context("no revision")?;
        self.ctl(index, &["compact", &revision.to_string()])?;
        Ok(())
    }

    /// # Errors
    /// What the oldest revision still has.
    pub(crate) fn has_forgotten_the_beginning(&self) -> anyhow::Result<()> {
        let index = self.leader().context("nobody leads")?;
        match self.ctl(index, &["get", "/", "--rev", "1"]) {
            Err(error) if format!("{error:#}").contains("compacted") => Ok(()),
            other => anyhow::bail!("revision 1: {other:?}"),
        }
    }

    /// Waits until who asks `from` there hears no more of it: a signal takes a moment to stop all threads.
    ///
    /// # Errors
    /// It still answers.
    pub(crate) fn is_unheard(&self, index: usize, from: &Namespace) -> anyhow::Result<()> {
        let member = self.members.get(index).context("no such member")?;
        let address: SocketAddr = member.endpoint.trim_start_matches("http://").parse()?;
        eventually("nothing is heard of a member", UNHEARD_WITHIN, || {
            match from.enter(|| version(address))? {
                Ok(version) => anyhow::bail!("{} answers: {version:?}", member.name),
                Err(_) => Ok(()),
            }
        })
    }

    /// Stores so much that the quota is used up, and etcd refuses every write.
    pub(crate) fn fill(&self) -> anyhow::Result<()> {
        let value = "x".repeat(1 << 20);
        for number in 0..64 {
            let written = self.put(&format!("/junk/{number}"), &value);
            if let Err(error) = written {
                ensure!(error.to_string().contains("space"), "fill: {error:#}");
                return Ok(());
            }
        }
        anyhow::bail!("64 MiB went into a quota of {QUOTA} bytes")
    }

    /// Makes room again.
    pub(crate) fn make_room(&self) -> anyhow::Result<()> {
        let leader = self.leader().context("nobody leads")?;
        self.ctl(leader, &["del", "--prefix", "/junk/"])?;
        self.compact()?;
        for index in 0..self.count() {
            self.ctl(index, &["defrag"])?;
        }
        self.ctl(leader, &["alarm", "disarm"])?;
        Ok(())
    }

    /// Undoes whatever is still done to any member.
    pub(crate) fn mend(&mut self, lab: &Lab) -> anyhow::Result<()> {
        for index in 0..self.count() {
            let member = self.member(index)?;
            let (is_cut_off, is_frozen) = (member.is_cut_off, member.is_frozen);
            let is_dead = member.process.is_none();
            if is_cut_off {
                self.reconnect(index)?;
            }
            if is_frozen {
                self.thaw(index)?;
            }
            if is_dead {
                self.launch(lab, index)?;
            }
        }
        self.wait_until_healthy()?;
        // A member that was away may find its database full only when it has caught up.
        eventually("no member is out of space", READY_WITHIN, || {
            let leader = self.leader().context("nobody leads")?;
            let alarms = self.ctl(leader, &["alarm", "list"])?;
            if alarms.trim().is_empty() {
                return Ok(());
            }
            self.make_room()?;
            anyhow::bail!("{alarms}")
        })
    }

    fn wait_until_healthy(&self) -> anyhow::Result<()> {
        for index in 0..self.count() {
            eventually("a member is healthy", READY_WITHIN, || {
                self.ctl(index, &["endpoint", "health"])
            })?;
        }
        Ok(())
    }

    pub(crate) fn put(&self, key: &str, value: &str) -> anyhow::Result<()> {
        let index = self.leader().unwrap_or_default();
        let member = self.members.get(index).context("no such member")?;
        crate::daemon::etcd::put(&member.namespace, etcdctl(&member.endpoint), key, value)
    }

    fn ctl(&self, index: usize, words: &[&str]) -> anyhow::Result<String> {
        let member = self.members.get(index).context("no such member")?;
        member.namespace.run(etcdctl(&member.endpoint).args(words))
    }

    fn member(&mut self, index: usize) -> anyhow::Result<&mut Member> {
        self.members.get_mut(index).context("no such member")
    }
}

/// What a member says of itself, without asking another.
fn version(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, HEARD_WITHIN)?;
    stream.set_read_timeout(Some(HEARD_WITHIN))?;
    stream.write_all(b"GET /version HTTP/1.0\r\n\r\n")?;
    let mut answer = [0; 512];
    match stream.read(&mut answer)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        length => Ok(String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned()),
    }
}

fn etcdctl(endpoint: &str) -> Command {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").args([
        "--endpoints",
        endpoint,
        "--command-timeout",
        "10s",
        "--dial-timeout",
        "2s",
    ]);
    command
}

fn peer(endpoint: &str) -> String {
    endpoint.replace(":2379", ":2380")
}
