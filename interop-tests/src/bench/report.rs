//! What a benchmark says: a table for people, rows in `target/bench/NAME.json` for programs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// One figure: the values of one metric of one subject over the counted runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Name of the benchmark.
    pub bench: String,
    /// Who was measured: `calidris`, `bird2`, `frr`, `ptp`, `raw-netlink`, `etcd`, …
    pub subject: String,
    /// The subject's own version.
    pub version: String,
    /// What was measured, for example `add-p50`.
    pub metric: String,
    /// Unit of the values: `ms`, `s`, `MiB`, `1/s`, …
    pub unit: String,
    /// Median over the runs.
    pub median: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Number of values.
    pub n: usize,
}

/// The figures of one benchmark.
#[derive(Debug)]
pub struct Report {
    bench: String,
    rows: Vec<Row>,
}

impl Report {
    /// An empty report of the benchmark `bench`.
    #[must_use]
    pub fn new(bench: &str) -> Self {
        Self {
            bench: bench.to_owned(),
            rows: Vec::new(),
        }
    }

    /// Adds the values of one metric of one subject; without values nothing is added.
    pub fn add(&mut self, subject: (&str, &str), metric: (&str, &str), values: &[f64]) {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else {
            return;
        };
        self.rows.push(Row {
            bench: self.bench.clone(),
            subject: subject.0.to_owned(),
            version: subject.1.to_owned(),
            metric: metric.0.to_owned(),
            unit: metric.1.to_owned(),
            median: percentile(&sorted, 50),
            min,
            max,
            n: sorted.len(),
        });
    }

    /// The rows so far.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut lines = vec![
            [
                "subject", "version", "metric", "median", "min", "max", "unit", "n",
            ]
            .map(str::to_owned),
        ];
        lines.extend(self.rows.iter().map(|row| {
            [
                row.subject.clone(),
                row.version.clone(),
                row.metric.clone(),
                format!("{:.3}", row.median),
                format!("{:.3}", row.min),
                format!("{:.3}", row.max),
                row.unit.clone(),
                row.n.to_string(),
            ]
        }));
        let widths: Vec<usize> = (0..8)
            .map(|column| {
                lines
                    .iter()
                    .map(|line| line[column].chars().count())
                    .max()
                    .unwrap_or_default()
            })
            .collect();
        let mut text = format!("benchmark {}\n", self.bench);
        for line in lines {
            let cells: Vec<String> = line
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (cell, &width))| match column {
                    3..=5 | 7 => format!("{cell:>width$}"),
                    _ => format!("{cell:<width$}"),
                })
                .collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        text
    }

    /// Writes the rows to `folder/NAME.json` and tells where that is.
    ///
    /// # Errors
    /// When the folder or the file cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<PathBuf> {
        fs::create_dir_all(folder)?;
        let file = folder.join(format!("{}.json", self.bench));
        let text = serde_json::to_string_pretty(&self.rows).map_err(io::Error::other)?;
        fs::write(&file, text + "\n")?;
        Ok(file)
    }
}

/// The value below which `percent` of the sorted values lie (nearest rank); 0 without values.
#[must_use]
pub fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_holds_median_extremes_and_count() {
        let mut report = Report::new("example");
        report.add(("calidris", "0.1.0"), ("add", "ms"), &[3.0, 1.0, 2.0]);
        let row = &report.rows()[0];
        assert_eq!((row.median, row.min, row.max, row.n), (2.0, 1.0, 3.0, 3));
        let json = serde_json::to_value(report.rows()).unwrap();
        let keys: Vec<&String> = json[0].as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), 9, "the row format is an interface: {keys:?}");
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let sorted: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(
            [
                percentile(&sorted, 50),
                percentile(&sorted, 99),
                percentile(&sorted, 100)
            ],
            [50.0, 99.0, 100.0]
        );
        assert_eq!(percentile(&[], 50), 0.0);
    }

    #[test]
    fn no_values_make_no_row() {
        let mut report = Report::new("example");
        report.add(("calidris", "0.1.0"), ("add", "ms"), &[]);
        assert!(report.rows().is_empty());
    }
}
