//! The decision process, one row per step, in the order of the steps; then properties of any set of paths.
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::net::{IpAddr, Ipv4Addr};

use calidris_bgp::config::DecisionConfig;
use calidris_bgp::family::{Ipv4Prefix, Prefix};
use calidris_bgp::policy::SourceKind;
use calidris_bgp::rib::decide::{Comparison, Selection, Step, explain, select};
use calidris_bgp::rib::{AttrStore, Import, Path, Refusal, Source, SourceId, Underlay, UnderlayRoute};
use calidris_bgp::wire::attr::{AsPath, Attributes, NextHop, Origin};
use proptest::prelude::*;

/// The next hop that costs most.
const FARTHEST: u32 = 3;

/// A path in the terms of the table.
#[derive(Debug, Clone)]
struct Row {
    kind: SourceKind,
    weight: u16,
    local_pref: Option<u32>,
    path: Vec<u32>,
    origin: Origin,
    med: Option<u32>,
    learnt: u32,
    router_id: u32,
    originator_id: Option<u32>,
    clusters: usize,
    address: u32,
    path_id: u32,
    /// What the next hop costs; more than [`FARTHEST`] means that there is no way.
    cost: u32,
    refused: bool,
}

/// What all rows have in common, so that they differ in one thing only.
fn row() -> Row {
    Row {
        kind: SourceKind::Ebgp,
        weight: 0,
        local_pref: None,
        path: vec![65001, 65010],
        origin: Origin::Igp,
        med: None,
        learnt: 100,
        router_id: 5,
        originator_id: None,
        clusters: 0,
        address: 5,
        path_id: 1,
        cost: 1,
        refused: false,
    }
}

struct Table {
    attrs: AttrStore,
    sources: Vec<Source>,
    paths: Vec<Path>,
}

fn table(rows: &[Row]) -> Table {
    let mut attrs = AttrStore::new(1);
    attrs.set_underlay(Some(underlay()));
    let mut sources = vec![Source::ORIGINATED];
    let mut paths = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let id = attrs.intern(Attributes {
            origin: row.origin,
            as_path: AsPath::from_sequence(&row.path),
            med: row.med,
            local_pref: row.local_pref,
            next_hop: Some(NextHop::V4((0x0a00_0000 + row.cost).into())),
            originator_id: row.originator_id.map(Ipv4Addr::from),
            cluster_list: vec![Ipv4Addr::LOCALHOST; row.clusters].into(),
            ..Attributes::default()
        });
        sources.push(Source {
            kind: row.kind,
            weight: row.weight,
            router_id: row.router_id.into(),
            address: IpAddr::V4(row.address.into()),
            reflector_client: false,
        });
        let import = if row.refused {
            Import::Refused(Refusal::NoPolicy)
        } else {
            Import::Accepted(id)
        };
        let source = SourceId::peer(u32::try_from(i).expect("few"));
        paths.push(Path {
            source,
            path_id: row.path_id,
            local_id: 1,
            received: id,
            import,
            learnt: row.learnt,
            stale: false,
        });
    }
    attrs.resolve_next_hops(|_, _| None);
    Table {
        attrs,
        sources,
        paths,
    }
}

/// The next hop of cost n is 10.0.0.n.
fn underlay() -> Underlay {
    let route = |cost: u32| {
        let prefix = Prefix::V4(Ipv4Prefix::host((0x0a00_0000 + cost).into()));
        let route = UnderlayRoute {
            metric: cost,
            ..UnderlayRoute::default()
        };
        (prefix, route)
    };
    (0..=FARTHEST).map(route).collect()
}

/// The winner's place among the rows, and what was selected.
fn decide(rows: &[Row], config: &DecisionConfig) -> (Option<usize>, Selection, Vec<usize>) {
    let Table {
        attrs,
        sources,
        mut paths,
    } = table(rows);
    let selection = select(
        &mut paths,
        &Comparison {
            attrs: &attrs,
            sources: &sources,
            config,
        },
    );
    let place = |path: &Path| path.source.peer_index().expect("a peer") as usize;
    let order: Vec<usize> = paths.iter().map(place).collect();
    let best = (selection.accepted > 0).then(|| order[0]);
    (best, selection, order)
}

