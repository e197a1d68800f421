//! ExaBGP: one process and two helpers of a line each, which it starts itself: one appends what it hears, as JSON, to a
//! file, the other hands it the lines of another file as commands.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use super::READY_WITHIN;
use super::seat::Seat;
use crate::eventually::eventually;
use crate::lab::Lab;
use crate::process::{Process, tail};

/// The name of the configuration file in the folder of a seat.
pub const CONFIG: &str = "exabgp.conf";
const HEARD: &str = "heard.json";
const COMMANDS: &str = "commands";

/// The sections of the configuration that name the helpers `heard` and `commands`; writes what they need.
///
/// # Errors
/// When a file cannot be written.
pub fn helpers(seat: &Seat) -> anyhow::Result<String> {
    let path = |name: &str| seat.folder.join(name).display().to_string();
    seat.write(HEARD, "")?;
    seat.write(COMMANDS, "")?;
    // The shell stays, since ExaBGP takes a helper with a closed output for dead.
    let heard = seat.write("heard.sh", &format!("cat >>{}\ntrue\n", path(HEARD)))?;
    // What is heard goes to this one too: unread it would fill the pipe, and ExaBGP would wait forever.
    let commands = seat.write(
        "commands.sh",
        &format!(
            "exec 3<&0\ncat <&3 >/dev/null &\nexec tail -n +1 -F {} 3<&-\n",
            path(COMMANDS)
        ),
    )?;
    Ok(format!(
        "process heard {{ run /bin/sh {}; encoder json; }}\nprocess commands {{ run /bin/sh {}; encoder text; }}\n",
        heard.display(),
        commands.display()
    ))
}

/// Starts ExaBGP with the configuration in its folder, listening on `address`, and returns when it runs.
///
/// # Errors
/// When it does not; with the end of its log.
pub fn launch(lab: &Lab, seat: &Seat, addresses: &[String]) -> anyhow::Result<Process> {
    let mut command = seat.command("/usr/bin/env");
    command.args([
        "exabgp.daemon.drop=false",
        "exabgp.daemon.user=root",
        "exabgp.api.cli=false",
        "exabgp.api.ack=false",
        "exabgp.tcp.port=179",
        "exabgp.cache.attributes=false",
    ]);
    command.arg(format!("exabgp.tcp.bind={}", addresses.join(" ")));
    command
        .args(["PYTHONUNBUFFERED=1", "exabgp"])
        .arg(seat.folder.join(CONFIG));
    let mut process = seat.start(lab, "exabgp", &mut command)?;
    eventually("ExaBGP runs", READY_WITHIN, || {
        process.check_alive()?;
        let log = tail(process.log(), 1000);
        anyhow::ensure!(log.contains("loaded new configuration"), "{log}");
        Ok(())
    })?;
    Ok(process)
}

/// Gives ExaBGP a command.
///
/// # Errors
/// When the file cannot be written.
pub fn command(seat: &Seat, line: &str) -> anyhow::Result<()> {
    let path = seat.folder.join(COMMANDS);
    let mut file = File::options()
        .append(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    // One write: the helper passes on whole lines.
    file.write_all(format!("{line}\n").as_bytes())
        .with_context(|| format!("write {}", path.display()))
}

/// Everything ExaBGP has told of since its first start, oldest first.
///
/// # Errors
/// When the file cannot be read.
pub fn heard(seat: &Seat) -> anyhow::Result<Vec<Value>> {
    heard_in(&seat.folder)
}

/// The same, by the folder of its seat.
///
/// # Errors
/// When the file cannot be read.
pub fn heard_in(folder: &Path) -> anyhow::Result<Vec<Value>> {
    let path = folder.join(HEARD);
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    // The last line may be half written.
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}
