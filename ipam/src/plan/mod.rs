//! From what was read and what is asked to one transaction, or to a refusal. Pure: same input, same output.
//!
//! [`plan_assign`], [`plan_release`] and [`plan_repair`] run again from the start whenever the view has grown or a transaction was
//! refused; they keep nothing in between.

mod assign;
mod automatic;
mod batch;
mod draft;
mod kept;
mod pools;
mod release;
mod repair;
mod search;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

pub use assign::plan_assign;
pub(crate) use batch::Batch;
pub(crate) use pools::tunnel_pools;
pub use release::{OwnRecord, plan_release};
pub use repair::{RepairRequest, Repaired, plan_repair};

use crate::config::{ClusterInformation, IpamConfig};
use crate::decision::Decision;
use crate::keep::Keep;
use crate::keys;
use crate::resource::ResourceError;
use crate::store::Guard;
use crate::tunnel::Tunnel;
use crate::view::{Need, View};

/// A request for addresses. One request, one transaction, for both families.
///
/// Two requests with the same handle, the same `now` and the same attributes are the same request: the second finds
/// what the first did. So a request whose answer was lost can be made again.
#[derive(Clone, Debug)]
pub struct AssignRequest {
    /// Who gets the addresses; for a container Calico uses `<network name>.<container ID>`.
    pub handle_id: String,
    /// The node on which they will be used.
    pub node: String,
    /// IPv4 addresses wanted.
    pub v4: AddressRequest,
    /// IPv6 addresses wanted.
    pub v6: AddressRequest,
    /// Pools to take them from, by name or CIDR, in order of preference. Empty (for a family): every enabled pool that
    /// assigns automatically and selects the node and the namespace.
    pub pools: Vec<String>,
    /// Addresses that are not to be given unless they are asked for by name.
    pub excluded: Vec<IpNetwork>,
    /// What the addresses are for.
    pub intended_use: IntendedUse,
    /// The pod's namespace, for pools that select namespaces: by its name and by the labels in its Profile.
    pub namespace: Option<String>,
    /// Notes stored with the allocation (`pod`, `namespace`, `type`). `node` and `timestamp` are added if missing
    /// (no `timestamp` for a tunnel device).
    pub attributes: BTreeMap<String, String>,
    /// Whom the addresses are kept for when they are released; what is kept for it now is what it gets.
    pub keep: Option<Keep>,
    /// Other keys to write in the same transaction (the WorkloadEndpoint).
    pub extra_writes: Vec<ExtraWrite>,
}

/// Which addresses of a family are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AddressRequest {
    /// None.
    #[default]
    None,
    /// Any, so many (1 to 16).
    Count(usize),
    /// Exactly these (1 to 16). Reservations and the pool's assignment mode do not bind such a request.
    Exactly(Vec<IpAddr>),
}

/// What an address is for. A pool lists what it allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IntendedUse {
    /// A pod.
    #[default]
    Workload,
    /// A node's tunnel device of this kind.
    Tunnel(Tunnel),
}

/// Makes the value of an extra write from the assigned addresses.
type ComposeValue = dyn Fn(&[AssignedAddress]) -> Vec<u8> + Send + Sync;

/// A key that the caller writes in the transaction of an assignment.
#[derive(Clone)]
pub struct ExtraWrite {
    key: String,
    expect: Expect,
    value: Arc<ComposeValue>,
}

/// A key that the caller deletes in the transaction of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraDelete {
    /// The key.
    pub key: String,
    /// What must be true of it.
    pub expect: Expect,
}

/// A key that the caller only looks at: a release happens if it is still as expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraGuard {
    /// The key.
    pub key: String,
    /// What must be true of it.
    pub expect: Expect,
}

/// What must be true of a key for a write of the caller to happen. If it is not, nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Anything,
    /// It does not exist.
    Absent,
    /// It exists and was last changed at this revision.
    Unchanged(i64),
}

/// What was assigned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// The addresses, IPv4 first; those asked for by name in the order of the request.
    pub addresses: Vec<AssignedAddress>,
    /// Blocks that the node claimed by this.
    pub claimed_blocks: Vec<IpNetwork>,
}

/// An assigned or released address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AssignedAddress {
    /// The address.
    pub address: IpAddr,
    /// The block it is in.
    pub block: IpNetwork,
    /// The number of this allocation: naming it at release protects a later owner of the same address.
    pub sequence_number: u64,
}

/// A request to release what a handle has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReleaseRequest {
    /// Whose addresses. A handle that does not exist has none: that is no error.
    pub handle_id: String,
    /// Only these of them; empty for all.
    pub only: Vec<ReleaseOnly>,
    /// What becomes of addresses that are to be kept for their workload.
    pub keep: KeepOnRelease,
    /// Keys to delete in the same transaction (the WorkloadEndpoint).
    pub extra_deletes: Vec<ExtraDelete>,
    /// Keys that must be as expected for anything to happen, at most 32.
    pub extra_guards: Vec<ExtraGuard>,
    /// The node that assigned, if no assignment of it whose answer was lost may come through after this: what is released
    /// stays released. [`crate::Ipam`] does nothing for it where nothing can be outstanding.
    pub fence: Option<String>,
}