#[test]
fn each_step_decides_when_everything_before_it_is_equal() {
    let config = DecisionConfig {
        prefer_oldest: true,
        multipath_limit: 4,
        ..DecisionConfig::default()
    };
    // Worse first, so that order of arrival does not help; the later steps speak for the loser.
    let table: Vec<(Step, u8, Row, Row)> = vec![
        (
            Step::Weight,
            1,
            Row {
                local_pref: Some(900),
                ..row()
            },
            Row { weight: 1, ..row() },
        ),
        (
            Step::LocalPref,
            1,
            Row {
                path: vec![],
                ..row()
            },
            Row {
                local_pref: Some(101),
                ..row()
            },
        ),
        (
            Step::AsPathLength,
            1,
            Row {
                path: vec![1, 2, 3],
                med: Some(0),
                ..row()
            },
            Row {
                origin: Origin::Incomplete,
                ..row()
            },
        ),
        (
            Step::Origin,
            1,
            Row {
                origin: Origin::Egp,
                ..row()
            },
            Row {
                med: Some(9),
                ..row()
            },
        ),
        (
            Step::Med,
            1,
            Row {
                med: Some(9),
                ..row()
            },
            Row {
                med: Some(8),
                kind: SourceKind::Ibgp,
                ..row()
            },
        ),
        (
            Step::EbgpOverIbgp,
            1,
            Row {
                kind: SourceKind::Ibgp,
                learnt: 1,
                ..row()
            },
            Row {
                router_id: 9,
                ..row()
            },
        ),
        (
            Step::NextHopCost,
            1,
            Row {
                cost: 2,
                learnt: 1,
                router_id: 1,
                ..row()
            },
            row(),
        ),
        (
            Step::Oldest,
            2,
            Row {
                learnt: 101,
                router_id: 1,
                ..row()
            },
            row(),
        ),
        (
            Step::RouterId,
            2,
            Row {
                router_id: 6,
                address: 1,
                ..row()
            },
            row(),
        ),
        (
            Step::RouterId,
            2,
            row(),
            Row {
                router_id: 9,
                originator_id: Some(1),
                clusters: 1,
                ..row()
            },
        ),
        (
            Step::ClusterListLength,
            2,
            Row {
                clusters: 2,
                address: 1,
                ..row()
            },
            Row { clusters: 1, ..row() },
        ),
        (Step::PeerAddress, 2, Row { address: 6, ..row() }, row()),
        (Step::PathId, 2, Row { path_id: 2, ..row() }, row()),
    ];
    for (step, multipath, worse, better) in table {
        let (best, selection, _) = decide(&[worse, better], &config);
        assert_eq!(best, Some(1), "{step:?}");
        assert_eq!(
            selection,
            Selection {
                accepted: 2,
                multipath,
                decided_by: step
            }
        );
    }
}

#[test]
fn med_is_compared_only_within_a_neighbouring_as_unless_always() {
    let rows = [
        Row {
            path: vec![65001, 65010],
            med: Some(50),
            router_id: 1,
            ..row()
        },
        Row {
            path: vec![65002, 65010],
            med: Some(10),
            router_id: 2,
            ..row()
        },
    ];
    let (best, selection, _) = decide(&rows, &DecisionConfig::default());
    assert_eq!((best, selection.decided_by), (Some(0), Step::RouterId));
    let always = DecisionConfig {
        always_compare_med: true,
        ..DecisionConfig::default()
    };
    let (best, selection, _) = decide(&rows, &always);
    assert_eq!((best, selection.decided_by), (Some(1), Step::Med));
}

#[test]
fn a_missing_med_is_the_best_or_by_configuration_the_worst() {
    let with = |med, router_id| Row {
        path: vec![65001, 65010],
        med,
        router_id,
        ..row()
    };
    let rows = [with(Some(10), 1), with(None, 2)];
    let (best, selection, _) = decide(&rows, &DecisionConfig::default());
    assert_eq!((best, selection.decided_by), (Some(1), Step::Med));
    let worst = DecisionConfig {
        missing_med: u32::MAX,
        ..DecisionConfig::default()
    };
    let (best, selection, _) = decide(&rows, &worst);
    assert_eq!((best, selection.decided_by), (Some(0), Step::Med));
}

#[test]
fn the_best_does_not_depend_on_arrival_order_even_where_med_makes_pairs_disagree() {
    // The classic: a beats b by router identifier, b beats c by MED step or not, c beats a.
    let rows = [
        Row {
            path: vec![65001, 65010],
            med: Some(20),
            router_id: 1,
            ..row()
        },
        Row {
            path: vec![65002, 65010],
            med: Some(30),
            router_id: 2,
            ..row()
        },
        Row {
            path: vec![65001, 65010],
            med: Some(10),
            router_id: 3,
            ..row()
        },
    ];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let shuffled: Vec<Row> = order.iter().map(|i| rows[*i].clone()).collect();
        let (best, ..) = decide(&shuffled, &DecisionConfig::default());
        assert_eq!(order[best.expect("best")], 1);
    }
}

#[test]
fn refused_paths_come_last_and_never_win() {
    let rows = [
        Row {
            weight: 9,
            refused: true,
            ..row()
        },
        row(),
        Row {
            refused: true,
            ..row()
        },
    ];
    let (best, selection, order) = decide(&rows, &DecisionConfig::default());
    assert_eq!((best, order), (Some(1), vec![1, 0, 2]));
    assert_eq!(
        selection,
        Selection {
            accepted: 1,
            multipath: 1,
            decided_by: Step::OnlyCandidate
        }
    );
    let (best, selection, _) = decide(&rows[..1], &DecisionConfig::default());
    assert_eq!((best, selection), (None, Selection::NONE));
}

