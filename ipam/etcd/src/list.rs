//! Reading many ranges at one revision, in pieces that fit.
//!
//! etcd limits a transaction to 128 operations and gRPC a message to a size, so that the first request fixes the revision
//! and the others read at it. If that revision is compacted meanwhile, everything begins anew.

use std::collections::BTreeMap;

use calidris_ipam::{KeyValue, Range, Snapshot};
use etcd_client::{
    GetOptions, GetResponse, KvClient, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, TxnResponse,
};

use crate::failure::Failure;

/// Operations in one request; etcd's default limit is 128.
const MAX_OPERATIONS: usize = 100;
/// Keys in one answer to a prefix. A block has a few kB, the largest (4096 addresses) some 60 kB.
const PAGE: i64 = 500;
/// Largest answer decoded. [`PAGE`] of the largest blocks fit.
pub(crate) const MAX_MESSAGE: usize = 64 << 20;

/// Reads `ranges` at one revision. Fails as compacted if that revision is lost half way: the caller begins anew.
pub(crate) async fn read_at_one_revision(kv: &mut KvClient, ranges: &[Range]) -> Result<Snapshot, Failure> {
    let mut found = Found::default();
    // Even for nothing: the caller wants the revision.
    let (first, rest) = ranges.split_at(ranges.len().min(MAX_OPERATIONS));
    found.batch(kv, first).await?;
    for batch in rest.chunks(MAX_OPERATIONS) {
        found.batch(kv, batch).await?;
    }
    Ok(Snapshot {
        revision: found.revision,
        kvs: found.kvs.into_values().collect(),
    })
}

/// The operations of one transaction that read `ranges` as they are, `None` if they are too many for one.
pub(crate) fn operations_of(ranges: &[Range]) -> Option<Vec<TxnOp>> {
    let found = Found::default();
    let operations = ranges.iter().map(|range| found.operation(range));
    (ranges.len() <= MAX_OPERATIONS).then(|| operations.collect())
}

/// What `answer`, of a transaction with [`operations_of`] `ranges`, says of them; `None` if that is not all.
pub(crate) fn snapshot_of(answer: &TxnResponse, ranges: &[Range]) -> Option<Snapshot> {
    let mut found = Found::default();
    let revision = answer.header()?.revision();
    let mut answers = answer.op_responses().into_iter();
    for _ in ranges {
        let Some(TxnOpResponse::Get(mut page)) = answers.next() else {
            return None;
        };
        if page.more() {
            return None;
        }
        found.take_in(&mut page);
    }
    let kvs = found.kvs.into_values().collect();
    Some(Snapshot { revision, kvs })
}

#[derive(Default)]
struct Found {
    /// 0 until the first answer.
    revision: i64,
    kvs: BTreeMap<String, KeyValue>,
}

impl Found {
    async fn batch(&mut self, kv: &mut KvClient, ranges: &[Range]) -> Result<(), Failure> {
        let operations: Vec<TxnOp> = ranges.iter().map(|range| self.operation(range)).collect();
        let answer = kv
            .txn(Txn::new().and_then(operations))
            .await
            .map_err(Failure::Etcd)?;
        let header = answer.header().ok_or(Failure::Malformed("no header"))?;
        if self.revision == 0 {
            self.revision = header.revision();
        }
        let mut answers = answer.op_responses().into_iter();
        for range in ranges {
            let Some(TxnOpResponse::Get(page)) = answers.next() else {
                return Err(Failure::Malformed("no answer to a range"));
            };
            self.pages(kv, range, page).await?;
        }
        Ok(())
    }

    /// Takes in `page` of `range` and reads the pages after it.
    async fn pages(
        &mut self,
        kv: &mut KvClient,
        range: &Range,
        mut page: GetResponse,
    ) -> Result<(), Failure> {
        loop {
            let last = page.kvs().last().map(|kv| kv.key().to_vec());
            let more = page.more();
            self.take_in(&mut page);
            let (Range::Prefix(prefix), true, Some(mut from)) = (range, more, last) else {
                return Ok(());
            };
            // The smallest key after the last one.
            from.push(0);
            let options = self.page_options().with_range(prefix_end(prefix.as_bytes()));
            page = kv.get(from, Some(options)).await.map_err(Failure::Etcd)?;
        }
    }

    fn take_in(&mut self, page: &mut GetResponse) {
        let kvs = page.take_kvs();
        let kvs = kvs.iter().filter_map(key_value);
        self.kvs.extend(kvs.map(|kv| (kv.key.clone(), kv)));
    }

    fn operation(&self, range: &Range) -> TxnOp {
        match range {
            Range::Key(key) => TxnOp::get(key.as_bytes(), Some(self.at_revision())),
            Range::Prefix(prefix) => {
                let options = self.page_options().with_range(prefix_end(prefix.as_bytes()));
                TxnOp::get(prefix.as_bytes(), Some(options))
            }
        }
    }

    fn page_options(&self) -> GetOptions {
        self.at_revision()
            .with_limit(PAGE)
            .with_sort(SortTarget::Key, SortOrder::Ascend)
    }

    /// Revision 0 is the present one.
    fn at_revision(&self) -> GetOptions {
        GetOptions::new().with_revision(self.revision)
    }
}

/// The first key after all that begin with `prefix`; a single 0 (etcd's "no end") if there is none.
pub(crate) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// A key that is not UTF-8 is none of Calico's and is passed over.
pub(crate) fn key_value(kv: &etcd_client::KeyValue) -> Option<KeyValue> {
    let key = std::str::from_utf8(kv.key()).ok()?.to_owned();
    Some(KeyValue {
        key,
        value: kv.value().to_vec(),
        mod_revision: kv.mod_revision(),
    })
}

#[cfg(test)]
mod tests {
    use super::prefix_end;

    #[test]
    fn the_end_of_a_prefix_is_the_first_key_after_it() {
        assert_eq!(prefix_end(b"/calico/"), b"/calico0");
        assert_eq!(prefix_end(b"a\xff"), b"b");
        assert_eq!(prefix_end(b"\xff"), b"\0");
        assert_eq!(prefix_end(b""), b"\0");
    }
}
