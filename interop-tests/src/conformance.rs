//! The conformance suite run on our plugin, with an agent and etcd behind it, and on the reference plugins; and the table of
//! both that is kept in the repository.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::binaries::{Binaries, PLUGIN};
use crate::cluster::Cluster;
use crate::lab::Lab;
use crate::netns;
use crate::node::Node;
use crate::progress::{Progress, Stream};
use crate::topology::{DEMO, Topology};

/// The suite's program, beside ours.
const SUITE: &str = "calidris-cni-conformance";
/// Where Debian puts the reference plugins.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";
/// The reference plugins judged for the record; each has its configuration.
const REFERENCES: [&str; 3] = ["bridge", "ptp", "macvlan"];
/// Where their configurations are, from the top of the repository.
const CONFIGURATIONS: &str = "interop-tests/cni-conformance/conf";

/// Another build of a reference plugin to be judged: `LABEL=PATH`, where the file's name is the plugin's.
#[derive(Clone, Debug)]
pub struct Another {
    /// What the table calls it.
    pub label: String,
    /// The program.
    pub plugin: PathBuf,
}

impl std::str::FromStr for Another {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (label, plugin) = text
            .split_once('=')
            .ok_or_else(|| format!("{text:?} is not LABEL=PATH"))?;
        Ok(Self {
            label: label.to_owned(),
            plugin: PathBuf::from(plugin),
        })
    }
}

/// Runs the suite on our plugin on a node that runs. The report, as the suite prints it.
///
/// # Errors
/// When the suite cannot run.
pub fn judge_ours(folder: &Path, node: &Node, binaries: &Binaries) -> anyhow::Result<Value> {
    let conf = folder.join("conformance.conf");
    let list = node.runtime.configuration()?;
    let mut plugin = list.plugins.first().context("the node has a plugin")?.clone();
    plugin.insert("name".to_owned(), json!("conformance"));
    plugin.insert("cniVersion".to_owned(), json!("1.1.0"));
    std::fs::write(&conf, Value::Object(plugin).to_string())?;
    let namespace = &node.runtime.namespace;
    let mut command = Command::new(binaries.folder.join(SUITE));
    command.arg("--plugin").arg(binaries.folder.join(PLUGIN));
    command
        .arg("--conf")
        .arg(&conf)
        .arg("--node-netns")
        .arg(namespace.path());
    command.args(["--label", &format!("calidris {}", env!("CARGO_PKG_VERSION"))]);
    report_of(&mut command)
}

/// Judges all: ours, Debian's reference plugins, and others. The table as Markdown.
///
/// # Errors
/// When the cluster does not come up or the suite cannot run.
pub fn table(others: &[Another]) -> anyhow::Result<String> {
    let binaries = Binaries::find()?;
    let mut topology = Topology::parse(DEMO)?;
    topology.scale(1)?;
    let lab = Lab::create(&format!("conformance-{}", std::process::id()))?;
    let cluster = Cluster::start(lab, topology, binaries.clone(), &Progress::start(Stream::Error))?;
    let folder = cluster.lab.folder("reports")?;
    let mut reports = vec![judge_ours(&folder, cluster.node("node1")?, &binaries)?];
    let version = netns::run(Command::new("dpkg-query").args([
        "-W",
        "-f",
        "${Version}",
        "containernetworking-plugins",
    ]))
    .unwrap_or_default();
    let version = version.split('+').next().unwrap_or_default();
    let of_debian = REFERENCES.map(|plugin| Another {
        label: format!("{plugin} {version}"),
        plugin: Path::new(REFERENCE_PLUGINS).join(plugin),
    });
    for Another { label, plugin } in of_debian.iter().chain(others) {
        eprintln!("judging {label}");
        let name = plugin
            .file_name()
            .context("a plugin has a name")?
            .to_string_lossy();
        let mut command = Command::new(binaries.folder.join(SUITE));
        command.arg("--plugin").arg(plugin);
        command
            .arg("--conf")
            .arg(Path::new(CONFIGURATIONS).join(format!("{name}.conf")));
        command.args(["--label", label]);
        reports.push(report_of(&mut command)?);
    }
    let mut compare = Command::new(binaries.folder.join(SUITE));
    compare.arg("--compare");
    for (number, report) in reports.iter().enumerate() {
        let file = folder.join(format!("{number}.json"));
        std::fs::write(&file, report.to_string())?;
        compare.arg(file);
    }
    let table = netns::run(&mut compare)?;
    cluster.lab.take_down()?;
    Ok(table)
}

/// Puts a table in the place of the one in the file; what is before the table stays.
///
/// # Errors
/// When the file cannot be read or written, or has no table.
pub fn write(file: &Path, table: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let (before, _) = text
        .split_once("\n| case |")
        .with_context(|| format!("{} has no table that begins with \"| case |\"", file.display()))?;
    std::fs::write(file, format!("{before}\n{}\n", table.trim_end()))?;
    Ok(())
}

/// The cases of a report that did not pass in every version: name, version, verdict, and what was found.
#[must_use]
pub fn not_passed(report: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for case in report["cases"].as_array().into_iter().flatten() {
        for (version, outcome) in case["outcomes"].as_object().into_iter().flatten() {
            if outcome["verdict"] != "pass" {
                found.push(format!("{} {version}: {outcome}", case["name"]));
            }
        }
    }
    found
}

/// Runs the suite; whether cases failed is in its report, not in our result.
fn report_of(command: &mut Command) -> anyhow::Result<Value> {
    let output = command.args(["-o", "json"]).output().context("run the suite")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        matches!(output.status.code(), Some(0 | 1)),
        "the suite: {}: {complaint}",
        output.status
    );
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("the suite printed no report: {complaint}"))
}
