//! What a person sees while a lab comes up: one line a step, with the time since the start.

use std::fmt::Display;
use std::time::Duration;

use crate::eventually::Stopwatch;

/// Where the lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, for people.
    Output,
    /// Standard error, when standard output has a report for programs.
    Error,
}

/// The lines so far took this long.
#[derive(Clone, Debug)]
pub struct Progress {
    watch: Stopwatch,
    stream: Stream,
}

impl Progress {
    /// Starts the clock.
    #[must_use]
    pub fn start(stream: Stream) -> Self {
        Self {
            watch: Stopwatch::start(),
            stream,
        }
    }

    /// The time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.watch.elapsed()
    }

    /// A step is done.
    pub fn step(&self, what: impl Display) {
        self.line(format!("[{:7.2}s] {what}", self.watch.elapsed().as_secs_f64()));
    }

    /// A line without a time.
    pub fn line(&self, text: impl Display) {
        match self.stream {
            Stream::Output => println!("{text}"),
            Stream::Error => eprintln!("{text}"),
        }
    }
}
