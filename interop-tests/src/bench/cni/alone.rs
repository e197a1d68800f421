//! The plugin's process alone: from its execution to its exit, with an agent that answers at once; beside `/bin/true`,
//! which shows what starting any process costs here.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use super::sorted;
use crate::binaries::PLUGIN;
use crate::cni::{self, Attachment, Runtime};
use crate::eventually::Stopwatch;

/// The version of the contract that the answer is in.
const CONTRACT: u32 = 1;

/// Runs ADD so often, and `/bin/true` in turn. Times in milliseconds, ascending: the plugin's, the other's.
///
/// # Errors
/// When one of them fails.
pub(super) fn run(
    runtime: &Runtime,
    attachment: &Attachment,
    folder: &Path,
    times: usize,
) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let socket = folder.join("answers-at-once.sock");
    let listener = UnixListener::bind(&socket).with_context(|| format!("listen at {}", socket.display()))?;
    let configurations = folder.join("net.d");
    let plugin = json!({ "type": PLUGIN, "socket": socket });
    cni::write_configuration(&configurations, "alone", &plugin)?;
    let runtime = Runtime {
        configurations,
        ..runtime.clone()
    };
    let answering = std::thread::spawn(move || {
        listener
            .incoming()
            .take(times)
            .try_for_each(|stream| answer(&mut stream?))
    });
    let (plugin, nothing) =
        runtime
            .namespace
            .enter(|| -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
                let (mut plugin, mut nothing) = (Vec::new(), Vec::new());
                for _ in 0..times {
                    plugin.push(runtime.add(attachment)?.took);
                    let watch = Stopwatch::start();
                    let status = runtime.namespace.spawn(&mut Command::new("/bin/true"))?.wait()?;
                    nothing.push(watch.elapsed());
                    ensure!(status.success(), "/bin/true: {status}");
                }
                Ok((plugin, nothing))
            })??;
    answering
        .join()
        .map_err(|_| anyhow::anyhow!("the agent that answers at once panicked"))??;
    Ok((sorted(plugin.into_iter()), sorted(nothing.into_iter())))
}

/// Reads a request and gives the same answer to any.
fn answer(stream: &mut UnixStream) -> std::io::Result<()> {
    let mut header = [0; 4];
    stream.read_exact(&mut header)?;
    let length = u64::from(u32::from_be_bytes(header));
    std::io::copy(&mut stream.take(length), &mut std::io::sink())?;
    let body = json!({
        "contract": CONTRACT,
        "outcome": "added",
        "result": {
            "interfaces": [
                { "name": "cali0123456789a", "mac": "ee:ee:ee:ee:ee:ee", "mtu": 1500 },
                { "name": "eth0", "mac": "02:00:00:11:22:33", "mtu": 1500, "sandbox": "/run/netns/pod" },
            ],
            "ips": [{ "address": "10.244.0.1/32", "interface": 1 }],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }],
        },
    })
    .to_string();
    let length = u32::try_from(body.len()).map_err(std::io::Error::other)?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(body.as_bytes())
}
