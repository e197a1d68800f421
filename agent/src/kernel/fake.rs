//! A kernel in memory, that can fail at any call. It keeps the rules that the real one has: no link, no route; a creation
//! never overwrites; a link that goes away or down takes its routes with it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::{Kernel, KernelError, Link, NftTable, ObservedRoute, RouteChange};
use crate::delta::Change;
use crate::desired::{HostLink, RouteKey, RoutePath};

/// What goes wrong at the call chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The kernel says no.
    Refused,
    /// The call did not reach the kernel.
    LostBefore,
    /// The kernel did it, and the answer was lost.
    LostAfter,
}

/// The kernel's state, open to the tests.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeKernel {
    pub(crate) links: BTreeMap<String, Link>,
    pub(crate) routes: BTreeMap<RouteKey, ObservedRoute>,
    /// Routes of others, by key, described.
    pub(crate) foreign: BTreeMap<RouteKey, String>,
    pub(crate) sysctls: BTreeMap<String, String>,
    pub(crate) nft: Option<NftTable>,
    /// Calls so far; each route change is one.
    pub(crate) calls: usize,
    /// Writes that had an effect, so far.
    pub(crate) writes: usize,
    /// The call that fails, counted from 0, and how.
    pub(crate) fault: Option<(usize, Fault)>,
}

impl FakeKernel {
    pub(crate) fn add_link(&mut self, name: &str) {
        let index = u32::try_from(self.links.len()).unwrap() + 1;
        let mac = Some([2, 0, 0, 0, 0, 1]);
        let link = Link {
            index,
            up: true,
            mac,
            mtu: 1500,
            alias: None,
            is_veth: true,
            peer_index: Some(2),
        };
        self.links.insert(name.to_owned(), link);
        for (family, folder, parameter) in [
            ("ipv4", "conf", "proxy_arp"),
            ("ipv4", "neigh", "proxy_delay"),
            ("ipv4", "conf", "forwarding"),
            ("ipv4", "conf", "route_localnet"),
            ("ipv4", "conf", "rp_filter"),
            ("ipv6", "conf", "disable_ipv6"),
            ("ipv6", "conf", "accept_dad"),
            ("ipv6", "conf", "proxy_ndp"),
            ("ipv6", "conf", "forwarding"),
            ("ipv6", "conf", "accept_ra"),
        ] {
            self.sysctls.insert(
                format!("net/{family}/{folder}/{name}/{parameter}"),
                "7".to_owned(),
            );
        }
    }

    pub(crate) fn remove_link(&mut self, name: &str) {
        self.links.remove(name);
        self.remove_routes_through(name);
        self.sysctls
            .retain(|path, _| !path.contains(&format!("/{name}/")));
    }

    pub(crate) fn remove_routes_through(&mut self, name: &str) {
        self.routes.retain(|_, route| {
            route.path
                != Some(RoutePath::Link {
                    interface: name.to_owned(),
                })
        });
    }

    /// Counts the call; the fault that is due, if any.
    fn due(&mut self) -> Option<Fault> {
        let call = self.calls;
        self.calls += 1;
        self.fault.filter(|(at, _)| *at == call).map(|(_, fault)| fault)
    }

    fn read<T>(&mut self, what: &str, answer: impl FnOnce(&Self) -> T) -> Result<T, KernelError> {
        match self.due() {
            None => Ok(answer(self)),
            Some(fault) => Err(error(fault, what)),
        }
    }

    fn write(
        &mut self,
        what: &str,
        effect: impl FnOnce(&mut Self) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let fault = self.due();
        if let Some(fault @ (Fault::Refused | Fault::LostBefore)) = fault {
            return Err(error(fault, what));
        }
        effect(self)?;
        self.writes += 1;
        fault.map_or(Ok(()), |fault| Err(error(fault, what)))
    }

    fn change_route(&mut self, change: &RouteChange) -> Result<(), KernelError> {
        let (key, value) = match change {
            Change::Create { key, value } => {
                if self.routes.contains_key(key) || self.foreign.contains_key(key) {
                    return Err(refused("create", libc::EEXIST));
                }
                (key, value)
            }
            Change::Replace { key, to, .. } => {
                assert!(
                    !self.foreign.contains_key(key),
                    "would overwrite the foreign route {key}"
                );
                (key, to)
            }
            Change::Delete { key, .. } => {
                return match self.routes.remove(key) {
                    Some(_) => Ok(()),
                    None => Err(refused("delete", libc::ESRCH)),
                };
            }
        };
        if let RoutePath::Link { interface } = &value.path
            && !self.links.get(interface).is_some_and(|link| link.up)
        {
            return Err(KernelError::NoSuchLink {
                name: interface.clone(),
            });
        }
        self.routes.insert(key.clone(), ObservedRoute::from(value));
        Ok(())
    }
}

impl Kernel for FakeKernel {
    fn links(&mut self) -> Result<BTreeMap<String, Link>, KernelError> {
        self.read("links", |kernel| kernel.links.clone())
    }

    fn set_link(&mut self, name: &str, link: HostLink) -> Result<(), KernelError> {
        self.write("set link", |kernel| {
            let found = kernel
                .links
                .get_mut(name)
                .ok_or_else(|| KernelError::NoSuchLink {
                    name: name.to_owned(),
                })?;
            found.up = true;
            found.mac = Some(link.mac);
            Ok(())
        })
    }

    fn routes(&mut self) -> Result<BTreeMap<RouteKey, ObservedRoute>, KernelError> {
        self.read("routes", |kernel| kernel.routes.clone())
    }

    fn foreign_routes(
        &mut self,
        keys: &BTreeSet<RouteKey>,
    ) -> Result<BTreeMap<RouteKey, String>, KernelError> {
        self.read("foreign routes", |kernel| {
            kernel
                .foreign
                .clone()
                .into_iter()
                .filter(|(key, _)| keys.contains(key))
                .collect()
        })
    }

    fn change_routes(&mut self, changes: &[RouteChange]) -> Vec<Result<(), KernelError>> {
        changes
            .iter()
            .map(|change| self.write("change a route", |kernel| kernel.change_route(change)))
            .collect()
    }

    fn sysctl(&mut self, path: &str) -> Result<Option<String>, KernelError> {
        self.read("sysctl", |kernel| kernel.sysctls.get(path).cloned())
    }

    fn set_sysctl(&mut self, path: &str, value: &str) -> Result<(), KernelError> {
        self.write("set sysctl", |kernel| {
            let found = kernel
                .sysctls
                .get_mut(path)
                .ok_or_else(|| refused("set sysctl", libc::ENOENT))?;
            value.clone_into(found);
            Ok(())
        })
    }

    fn nft_table(&mut self) -> Result<Option<NftTable>, KernelError> {
        self.read("nft", |kernel| kernel.nft.clone())
    }

    fn replace_nft_table(&mut self, table: &NftTable) -> Result<(), KernelError> {
        self.write("nft", |kernel| {
            kernel.nft = Some(table.clone());
            Ok(())
        })
    }
}

fn refused(action: &str, errno: i32) -> KernelError {
    KernelError::Refused {
        action: action.to_owned(),
        errno,
        message: None,
    }
}

fn error(fault: Fault, what: &str) -> KernelError {
    match fault {
        Fault::Refused => refused(what, libc::EPERM),
        Fault::LostBefore | Fault::LostAfter => {
            let source = io::Error::from_raw_os_error(libc::ENOBUFS);
            KernelError::Io {
                action: what.to_owned(),
                source,
            }
        }
    }
}
