//! Pools that the configuration names: made at the start if there is none of the name, and never changed afterwards.

use std::sync::Arc;
use std::time::Duration;

use calidris_ipam::{CommitOutcome, Guard, Ipam, Range, Store, StoreError, Txn, UnixNanos, Write, keys};
use serde_json::{Map, Value, json};
use tracing::{info, warn};

use crate::clock;
use crate::config::PoolSettings;

/// Makes the pools of the configuration, trying again until they are there.
pub async fn make<S: Store>(pools: Vec<PoolSettings>, ipam: Arc<Ipam<S>>) {
    let mut pause = Duration::from_secs(1);
    loop {
        match create_missing(ipam.store(), &pools, clock::uuid, clock::wall()).await {
            Ok(made) if made.is_empty() => return,
            Ok(made) => return info!(pools = made.join(", "), "made IP pools"),
            Err(error) => warn!(%error, "cannot make the IP pools; trying again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(30));
    }
}

/// Makes the pools that are not there. Returns the names of those it made.
///
/// # Errors
/// The datastore fails.
async fn create_missing(
    store: &impl Store,
    pools: &[PoolSettings],
    new_uid: impl Fn() -> String,
    now: UnixNanos,
) -> Result<Vec<String>, StoreError> {
    let mut made = Vec::new();
    for pool in pools {
        let key = format!("{}{}", keys::IP_POOLS, pool.name.as_str());
        if !store.read(&[Range::Key(key.clone())]).await?.kvs.is_empty() {
            continue;
        }
        let txn = Txn {
            guards: vec![Guard {
                key: key.clone(),
                mod_revision: 0,
            }],
            writes: vec![Write::Put {
                key,
                value: resource(pool, &new_uid(), now).to_string().into_bytes(),
            }],
            ..Txn::default()
        };
        // On a conflict somebody else made it.
        if let CommitOutcome::Committed { .. } = store.commit(&txn).await? {
            made.push(pool.name.as_str().to_owned());
        }
    }
    Ok(made)
}

/// As calicoctl writes it.
fn resource(pool: &PoolSettings, uid: &str, now: UnixNanos) -> Value {
    let mut spec = Map::new();
    spec.insert("cidr".to_owned(), json!(pool.cidr.to_string()));
    spec.insert("vxlanMode".to_owned(), json!(pool.vxlan_mode));
    spec.insert("ipipMode".to_owned(), json!(pool.ipip_mode));
    if pool.nat_outgoing {
        spec.insert("natOutgoing".to_owned(), json!(true));
    }
    let default_size = if pool.cidr.is_ipv4() { 26 } else { 122 };
    spec.insert(
        "blockSize".to_owned(),
        json!(pool.block_size.unwrap_or(default_size)),
    );
    spec.insert("nodeSelector".to_owned(), json!("all()"));
    spec.insert("allowedUses".to_owned(), json!(["Workload", "Tunnel"]));
    json!({
        "kind": "IPPool",
        "apiVersion": "projectcalico.org/v3",
        "metadata": { "name": pool.name.as_str(), "uid": uid, "creationTimestamp": now.rfc3339() },
        "spec": spec,
    })
}
