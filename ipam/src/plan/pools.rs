//! Which pools a request may use, and why not the others.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::config::{NamespaceProfile, Node};
use crate::error::{AssignRefusal, Family, PoolReport};
use crate::keys;
use crate::pool::{AssignmentMode, Geometry, IpPool, IpPoolSpec, IpReservation};
use crate::resource::ResourceError;
use crate::selector::{Selector, SelectorError};
use crate::view::View;

use super::{AssignRequest, IntendedUse, Stop};

/// What a Profile has before the key of a namespace's label.
const NAMESPACE_LABEL: &str = "pcns.";

/// A pool, with all that is read off its value.
pub(super) struct KnownPool {
    pub(super) key: String,
    pub(super) name: String,
    pub(super) geometry: Geometry,
    spec: IpPoolSpec,
    /// `None` selects everything.
    node_selector: Option<Result<Selector, SelectorError>>,
    /// `None` selects everything.
    namespace_selector: Option<Result<Selector, SelectorError>>,
}

/// The pools of one family: usable ones in order of preference, and the reasons against the others.
pub(super) struct PoolChoice {
    pub(super) usable: Vec<Arc<KnownPool>>,
    pub(super) reports: Vec<PoolReport>,
}

/// The pools for `family`: those asked for, or else the automatic ones.
pub(super) fn choose(
    view: &View,
    request: &AssignRequest,
    family: Family,
) -> Result<PoolChoice, Stop<AssignRefusal>> {
    let mut choice = PoolChoice {
        usable: Vec::new(),
        reports: Vec::new(),
    };
    let mut known = Vec::new();
    for (key, pool) in view.parsed_under(keys::IP_POOLS, KnownPool::parse)? {
        match pool {
            Ok(pool) if pool.geometry.family() == family => known.push(pool),
            Ok(_) => {}
            Err(error) => choice.reports.push(PoolReport {
                pool: name_in(key),
                why: format!("not a valid {}: {}", error.what, error.why),
            }),
        }
    }
    let asked = asked_for(view, request, family)?;
    for pool in known {
        let reason = match &asked {
            Some(order) if !order.contains_key(&pool.key) => Some("not asked for".to_owned()),
            Some(_) => pool.reason_against_use(request),
            None => pool.reason_against(view, request)?,
        };
        match reason {
            None => choice.usable.push(pool),
            Some(why) => choice.reports.push(PoolReport {
                pool: pool.name.clone(),
                why,
            }),
        }
    }
    if let Some(order) = asked {
        choice.usable.sort_by_key(|pool| order.get(&pool.key).copied());
    }
    Ok(choice)
}

/// The networks of the pools that `request` may use. `view` has all pools and the node.
pub(crate) fn tunnel_pools(
    view: &View,
    request: &AssignRequest,
    family: Family,
) -> Result<Vec<IpNetwork>, AssignRefusal> {
    match choose(view, request, family) {
        Ok(choice) => Ok(choice.usable.iter().map(|pool| pool.geometry.cidr).collect()),
        Err(Stop::Refuse(refusal)) => Err(refusal),
        Err(Stop::Need(_)) => Ok(Vec::new()),
    }
}

/// The enabled pool that contains `address`.
pub(super) fn containing(
    view: &View,
    address: IpAddr,
) -> Result<Option<Arc<KnownPool>>, Stop<AssignRefusal>> {
    Ok(enabled(view)?.find(|pool| pool.geometry.cidr.contains(address)))
}

/// Every range that is not to be assigned automatically.
pub(super) fn reservations(view: &View) -> Result<Vec<IpNetwork>, Stop<AssignRefusal>> {
    let mut reserved = Vec::new();
    for (_, cidrs) in view.parsed_under(keys::IP_RESERVATIONS, reserved_cidrs)? {
        reserved.extend_from_slice(&cidrs?);
    }
    Ok(reserved)
}

fn reserved_cidrs(key: &str, value: &[u8]) -> Result<Vec<IpNetwork>, ResourceError> {
    let reservation = IpReservation::parse(key, "IPReservation", value)?;
    let cidrs = reservation.spec.reserved_cidrs.iter().map(|cidr| {
        cidr.parse().map_err(|_| ResourceError {
            key: key.to_owned(),
            what: "IPReservation",
            why: format!("reservedCIDRs: {cidr:?} is not a network in CIDR notation"),
        })
    });
    cidrs.collect()
}

/// The pools that are not disabled, in the order of their names. One that cannot be read is none.
fn enabled(view: &View) -> Result<impl Iterator<Item = Arc<KnownPool>>, Stop<AssignRefusal>> {
    let known = view.parsed_under(keys::IP_POOLS, KnownPool::parse)?;
    Ok(known
        .filter_map(|(_, pool)| pool.ok())
        .filter(|pool| !pool.spec.disabled))
}

