//! Programs that others wrote, run in a namespace with private files: one module each, which turns typed values into
//! the program's configuration, starts it, and reads what it says of itself.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::lab::Lab;
use crate::netns::Namespace;

pub mod bird;
pub mod containerd;
pub mod etcd;
pub mod exabgp;
pub mod frr;
pub mod gobgp;
pub mod openbgpd;
pub mod seat;

/// How long a daemon may take until it answers.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(60);

/// The routing daemons that a lab can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouterKind {
    /// BIRD 2.
    Bird,
    /// FRRouting: zebra and bgpd.
    Frr,
}

impl fmt::Display for RouterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bird => "BIRD",
            Self::Frr => "FRR",
        })
    }
}

/// What a router is to do, in no daemon's language.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// Its name in the lab.
    pub name: String,
    /// BGP identifier (RFC 4271 §4.2).
    pub router_id: Ipv4Addr,
    /// Its autonomous system.
    pub as_number: u32,
    /// Hold time offered to neighbours, seconds; keepalives come three times as often.
    pub hold_time: u16,
    /// Connected prefixes that it originates.
    pub announce: Vec<IpNetwork>,
    /// Whom it speaks BGP with.
    pub neighbors: Vec<Neighbor>,
}

/// One BGP neighbour of a router. One of the same autonomous system is a route reflector client (RFC 4456) that
/// gets routes from outside with the router as next hop, and other clients' routes with their own.
#[derive(Clone, Debug)]
pub struct Neighbor {
    /// Its name in the lab.
    pub name: String,
    /// Its address in the subnet it shares with the router.
    pub address: IpAddr,
    /// Its autonomous system.
    pub as_number: u32,
}

/// Best routes: prefix and the next hops it is forwarded to, empty for what is directly connected.
pub type Routes = BTreeMap<IpNetwork, Vec<IpAddr>>;

/// A running router.
pub trait Router: fmt::Debug {
    /// The state of the session with each neighbour by name, in the daemon's words.
    ///
    /// # Errors
    /// When the daemon does not answer or says something unexpected.
    fn sessions(&self) -> anyhow::Result<BTreeMap<String, String>>;

    /// The best routes that the daemon holds.
    ///
    /// # Errors
    /// When the daemon does not answer or says something unexpected.
    fn routes(&self) -> anyhow::Result<Routes>;

    /// What the daemon shows an operator of its routes, word by word.
    ///
    /// # Errors
    /// When the daemon does not answer.
    fn show_routes(&self) -> anyhow::Result<String>;

    /// Ends the session with a neighbour from the router's side; it comes back by itself.
    ///
    /// # Errors
    /// When there is no such neighbour or the daemon does not answer.
    fn clear(&self, neighbor: &str) -> anyhow::Result<()>;

    /// Kills the daemon and starts it again with the same configuration; returns when it answers.
    ///
    /// # Errors
    /// When it does not come back.
    fn restart(&mut self, lab: &Lab) -> anyhow::Result<()>;

    /// Commands that a person can type to look inside.
    fn look_inside(&self) -> Vec<String>;
}

/// Starts the daemon of that kind and returns when it answers.
///
/// # Errors
/// When it does not start; with the end of its log.
pub fn start_router(
    lab: &Lab,
    kind: RouterKind,
    namespace: &Namespace,
    config: RouterConfig,
) -> anyhow::Result<Box<dyn Router + Send>> {
    Ok(match kind {
        RouterKind::Bird => Box::new(bird::Bird::start(lab, namespace, &config)?),
        RouterKind::Frr => Box::new(frr::Frr::start(lab, namespace, config)?),
    })
}

/// The word that the daemons use for a session that is up (RFC 4271 §8.2.2).
pub const ESTABLISHED: &str = "Established";
