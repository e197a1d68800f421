//! The audit: what is wrong between blocks, affinities, handles, pools, nodes, workload endpoints and what runs.
//!
//! Pure: an [`Inventory`] of one revision (and what nodes say runs on them, where known) to a list of [`Finding`]s.
//! What `calicoctl ipam check` looks at is looked at here too; and the affinities, the counts in handles, overlapping
//! blocks and departed nodes. A finding is what one revision shows: a program that writes in several steps (Calico's
//! own) shows findings while it is between two of them, so that nothing is repaired that was seen only once.
//!
//! Not judged: addresses of virtual owners (load balancers), because nothing in the datastore says who uses them;
//! addresses that rest after a release, or are kept for a workload; and whatever lies in a block that cannot be read.
//!
//! What runs is known of the nodes that were asked only, which for `calidris ipam check` is the machine it runs on. Of every
//! other node the endpoints in the datastore stand for what runs there, and the automatic collector of that node, which
//! sees its interfaces, is what finds an endpoint without a container.

mod addresses;
mod blocks;
mod finding;
mod handles;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

pub use finding::{AllocationId, Finding, Repair, User};

use crate::inventory::Inventory;

/// What runs on the nodes that were asked, by node: each address with what has it there.
pub type Running = BTreeMap<String, BTreeMap<IpAddr, String>>;

/// Everything that is wrong, in the order of [`Finding`]'s variants and keys. Empty if nothing is.
pub fn audit(inventory: &Inventory, running: &Running) -> Vec<Finding> {
    let facts = Facts {
        inventory,
        running,
        users: users(inventory, running),
    };
    let mut findings = BTreeSet::new();
    facts.unreadable(&mut findings);
    facts.blocks(&mut findings);
    facts.affinities(&mut findings);
    facts.unknown_nodes(&mut findings);
    facts.allocations(&mut findings);
    facts.users_of_addresses(&mut findings);
    facts.what_runs(&mut findings);
    facts.handles(&mut findings);
    findings.into_iter().collect()
}

/// The inventory with what follows from all of it.
struct Facts<'a> {
    inventory: &'a Inventory,
    running: &'a Running,
    /// Who has each address, whether it is allocated or not.
    users: BTreeMap<IpAddr, BTreeSet<User>>,
}

type Findings = BTreeSet<Finding>;

fn users(inventory: &Inventory, running: &Running) -> BTreeMap<IpAddr, BTreeSet<User>> {
    let mut users: BTreeMap<IpAddr, BTreeSet<User>> = BTreeMap::new();
    for (key, endpoint) in &inventory.endpoints {
        for &address in &endpoint.addresses {
            let user = User::Endpoint {
                key: key.clone(),
                node: endpoint.node.clone(),
            };
            users.entry(address).or_default().insert(user);
        }
    }
    for (node, tunnels) in &inventory.nodes {
        for &address in tunnels {
            let user = User::Tunnel { node: node.clone() };
            users.entry(address).or_default().insert(user);
        }
    }
    for (node, addresses) in running {
        for (&address, what) in addresses {
            // What runs is usually what an endpoint or a tunnel of the same node already stands for.
            let present = users.entry(address).or_default();
            if !present.iter().any(|user| user.node() == node) {
                let (node, what) = (node.clone(), what.clone());
                present.insert(User::Running { node, what });
            }
        }
    }
    users
}

impl Facts<'_> {
    fn unreadable(&self, findings: &mut Findings) {
        findings.extend(self.inventory.unreadable.iter().map(|value| {
            let is_block = value.what == "allocation block";
            let (key, why) = (value.key.clone(), value.why.clone());
            if is_block {
                Finding::InvalidBlock { key, why }
            } else {
                let what = value.what.to_owned();
                Finding::InvalidValue { key, what, why }
            }
        }));
    }

    /// Whether `address` lies in a block that cannot be read.
    fn is_in_the_dark(&self, address: IpAddr) -> bool {
        let mut blocks = self.inventory.invalid_blocks.iter();
        blocks.any(|block| block.contains(address))
    }

    fn is_known_node(&self, node: &str) -> bool {
        self.inventory.nodes.contains_key(node)
    }

    fn is_in_a_pool(&self, block: IpNetwork) -> bool {
        self.inventory
            .pools_of(block.ip())
            .any(|(_, pool)| pool.cidr.prefix() <= block.prefix())
    }
}
