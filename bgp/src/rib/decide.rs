//! The decision process (RFC 4271 §9.1.2.2, RFC 4456 §9): among several paths to one destination, which is the best, and why.
//!
//! Each step removes from the candidates all that are worse than the best in one respect; the step that leaves one decided. In order:
//!
//! 0. not long-lived stale before long-lived stale (RFC 9494 §4.4: the community LLGR_STALE);
//! 1. higher weight (ours alone, never sent; what we originate has 32768);
//! 2. higher LOCAL_PREF (§9.1.1; a configured value where there is none);
//! 3. shorter AS_PATH (§9.1.2.2 a);
//! 4. lower ORIGIN (b);
//! 5. lower MULTI_EXIT_DISC (a configured value where there is none), compared between paths of the same neighbouring AS only, unless configured
//!    otherwise (c);
//! 6. EBGP before IBGP (d);
//! 7. lower cost to the next hop (e), as the [`next_hops`](super::next_hops) resolve;
//! 8. the older of EBGP paths, when so configured;
//! 9. lower BGP Identifier, or ORIGINATOR_ID where there is one (f, RFC 4456 §9);
//! 10. shorter CLUSTER_LIST (RFC 4456 §9);
//! 11. lower peer address (g);
//! 12. lower path identifier of the peer (RFC 7911): the same choice whatever came first.
//!
//! A path takes part when import accepted it and its next hop can be reached (§9.1.2.1). What is left before step 8 is equally good and may be used together (multipath).

use std::cmp::Ordering;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::attrs::{AttrStore, Rank};
use super::{Path, Source, SourceId};
use crate::config::DecisionConfig;
use crate::policy::SourceKind;

/// The steps of the decision process, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// There was nothing to decide.
    OnlyCandidate,
    /// Step 0.
    LongLivedStale,
    /// Step 1.
    Weight,
    /// Step 2.
    LocalPref,
    /// Step 3.
    AsPathLength,
    /// Step 4.
    Origin,
    /// Step 5.
    Med,
    /// Step 6.
    EbgpOverIbgp,
    /// Step 7.
    NextHopCost,
    /// Step 8.
    Oldest,
    /// Step 9.
    RouterId,
    /// Step 10.
    ClusterListLength,
    /// Step 11.
    PeerAddress,
    /// Step 12.
    PathId,
}

impl Step {
    const COMPARED: [Self; 13] = [
        Self::LongLivedStale,
        Self::Weight,
        Self::LocalPref,
        Self::AsPathLength,
        Self::Origin,
        Self::Med,
        Self::EbgpOverIbgp,
        Self::NextHopCost,
        Self::Oldest,
        Self::RouterId,
        Self::ClusterListLength,
        Self::PeerAddress,
        Self::PathId,
    ];
}

/// What the decision process works with.
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    /// The attribute sets of the paths.
    pub attrs: &'a AttrStore,
    /// Where paths are from, by [`super::SourceId`].
    pub sources: &'a [Source],
    /// The operator's choices.
    pub config: &'a DecisionConfig,
}

/// What was found for one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selection {
    /// How many of the paths take part; they come first, best first.
    pub accepted: u16,
    /// How many of these are equally good, up to the configured limit; at least 1 if any is accepted.
    pub multipath: u8,
    /// The step that left one path.
    pub decided_by: Step,
}

impl Selection {
    /// Nothing is accepted.
    pub const NONE: Self = Self {
        accepted: 0,
        multipath: 0,
        decided_by: Step::OnlyCandidate,
    };
}

struct Candidate {
    path: Path,
    rank: Rank,
    source: Source,
    /// The step that removed it.
    lost_at: Option<Step>,
}

/// Orders `paths`: the best first, then those as good, then the others by how far they came, then those refused.
pub fn select(paths: &mut [Path], by: &Comparison<'_>) -> Selection {
    if let [only] = paths {
        return if is_usable(only, by) {
            Selection {
                accepted: 1,
                multipath: 1,
                decided_by: Step::OnlyCandidate,
            }
        } else {
            Selection::NONE
        };
    }
    let mut candidates = run(paths, by);
    let accepted = candidates.len();
    let decided_by = candidates
        .iter()
        .filter_map(|c| c.lost_at)
        .max()
        .unwrap_or(Step::OnlyCandidate);
    let equal = candidates
        .iter()
        .filter(|c| c.lost_at.is_none_or(|step| step >= Step::Oldest))
        .count();
    // Among those that lost at the same step the order is that of all steps, so that it does not depend on arrival.
    let came = |c: &Candidate| c.lost_at.map_or(u8::MAX, |step| step as u8);
    candidates.sort_by(|a, b| came(b).cmp(&came(a)).then_with(|| compare(a, b, by.config)));
    let others = paths.iter().filter(|path| !is_usable(path, by)).copied();
    let (unreachable, refused): (SmallVec<[Path; 4]>, SmallVec<[Path; 4]>) =
        others.partition(|path| path.accepted().is_some());
    let ordered = candidates
        .iter()
        .map(|c| c.path)
        .chain(unreachable)
        .chain(refused);
    for (slot, path) in paths.iter_mut().zip(ordered) {
        *slot = path;
    }
    let limit = by.config.multipath_limit.clamp(1, 64);
    Selection {
        accepted: u16::try_from(accepted).unwrap_or(u16::MAX),
        multipath: u8::try_from(equal).unwrap_or(u8::MAX).min(limit),
        decided_by,
    }
}

