//! What clients ask for, and what there is before they do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use calidris_ipam::{
    AddressRequest, AssignRequest, Expect, ExtraDelete, ExtraWrite, Ipam, MemoryStore, ReleaseOnly,
    ReleaseRequest, Store, keys,
};
use serde_json::json;

use crate::support::{at, now_or_never};

pub(crate) fn assign(node: &str, handle: &str, count: usize) -> Request {
    Request::Assign {
        node: node.to_owned(),
        handle: handle.to_owned(),
        count,
    }
}

pub(crate) fn release(handle: &str) -> Request {
    Request::Release(handle.to_owned(), None)
}

/// The release of all that a handle has, with its endpoint.
pub(crate) fn whole(handle: &str) -> ReleaseRequest {
    ReleaseRequest {
        handle_id: handle.to_owned(),
        extra_deletes: vec![ExtraDelete {
            key: endpoint(handle),
            expect: Expect::Anything,
        }],
        ..ReleaseRequest::default()
    }
}

pub(crate) fn endpoint(handle: &str) -> String {
    format!("/endpoint/{handle}")
}

#[derive(Clone, Debug)]
pub(crate) enum Request {
    Assign {
        node: String,
        handle: String,
        count: usize,
    },
    Release(String, Option<u64>),
}

/// The addresses of a finished assignment; `None` for refusals and releases.
pub(crate) type Given = Option<BTreeSet<IpAddr>>;

impl Request {
    pub(crate) async fn run(&self, ipam: &Ipam<impl Store>) -> Given {
        self.run_at(ipam, 1000).await
    }

    /// As [`Self::run`], with an assignment at another time.
    pub(crate) async fn run_at(&self, ipam: &Ipam<impl Store>, seconds: i64) -> Given {
        match self {
            Self::Assign { node, handle, count } => {
                let mut request = AssignRequest::new(handle, node);
                request.v4 = AddressRequest::Count(*count);
                request.extra_writes = vec![ExtraWrite::new(endpoint(handle), Expect::Anything, |_| {
                    Vec::new()
                })];
                let assigned = ipam.assign(&request, at(seconds)).await.ok()?;
                assert_eq!(assigned.addresses.len(), *count);
                Some(
                    assigned
                        .addresses
                        .iter()
                        .map(|assigned| assigned.address)
                        .collect(),
                )
            }
            Self::Release(handle, sequence_number) => {
                let address = "10.0.0.0".parse().unwrap();
                let only = sequence_number.map(|number| ReleaseOnly {
                    address,
                    sequence_number: Some(number),
                });
                let request = ReleaseRequest {
                    only: only.into_iter().collect(),
                    ..whole(handle)
                };
                let _ = ipam.release(&request, at(0)).await;
                None
            }
        }
    }

    pub(crate) fn handle(&self) -> &str {
        match self {
            Self::Assign { handle, .. } | Self::Release(handle, _) => handle,
        }
    }

    pub(crate) fn node(&self) -> Option<&str> {
        match self {
            Self::Assign { node, .. } => Some(node),
            Self::Release(..) => None,
        }
    }
}

/// The keys that a run begins with.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) kvs: BTreeMap<String, Vec<u8>>,
    /// What each client does before anything can go wrong.
    pub(crate) before: Vec<Request>,
}

impl Setup {
    /// One pool 10.0.0.0/`prefix` with blocks of two addresses.
    pub(crate) fn new(prefix: u8) -> Self {
        let cidr = format!("10.0.0.0/{prefix}");
        let pool = json!({"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "p"},
            "spec": {"cidr": cidr, "blockSize": 31}});
        Self {
            kvs: BTreeMap::from([(format!("{}p", keys::IP_POOLS), pool.to_string().into_bytes())]),
            before: Vec::new(),
        }
    }

    /// With clients each of which has assigned an address itself: node, handle.
    pub(crate) fn with_clients_that_have(mut self, before: &[(&str, &str)]) -> Self {
        let before = before.iter().map(|&(node, handle)| assign(node, handle, 1));
        self.before = before.collect();
        self
    }

    /// With addresses assigned before: node, handle, count.
    pub(crate) fn assigned(mut self, assigned: &[(&str, &str, usize)]) -> Self {
        for &(node, handle, count) in assigned {
            let store = self.store();
            let mut request = AssignRequest::new(handle, node);
            request.v4 = AddressRequest::Count(count);
            now_or_never(Ipam::new(&*store).assign(&request, at(0))).unwrap();
            self.kvs = store.dump();
        }
        self
    }

    pub(crate) fn release(&mut self, handle: &str) {
        let store = self.store();
        now_or_never(Ipam::new(&*store).release(&whole(handle), at(0))).unwrap();
        self.kvs = store.dump();
    }

    pub(crate) fn sequence_number(&self, handle: &str) -> u64 {
        let store = self.store();
        now_or_never(Ipam::new(&*store).addresses_of_handle(handle)).unwrap()[0].sequence_number
    }

    pub(crate) fn store(&self) -> Arc<MemoryStore> {
        Arc::new(MemoryStore::with(self.kvs.clone()))
    }
}
