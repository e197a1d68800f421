//! What `calicoctl ipam show` and `calidris ipam show` print, in one form, to be compared.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use serde_json::Value;

/// Addresses in use, by pool or block.
pub(super) type Usage = BTreeMap<String, u64>;

/// Who has an address, as noted with it.
pub(super) type Notes = BTreeMap<String, String>;

/// The cells of the rows of a table with borders, without its titles.
fn rows(table: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = table.lines().filter(|line| line.starts_with('|')).skip(1);
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
}

/// `calicoctl ipam show --show-blocks`.
pub(super) fn calico_usage(table: &str) -> anyhow::Result<Usage> {
    let mut usage = Usage::new();
    for row in rows(table) {
        let [_, cidr, _, in_use, ..] = row.as_slice() else {
            anyhow::bail!("an unknown table: {table}");
        };
        let in_use = in_use.split(' ').next().unwrap_or_default();
        let in_use = in_use
            .parse()
            .with_context(|| format!("no number {in_use:?} in {table}"))?;
        usage.insert((*cidr).to_owned(), in_use);
    }
    Ok(usage)
}

/// `calidris ipam show --blocks -o json`.
pub(super) fn our_usage(shown: &Value) -> anyhow::Result<Usage> {
    let mut usage = Usage::new();
    for pool in shown["pools"].as_array().context("no pools")? {
        let blocks = pool["blocks"].as_array().into_iter().flatten();
        for counted in blocks.chain([pool]) {
            let cidr = counted["cidr"].as_str().context("no cidr")?;
            let in_use = counted["in_use"].as_u64().context("no in_use")?;
            usage.insert(cidr.to_owned(), in_use);
        }
    }
    Ok(usage)
}

/// `calicoctl ipam show --show-borrowed`: address, borrower, block, owner.
pub(super) fn calico_borrowed(table: &str) -> BTreeSet<[String; 4]> {
    let four = |row: Vec<&str>| row.into_iter().take(4).map(str::to_owned).collect::<Vec<_>>();
    rows(table).filter_map(|row| four(row).try_into().ok()).collect()
}

/// `calidris ipam show --borrowed -o json`, the same.
pub(super) fn our_borrowed(shown: &Value) -> anyhow::Result<BTreeSet<[String; 4]>> {
    let borrowed = shown["borrowed"]
        .as_array()
        .context("no list of borrowed addresses")?;
    let one = |address: &Value| -> Option<[String; 4]> {
        let block_owner = address["block_owner"].as_str()?;
        Some([
            address["address"].as_str()?.to_owned(),
            address["borrowed_by"].as_str()?.to_owned(),
            address["block"].as_str()?.to_owned(),
            block_owner.trim_start_matches("host:").to_owned(),
        ])
    };
    let all: Vec<_> = borrowed.iter().map(one).collect();
    ensure!(all.iter().all(Option::is_some), "{shown}");
    Ok(all.into_iter().flatten().collect())
}

/// `calicoctl ipam show --ip`: nothing if it is free.
pub(super) fn calico_notes(text: &str) -> Option<Notes> {
    if text.contains("is not assigned") {
        return None;
    }
    let notes = text
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split_once(": "));
    Some(
        notes
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
    )
}

/// `calidris ipam show --ip -o json`, the same.
pub(super) fn our_notes(shown: &Value) -> Option<Notes> {
    if shown["state"] != "allocated" {
        return None;
    }
    let notes = shown["notes"].as_object()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Some(
        notes
            .iter()
            .map(|(key, value)| (key.clone(), text(value)))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_calicoctl_are_read() -> anyhow::Result<()> {
        let table = "\
+----------+---------------+-----------+------------+-----------+
| GROUPING |     CIDR      | IPS TOTAL | IPS IN USE | IPS FREE  |
+----------+---------------+-----------+------------+-----------+
| IP Pool  | 10.63.0.0/28  |        16 | 4 (25%)    | 12 (75%)  |
| Block    | 10.63.0.8/29  |         8 | 3 (38%)    | 5 (62%)   |
+----------+---------------+-----------+------------+-----------+
";
        let expected = [("10.63.0.0/28".to_owned(), 4), ("10.63.0.8/29".to_owned(), 3)];
        ensure!(calico_usage(table)? == Usage::from(expected));
        let borrowed = "\
+-----------+----------------+--------------+-------------+------+--------------+
|    IP     | BORROWING-NODE |    BLOCK     | BLOCK OWNER | TYPE | ALLOCATED-TO |
+-----------+----------------+--------------+-------------+------+--------------+
| 10.63.0.9 | node-a         | 10.63.0.8/29 | node-b      |      |              |
+-----------+----------------+--------------+-------------+------+--------------+
";
        let expected = ["10.63.0.9", "node-a", "10.63.0.8/29", "node-b"].map(str::to_owned);
        ensure!(calico_borrowed(borrowed) == BTreeSet::from([expected]));
        ensure!(calico_notes("10.63.0.9 is not assigned\n").is_none());
        let notes = calico_notes("IP 10.63.0.9 is in use\nAttributes:\n  node: node-a\n").unwrap_or_default();
        ensure!(notes == Notes::from([("node".to_owned(), "node-a".to_owned())]));
        Ok(())
    }
}
