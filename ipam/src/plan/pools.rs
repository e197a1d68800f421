//! Which pools a request may use, and why not the others.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::config::{NamespaceProfile, Node};
use crate::error::{AssignRefusal, Family, PoolReport};
use crate::keys;
use crate::pool::{AssignmentMode, Geometry, IpPool, IpPoolSpec, IpReservation};
use crate::selector::Selector;
use crate::view::View;

use super::{AssignRequest, IntendedUse, Stop};

/// What a Profile has before the key of a namespace's label.
const NAMESPACE_LABEL: &str = "pcns.";

/// A pool that can be used.
pub(super) struct UsablePool {
    pub(super) key: String,
    pub(super) name: String,
    pub(super) geometry: Geometry,
}

/// The pools of one family: usable ones in order of preference, and the reasons against the others.
pub(super) struct PoolChoice {
    pub(super) usable: Vec<UsablePool>,
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
    for (key, pool) in all(view)? {
        match pool {
            Ok((spec, pool)) if pool.geometry.family() == family => known.push((spec, pool)),
            Ok(_) => {}
            Err(why) => choice.reports.push(PoolReport {
                pool: name_in(&key),
                why,
            }),
        }
    }
    let asked = asked_for(view, request, family)?;
    for (spec, pool) in known {
        let reason = match &asked {
            Some(order) if !order.contains_key(&pool.key) => Some("not asked for".to_owned()),
            Some(_) => reason_against_use(&spec, request),
            None => reason_against(view, &spec, &pool.name, request)?,
        };
        match reason {
            None => choice.usable.push(pool),
            Some(why) => choice.reports.push(PoolReport { pool: pool.name, why }),
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
        Ok(choice) => Ok(choice.usable.into_iter().map(|pool| pool.geometry.cidr).collect()),
        Err(Stop::Refuse(refusal)) => Err(refusal),
        Err(Stop::Need(_)) => Ok(Vec::new()),
    }
}

/// The enabled pool that contains `address`.
pub(super) fn containing(view: &View, address: IpAddr) -> Result<Option<UsablePool>, Stop<AssignRefusal>> {
    for (_, pool) in all(view)? {
        if let Ok((spec, pool)) = pool
            && !spec.disabled
            && pool.geometry.cidr.contains(address)
        {
            return Ok(Some(pool));
        }
    }
    Ok(None)
}

/// Every range that is not to be assigned automatically.
pub(super) fn reservations(view: &View) -> Result<Vec<IpNetwork>, Stop<AssignRefusal>> {
    let mut reserved = Vec::new();
    for kv in view.prefix(keys::IP_RESERVATIONS)? {
        let reservation = IpReservation::parse(&kv.key, "IPReservation", &kv.value)?;
        for cidr in &reservation.spec.reserved_cidrs {
            let parsed = cidr.parse::<IpNetwork>().map_err(|_| {
                let why = format!("reservedCIDRs: {cidr:?} is not a network in CIDR notation");
                crate::resource::ResourceError {
                    key: kv.key.clone(),
                    what: "IPReservation",
                    why,
                }
            })?;
            reserved.push(parsed);
        }
    }
    Ok(reserved)
}

type KnownPool = Result<(IpPoolSpec, UsablePool), String>;

/// All pools in the order of their names; one that cannot be read is a reason.
fn all(view: &View) -> Result<Vec<(String, KnownPool)>, Stop<AssignRefusal>> {
    let pools = view.prefix(keys::IP_POOLS)?;
    let read = |kv: &crate::store::KeyValue| {
        let pool = IpPool::parse(&kv.key, "IPPool", &kv.value).map_err(|error| error.to_string())?;
        let geometry = pool.spec.geometry().map_err(|error| error.to_string())?;
        Ok((
            pool.spec,
            UsablePool {
                key: kv.key.clone(),
                name: name_in(&kv.key),
                geometry,
            },
        ))
    };
    Ok(pools.map(|kv| (kv.key.clone(), read(kv))).collect())
}

/// The keys of the pools of this family that the request names, with their place in it. `None` if it names none. A name
/// that no enabled pool has is refused whatever its family.
fn asked_for(
    view: &View,
    request: &AssignRequest,
    family: Family,
) -> Result<Option<BTreeMap<String, usize>>, Stop<AssignRefusal>> {
    let mut order = BTreeMap::new();
    let known = all(view)?;
    for (place, wanted) in request.pools.iter().enumerate() {
        let cidr = wanted.parse::<IpNetwork>().ok();
        let found = known
            .iter()
            .filter_map(|(_, pool)| pool.as_ref().ok())
            .find(|(spec, pool)| {
                !spec.disabled && (pool.name == *wanted || Some(pool.geometry.cidr) == cidr)
            });
        match found {
            None => return Err(Stop::Refuse(AssignRefusal::UnknownPool { pool: wanted.clone() })),
            Some((_, pool)) if pool.geometry.family() == family => {
                order.entry(pool.key.clone()).or_insert(place);
            }
            Some(_) => {}
        }
    }
    Ok(if order.is_empty() { None } else { Some(order) })
}

/// Why an automatic request cannot use a pool.
fn reason_against(
    view: &View,
    spec: &IpPoolSpec,
    name: &str,
    request: &AssignRequest,
) -> Result<Option<String>, Stop<AssignRefusal>> {
    if spec.disabled {
        return Ok(Some("disabled".to_owned()));
    }
    if spec.assignment_mode.unwrap_or_default() == AssignmentMode::Manual {
        return Ok(Some("assignment mode is Manual".to_owned()));
    }
    if let Some(why) = reason_against_use(spec, request) {
        return Ok(Some(why));
    }
    if let Some(text) = &spec.node_selector {
        match Selector::parse(text) {
            Err(error) => return Ok(Some(format!("nodeSelector: {error}"))),
            Ok(selector) if selector.is_all() => {}
            Ok(selector) => {
                if !selector.matches(&node_labels(view, name, &request.node)?) {
                    return Ok(Some(format!(
                        "nodeSelector {text:?} does not select node {}",
                        request.node
                    )));
                }
            }
        }
    }
    if let Some(text) = &spec.namespace_selector {
        match Selector::parse(text) {
            Err(error) => return Ok(Some(format!("namespaceSelector: {error}"))),
            Ok(selector) if selector.is_all() => {}
            Ok(selector) => {
                if !selector.matches(&namespace_labels(view, request)?) {
                    return Ok(Some(format!(
                        "namespaceSelector {text:?} does not select the namespace"
                    )));
                }
            }
        }
    }
    Ok(None)
}

fn reason_against_use(spec: &IpPoolSpec, request: &AssignRequest) -> Option<String> {
    let use_ = request.intended_use.name();
    if let IntendedUse::Tunnel(tunnel) = request.intended_use
        && !tunnel.is_used_by(spec)
    {
        return Some(format!("it does not use {tunnel} tunnels"));
    }
    (!spec.allows(use_)).then(|| format!("allowedUses {:?} does not have {use_}", spec.allowed_uses))
}

fn node_labels(view: &View, pool: &str, node: &str) -> Result<BTreeMap<String, String>, Stop<AssignRefusal>> {
    let key = keys::resource("nodes", node);
    match view.get(&key)? {
        Some(kv) => Ok(Node::parse(&key, "Node", &kv.value)?.metadata.labels),
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
    let mut labels = match view.get(&key)? {
        None => BTreeMap::new(),
        Some(kv) => NamespaceProfile::parse(&key, "Profile", &kv.value)?
            .spec
            .labels_to_apply
            .into_iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(NAMESPACE_LABEL)?.to_owned(), value)))
            .collect(),
    };
    let by_name = ["kubernetes.io/metadata.name", "projectcalico.org/name"];
    labels.extend(by_name.map(|label| (label.to_owned(), namespace.clone())));
    Ok(labels)
}

fn name_in(key: &str) -> String {
    key.strip_prefix(keys::IP_POOLS).unwrap_or(key).to_owned()
}
