//! The tables against a model: random announcements, withdrawals and readers of every speed; a map of maps says what must be there.
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use calidris_bgp::config::DecisionConfig;
use calidris_bgp::family::{Ipv4Prefix, Ipv4Unicast};
use calidris_bgp::policy::SourceKind;
use calidris_bgp::rib::adj_rib_out::{PathsPerPrefix, SentPath, SentPaths};
use calidris_bgp::rib::update_group::UpdateGroup;
use calidris_bgp::rib::{AttrId, AttrStore, Import, LocRib, Path, Refusal, Source, SourceId, Tables};
use calidris_bgp::wire::attr::Attributes;
use proptest::prelude::*;

const PEERS: u32 = 3;
/// Path identifiers a peer uses.
const PATHS: u32 = 2;
const READERS: usize = 3;
/// The reader that is told of several paths.
const SEVERAL: usize = 2;

#[derive(Debug, Clone, Copy)]
enum Event {
    Announce {
        peer: u32,
        path: u32,
        prefix: u8,
        med: u32,
        refused: bool,
    },
    Withdraw {
        peer: u32,
        path: u32,
        prefix: u8,
    },
    Clear {
        peer: u32,
    },
    MarkStale {
        peer: u32,
    },
    Sweep {
        peer: u32,
    },
    Reimport {
        peer: u32,
        refused: bool,
    },
    Read {
        reader: usize,
        limit: usize,
    },
    Walk {
        reader: usize,
    },
    Restart {
        reader: usize,
    },
    Trim,
}

