//! GoBGP: one process, a TOML file, and a gRPC port on the namespace's loopback that `gobgp` talks to.

use std::process::Command;

use serde_json::Value;

use super::READY_WITHIN;
use super::seat::Seat;
use crate::eventually::eventually;
use crate::lab::Lab;
use crate::process::Process;

/// The name of the configuration file in the folder of a seat.
pub const CONFIG: &str = "gobgpd.toml";

/// Starts gobgpd with the configuration in its folder and returns when it answers.
///
/// # Errors
/// When it does not; with the end of its log.
pub fn launch(lab: &Lab, seat: &Seat, options: &[&str]) -> anyhow::Result<Process> {
    let mut command = seat.command("gobgpd");
    command.arg("-f").arg(seat.folder.join(CONFIG));
    command
        .args(["--api-hosts", "127.0.0.1:50051", "--pprof-disable"])
        .args(options);
    let mut process = seat.start(lab, "gobgpd", &mut command)?;
    eventually("GoBGP answers", READY_WITHIN, || {
        process.check_alive()?;
        ask(seat, &["global"])
    })?;
    Ok(process)
}

/// Runs one `gobgp` command and returns what it printed.
///
/// # Errors
/// When gobgpd does not answer or refuses.
pub fn ask(seat: &Seat, words: &[&str]) -> anyhow::Result<String> {
    let mut command: Command = seat.command("gobgp");
    seat.run(command.args(words))
}

/// Runs one `gobgp` command and reads the JSON it prints; what is no JSON ("Network not in table") is `null`.
///
/// # Errors
/// When gobgpd does not answer.
pub fn ask_json(seat: &Seat, words: &[&str]) -> anyhow::Result<Value> {
    let text = ask(seat, &[words, &["-j"]].concat())?;
    Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
}
