//! What a runtime and an agent do around the plugin: run it, make namespaces, answer on the socket.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use calidris_cni::contract::{Reply, Request};
use calidris_cni::socket::{Received, read_request, write_reply};
use serde_json::{Value, json};

/// How long anything in these tests may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request configuration whose socket is in `scratch`.
pub(crate) fn config(version: &str, scratch: &Scratch) -> Value {
    json!({
        "cniVersion": version,
        "name": "pods",
        "type": "calidris-cni",
        "socket": scratch.socket(),
        "timeout_seconds": 5,
        "anything": {"is": "kept"},
    })
}

/// One way of running the plugin.
pub(crate) struct Plugin {
    variables: Vec<(String, String)>,
}

/// What a run left.
pub(crate) struct Run {
    /// The exit code.
    pub(crate) code: Option<i32>,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

impl Plugin {
    /// An operation without an attachment.
    pub(crate) fn command(command: &str) -> Self {
        Self {
            variables: vec![("CNI_COMMAND".into(), command.into())],
        }
    }

    /// A complete ADD.
    pub(crate) fn add(netns: &str) -> Self {
        Self::command("ADD").env(&[
            ("CNI_CONTAINERID", "c0ffee"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", netns),
            ("CNI_PATH", "/opt/cni/bin"),
        ])
    }

    /// The same with other variables.
    pub(crate) fn env(mut self, variables: &[(&str, &str)]) -> Self {
        self.variables.extend(
            variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        self
    }

    /// Runs it with `config` on stdin.
    pub(crate) fn run(&self, config: &Value) -> Run {
        self.run_raw(config.to_string().as_bytes())
    }

    /// Runs it with these bytes on stdin.
    pub(crate) fn run_raw(&self, stdin: &[u8]) -> Run {
        let mut child = Command::new(env!("CARGO_BIN_EXE_calidris-cni"))
            .env_clear()
            .envs(self.variables.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A plugin that refuses early does not read everything; that is its right.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        let output = child.wait_with_output().unwrap();
        Run {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Run {
    /// The JSON of a successful run, if it printed any.
    #[track_caller]
    pub(crate) fn success(&self) -> Option<Value> {
        assert_eq!(
            self.code,
            Some(0),
            "stdout {} stderr {}",
            self.stdout,
            self.stderr
        );
        (!self.stdout.is_empty()).then(|| serde_json::from_str(&self.stdout).unwrap())
    }

    /// The error object of a failed run.
    #[track_caller]
    pub(crate) fn failure(&self) -> Value {
        assert_eq!(
            self.code,
            Some(1),
            "stdout {} stderr {}",
            self.stdout,
            self.stderr
        );
        let error: Value = serde_json::from_str(&self.stdout).unwrap();
        assert!(
            error["cniVersion"].is_string() && error["msg"].is_string() && error["code"].is_u64(),
            "{error}"
        );
        error
    }
}

/// A directory of its own, removed at the end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A new one.
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("calidris-cni-{}", unique()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Where an agent would listen.
    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("cni.sock")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A network namespace of its own, removed at the end.
pub(crate) struct Namespace(String);

impl Namespace {
    /// A new one; `None`, loudly, where the machine does not allow it.
    pub(crate) fn new() -> Option<Self> {
        let name = format!("calicni-{}", unique());
        let made = Command::new("ip").args(["netns", "add", &name]).output();
        match made {
            Ok(output) if output.status.success() => Some(Self(name)),
            other => {
                // Written past the test harness, which hides what a passing test prints.
                let _ = writeln!(
                    std::io::stderr(),
                    "SKIPPED: cannot make a network namespace: {other:?}"
                );
                None
            }
        }
    }

    /// Its path.
    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// Its identity.
    pub(crate) fn inode(&self) -> u64 {
        std::fs::metadata(self.path()).unwrap().ino()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// What the agent saw of one request.
pub(crate) struct Seen {
    /// The request.
    pub(crate) request: Request,
    /// The inode of the descriptor that came with it.
    pub(crate) netns_inode: Option<u64>,
}

/// An agent that gives prepared answers.
pub(crate) struct Agent {
    /// Where its socket is.
    pub(crate) scratch: Scratch,
    requests: Receiver<Seen>,
}

impl Agent {
    /// Answers one request after the other with `replies`, then listens no more.
    pub(crate) fn answering(replies: Vec<Reply>) -> Self {
        let scratch = Scratch::new();
        let listener = UnixListener::bind(scratch.socket()).unwrap();
        let (sender, requests) = channel();
        std::thread::spawn(move || {
            for reply in replies {
                let (stream, _) = listener.accept().unwrap();
                let Received { request, netns } = read_request(&stream, PATIENCE).unwrap();
                let netns_inode =
                    netns.map(|netns: OwnedFd| std::fs::File::from(netns).metadata().unwrap().ino());
                sender.send(Seen { request, netns_inode }).unwrap();
                write_reply(&stream, &reply, PATIENCE).unwrap();
            }
        });
        Self { scratch, requests }
    }

    /// The next request that came.
    pub(crate) fn next(&self) -> Seen {
        self.requests
            .recv_timeout(PATIENCE)
            .expect("no request reached the agent")
    }
}

/// A listener that will take no further connection, with the connections that fill it.
pub(crate) fn listener_with_full_backlog(path: &Path) -> (OwnedFd, UnixStream) {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let first = UnixStream::connect(path).unwrap();
    (socket, first)
}

fn unique() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    format!(
        "{}-{}",
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    )
}
