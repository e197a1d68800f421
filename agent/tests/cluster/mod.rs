//! A cluster of one node: etcd and the agent's binary in a namespace of the test's own, and a runtime's calls.
//!
//! Nothing is waited for by sleeping: what a process says in its log is awaited, with a deadline.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use calidris_agent::report::StatusReport;
use calidris_agent::status;
use calidris_cni::args::CniArgs;
use calidris_cni::contract::{AddressManagement, Attachment, CONTRACT_VERSION, Operation, Reply, Request};
use calidris_cni::error::CniError;
use calidris_cni::result::AddResult;
use calidris_cni::socket;
use calidris_cni::spec::{AttachmentId, BadPrevResult, NetConf};
use rustix::process::{Pid, Signal, kill_process};

use crate::namespaces::Namespace;

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
/// Where etcd listens, in a namespace that nobody else uses.
const ENDPOINT: &str = "http://127.0.0.1:2379";

/// A node of its own, with an uplink and etcd.
pub(crate) struct Cluster {
    pub(crate) node: Namespace,
    directory: PathBuf,
    etcd: Option<Process>,
}

/// A child process whose log is read. Killed when dropped.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

/// A running agent, and the runtime that calls it.
pub(crate) struct Agent {
    process: Process,
    runtime: Runtime,
}

/// Calls the agent as a plugin does; several threads may.
pub(crate) struct Runtime {
    directory: PathBuf,
}

impl std::ops::Deref for Agent {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        &self.runtime
    }
}

/// A pod as a runtime sees it: a namespace and a container ID.
pub(crate) struct Pod {
    pub(crate) namespace: Namespace,
    pub(crate) container_id: String,
    pub(crate) name: String,
}

/// Whether etcd is installed. If not, says so; with `CALIDRIS_NO_SKIP` set that is a failure.
pub(crate) fn has_etcd(test: &str) -> bool {
    let has_etcd = ["etcd", "etcdctl"].iter().all(|program| {
        Command::new(program)
            .arg("--help")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok()
    });
    if !has_etcd {
        assert!(
            std::env::var_os("CALIDRIS_NO_SKIP").is_none(),
            "{test} needs etcd-server and etcd-client"
        );
        eprintln!("SKIPPED {test}: needs etcd-server and etcd-client");
    }
    has_etcd
}

impl Cluster {
    /// A node with one pool of the given JSON spec.
    pub(crate) fn new(pool_spec: &str) -> Self {
        let node = Namespace::new();
        // Without addresses of the kernel's choice: their detection ends at a moment of its own, and some tests listen.
        node.sh("ip link add up0 type veth peer name up1; ip link set up0 addrgenmode none; ip link set up1 addrgenmode none");
        node.sh("ip link set up1 up; ip link set up0 up");
        node.sh("ip addr add 192.0.2.11/24 dev up0");
        let directory = std::env::temp_dir().join(node.name());
        fs::create_dir_all(&directory).unwrap();
        let mut cluster = Self {
            node,
            directory,
            etcd: None,
        };
        cluster.start_etcd();
        cluster.put_pool("pool", pool_spec);
        cluster
    }

