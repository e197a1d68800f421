//! `calidris-cni-conformance`: walks any CNI plugin through the CNI specification, clause by clause, in every version it
//! speaks, in namespaces made for the purpose.
//!
//! It knows nothing of any plugin: it runs the binary with the configuration given, as a runtime does, and looks at exit
//! code, stdout and, through `ip`, at the kernel. It shares no code with the plugin of this workspace. A clause that says
//! MUST fails a case, one that says SHOULD makes it warn.
//!
//! Exit code: 0 if no case failed, 1 if one did, 2 if the suite could not run.

mod cases;
mod judgement;
mod lab;
mod namespace;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};

use judgement::{Case, VERSIONS, Verdict, Version};
use lab::{Lab, Setup};
use report::{CaseReport, Report};

/// Walk a CNI plugin through the CNI specification, clause by clause.
///
/// Example: calidris-cni-conformance --plugin /usr/lib/cni/ptp --conf conf/ptp.conf
#[derive(Parser)]
#[command(version)]
struct Options {
    /// The plugin's binary
    #[arg(long, required_unless_present_any = ["compare", "list"])]
    plugin: Option<PathBuf>,
    /// Its network configuration: one plugin's, or a list that has it; `{scratch}` in it becomes a temporary folder
    #[arg(long, required_unless_present_any = ["compare", "list"])]
    conf: Option<PathBuf>,
    /// CNI_PATH for plugins that run others [default: the plugin's folder, /usr/lib/cni, /opt/cni/bin]
    #[arg(long)]
    cni_path: Option<String>,
    /// Run the plugin in this namespace instead of a new one: for a plugin whose agent is somewhere already
    #[arg(long)]
    node_netns: Option<String>,
    /// What to call the plugin in the report [default: its file name]
    #[arg(long)]
    label: Option<String>,
    /// Only cases whose name begins so, such as `del.` (repeatable)
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Print the names and clauses of all cases and stop
    #[arg(long)]
    list: bool,
    /// Print a Markdown table of stored JSON reports and stop
    #[arg(long, num_args = 1.., value_name = "FILE")]
    compare: Vec<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Table,
    Json,
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("calidris-cni-conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: Options) -> Result<ExitCode> {
    if options.list {
        for case in cases::all() {
            println!("{:<30}{}", case.name, case.clause);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !options.compare.is_empty() {
        print!("{}", report::compare(&stored_reports(&options.compare)?));
        return Ok(ExitCode::SUCCESS);
    }
    let (Some(plugin), Some(conf)) = (options.plugin, options.conf) else {
        bail!("--plugin and --conf are needed")
    };
    let selected: Vec<&Case> = cases::all()
        .filter(|case| {
            options.cases.is_empty() || options.cases.iter().any(|name| case.name.starts_with(name))
        })
        .collect();
    ensure!(!selected.is_empty(), "no case has such a name; --list shows them");
    let lab = Lab::new(Setup {
        plugin,
        conf,
        cni_path: options.cni_path,
        node_netns: options.node_netns,
    })?;
    let label = options.label.unwrap_or_else(|| lab.plugin_name());
    let report = walk(&lab, label, &selected)?;
    match options.output {
        Format::Table => print!("{}", report.table()),
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(if report.count(Verdict::Fail) == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn walk(lab: &Lab, label: String, selected: &[&Case]) -> Result<Report> {
    let supported_versions = supported_versions(lab)?;
    let spoken: Vec<Version> = VERSIONS
        .into_iter()
        .filter(|version| supported_versions.iter().any(|known| known == version))
        .collect();
    ensure!(
        !spoken.is_empty(),
        "the plugin speaks none of {VERSIONS:?}, but {supported_versions:?}"
    );
    let mut report = Report {
        plugin: label,
        supported_versions,
        cases: Vec::new(),
    };
    for case in selected {
        let mut case_report = CaseReport::new(case);
        for version in spoken.iter().copied().filter(|version| case.holds_for(version)) {
            case_report
                .outcomes
                .insert(version.to_owned(), case.try_in(lab, version));
        }
        report.cases.push(case_report);
    }
    Ok(report)
}

fn supported_versions(lab: &Lab) -> Result<Vec<String>> {
    let output = lab.execute("VERSION", &lab.call("1.0.0").stdin(br#"{"cniVersion":"1.0.0"}"#))?;
    let reply = output
        .json()
        .with_context(|| format!("VERSION: {}", output.summary()))?;
    let versions = reply["supportedVersions"].as_array().into_iter().flatten();
    Ok(versions
        .filter_map(|version| version.as_str().map(str::to_owned))
        .collect())
}

fn stored_reports(files: &[PathBuf]) -> Result<Vec<Report>> {
    files
        .iter()
        .map(|file| {
            let text =
                std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            serde_json::from_str(&text).with_context(|| format!("{} is not a report", file.display()))
        })
        .collect()
}
