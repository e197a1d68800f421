//! Where the plugin runs: a namespace that stands for the node, containers' namespaces, and one invocation after the
//! other, as a runtime makes them (CNI spec 1.1.0 §3).
//!
//! Invariants: every ADD that was tried is followed by a DEL before its namespace ends; the plugin never runs in the
//! machine's own namespace; no invocation outlasts [`PATIENCE_SECONDS`].

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::namespace::Namespace;

/// How long an invocation may take. Kubelet waits longer, but not much.
const PATIENCE_SECONDS: &str = "60";
/// The exit code of timeout(1) when it had to end the command.
const TIMEOUT_CODE: i32 = 124;

/// The plugin under test and its surroundings.
pub(crate) struct Lab {
    plugin: PathBuf,
    config: Map<String, Value>,
    cni_path: String,
    /// The node's namespace, in which the plugin runs.
    pub(crate) node: Namespace,
    scratch: PathBuf,
    containers: AtomicU32,
    added: Mutex<Vec<Pod>>,
}

/// What the command line says about the surroundings.
pub(crate) struct Setup {
    pub(crate) plugin: PathBuf,
    pub(crate) conf: PathBuf,
    pub(crate) cni_path: Option<String>,
    pub(crate) node_netns: Option<String>,
}

/// A container: a namespace, an identity, and the request a runtime would make for it.
#[derive(Clone)]
pub(crate) struct Pod {
    pub(crate) netns: Arc<Namespace>,
    pub(crate) call: Call,
}

/// One invocation in preparation.
#[derive(Clone)]
pub(crate) struct Call {
    variables: BTreeMap<String, String>,
    config: Map<String, Value>,
    stdin: Option<Vec<u8>>,
}

