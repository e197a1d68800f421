//! The container runtime's side of CNI: runs plugins as libcni does (CNI specification 1.0.0, sections 2 and 3).
//!
//! The network configuration list is read from a folder, each plugin is executed in the node's namespace with the
//! request in its environment and its configuration on standard input, and the result of one is handed to the next
//! as `prevResult`.

use std::fmt;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::eventually::{Stopwatch, pace};
use crate::netns::Namespace;

/// What a runtime knows on one node.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// The namespace that plugins run in.
    pub namespace: Namespace,
    /// The folder with network configuration lists; the first by name is used.
    pub configurations: PathBuf,
    /// The folders with the plugins, `CNI_PATH`.
    pub plugins: Vec<PathBuf>,
    /// Arguments of capabilities, for the plugins that have them (`runtimeConfig`).
    pub capability_arguments: Map<String, Value>,
}

/// One interface of one container.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// `CNI_CONTAINERID`: 64 hexadecimal digits.
    pub container_id: String,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `K8S_POD_NAMESPACE` and `K8S_POD_NAME` of `CNI_ARGS`; nothing for a container that is no pod of Kubernetes.
    pub pod: Option<(String, String)>,
}

/// The error object that a plugin printed (section 5 of the specification).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PluginError {
    /// The error code.
    pub code: u64,
    /// One line.
    pub msg: String,
    /// More.
    #[serde(default)]
    pub details: String,
}

impl fmt::Display for PluginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CNI error {}: {} {}", self.code, self.msg, self.details)
    }
}

impl std::error::Error for PluginError {}

/// What an ADD gave.
#[derive(Clone, Debug)]
pub struct Added {
    /// The result of the last plugin.
    pub result: Value,
    /// How long the plugins took, from execution to exit.
    pub took: Duration,
}

impl Runtime {
    /// Adds the interface.
    ///
    /// # Errors
    /// [`PluginError`] (by downcast) when a plugin refuses; others when it cannot be run or prints nonsense.
    pub fn add(&self, attachment: &Attachment) -> anyhow::Result<Added> {
        let list = self.configuration()?;
        let watch = Stopwatch::start();
        let mut result = None;
        for plugin in list.plugins.clone() {
            let output = self.execute(
                "ADD",
                attachment,
                &list.for_plugin(plugin, result.as_ref(), &self.capability_arguments)?,
            )?;
            result = Some(serde_json::from_str(&output).with_context(|| format!("ADD printed {output:?}"))?);
        }
        let took = watch.elapsed();
        Ok(Added {
            result: result.context("the configuration list has no plugin")?,
            took,
        })
    }

    /// Deletes the interface; `result` is what ADD gave, if it is still known.
    ///
    /// # Errors
    /// As [`Runtime::add`].
    pub fn del(&self, attachment: &Attachment, result: Option<&Value>) -> anyhow::Result<()> {
        let list = self.configuration()?;
        for plugin in list.plugins.clone().into_iter().rev() {
            self.execute(
                "DEL",
                attachment,
                &list.for_plugin(plugin, result, &self.capability_arguments)?,
            )?;
        }
        Ok(())
    }

    /// Checks the interface.
    ///
    /// # Errors
    /// As [`Runtime::add`]; also when something is not as ADD left it.
    pub fn check(&self, attachment: &Attachment, result: &Value) -> anyhow::Result<()> {
        let list = self.configuration()?;
        for plugin in list.plugins.clone() {
            self.execute(
                "CHECK",
                attachment,
                &list.for_plugin(plugin, Some(result), &self.capability_arguments)?,
            )?;
        }
        Ok(())
    }

    /// `CNI_PATH`
    #[must_use]
    pub fn cni_path(&self) -> String {
        let folders: Vec<_> = self
            .plugins
            .iter()
            .map(|folder| folder.to_string_lossy())
            .collect();
        folders.join(":")
    }