    /// A pool of the given JSON spec.
    pub(crate) fn put_pool(&self, name: &str, spec: &str) {
        self.put(
            &format!("/calico/resources/v3/projectcalico.org/ippools/{name}"),
            &format!(r#"{{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{{"name":"{name}"}},"spec":{spec}}}"#),
        );
    }

    pub(crate) fn start_etcd(&mut self) {
        let command = format!(
            "etcd --data-dir {}/etcd --unsafe-no-fsync --listen-client-urls {ENDPOINT} --advertise-client-urls {ENDPOINT} --log-outputs stderr --logger zap",
            self.directory.display()
        );
        let mut etcd = Process::start("etcd", &self.node, &command);
        etcd.wait_for("serving client traffic insecurely");
        self.etcd = Some(etcd);
    }

    /// Stops it without its connections noticing.
    pub(crate) fn freeze_etcd(&mut self) {
        self.etcd.as_ref().unwrap().signal(Signal::STOP);
    }

    /// kill -9
    pub(crate) fn kill_etcd(&mut self) {
        self.etcd = None;
    }

    /// Starts the agent and waits until it knows the datastore.
    pub(crate) fn start_agent(&self) -> Agent {
        self.start_agent_with("")
    }

    pub(crate) fn start_agent_without_waiting(&self) -> Agent {
        self.spawn_agent("")
    }

    /// As [`Self::start_agent`], with more keys in the section `[cni]`.
    pub(crate) fn start_agent_with(&self, cni_keys: &str) -> Agent {
        let mut agent = self.spawn_agent(cni_keys);
        agent.wait_for("sources in sync\",\"datastore\":true");
        agent
    }

    fn spawn_agent(&self, cni_keys: &str) -> Agent {
        self.spawn_agent_as("ipv4_address = \"192.0.2.11/24\"", cni_keys, "")
    }

    /// Starts the agent with these keys in the sections `[node]` and `[cni]`, and with variables such as `A=b` in its environment.
    pub(crate) fn spawn_agent_as(&self, node_keys: &str, cni_keys: &str, environment: &str) -> Agent {
        let directory = self.directory.clone();
        let config = directory.join("calidris.toml");
        let text = format!(
            "node_name = \"node1\"\n[datastore]\nendpoints = [\"{ENDPOINT}\"]\nrequest_timeout = \"2s\"\n[node]\n{node_keys}\n[cni]\nsocket = \"{0}/cni.sock\"\n{cni_keys}\n[status]\nsocket = \"{0}/status.sock\"\n[control]\nsocket = \"{0}/control.sock\"\n[log]\nlevel = \"info,calidris_agent=debug\"\nformat = \"json\"\n",
            directory.display()
        );
        fs::write(&config, text).unwrap();
        let command = format!(
            "env {environment} {} agent --config {}",
            env!("CARGO_BIN_EXE_calidris"),
            config.display()
        );
        Agent {
            process: Process::start("agent", &self.node, &command),
            runtime: Runtime { directory },
        }
    }

    /// Runs the program in the namespace; `{config}` and `{status}` stand for the agent's files.
    pub(crate) fn calidris(&self, arguments: &str) -> Output {
        let path = |name: &str| self.directory.join(name).display().to_string();
        let arguments = arguments
            .replace("{config}", &path("calidris.toml"))
            .replace("{status}", &path("status.sock"));
        self.node
            .try_sh(&format!("{} {arguments}", env!("CARGO_BIN_EXE_calidris")))
    }

    pub(crate) fn put(&self, key: &str, value: &str) {
        self.node.sh(&format!(
            "ETCDCTL_API=3 etcdctl --endpoints {ENDPOINT} put '{key}' '{value}'"
        ));
    }

    /// Deletes a key, or all that begin so.
    pub(crate) fn delete(&self, prefix: &str) {
        self.node.sh(&format!(
            "ETCDCTL_API=3 etcdctl --endpoints {ENDPOINT} del --prefix '{prefix}'"
        ));
    }

    /// The value of a key.
    pub(crate) fn value(&self, key: &str) -> String {
        self.node.sh(&format!(
            "ETCDCTL_API=3 etcdctl --endpoints {ENDPOINT} get --print-value-only '{key}'"
        ))
    }

    /// A folder for whatever a test needs; it goes with the cluster.
    pub(crate) fn folder(&self) -> &std::path::Path {
        &self.directory
    }

    /// Keys below `/calico` that hold what a pod has: its handle and its WorkloadEndpoint.
    pub(crate) fn keys_of_pods(&self) -> Vec<String> {
        let keys = self.node.sh(&format!(
            "ETCDCTL_API=3 etcdctl --endpoints {ENDPOINT} get --prefix /calico --keys-only"
        ));
        keys.lines()
            .filter(|key| key.contains("/handle/") || key.contains("/workloadendpoints/"))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.etcd = None;
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Process {
    /// Runs `command` in the namespace. Should the test be killed, the kernel ends it too.
    pub(crate) fn start(name: &'static str, namespace: &Namespace, command: &str) -> Self {
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "ip", "netns", "exec", namespace.name()])
            .args(command.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let streams: [Box<dyn std::io::Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        for stream in streams {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Self {
            name,
            child,
            lines,
            seen: Vec::new(),
        }
    }

    /// Waits until a line not looked at yet contains `text`, and returns it.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        loop {
            match self.lines.recv_timeout(LIMIT) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(error) => panic!(
                    "{} did not say {text:?} ({error}); it said:\n{}",
                    self.name,
                    self.seen.join("\n")
                ),
            }
        }
    }

    /// Whether it has said something with `text` in it by now; waits a moment for it.
    pub(crate) fn hears(&mut self, text: &str) -> bool {
        self.lines
            .recv_timeout(Duration::from_millis(200))
            .is_ok_and(|line| line.contains(text))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// What it said that was not looked at yet, after its end.
    pub(crate) fn rest(mut self) -> (ExitStatus, Vec<String>) {
        let status = self.child.wait().unwrap();
        (status, self.lines.iter().collect())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        self.process.wait_for(text)
    }

    /// kill -9
    pub(crate) fn kill(self) {
        drop(self);
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn terminate(self) -> ExitStatus {
        self.process.signal(Signal::TERM);
        self.process.rest().0
    }

    /// To be shared between threads.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }
}

impl Runtime {
    /// A connection to the CNI socket, to say anything on it.
    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.join("cni.sock")).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    pub(crate) fn status(&self) -> StatusReport {
        status::fetch(&self.directory.join("status.sock")).unwrap()
    }

    pub(crate) fn add(&self, pod: &Pod) -> Result<AddResult, CniError> {
        self.add_with(pod, "")
    }

    pub(crate) fn del(&self, pod: &Pod) -> Result<(), CniError> {
        done(self.call(pod, &Operation::Del(pod.attachment())))
    }

    pub(crate) fn check(&self, pod: &Pod, previous: &AddResult) -> Result<(), CniError> {
        self.check_with(pod, previous, "")
    }

    /// CHECK with more keys in the network configuration.
    pub(crate) fn check_with(&self, pod: &Pod, previous: &AddResult, keys: &str) -> Result<(), CniError> {
        let mut request = request(&Operation::Check(pod.attachment()), keys);
        request.config.prev_result = Some(previous.clone());
        let namespace = pod.namespace.open();
        done(self.send(&request, Some(namespace.as_fd())))
    }

    pub(crate) fn collect(&self, pod: &Pod, valid: &[&Pod]) -> Result<(), CniError> {
        let valid_attachments = valid.iter().map(|pod| pod.attachment().id).collect();
        done(self.call(pod, &Operation::Gc { valid_attachments }))
    }

    /// ADD with more keys in the network configuration, such as `"runtimeConfig":{…}`.
    pub(crate) fn add_with(&self, pod: &Pod, keys: &str) -> Result<AddResult, CniError> {
        let namespace = pod.namespace.open();
        let request = request(&Operation::Add(pod.attachment()), keys);
        added(self.send(&request, Some(namespace.as_fd())))
    }

    /// DEL as a runtime sends it when the namespace is gone.
    pub(crate) fn del_without_namespace(&self, pod: &Pod) -> Result<(), CniError> {
        let mut attachment = pod.attachment();
        attachment.netns_path = String::new();
        done(self.send(&request(&Operation::Del(attachment), ""), None))
    }

    /// DEL of a pod with a path that names another one's namespace by now.
    pub(crate) fn del_with_namespace_of(&self, pod: &Pod, other: &Pod) -> Result<(), CniError> {
        let mut attachment = pod.attachment();
        attachment.netns_path = other.attachment().netns_path;
        let namespace = other.namespace.open();
        done(self.send(&request(&Operation::Del(attachment), ""), Some(namespace.as_fd())))
    }

    /// STATUS
    pub(crate) fn could_add(&self) -> Result<(), CniError> {
        self.could_add_with("")
    }

    /// STATUS with more keys in the network configuration.
    pub(crate) fn could_add_with(&self, keys: &str) -> Result<(), CniError> {
        done(self.send(&request(&Operation::Status, keys), None))
    }

    /// STATUS with a trace context.
    pub(crate) fn could_add_traced(&self, trace_parent: &str) -> Result<(), CniError> {
        let mut request = request(&Operation::Status, "");
        request.trace_parent = Some(trace_parent.to_owned());
        done(self.send(&request, None))
    }

    fn call(&self, pod: &Pod, operation: &Operation) -> Reply {
        let namespace = pod.namespace.open();
        let netns = operation.attachment().is_some().then_some(namespace.as_fd());
        self.send(&request(operation, ""), netns)
    }

    fn send(&self, request: &Request, netns: Option<BorrowedFd<'_>>) -> Reply {
        socket::call(&self.directory.join("cni.sock"), request, netns, LIMIT).unwrap()
    }
}

impl Pod {
    pub(crate) fn new(name: &str, container_id: &str) -> Self {
        Self {
            namespace: Namespace::new(),
            container_id: container_id.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The same container with a network namespace of its own again, as after a reboot.
    pub(crate) fn started_again(&self) -> Self {
        Self::new(&self.name, &self.container_id)
    }

    fn attachment(&self) -> Attachment {
        Attachment {
            id: AttachmentId {
                container_id: self.container_id.clone(),
                ifname: "eth0".to_owned(),
            },
            netns_path: format!("/run/netns/{}", self.namespace.name()),
            args: CniArgs {
                pod_namespace: "shop".to_owned(),
                pod_name: self.name.clone(),
                ..CniArgs::default()
            },
        }
    }
}

/// A request in CNI 1.1.0, with more keys in its configuration.
fn request(operation: &Operation, keys: &str) -> Request {
    let comma = if keys.is_empty() { "" } else { "," };
    let config = format!(r#"{{"cniVersion":"1.1.0","name":"net","type":"calidris-cni"{comma}{keys}}}"#);
    Request {
        contract: CONTRACT_VERSION,
        operation: operation.clone(),
        config: NetConf::parse(config.as_bytes(), BadPrevResult::Refuse).unwrap(),
        timeout_ms: 30_000,
        trace_parent: None,
        addresses: AddressManagement::Agent,
    }
}

fn added(reply: Reply) -> Result<AddResult, CniError> {
    match reply {
        Reply::Added { result } => Ok(result),
        Reply::Failed { error } => Err(error),
        Reply::Done => panic!("ADD was answered like DEL"),
    }
}

fn done(reply: Reply) -> Result<(), CniError> {
    match reply {
        Reply::Done => Ok(()),
        Reply::Failed { error } => Err(error),
        Reply::Added { .. } => panic!("answered like ADD"),
    }
}
