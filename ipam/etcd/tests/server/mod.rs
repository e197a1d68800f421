//! An etcd of a test's own: on loopback, on free ports, in a temporary directory; gone with the test.
#![allow(dead_code, reason = "every test binary uses a part of it")]

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use calidris_ipam_etcd::EtcdConfig;
use etcd_client::Client;
use rustix::process::{Pid, Signal, kill_process};

/// How long an etcd may take to come up on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Distinguishes the etcds of one test process.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A running etcd.
pub(crate) struct TestEtcd {
    directory: PathBuf,
    client_port: u16,
    peer_port: u16,
    extra: Vec<&'static str>,
    child: Option<Child>,
}

impl TestEtcd {
    /// Starts an etcd. `None`, with a loud line, if there is no etcd on this machine.
    pub(crate) async fn start(extra: &[&'static str]) -> Option<Self> {
        if Command::new("etcd")
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            eprintln!("SKIPPED: no etcd in PATH (Debian: etcd-server)");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("calidris-test-etcd-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let [client_port, peer_port] = free_ports();
        let mut etcd = Self {
            directory,
            client_port,
            peer_port,
            extra: extra.to_vec(),
            child: None,
        };
        etcd.run().await;
        Some(etcd)
    }

    /// Where it listens, with time limits that let failures be seen soon.
    pub(crate) fn config(&self) -> EtcdConfig {
        let mut config = EtcdConfig::new(vec![self.endpoint()]);
        config.request_timeout = Duration::from_secs(3);
        config
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// A plain client, for what the tested code does not do.
    pub(crate) async fn client(&self) -> Client {
        Client::connect([self.endpoint()], None).await.unwrap()
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Runs it (again) on the same data and ports, until it answers.
    pub(crate) async fn run(&mut self) {
        let client_url = self.endpoint();
        let peer_url = format!("http://127.0.0.1:{}", self.peer_port);
        // setpriv: should this process be killed, the kernel ends etcd too.
        let child = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "etcd",
                "--name",
                "t",
                "--log-level",
                "error",
            ])
            .arg("--data-dir")
            .arg(self.directory.join("data"))
            .args([
                "--listen-client-urls",
                &client_url,
                "--advertise-client-urls",
                &client_url,
            ])
            .args([
                "--listen-peer-urls",
                &peer_url,
                "--initial-advertise-peer-urls",
                &peer_url,
            ])
            .args(["--initial-cluster", &format!("t={peer_url}"), "--unsafe-no-fsync"])
            .args(&self.extra)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let answering = async {
            loop {
                let mut client = self.client().await;
                let asking = client.get("/", None);
                if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(500), asking).await {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(START_LIMIT, answering)
            .await
            .unwrap_or_else(|_| panic!("etcd does not answer"));
    }

    /// Makes the next run listen on another port. Returns the present one.
    pub(crate) fn use_another_port(&mut self) -> u16 {
        let [other, _] = free_ports();
        std::mem::replace(&mut self.client_port, other)
    }

    /// Makes the next run listen on `port`.
    pub(crate) fn use_port(&mut self, port: u16) {
        self.client_port = port;
    }

    /// Deletes the data of a killed etcd.
    pub(crate) fn forget_everything(&self) {
        std::fs::remove_dir_all(&self.directory).unwrap();
    }

    /// Stops it from running (SIGSTOP) without closing its connections.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it run again.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap();
        kill_process(Pid::from_child(child), signal).unwrap();
    }
}

impl Drop for TestEtcd {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Two ports that nobody listens on now.
fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
