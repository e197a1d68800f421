//! A table of who reached whom, for people.

use std::collections::BTreeMap;

/// Who asked whom how often, and got the right answer how often.
#[derive(Debug)]
pub(super) struct Matrix {
    labels: Vec<String>,
    cells: BTreeMap<(String, String), (usize, usize)>,
}

impl Matrix {
    /// An empty table whose rows and columns are these, in this order.
    pub(super) fn new(labels: Vec<String>) -> Self {
        Self {
            labels,
            cells: BTreeMap::new(),
        }
    }

    /// A client asked a server.
    pub(super) fn record(&mut self, client: &str, server: &str, right: bool) {
        let cell = self
            .cells
            .entry((client.to_owned(), server.to_owned()))
            .or_default();
        cell.0 += usize::from(right);
        cell.1 += 1;
    }

    /// The table: `yes` or `NO` where one asked one, else `right/asked`, `-` where nobody asked.
    pub(super) fn lines(&self) -> Vec<String> {
        let width = self.labels.iter().map(String::len).max().unwrap_or(0).max(5);
        let row = |label: &str, cells: Vec<String>| {
            let cells: String = cells.iter().map(|cell| format!(" {cell:^width$}")).collect();
            format!("{label:width$} {cells}").trim_end().to_owned()
        };
        let mut lines = vec![row("", self.labels.clone())];
        for client in &self.labels {
            let cells = self
                .labels
                .iter()
                .map(|server| self.cell(client, server))
                .collect();
            lines.push(row(client, cells));
        }
        lines
    }

    fn cell(&self, client: &str, server: &str) -> String {
        match self.cells.get(&(client.to_owned(), server.to_owned())) {
            None => "-".to_owned(),
            Some((1, 1)) => "yes".to_owned(),
            Some((0, 1)) => "NO".to_owned(),
            Some((right, asked)) => format!("{right}/{asked}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_say_yes_no_nothing_or_how_many() {
        let mut matrix = Matrix::new(vec!["a".to_owned(), "longer".to_owned()]);
        matrix.record("a", "longer", true);
        matrix.record("longer", "a", false);
        matrix.record("longer", "longer", true);
        matrix.record("longer", "longer", false);
        let expected = [
            "          a    longer",
            "a         -     yes",
            "longer    NO    1/2",
        ];
        assert_eq!(matrix.lines(), expected);
    }
}
