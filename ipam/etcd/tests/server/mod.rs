//! An etcd of a test's own: on loopback, on free ports, in a temporary directory; gone with the test.
#![allow(dead_code, reason = "every test binary uses a part of it")]

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use calidris_ipam::{Range, Store};
use calidris_ipam_etcd::{EtcdConfig, EtcdStore, TlsFiles};
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
    tls: Option<TlsFiles>,
    child: Option<Child>,
}

impl TestEtcd {
    /// Starts an etcd. `None`, with a loud line, if there is no etcd on this machine.
    pub(crate) async fn start(extra: &[&'static str]) -> Option<Self> {
        let mut etcd = Self::prepare(extra)?;
        etcd.run().await;
        Some(etcd)
    }

    /// Starts an etcd that wants client certificates. `None`, with a loud line, without etcd or openssl.
    pub(crate) async fn start_with_tls() -> Option<Self> {
        if Command::new("openssl")
            .arg("version")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            say_skipped("no openssl in PATH (Debian: openssl)");
            return None;
        }
        let mut etcd = Self::prepare(&[])?;
        std::fs::create_dir_all(&etcd.directory).unwrap();
        etcd.make_certificates();
        let file = |name: &str| etcd.directory.join(name);
        etcd.tls = Some(TlsFiles {
            ca_file: file("ca.pem"),
            identity_files: Some((file("c.pem"), file("c.key"))),
        });
        etcd.run().await;
        Some(etcd)
    }

    fn prepare(extra: &[&'static str]) -> Option<Self> {
        if Command::new("etcd")
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            say_skipped("no etcd in PATH (Debian: etcd-server)");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("calidris-test-etcd-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let [client_port, peer_port] = free_ports();
        Some(Self {
            directory,
            client_port,
            peer_port,
            extra: extra.to_vec(),
            tls: None,
            child: None,
        })
    }

    /// Where it listens, with time limits that let failures be seen soon.
    pub(crate) fn config(&self) -> EtcdConfig {
        let mut config = EtcdConfig::new(vec![self.endpoint()]);
        config.request_timeout = Duration::from_secs(3);
        config.tls.clone_from(&self.tls);
        config
    }

    pub(crate) fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client_port)
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
            .args(self.tls_arguments())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let mut asking = self.config();
        asking.request_timeout = Duration::from_millis(500);
        let answering = async {
            let mut attempts = tokio::time::interval(Duration::from_millis(20));
            attempts.tick().await;
            while EtcdStore::new(asking.clone())
                .read(&[Range::Key("/".to_owned())])
                .await
                .is_err()
            {
                attempts.tick().await;
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

    /// Stops it from running (SIGSTOP) without closing its connections, and waits until all of its threads stand.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
        let threads = format!("/proc/{}/task", self.child.as_ref().unwrap().id());
        let stands = |thread: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(thread.unwrap().path().join("stat"));
            // PID (NAME) STATE …; a thread that has gone stands, too.
            stat.map_or(true, |stat| {
                stat.rsplit_once(") ")
                    .is_some_and(|(_, rest)| rest.starts_with('T'))
            })
        };
        while !std::fs::read_dir(&threads).unwrap().all(stands) {
            std::thread::yield_now();
        }
    }

    /// Lets it run again.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn tls_arguments(&self) -> Vec<String> {
        if self.tls.is_none() {
            return Vec::new();
        }
        let file = |name: &str| self.directory.join(name).to_str().unwrap().to_owned();
        let (ca, certificate, key) = (file("ca.pem"), file("s.pem"), file("s.key"));
        [
            "--trusted-ca-file",
            &ca,
            "--cert-file",
            &certificate,
            "--key-file",
            &key,
            "--client-cert-auth",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// An authority (`ca`) and what it signs: a server certificate for 127.0.0.1 (`s`) and a client's (`c`). Replaces what
    /// was there.
    pub(crate) fn make_certificates(&self) {
        let script = "
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=ca \
                -keyout ca.key -out ca.pem
            for name in s c; do
                openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$name -keyout $name.key \
                    -out $name.csr
                printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' > $name.ext
                openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
                    -extfile $name.ext -out $name.pem
            done";
        let output = Command::new("sh")
            .args(["-ec", script])
            .current_dir(&self.directory)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "openssl: {}",
            String::from_utf8_lossy(&output.stderr)
        );
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

/// Past the test harness, which keeps what `eprintln!` says of a test that passes.
fn say_skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {why}");
}

/// Two ports that nobody listens on now.
fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
