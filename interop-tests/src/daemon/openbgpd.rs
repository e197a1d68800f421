//! OpenBGPD: three processes started by one, a configuration file, and a control socket that `bgpctl` talks to.

use std::os::unix::fs::PermissionsExt;

use anyhow::Context;
use serde_json::Value;

use super::READY_WITHIN;
use super::seat::{Installation, Seat};
use crate::eventually::eventually;
use crate::lab::Lab;
use crate::process::Process;

/// The name of the configuration file in the folder of a seat.
pub const CONFIG: &str = "bgpd.conf";

/// The home of the user `_openbgpd`, where the processes without privileges lock themselves in. On a booted machine the
/// service makes it; it stays empty.
const HOME: &str = "/run/openbgpd";

/// The line of the configuration that names the control socket.
#[must_use]
pub fn socket_line(seat: &Seat) -> String {
    format!("socket \"{}\"\n", seat.folder.join("bgpd.sock").display())
}

/// Starts bgpd with the configuration in its folder and returns when it answers.
///
/// # Errors
/// When it does not; with the end of its log.
pub fn launch(lab: &Lab, seat: &Seat) -> anyhow::Result<Process> {
    let file = seat.folder.join(CONFIG);
    // bgpd refuses a file with secrets that others can read.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("chmod {}", file.display()))?;
    let home = match &seat.installation {
        Installation::Machine => HOME.into(),
        Installation::Folder(root) => root.join(HOME.trim_start_matches('/')),
    };
    std::fs::create_dir_all(&home).with_context(|| format!("make {}", home.display()))?;
    let mut command = seat.command("/usr/sbin/bgpd");
    command.arg("-d").arg("-f").arg(&file);
    let mut process = seat.start(lab, "openbgpd", &mut command)?;
    eventually("OpenBGPD answers", READY_WITHIN, || {
        process.check_alive()?;
        ask(seat, &["show"])
    })?;
    Ok(process)
}

/// Runs one `bgpctl` command and returns what it printed.
///
/// # Errors
/// When bgpd does not answer or refuses.
pub fn ask(seat: &Seat, words: &[&str]) -> anyhow::Result<String> {
    let mut command = seat.command("/usr/sbin/bgpctl");
    command.arg("-s").arg(seat.folder.join("bgpd.sock"));
    seat.run(command.args(words))
}

/// Runs one `bgpctl` command and reads the JSON it prints.
///
/// # Errors
/// When bgpd does not answer, or with something else.
pub fn ask_json(seat: &Seat, words: &[&str]) -> anyhow::Result<Value> {
    let text = ask(seat, &[&["-j"], words].concat())?;
    serde_json::from_str(&text).with_context(|| format!("bgpctl {words:?}: {text:?}"))
}