/// The keys of the pools of this family that the request names, with their place in it. `None` if it names none. A name
/// that no enabled pool has is refused whatever its family.
fn asked_for(
    view: &View,
    request: &AssignRequest,
    family: Family,
) -> Result<Option<BTreeMap<String, usize>>, Stop<AssignRefusal>> {
    let mut order = BTreeMap::new();
    for (place, wanted) in request.pools.iter().enumerate() {
        let cidr = wanted.parse::<IpNetwork>().ok();
        let found = enabled(view)?.find(|pool| pool.name == *wanted || Some(pool.geometry.cidr) == cidr);
        match found {
            None => return Err(Stop::Refuse(AssignRefusal::UnknownPool { pool: wanted.clone() })),
            Some(pool) if pool.geometry.family() == family => {
                order.entry(pool.key.clone()).or_insert(place);
            }
            Some(_) => {}
        }
    }
    Ok(if order.is_empty() { None } else { Some(order) })
}

impl KnownPool {
    fn parse(key: &str, value: &[u8]) -> Result<Self, ResourceError> {
        let what = "IPPool";
        let spec = IpPool::parse(key, what, value)?.spec;
        let geometry = spec.geometry().map_err(|error| ResourceError {
            key: key.to_owned(),
            what,
            why: error.to_string(),
        })?;
        let selector = |text: &Option<String>| {
            let parsed = Selector::parse(text.as_deref()?);
            (!parsed.as_ref().is_ok_and(Selector::is_all)).then_some(parsed)
        };
        Ok(Self {
            key: key.to_owned(),
            name: name_in(key),
            geometry,
            node_selector: selector(&spec.node_selector),
            namespace_selector: selector(&spec.namespace_selector),
            spec,
        })
    }

    /// Why an automatic request cannot use it.
    fn reason_against(
        &self,
        view: &View,
        request: &AssignRequest,
    ) -> Result<Option<String>, Stop<AssignRefusal>> {
        if self.spec.disabled {
            return Ok(Some("disabled".to_owned()));
        }
        if self.spec.assignment_mode.unwrap_or_default() == AssignmentMode::Manual {
            return Ok(Some("assignment mode is Manual".to_owned()));
        }
        if let Some(why) = self.reason_against_use(request) {
            return Ok(Some(why));
        }
        let text = |selector: &Option<String>| selector.clone().unwrap_or_default();
        match &self.node_selector {
            Some(Err(error)) => return Ok(Some(format!("nodeSelector: {error}"))),
            Some(Ok(selector)) if !selector.matches(&node_labels(view, &self.name, &request.node)?) => {
                let text = text(&self.spec.node_selector);
                return Ok(Some(format!(
                    "nodeSelector {text:?} does not select node {}",
                    request.node
                )));
            }
            Some(Ok(_)) | None => {}
        }
        match &self.namespace_selector {
            Some(Err(error)) => return Ok(Some(format!("namespaceSelector: {error}"))),
            Some(Ok(selector)) if !selector.matches(&namespace_labels(view, request)?) => {
                let text = text(&self.spec.namespace_selector);
                return Ok(Some(format!(
                    "namespaceSelector {text:?} does not select the namespace"
                )));
            }
            Some(Ok(_)) | None => {}
        }
        Ok(None)
    }

    fn reason_against_use(&self, request: &AssignRequest) -> Option<String> {
        let use_ = request.intended_use.name();
        if let IntendedUse::Tunnel(tunnel) = request.intended_use
            && !tunnel.is_used_by(&self.spec)
        {
            return Some(format!("it does not use {tunnel} tunnels"));
        }
        let allowed = &self.spec.allowed_uses;
        (!self.spec.allows(use_)).then(|| format!("allowedUses {allowed:?} does not have {use_}"))
    }
}

fn node_labels(view: &View, pool: &str, node: &str) -> Result<BTreeMap<String, String>, Stop<AssignRefusal>> {
    let key = keys::resource("nodes", node);
    match view.parsed(&key, |key, value| Node::parse(key, "Node", value))? {
        Some(stored) => Ok(stored?.metadata.labels.clone()),
        None => Err(Stop::Refuse(AssignRefusal::UnknownNode {
            pool: pool.to_owned(),
            node: node.to_owned(),
        })),
    }
}

/// The labels that every namespace has by its name alone, Kubernetes' own and the one that Calico adds, and those in its
/// Profile. None without a namespace.
fn namespace_labels(
    view: &View,
    request: &AssignRequest,
) -> Result<BTreeMap<String, String>, Stop<AssignRefusal>> {
    let Some(namespace) = &request.namespace else {
        return Ok(BTreeMap::new());
    };
    let key = format!("{}{namespace}", keys::NAMESPACE_PROFILES);
    let mut labels = match view.parsed(&key, labels_to_apply)? {
        None => BTreeMap::new(),
        Some(labels) => Arc::unwrap_or_clone(labels?),
    };
    let by_name = ["kubernetes.io/metadata.name", "projectcalico.org/name"];
    labels.extend(by_name.map(|label| (label.to_owned(), namespace.clone())));
    Ok(labels)
}

fn labels_to_apply(key: &str, value: &[u8]) -> Result<BTreeMap<String, String>, ResourceError> {
    let profile = NamespaceProfile::parse(key, "Profile", value)?;
    let labels = profile.spec.labels_to_apply.into_iter();
    Ok(labels
        .filter_map(|(key, value)| Some((key.strip_prefix(NAMESPACE_LABEL)?.to_owned(), value)))
        .collect())
}

fn name_in(key: &str) -> String {
    key.strip_prefix(keys::IP_POOLS).unwrap_or(key).to_owned()
}