/// What an invocation left.
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Lab {
    /// Makes the node: a namespace with an uplink `eth0` (192.0.2.1/24, 2001:db8::1/64) and default routes.
    pub(crate) fn new(setup: Setup) -> Result<Self> {
        let scratch = make_scratch()?;
        let text = std::fs::read_to_string(&setup.conf)
            .with_context(|| format!("cannot read the configuration {}", setup.conf.display()))?;
        let config = plugin_config(
            &text.replace("{scratch}", &scratch.to_string_lossy()),
            &setup.plugin,
        )?;
        ensure!(
            setup.plugin.is_file(),
            "{} is not a plugin binary",
            setup.plugin.display()
        );
        let plugin = setup.plugin.canonicalize()?;
        let cni_path = setup.cni_path.unwrap_or_else(|| {
            format!(
                "{}:/usr/lib/cni:/opt/cni/bin",
                plugin.parent().unwrap_or(Path::new("/")).display()
            )
        });
        let node = match setup.node_netns {
            Some(path) => Namespace::existing(path),
            None => {
                let node = Namespace::create()?;
                node.add_link("eth0", "192.0.2.1/24")?;
                node.ip("address add 2001:db8::1/64 dev eth0 nodad")?;
                node.ip("route add default via 192.0.2.254")?;
                node.ip("-6 route add default via 2001:db8::fe")?;
                node
            }
        };
        let (containers, added) = (AtomicU32::new(0), Mutex::new(Vec::new()));
        Ok(Self {
            plugin,
            config,
            cni_path,
            node,
            scratch,
            containers,
            added,
        })
    }

    /// The plugin's name.
    pub(crate) fn plugin_name(&self) -> String {
        self.plugin
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    /// A directory for whatever a case needs; it ends with the lab.
    pub(crate) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// A call without container: for VERSION, STATUS and GC.
    pub(crate) fn call(&self, version: &str) -> Call {
        let mut config = self.config.clone();
        config.insert("cniVersion".into(), version.into());
        let variables = BTreeMap::from([("CNI_PATH".to_owned(), self.cni_path.clone())]);
        Call {
            variables,
            config,
            stdin: None,
        }
    }

    /// A new container that is attached to nothing yet.
    pub(crate) fn pod(&self, version: &str) -> Result<Pod> {
        let netns = Arc::new(Namespace::create()?);
        let number = self.containers.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:08x}{number:08x}", std::process::id()).repeat(4);
        let call = self
            .call(version)
            .variable("CNI_CONTAINERID", &id)
            .variable("CNI_NETNS", netns.path())
            .variable("CNI_IFNAME", "eth0")
            .variable(
                "CNI_ARGS",
                &kubernetes_args(&format!("pod-{}-{number}", std::process::id()), &id),
            );
        Ok(Pod { netns, call })
    }

    /// Runs the plugin for `pod`, and remembers an ADD.
    pub(crate) fn run(&self, command: &str, pod: &Pod) -> Result<Output> {
        if command == "ADD" {
            self.added
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(pod.clone());
        }
        self.execute(command, &pod.call)
    }

    /// Runs the plugin.
    pub(crate) fn execute(&self, command: &str, call: &Call) -> Result<Output> {
        let mut process = self.node.command("timeout");
        process
            .args(["--kill-after=5", PATIENCE_SECONDS])
            .arg(&self.plugin)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .envs(&call.variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if !command.is_empty() {
            process.env("CNI_COMMAND", command);
        }
        let mut child = process.spawn().context("cannot run nsenter")?;
        let stdin = call
            .stdin
            .clone()
            .unwrap_or_else(|| Value::from(call.config.clone()).to_string().into_bytes());
        if let Some(mut pipe) = child.stdin.take() {
            // A plugin that refuses early need not read everything.
            let _ = pipe.write_all(&stdin);
        }
        let output = child.wait_with_output()?;
        let code = output.status.code().unwrap_or(-1);
        if code == TIMEOUT_CODE {
            bail!("{command} was still running after {PATIENCE_SECONDS} seconds");
        }
        Ok(Output {
            code,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Detaches every container that was added since the last time, latest first.
    pub(crate) fn sweep(&self) {
        let added = std::mem::take(&mut *self.added.lock().unwrap_or_else(PoisonError::into_inner));
        for pod in added.into_iter().rev() {
            let _ = self.execute("DEL", &pod.call);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.sweep();
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

impl Call {
    /// The same with an environment variable set, or removed if `value` is empty.
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        if value.is_empty() {
            self.variables.remove(name);
        } else {
            self.variables.insert(name.to_owned(), value.to_owned());
        }
        self
    }

    /// The same with a key of the configuration set.
    pub(crate) fn key(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.config.insert(name.to_owned(), value.into());
        self
    }

    /// The same without a key of the configuration.
    pub(crate) fn without_key(mut self, name: &str) -> Self {
        self.config.remove(name);
        self
    }

    /// The same with these bytes instead of the configuration.
    pub(crate) fn stdin(mut self, bytes: &[u8]) -> Self {
        self.stdin = Some(bytes.to_vec());
        self
    }

    /// The value of a variable.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }
}

impl Pod {
    /// The same container with the request changed.
    pub(crate) fn with(&self, change: impl FnOnce(Call) -> Call) -> Self {
        Self {
            netns: Arc::clone(&self.netns),
            call: change(self.call.clone()),
        }
    }
}

impl Output {
    /// Whether the exit code says success.
    pub(crate) fn succeeded(&self) -> bool {
        self.code == 0
    }

    /// Everything on stdout as one JSON value.
    pub(crate) fn json(&self) -> Option<Value> {
        serde_json::from_str(&self.stdout).ok()
    }

    /// The `code` of the error object.
    pub(crate) fn error_code(&self) -> Option<u64> {
        self.json()?["code"].as_u64()
    }

    /// For messages: exit code, stdout and stderr, shortened.
    pub(crate) fn summary(&self) -> String {
        let cut = |text: &str| {
            text.split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .chars()
                .take(300)
                .collect::<String>()
        };
        let mut summary = format!("exit code {}", self.code);
        for (name, text) in [("stdout", cut(&self.stdout)), ("stderr", cut(&self.stderr))] {
            if !text.is_empty() {
                summary.push_str(&format!(", {name}: {text}"));
            }
        }
        summary
    }
}

/// `CNI_ARGS` as Kubernetes runtimes pass it.
pub(crate) fn kubernetes_args(pod_name: &str, container_id: &str) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=conformance;K8S_POD_NAME={pod_name};\
         K8S_POD_INFRA_CONTAINER_ID={container_id};K8S_POD_UID={pod_name}-uid"
    )
}

/// The plugin's own entry of a configuration list, or the whole of a single configuration, as a runtime would pass it
/// (§3 "Deriving request configuration"), but for `cniVersion`.
fn plugin_config(text: &str, plugin: &Path) -> Result<Map<String, Value>> {
    let file: Map<String, Value> =
        serde_json::from_str(text).context("the configuration is not a JSON object")?;
    let plugin_name = plugin.file_name().unwrap_or_default().to_string_lossy();
    let mut config = match file.get("plugins") {
        None => file.clone(),
        Some(plugins) => plugins
            .as_array()
            .into_iter()
            .flatten()
            .find(|entry| entry["type"] == *plugin_name)
            .and_then(Value::as_object)
            .cloned()
            .with_context(|| format!("no plugin of the list has the type {plugin_name:?}"))?,
    };
    let name = file.get("name").context("the configuration has no name")?;
    config.insert("name".into(), name.clone());
    for generated in ["capabilities", "cniVersions", "runtimeConfig", "prevResult"] {
        config.remove(generated);
    }
    Ok(config)
}

/// A directory of this process. Those of processes that are no more are removed on the way.
fn make_scratch() -> Result<PathBuf> {
    const PREFIX: &str = "calidris-cni-conformance-";
    let temporary = std::env::temp_dir();
    for entry in std::fs::read_dir(&temporary)?.flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .filter(|pid| pid.parse::<u32>().is_ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let scratch = temporary.join(format!("{PREFIX}{}", std::process::id()));
    std::fs::create_dir(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    Ok(scratch)
}