/// What becomes of an address that is to be kept for its workload ([`Keep`]) when it is released.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeepOnRelease {
    /// It is kept.
    #[default]
    AsNoted,
    /// It is free, as an operator wants it.
    Nothing,
}

/// One address to release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleaseOnly {
    /// The address. If the handle does not have it, it is passed over.
    pub address: IpAddr,
    /// The allocation that is meant; `None` for whichever the handle has now.
    pub sequence_number: Option<u64>,
}

/// What was released.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// The addresses, by block; empty if there was nothing to release.
    pub addresses: Vec<AssignedAddress>,
    /// Whether there is more under the same handle, for another transaction. Never true in what [`crate::Ipam`] returns.
    pub more: bool,
}

impl AssignRequest {
    /// A request of `handle_id` on `node` for nothing yet.
    pub fn new(handle_id: &str, node: &str) -> Self {
        Self {
            handle_id: handle_id.to_owned(),
            node: node.to_owned(),
            v4: AddressRequest::None,
            v6: AddressRequest::None,
            pools: Vec::new(),
            excluded: Vec::new(),
            intended_use: IntendedUse::Workload,
            namespace: None,
            attributes: BTreeMap::new(),
            keep: None,
            extra_writes: Vec::new(),
        }
    }

    /// Keys that are new if nobody has made this request before. The transaction depends on what is under them.
    pub(crate) fn new_keys(&self) -> Vec<String> {
        let extras = self.extra_writes.iter();
        let absent = extras.filter(|extra| extra.expect == Expect::Absent);
        let mut new = vec![keys::handle(&self.handle_id)];
        new.extend(absent.map(|extra| extra.key.clone()));
        new
    }
}

impl ExtraWrite {
    /// Writes to `key` what `value` makes of the assigned addresses. It must give the same for the same.
    pub fn new(
        key: String,
        expect: Expect,
        value: impl Fn(&[AssignedAddress]) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self {
            key,
            expect,
            value: Arc::new(value),
        }
    }
}

impl fmt::Debug for ExtraWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExtraWrite")
            .field("key", &self.key)
            .field("expect", &self.expect)
            .finish_non_exhaustive()
    }
}

impl AssignedAddress {
    /// The address as a network of its own, /32 or /128.
    pub fn network(&self) -> IpNetwork {
        IpNetwork::from(self.address)
    }
}

impl IntendedUse {
    fn name(self) -> &'static str {
        match self {
            Self::Workload => "Workload",
            Self::Tunnel(_) => "Tunnel",
        }
    }
}

/// Why a plan stops half way.
enum Stop<Refusal> {
    Need(Need),
    Refuse(Refusal),
}

impl<Refusal> From<Need> for Stop<Refusal> {
    fn from(need: Need) -> Self {
        Self::Need(need)
    }
}

impl<Refusal: From<ResourceError>> From<ResourceError> for Stop<Refusal> {
    fn from(error: ResourceError) -> Self {
        Self::Refuse(error.into())
    }
}

impl<Outcome, Refusal> From<Stop<Refusal>> for Decision<Outcome, Refusal> {
    fn from(stop: Stop<Refusal>) -> Self {
        match stop {
            Stop::Need(Need(ranges)) => Self::Read(ranges),
            Stop::Refuse(refusal) => Self::Refuse(refusal),
        }
    }
}

/// Whether the datastore is open for writing, with the guard that keeps this true for the transaction. A cluster without
/// ClusterInformation is open.
fn datastore_ready<Refusal: From<ResourceError>>(view: &View) -> Result<(bool, Guard), Stop<Refusal>> {
    let key = keys::CLUSTER_INFORMATION;
    let parse = |key: &str, value: &[u8]| ClusterInformation::parse(key, "ClusterInformation", value);
    let information = view.parsed(key, parse)?.transpose()?;
    let ready = information.and_then(|information| information.spec.datastore_ready);
    let guard = Guard {
        key: key.to_owned(),
        mod_revision: view.get(key)?.map_or(0, |kv| kv.mod_revision),
    };
    Ok((ready.unwrap_or(true), guard))
}

/// The configuration, as stored or by default.
fn ipam_config<Refusal: From<ResourceError>>(view: &View) -> Result<Arc<IpamConfig>, Stop<Refusal>> {
    let stored = view.parsed(keys::IPAM_CONFIG, IpamConfig::parse)?.transpose()?;
    Ok(stored.unwrap_or_default())
}

/// The revision to guard `key` with, `None` for no guard; `Err` if what is expected is not so.
fn expected_revision(view: &View, key: &str, expect: Expect) -> Result<Result<Option<i64>, ()>, Need> {
    let expected = match expect {
        Expect::Anything => return Ok(Ok(None)),
        Expect::Absent => 0,
        Expect::Unchanged(revision) => revision,
    };
    let present = view.get(key)?.map_or(0, |kv| kv.mod_revision);
    Ok(if present == expected {
        Ok(Some(expected))
    } else {
        Err(())
    })
}

/// Whether `id` can be part of a key and of an attribute.
fn is_identifier(id: &str) -> bool {
    keys::is_key_part(id) && !id.chars().any(char::is_control) && id.len() <= 1024
}
