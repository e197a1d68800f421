//! How long each stage of a request took: one text for the log line, and histograms since the start for the metrics.
//!
//! Stages may overlap (the pair is made while the addresses are being committed), so that they need not add up.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::clock;
use crate::metrics::Histogram;

/// A part of a request's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Waiting for a place among the requests worked on, and for others about the same pod.
    Wait,
    /// Addresses and WorkloadEndpoint committed, or released, in the datastore.
    Datastore,
    /// The pair made, or removed.
    Link,
    /// Addresses, neighbours and routes in the pod.
    Pod,
    /// The node's kernel has followed: routes, parameters, nftables; the block is announced.
    Node,
    /// The route was heard back.
    HeardBack,
}

impl Stage {
    /// In the order of the work.
    pub(super) const ALL: [Self; 6] = [
        Self::Wait,
        Self::Datastore,
        Self::Link,
        Self::Pod,
        Self::Node,
        Self::HeardBack,
    ];

    /// Its name in the log and in the metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Datastore => "datastore",
            Self::Link => "link",
            Self::Pod => "pod",
            Self::Node => "node",
            Self::HeardBack => "heard_back",
        }
    }
}

/// The stages of one request so far.
#[derive(Debug, Default)]
pub(super) struct Stages {
    taken: Vec<(Stage, Duration)>,
}

impl Stages {
    /// Notes that a stage which began at `since` is over now.
    pub(super) fn over(&mut self, stage: Stage, since: Instant) {
        self.note(stage, clock::now().saturating_duration_since(since));
    }

    /// Notes how long a stage took.
    pub(super) fn note(&mut self, stage: Stage, took: Duration) {
        self.taken.push((stage, took));
    }

    /// `datastore=0.91ms link=0.80ms …`, in the order in which they ended.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (stage, took) in &self.taken {
            let space = if text.is_empty() { "" } else { " " };
            let _ = write!(
                text,
                "{space}{}={:.2}ms",
                stage.as_str(),
                took.as_secs_f64() * 1e3
            );
        }
        text
    }
}

/// The stages of all requests of one operation.
#[derive(Debug, Default)]
pub(super) struct StageHistograms {
    by_stage: [Histogram; Stage::ALL.len()],
    /// From request to answer.
    pub(super) total: Histogram,
}

impl StageHistograms {
    pub(super) fn observe(&self, stages: &Stages, total: Duration) {
        self.total.observe(total);
        for (stage, took) in &stages.taken {
            for (known, histogram) in Stage::ALL.iter().zip(&self.by_stage) {
                if known == stage {
                    histogram.observe(*took);
                }
            }
        }
    }

    /// Each stage with its histogram.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Stage, &Histogram)> {
        Stage::ALL.into_iter().zip(&self.by_stage)
    }
}

/// Measures what a future takes.
pub(super) async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let since = clock::now();
    let result = work.await;
    (result, clock::now().saturating_duration_since(since))
}