fn any_row() -> impl Strategy<Value = Row> {
    let kind = prop_oneof![Just(SourceKind::Ebgp), Just(SourceKind::Ibgp)];
    let origin = prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)];
    let first = (
        kind,
        0..2u16,
        proptest::option::of(99..102u32),
        prop::collection::vec(65001..65004u32, 0..3),
        origin,
    );
    let second = (
        proptest::option::of(0..3u32),
        0..3u32,
        0..4u32,
        proptest::option::of(0..4u32),
        0..3usize,
        0..FARTHEST + 2,
    );
    (first, second, prop::bool::weighted(0.2)).prop_map(|(first, second, refused)| Row {
        kind: first.0,
        weight: first.1,
        local_pref: first.2,
        path: first.3,
        origin: first.4,
        med: second.0,
        learnt: second.1,
        router_id: second.2,
        originator_id: second.3,
        clusters: second.4,
        address: 0,
        path_id: 0,
        cost: second.5,
        refused,
    })
}

/// RFC 4271 §9.1.2.2 word by word on a shrinking list, with none of the code under test.
fn by_the_book(rows: &[Row], config: &DecisionConfig) -> Option<usize> {
    let mut left: Vec<usize> = (0..rows.len())
        .filter(|i| !rows[*i].refused && rows[*i].cost <= FARTHEST)
        .collect();
    fn keep<K: Ord>(left: &mut Vec<usize>, cost: impl Fn(usize) -> K) {
        let least = left.iter().map(|i| cost(*i)).min();
        left.retain(|i| Some(cost(*i)) == least);
    }
    keep(&mut left, |i| std::cmp::Reverse(rows[i].weight));
    keep(&mut left, |i| {
        std::cmp::Reverse(rows[i].local_pref.unwrap_or(config.default_local_pref))
    });
    keep(&mut left, |i| rows[i].path.len());
    keep(&mut left, |i| rows[i].origin);
    let all = left.clone();
    left.retain(|i| {
        let beaten = |j: &usize| {
            let same = config.always_compare_med || rows[*j].path.first() == rows[*i].path.first();
            let med = |row: usize| rows[row].med.unwrap_or(config.missing_med);
            same && med(*j) < med(*i)
        };
        !all.iter().any(beaten)
    });
    keep(&mut left, |i| rows[i].kind == SourceKind::Ibgp);
    keep(&mut left, |i| rows[i].cost);
    if config.prefer_oldest {
        keep(&mut left, |i| {
            if rows[i].kind == SourceKind::Ebgp {
                rows[i].learnt
            } else {
                0
            }
        });
    }
    keep(&mut left, |i| rows[i].originator_id.unwrap_or(rows[i].router_id));
    keep(&mut left, |i| rows[i].clusters);
    keep(&mut left, |i| rows[i].address);
    left.first().copied()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_best_is_what_the_rfc_says_whatever_the_order(
        mut rows in prop::collection::vec(any_row(), 0..7),
        always_compare_med: bool,
        missing_med_is_worst: bool,
        prefer_oldest: bool,
        rotate in 0..7usize,
    ) {
        for (i, row) in rows.iter_mut().enumerate() {
            row.address = u32::try_from(i).expect("few");
        }
        let missing_med = if missing_med_is_worst { u32::MAX } else { 0 };
        let config = DecisionConfig { always_compare_med, missing_med, prefer_oldest, multipath_limit: 3, ..DecisionConfig::default() };
        let (best, selection, order) = decide(&rows, &config);
        prop_assert_eq!(best, by_the_book(&rows, &config));
        let accepted = rows.iter().filter(|row| !row.refused && row.cost <= FARTHEST).count();
        prop_assert_eq!(usize::from(selection.accepted), accepted);
        prop_assert!(usize::from(selection.multipath) <= accepted.min(3));
        let mut sorted = order;
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..rows.len()).collect::<Vec<_>>(), "no path is lost");

        let mut rotated = rows.clone();
        rotated.rotate_left(if rows.is_empty() { 0 } else { rotate % rows.len() });
        let (again, ..) = decide(&rotated, &config);
        prop_assert_eq!(again.map(|i| rotated[i].address), best.map(|i| rows[i].address));

        // The explanation of the ordered paths: the best lost nowhere, nobody lost later than the one before.
        let Table { attrs, sources, mut paths } = table(&rows);
        let by = Comparison { attrs: &attrs, sources: &sources, config: &config };
        select(&mut paths, &by);
        let lost = explain(&paths, &by);
        prop_assert!(lost.first().is_none_or(Option::is_none));
        prop_assert!(lost.iter().skip(1).all(Option::is_some));
        prop_assert!(lost.windows(2).skip(1).all(|pair| pair[0] >= pair[1]));
    }
}
