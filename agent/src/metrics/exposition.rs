//! The text format: families of samples, and what the agent's status has for them.

use std::fmt::Write as _;

use super::Histogram;
use crate::report::StatusReport;

/// Text in the making.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// Begins a family: `kind` is `counter`, `gauge` or `histogram`.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample of a counter or gauge.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels = braced(labels);
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }

    /// The samples of a histogram.
    pub fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let count = histogram.count();
        for (bound, within) in histogram.cumulative() {
            let bound = bound.to_string();
            let labels = braced(&[labels, &[("le", &bound)]].concat());
            let _ = writeln!(self.text, "{name}_bucket{labels} {within}");
        }
        let infinite = braced(&[labels, &[("le", "+Inf")]].concat());
        let labels = braced(labels);
        let sum = histogram.sum_seconds();
        let _ = writeln!(
            self.text,
            "{name}_bucket{infinite} {count}\n{name}_sum{labels} {sum}\n{name}_count{labels} {count}"
        );
    }

    /// All of it.
    #[must_use]
    pub fn into_text(self) -> String {
        self.text
    }
}

fn braced(labels: &[(&str, &str)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let labels: Vec<String> = labels
        .iter()
        .map(|(name, value)| {
            let value = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            format!("{name}=\"{value}\"")
        })
        .collect();
    format!("{{{}}}", labels.join(","))
}

/// What the status says, as metrics.
#[expect(clippy::cast_precision_loss, reason = "counts for graphs")]
pub fn of_status(report: &StatusReport, to: &mut Exposition) {
    let number = |flag: bool| f64::from(u8::from(flag));
    let mut one = |name: &str, kind: &str, help: &str, value: f64| {
        to.family(name, kind, help);
        to.sample(name, &[], value);
    };
    let ready = report.not_ready.is_empty();
    one(
        "calidris_ready",
        "gauge",
        "Whether pods can be served now.",
        number(ready),
    );
    one(
        "calidris_datastore_connected",
        "gauge",
        "Whether the watch on the datastore is connected.",
        number(report.datastore.connected),
    );
    one(
        "calidris_endpoints",
        "gauge",
        "Containers attached on this node.",
        report.endpoints.len() as f64,
    );
    one(
        "calidris_own_blocks",
        "gauge",
        "Address blocks of this node.",
        report.own_blocks.len() as f64,
    );
    one(
        "calidris_dataplane_operations_total",
        "counter",
        "Operations that changed the kernel.",
        report.dataplane.operations as f64,
    );
    one(
        "calidris_dataplane_failures",
        "gauge",
        "What the kernel does not have as it should, and is being tried again.",
        report.dataplane.failures.len() as f64,
    );
    one(
        "calidris_learned_routes",
        "gauge",
        "Prefixes with a best route from BGP.",
        report.learned_routes.len() as f64,
    );
    if let Some(bgp) = &report.bgp {
        let established = |state: &str| number(state.eq_ignore_ascii_case("established"));
        to.family(
            "calidris_bgp_peer_established",
            "gauge",
            "Whether the session with the peer is established.",
        );
        for peer in &bgp.peers {
            let value = established(&peer.state);
            to.sample("calidris_bgp_peer_established", &[("peer", &peer.name)], value);
        }
        to.family(
            "calidris_bgp_peer_received_routes",
            "gauge",
            "Routes received from the peer.",
        );
        for peer in &bgp.peers {
            let value = peer.received as f64;
            to.sample(
                "calidris_bgp_peer_received_routes",
                &[("peer", &peer.name)],
                value,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn labels_are_escaped_and_histograms_are_cumulative() {
        let mut text = Exposition::default();
        text.family("x", "gauge", "An x.");
        text.sample("x", &[("a", "q\"\\\n")], 1.5);
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(1));
        text.histogram("t_seconds", &[("stage", "link")], &histogram);
        let text = text.into_text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "# HELP x An x.");
        assert_eq!(lines[1], "# TYPE x gauge");
        assert_eq!(lines[2], r#"x{a="q\"\\\n"} 1.5"#);
        assert!(
            text.contains("t_seconds_bucket{stage=\"link\",le=\"0.0005\"} 0\n"),
            "{text}"
        );
        assert!(
            text.contains("t_seconds_bucket{stage=\"link\",le=\"0.001\"} 1\n"),
            "{text}"
        );
        assert!(
            text.contains("t_seconds_bucket{stage=\"link\",le=\"+Inf\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("t_seconds_count{stage=\"link\"} 1\n"), "{text}");
    }
}