fn event() -> impl Strategy<Value = Event> {
    let peer = 0..PEERS;
    let reader = 0..READERS;
    prop_oneof![
        6 => (peer.clone(), 0..PATHS, 0..12u8, 0..4u32, prop::bool::weighted(0.2))
            .prop_map(|(peer, path, prefix, med, refused)| Event::Announce { peer, path, prefix, med, refused }),
        4 => (peer.clone(), 0..PATHS, 0..12u8).prop_map(|(peer, path, prefix)| Event::Withdraw { peer, path, prefix }),
        1 => peer.clone().prop_map(|peer| Event::Clear { peer }),
        1 => peer.clone().prop_map(|peer| Event::MarkStale { peer }),
        1 => peer.clone().prop_map(|peer| Event::Sweep { peer }),
        1 => (peer, any::<bool>()).prop_map(|(peer, refused)| Event::Reimport { peer, refused }),
        4 => (reader.clone(), 1..5usize).prop_map(|(reader, limit)| Event::Read { reader, limit }),
        1 => reader.clone().prop_map(|reader| Event::Walk { reader }),
        1 => reader.prop_map(|reader| Event::Restart { reader }),
        2 => Just(Event::Trim),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct ModelPath {
    med: u32,
    refused: bool,
    stale: bool,
}

/// The tables under test, three readers, and the model beside them.
struct World {
    attrs: AttrStore,
    sources: Vec<Source>,
    decision: DecisionConfig,
    loc_rib: LocRib<Ipv4Unicast>,
    outs: Vec<UpdateGroup<Ipv4Unicast>>,
    /// What each reader believes, from what it was told: by prefix and path identifier.
    beliefs: Vec<BTreeMap<(Ipv4Prefix, u32), u32>>,
    /// By prefix, then by peer and path identifier.
    model: BTreeMap<u8, BTreeMap<(u32, u32), ModelPath>>,
    /// Our identifiers of the paths, after the event before.
    local_ids: BTreeMap<(Ipv4Prefix, SourceId, u32), u16>,
}

fn prefix(number: u8) -> Ipv4Prefix {
    Ipv4Prefix::new(Ipv4Addr::new(10, number, 0, 0), 16).expect("prefix")
}

fn group(loc_rib: &LocRib<Ipv4Unicast>, reader: usize) -> UpdateGroup<Ipv4Unicast> {
    let paths = match reader {
        SEVERAL => PathsPerPrefix::Several,
        _ => PathsPerPrefix::One,
    };
    UpdateGroup::new(loc_rib, paths)
}

fn import(refused: bool, id: AttrId) -> Import {
    if refused {
        Import::Refused(Refusal::NoPolicy)
    } else {
        Import::Accepted(id)
    }
}

impl World {
    fn new() -> Self {
        let peer = |i: u32| Source {
            kind: SourceKind::Ebgp,
            weight: 0,
            router_id: i.into(),
            address: IpAddr::V4(i.into()),
            reflector_client: false,
        };
        let mut loc_rib = LocRib::new(7);
        loc_rib.watch_all_paths();
        Self {
            attrs: AttrStore::new(3),
            sources: std::iter::once(Source::ORIGINATED)
                .chain((0..PEERS).map(peer))
                .collect(),
            decision: DecisionConfig {
                always_compare_med: true,
                ..DecisionConfig::default()
            },
            outs: (0..READERS).map(|reader| group(&loc_rib, reader)).collect(),
            beliefs: vec![BTreeMap::new(); READERS],
            model: BTreeMap::new(),
            local_ids: BTreeMap::new(),
            loc_rib,
        }
    }

    fn with_tables(&mut self, edit: impl FnOnce(&mut LocRib<Ipv4Unicast>, &mut Tables<'_>)) {
        let mut tables = Tables {
            attrs: &mut self.attrs,
            sources: &self.sources,
            decision: &self.decision,
        };
        edit(&mut self.loc_rib, &mut tables);
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Announce {
                peer,
                path: path_id,
                prefix: number,
                med,
                refused,
            } => {
                self.with_tables(|rib, tables| {
                    let id = tables.attrs.intern(Attributes {
                        med: Some(med),
                        ..Attributes::default()
                    });
                    let source = SourceId::peer(peer);
                    let path = Path {
                        source,
                        path_id,
                        local_id: 0,
                        received: id,
                        import: import(refused, id),
                        learnt: 0,
                        stale: false,
                    };
                    assert!(rib.announce(prefix(number), path, tables));
                    tables.attrs.release(id);
                });
                self.model.entry(number).or_default().insert(
                    (peer, path_id),
                    ModelPath {
                        med,
                        refused,
                        stale: false,
                    },
                );
            }
            Event::Withdraw {
                peer,
                path,
                prefix: number,
            } => {
                let source = SourceId::peer(peer);
                self.with_tables(|rib, tables| rib.withdraw(prefix(number), source, path, tables));
                self.model.entry(number).or_default().remove(&(peer, path));
                self.drop_paths(peer, |_, _| false);
            }
            Event::Clear { peer } => {
                self.with_tables(|rib, tables| rib.clear_source(SourceId::peer(peer), tables));
                self.drop_paths(peer, |_, _| true);
            }
            Event::Sweep { peer } => {
                self.with_tables(|rib, tables| rib.sweep_stale(SourceId::peer(peer), tables));
                self.drop_paths(peer, |_, path| path.stale);
            }
            Event::MarkStale { peer } => {
                self.with_tables(|rib, tables| rib.mark_stale(SourceId::peer(peer), tables));
                self.drop_paths(peer, |_, path| path.stale);
                self.of_peer(peer).for_each(|path| path.stale = true);
            }
            Event::Reimport { peer, refused } => {
                self.with_tables(|rib, tables| {
                    rib.reimport(SourceId::peer(peer), tables, |_, received, attrs| {
                        if !refused {
                            attrs.retain(received);
                        }
                        import(refused, received)
                    });
                });
                self.of_peer(peer).for_each(|path| path.refused = refused);
            }
            Event::Read { reader, limit } => {
                self.read(reader, limit);
            }
            Event::Walk { reader } => self.outs[reader].start_walk(),
            Event::Restart { reader } => {
                self.outs[reader].sent.clear(&mut self.attrs);
                self.outs[reader] = group(&self.loc_rib, reader);
                self.beliefs[reader].clear();
            }
            Event::Trim => {
                let slowest = self.outs.iter().map(UpdateGroup::cursor).min().expect("readers");
                self.loc_rib.trim(slowest);
            }
        }
    }

    fn drop_paths(&mut self, peer: u32, condemned: impl Fn(u8, &ModelPath) -> bool) {
        for (number, paths) in &mut self.model {
            paths.retain(|(of, _), path| *of != peer || !condemned(*number, path));
        }
        self.model.retain(|_, paths| !paths.is_empty());
    }

    fn of_peer(&mut self, peer: u32) -> impl Iterator<Item = &mut ModelPath> {
        let all = self.model.values_mut().flatten();
        all.filter(move |((of, _), _)| *of == peer).map(|(_, path)| path)
    }

    /// One batch for a reader, as the speaker does it; `false` when there was none.
    fn read(&mut self, reader: usize, limit: usize) -> bool {
        let mut dests = Vec::new();
        if !self.outs[reader].next_batch(&self.loc_rib, limit, &mut dests) {
            return false;
        }
        for dest in dests {
            let destination = self.loc_rib.get(dest);
            let paths = match reader {
                SEVERAL => destination.usable_paths(usize::MAX),
                _ => destination.usable_paths(1),
            };
            let sent = |path: &Path| SentPath {
                path_id: if reader == SEVERAL {
                    path.local_id.into()
                } else {
                    0
                },
                attrs: path.accepted().expect("accepted"),
                source: path.source,
            };
            let new: SentPaths = paths.iter().map(sent).collect();
            let old = self.outs[reader].sent.get(dest);
            if new == old {
                continue;
            }
            for path in &old {
                self.beliefs[reader].remove(&(destination.prefix, path.path_id));
            }
            for path in &new {
                let med = self.attrs.get(path.attrs).med.expect("every path has one");
                self.beliefs[reader].insert((destination.prefix, path.path_id), med);
                self.attrs.retain(path.attrs);
            }
            self.outs[reader].sent.replace(dest, &new, &mut self.attrs);
        }
        true
    }

    /// What a reader must believe in the end.
    fn expected_by(&self, reader: usize) -> BTreeMap<(Ipv4Prefix, u32), u32> {
        if reader != SEVERAL {
            let best = self.expected().into_iter();
            return best.map(|(prefix, med)| ((prefix, 0), med)).collect();
        }
        let local_id = |number: u8, (peer, path_id): (u32, u32)| {
            let dest = self.loc_rib.find(prefix(number)).expect("destination");
            let mut paths = self.loc_rib.get(dest).paths().iter();
            let path = paths.find(|path| path.is_same(SourceId::peer(peer), path_id));
            u32::from(path.expect("path").local_id)
        };
        let all = self
            .model
            .iter()
            .flat_map(|(number, paths)| paths.iter().map(move |(key, path)| (*number, *key, path)));
        all.filter(|(.., path)| !path.refused)
            .map(|(number, key, path)| ((prefix(number), local_id(number, key)), path.med))
            .collect()
    }

    /// The model's best: lowest MED, then lowest peer, then lowest path identifier.
    fn expected(&self) -> BTreeMap<Ipv4Prefix, u32> {
        let best = |paths: &BTreeMap<(u32, u32), ModelPath>| {
            paths
                .iter()
                .filter(|(_, path)| !path.refused)
                .map(|(peer, path)| (path.med, *peer))
                .min()
        };
        self.model
            .iter()
            .filter_map(|(number, paths)| Some((prefix(*number), best(paths)?.0)))
            .collect()
    }

    /// Every path under the identifier of ours that it had from the beginning.
    fn check_local_ids(&mut self) {
        let mut now = BTreeMap::new();
        for (_, dest) in self.loc_rib.iter() {
            for path in dest.paths() {
                let key = (dest.prefix, path.source, path.path_id);
                assert!(path.local_id > 0);
                assert!(now.insert(key, path.local_id).is_none(), "{key:?} twice");
                let others = dest
                    .paths()
                    .iter()
                    .filter(|other| other.local_id == path.local_id);
                assert_eq!(others.count(), 1, "two paths have identifier {}", path.local_id);
                if let Some(before) = self.local_ids.get(&key) {
                    assert_eq!(*before, path.local_id, "{key:?} has another identifier");
                }
            }
        }
        self.local_ids = now;
    }

    fn check(&self) {
        let best: BTreeMap<Ipv4Prefix, u32> = self
            .loc_rib
            .iter()
            .filter_map(|(_, dest)| Some((dest.prefix, self.attrs.get(dest.best()?.accepted()?).med?)))
            .collect();
        assert_eq!(best, self.expected());
        assert_eq!(self.loc_rib.len(), self.model.len());
        for peer in 0..PEERS {
            let place = SourceId::peer(peer).index();
            let counts = self.loc_rib.counts().get(place).copied().unwrap_or_default();
            let all = self.model.values().flatten();
            let paths = all.filter(|((of, _), _)| *of == peer).map(|(_, path)| path);
            assert_eq!(counts.received, paths.clone().count());
            assert_eq!(
                counts.accepted,
                paths.clone().filter(|path| !path.refused).count()
            );
            assert_eq!(counts.stale, paths.filter(|path| path.stale).count());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tables_and_readers_agree_with_the_model(events in prop::collection::vec(event(), 0..120)) {
        let mut world = World::new();
        for event in events {
            world.apply(event);
            world.check();
            world.check_local_ids();
        }
        for reader in 0..READERS {
            while world.read(reader, 3) {}
            let expected = world.expected_by(reader);
            prop_assert_eq!(&world.beliefs[reader], &expected);
            prop_assert_eq!(world.outs[reader].sent.announced_to(SourceId::peer(PEERS)), expected.len());
        }
        // Every reference is given back.
        for peer in 0..PEERS {
            world.apply(Event::Clear { peer });
        }
        for reader in 0..READERS {
            while world.read(reader, 3) {}
            prop_assert!(world.beliefs[reader].is_empty());
        }
        prop_assert!(world.attrs.is_empty(), "{} attribute sets are left", world.attrs.len());
        world.apply(Event::Trim);
        prop_assert_eq!(world.loc_rib.journal_len(), 0);
    }
}

#[test]
fn the_journal_stays_within_its_bound_for_a_reader_that_never_reads() {
    let mut world = World::new();
    for round in 0..20_000u32 {
        let (prefix, med) = ((round % 12) as u8, round % 4);
        world.apply(Event::Announce {
            peer: 0,
            path: 0,
            prefix,
            med,
            refused: false,
        });
    }
    assert!(
        world.loc_rib.journal_len() <= 1024 + 2 * 12 + 1,
        "{}",
        world.loc_rib.journal_len()
    );
    assert!(world.read(0, 100));
}
