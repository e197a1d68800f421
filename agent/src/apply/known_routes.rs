//! Routes as last seen, in order, and those that name their link also by it: with a pod's link its routes go, and a full table is
//! not looked through for them.
//!
//! Invariant: the index is what the routes themselves say, and is kept in step here and nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use crate::desired::{RouteKey, RoutePath};
use crate::kernel::ObservedRoute;

#[derive(Default)]
pub(super) struct KnownRoutes {
    routes: BTreeMap<RouteKey, ObservedRoute>,
    on_links: BTreeMap<String, BTreeSet<RouteKey>>,
}

impl From<BTreeMap<RouteKey, ObservedRoute>> for KnownRoutes {
    fn from(routes: BTreeMap<RouteKey, ObservedRoute>) -> Self {
        let mut known = Self::default();
        for (key, route) in &routes {
            known.index(key, route);
        }
        known.routes = routes;
        known
    }
}

impl Deref for KnownRoutes {
    type Target = BTreeMap<RouteKey, ObservedRoute>;

    fn deref(&self) -> &Self::Target {
        &self.routes
    }
}

impl KnownRoutes {
    /// They come in ascending order: of a full table the map is made at once.
    pub(super) fn extend(&mut self, made: Vec<(RouteKey, ObservedRoute)>) {
        if made.len() > self.routes.len() {
            let mut made: BTreeMap<RouteKey, ObservedRoute> = made.into_iter().collect();
            self.on_links.retain(|_, keys| {
                keys.retain(|key| !made.contains_key(key));
                !keys.is_empty()
            });
            for (key, route) in &made {
                self.index(key, route);
            }
            self.routes.append(&mut made);
        } else {
            for (key, route) in made {
                let link = link_of(&route).cloned();
                if let Some(before) = self.routes.insert(key.clone(), route) {
                    self.unindex(&key, &before);
                }
                if let Some(link) = link {
                    self.on_links.entry(link).or_default().insert(key);
                }
            }
        }
    }

    /// Routes go in descending order: of a full table each is the last one.
    pub(super) fn remove(&mut self, key: &RouteKey) {
        let removed = if self.routes.last_key_value().is_some_and(|(last, _)| last == key) {
            self.routes.pop_last().map(|(_, route)| route)
        } else {
            self.routes.remove(key)
        };
        if let Some(route) = removed {
            self.unindex(key, &route);
        }
    }

    /// Removes all that name this link, and returns them.
    pub(super) fn remove_on(&mut self, link: &str) -> impl Iterator<Item = (RouteKey, ObservedRoute)> {
        let keys = self.on_links.remove(link).unwrap_or_default();
        keys.into_iter().filter_map(|key| self.routes.remove_entry(&key))
    }

    fn index(&mut self, key: &RouteKey, route: &ObservedRoute) {
        if let Some(link) = link_of(route) {
            self.on_links.entry(link.clone()).or_default().insert(key.clone());
        }
    }

    fn unindex(&mut self, key: &RouteKey, route: &ObservedRoute) {
        if let Some(link) = link_of(route)
            && let Some(keys) = self.on_links.get_mut(link)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.on_links.remove(link);
            }
        }
    }
}

fn link_of(route: &ObservedRoute) -> Option<&String> {
    match &route.path {
        Some(RoutePath::Link { interface } | RoutePath::Onlink { interface, .. }) => Some(interface),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{Route, RouteOrigin};

    fn route(path: RoutePath) -> ObservedRoute {
        let origin = RouteOrigin::Local;
        ObservedRoute::from(&Route { origin, path })
    }

    fn through(link: &str) -> ObservedRoute {
        let interface = link.to_owned();
        route(RoutePath::Link { interface })
    }

    #[test]
    fn with_a_link_goes_what_names_it_now() {
        let key = |last: u8| {
            RouteKey::main(ipnetwork::IpNetwork::from(std::net::IpAddr::from([
                10, 65, 0, last,
            ])))
        };
        let mut known = KnownRoutes::from(BTreeMap::from([
            (key(1), through("cali1")),
            (key(2), through("cali2")),
        ]));
        known.extend(vec![
            (key(1), through("cali2")),
            (key(3), route(RoutePath::Blackhole)),
            (key(4), through("cali1")),
            (key(5), through("cali2")),
        ]);
        known.remove(&key(5));
        // A few come into many, and all of a table into a few.
        known.extend(vec![(key(4), through("cali2"))]);
        known.extend(vec![(key(4), through("cali1"))]);
        let mut removed_on =
            |link: &str| -> Vec<RouteKey> { known.remove_on(link).map(|(key, _)| key).collect() };
        assert_eq!(removed_on("cali2"), [key(1), key(2)]);
        assert_eq!(removed_on("cali2"), []);
        assert_eq!(removed_on("cali1"), [key(4)]);
        assert_eq!(known.keys().collect::<Vec<_>>(), [&key(3)]);
    }
}
