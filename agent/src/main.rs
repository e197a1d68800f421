//! The `calidris` binary: reads the command line, does what it says, exits with a status that means something.

use std::process::ExitCode;

use calidris_agent::cli::{self, Cli};
use clap::Parser;

fn main() -> ExitCode {
    cli::run(Cli::parse()).into()
}