/// By all steps in turn, without MED where that is not comparable between any two.
fn compare(a: &Candidate, b: &Candidate, config: &DecisionConfig) -> Ordering {
    let comparable = |step: &Step| *step != Step::Med || config.always_compare_med;
    let steps = Step::COMPARED.into_iter().filter(comparable);
    steps
        .map(|step| cost(step, a, config).cmp(&cost(step, b, config)))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

/// Whether a path takes part.
fn is_usable(path: &Path, by: &Comparison<'_>) -> bool {
    let reachable = |id| by.attrs.rank(id).next_hop_cost.is_some();
    path.accepted()
        .is_some_and(|id| path.source == SourceId::ORIGINATED || reachable(id))
}

/// For each of the paths that take part, in the given order, the step at which it lost; `None` for the best.
pub fn explain(paths: &[Path], by: &Comparison<'_>) -> Vec<Option<Step>> {
    run(paths, by).into_iter().map(|c| c.lost_at).collect()
}

fn run(paths: &[Path], by: &Comparison<'_>) -> SmallVec<[Candidate; 4]> {
    let mut candidates: SmallVec<[Candidate; 4]> = paths
        .iter()
        .filter(|path| is_usable(path, by))
        .filter_map(|path| {
            let rank = *by.attrs.rank(path.accepted()?);
            let source = by
                .sources
                .get(path.source.index())
                .copied()
                .unwrap_or(Source::ORIGINATED);
            Some(Candidate {
                path: *path,
                rank,
                source,
                lost_at: None,
            })
        })
        .collect();
    let mut left = candidates.len();
    for step in Step::COMPARED {
        if left <= 1 {
            break;
        }
        left -= eliminate(step, &mut candidates, by.config);
    }
    candidates
}

/// Removes what is worse at `step`; returns how many.
fn eliminate(step: Step, candidates: &mut [Candidate], config: &DecisionConfig) -> usize {
    let lost: SmallVec<[usize; 4]> = if step == Step::Med && !config.always_compare_med {
        let worse = |c: &Candidate| {
            let beats = |other: &Candidate| {
                other.rank.neighbor_as == c.rank.neighbor_as
                    && cost(step, other, config) < cost(step, c, config)
            };
            candidates
                .iter()
                .filter(|other| other.lost_at.is_none())
                .any(beats)
        };
        (0..candidates.len())
            .filter(|i| candidates[*i].lost_at.is_none() && worse(&candidates[*i]))
            .collect()
    } else {
        let cost = |c: &Candidate| cost(step, c, config);
        let best = candidates.iter().filter(|c| c.lost_at.is_none()).map(cost).min();
        let worse = |c: &Candidate| c.lost_at.is_none() && Some(cost(c)) > best;
        (0..candidates.len()).filter(|i| worse(&candidates[*i])).collect()
    };
    for i in &lost {
        candidates[*i].lost_at = Some(step);
    }
    lost.len()
}

/// How bad a candidate is at `step`: the lowest stays.
fn cost(step: Step, candidate: &Candidate, config: &DecisionConfig) -> u128 {
    let Candidate {
        path, rank, source, ..
    } = candidate;
    let higher_is_better = |value: u32| u128::from(u32::MAX - value);
    match step {
        Step::OnlyCandidate => 0,
        Step::LongLivedStale => rank.long_lived_stale.into(),
        Step::Weight => higher_is_better(source.weight.into()),
        Step::LocalPref => higher_is_better(rank.local_pref.unwrap_or(config.default_local_pref)),
        Step::AsPathLength => rank.path_length.into(),
        Step::Origin => (rank.origin as u8).into(),
        Step::Med => rank.med.unwrap_or(config.missing_med).into(),
        Step::EbgpOverIbgp => u128::from(source.kind == SourceKind::Ibgp),
        Step::NextHopCost if source.kind == SourceKind::Originated => 0,
        Step::NextHopCost => rank.next_hop_cost.unwrap_or(u32::MAX).into(),
        Step::Oldest if config.prefer_oldest && source.kind == SourceKind::Ebgp => path.learnt.into(),
        Step::Oldest => 0,
        Step::RouterId => u32::from(rank.originator_id.unwrap_or(source.router_id)).into(),
        Step::ClusterListLength => rank.cluster_list_length.into(),
        Step::PeerAddress => match source.address {
            IpAddr::V4(address) => u32::from(address).into(),
            IpAddr::V6(address) => address.into(),
        },
        Step::PathId => path.path_id.into(),
    }
}
