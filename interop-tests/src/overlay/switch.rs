//! The mode of the pools changes under a flood from the first pod to the others, and back, as far as they reach each other before
//! and after. (From all to all would be too much for a virtual machine without acceleration.)
//!
//! Not all nodes hear of the change at the same time: one, each time another, hears of it when the others have gone over. What
//! they send it, and what it sends them, arrives all the same.

use std::time::Duration;

use anyhow::ensure;
use rustix::process::Signal;

use super::{Carriage, Mode, Overlay, look};
use crate::pinger::{Pinger, Pings};
use crate::progress::Progress;

/// Datagrams of one stream that may be lost: one that is under way when the route there changes, and one whose answer is when
/// the route back does.
const IN_FLIGHT: usize = 2;

/// Changes the mode.
///
/// # Errors
/// When more is lost than what is in flight, or routes do not become what the mode says.
pub(super) fn to(
    overlay: &mut Overlay,
    mode: Mode,
    pace: Duration,
    progress: &Progress,
) -> anyhow::Result<()> {
    let before = std::mem::replace(&mut overlay.mode, mode);
    let late = overlay.switches % overlay.nodes.len();
    overlay.switches += 1;
    let floods = floods(overlay, [before, mode], pace)?;
    let pairs = overlay.pairs();
    let among_others: Vec<_> = pairs
        .iter()
        .copied()
        .filter(|(from, to)| *from != late && *to != late)
        .collect();
    overlay.nodes[late].agent.signal(Signal::STOP)?;
    overlay.put_pools(mode)?;
    overlay.wait_for_routes(mode, &among_others)?;
    overlay.nodes[late].agent.signal(Signal::CONT)?;
    overlay.wait_for_routes(mode, &pairs)?;
    let count = floods.len();
    let (mut all, mut lost) = (0, 0);
    for flood in floods {
        let path = flood.path().to_owned();
        let Pings { sent, lost: gone } = flood.stop()?;
        all += sent;
        lost += gone.len();
        ensure!(sent > 0, "{path}: nothing was sent");
        ensure!(
            gone.len() <= IN_FLIGHT,
            "{path}: {} of {sent} lost while {before:?} became {mode:?}, {} last; sent at {gone:?}",
            gone.len(),
            overlay.nodes[late].name
        );
    }
    progress.step(format_args!(
        "{mode:?} took over under {count} streams, {} last; {lost} of {all} datagrams lost",
        overlay.nodes[late].name
    ));
    Ok(())
}

fn floods(overlay: &Overlay, modes: [Mode; 2], pace: Duration) -> anyhow::Result<Vec<Pinger>> {
    let mut floods = Vec::new();
    for (from, to) in overlay.pairs().into_iter().filter(|(from, _)| *from == 0) {
        for address in look::addresses(&overlay.pods[to])? {
            let is_way = |mode| {
                let way = overlay.way(mode, address.is_ipv6(), (from, to));
                way.carriage != Carriage::Nothing
            };
            if modes.into_iter().all(is_way) {
                floods.push(Pinger::start_every(pace, &overlay.pods[from].namespace, address)?);
            }
        }
    }
    Ok(floods)
}
