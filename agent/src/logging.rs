//! Where the log goes: stderr, as text or as one JSON object a line.
//!
//! Levels: error: an operator must act; warn: odd, but handled; info: sessions, blocks, pods come and go; debug: each
//! request and each write to the kernel; trace: each packet.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Starts logging, for the whole process. A second call changes nothing.
pub fn start(log: &Log) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(log.level.as_str()))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let _already_started = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