    /// Runs one plugin with exactly this environment (beside `PATH`) and input, whatever they are.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn run_plugin(
        &self,
        plugin: &str,
        environment: &[(&str, &str)],
        input: &str,
    ) -> anyhow::Result<Output> {
        Ok(self
            .start_plugin(plugin, environment, input)?
            .wait_with_output()?)
    }

    /// As [`Runtime::run_plugin`], without waiting for its end. It leads a process group of its own, with what it runs.
    fn start_plugin(&self, plugin: &str, environment: &[(&str, &str)], input: &str) -> anyhow::Result<Child> {
        ensure!(!plugin.contains('/'), "plugin type {plugin:?} is a path");
        let mut programs = self.plugins.iter().map(|folder| folder.join(plugin));
        let program = programs.find(|program| program.exists());
        let mut command = Command::new(program.with_context(|| format!("no plugin {plugin}"))?);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(environment.iter().copied());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = self.namespace.spawn(&mut command)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that refuses before it reads closes the pipe; its answer tells.
            let _ = stdin.write_all(input.as_bytes());
        }
        Ok(child)
    }

    /// The first configuration list of the folder.
    ///
    /// # Errors
    /// When there is none or it cannot be understood.
    pub fn configuration(&self) -> anyhow::Result<ConfigurationList> {
        let folder = &self.configurations;
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
            files.push(entry?.path());
        }
        files.retain(|file| file.extension().is_some_and(|extension| extension == "conflist"));
        files.sort();
        let file = files
            .first()
            .with_context(|| format!("no .conflist in {}", folder.display()))?;
        let text = std::fs::read_to_string(file)?;
        serde_json::from_str(&text).with_context(|| format!("configuration list {}", file.display()))
    }

    /// Begins to add the interface with the first plugin of the list, and kills that with all that it has started, after
    /// `after`.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn add_and_kill(&self, attachment: &Attachment, after: Duration) -> anyhow::Result<()> {
        let list = self.configuration()?;
        let plugin = list
            .plugins
            .first()
            .context("the configuration list has no plugin")?;
        let config = list.for_plugin(plugin.clone(), None, &self.capability_arguments)?;
        let mut child = self.begin("ADD", attachment, &config)?;
        pace(after);
        let group = Pid::from_child(&child);
        // It may have ended, and the group with it.
        let _ = kill_process_group(group, Signal::KILL);
        child.wait()?;
        Ok(())
    }

    fn begin(&self, command: &str, attachment: &Attachment, config: &Value) -> anyhow::Result<Child> {
        let plugin = plugin_type(config)?;
        let id = &attachment.container_id;
        let args = match &attachment.pod {
            Some((namespace, pod)) => format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod};K8S_POD_INFRA_CONTAINER_ID={id}"
            ),
            None => "IgnoreUnknown=1".to_owned(),
        };
        let netns = attachment.netns.to_string_lossy();
        let path = self.cni_path();
        let environment = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", &attachment.interface),
            ("CNI_PATH", &path),
            ("CNI_ARGS", &args),
        ];
        self.start_plugin(plugin, &environment, &config.to_string())
    }

    /// Executes to the end, and returns what was printed.
    fn execute(&self, command: &str, attachment: &Attachment, config: &Value) -> anyhow::Result<String> {
        let plugin = plugin_type(config)?;
        let output = self.begin(command, attachment, config)?.wait_with_output()?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(printed);
        }
        let what = || {
            let said = String::from_utf8_lossy(&output.stderr);
            format!(
                "{plugin} {command}: {}: {printed:?} {:?}",
                output.status,
                said.trim()
            )
        };
        let error: PluginError = serde_json::from_str(&printed).with_context(what)?;
        Err(error).with_context(|| format!("{plugin} {command}"))
    }
}

fn plugin_type(config: &Value) -> anyhow::Result<&str> {
    let plugin = config.get("type").and_then(Value::as_str);
    plugin.context("a plugin without a type")
}

/// A network configuration list (section 1 of the specification), as far as a runtime reads it.
#[derive(Clone, Debug, Deserialize)]
pub struct ConfigurationList {
    /// The network's name.
    pub name: String,
    /// The version of the specification that plugins are to speak.
    #[serde(rename = "cniVersion")]
    pub cni_version: String,
    /// The plugins' own parts.
    pub plugins: Vec<Map<String, Value>>,
}

impl ConfigurationList {
    /// A plugin's part with what the runtime puts in: name, version, the result before it, and the arguments of the
    /// capabilities that it has.
    ///
    /// # Errors
    /// When the part is no plugin's.
    pub fn for_plugin(
        &self,
        mut plugin: Map<String, Value>,
        previous: Option<&Value>,
        arguments: &Map<String, Value>,
    ) -> anyhow::Result<Value> {
        ensure!(
            plugin.contains_key("type"),
            "network {}: a plugin without a type",
            self.name
        );
        // Capabilities are the runtime's business; a plugin gets `runtimeConfig` for those that are used.
        let capabilities = plugin.remove("capabilities").unwrap_or_default();
        let mut used = arguments.clone();
        used.retain(|name, _| capabilities[name] == true);
        if !used.is_empty() {
            plugin.insert("runtimeConfig".to_owned(), Value::Object(used));
        }
        plugin.insert("name".to_owned(), self.name.clone().into());
        plugin.insert("cniVersion".to_owned(), self.cni_version.clone().into());
        if let Some(previous) = previous {
            plugin.insert("prevResult".to_owned(), previous.clone());
        }
        Ok(Value::Object(plugin))
    }
}

/// Writes a configuration list with one plugin for a node into a folder of its own.
///
/// # Errors
/// When it cannot be written.
pub fn write_configuration(folder: &Path, network: &str, plugin: &Value) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let list = serde_json::json!({ "cniVersion": "1.0.0", "name": network, "plugins": [plugin] });
    let path = folder.join("10-calidris.conflist");
    std::fs::write(&path, serde_json::to_string_pretty(&list)?)
        .with_context(|| format!("write {}", path.display()))
}
