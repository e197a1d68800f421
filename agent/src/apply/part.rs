//! A part of what is desired made so: the same operations as [`Dataplane::apply`] would find, without a look at the rest.
//!
//! Invariant: only while all that is known of the kernel is known to be right. At the first doubt the whole is looked at.

use super::{ApplyReport, Dataplane, order};
use crate::desired::Part;
use crate::kernel::Kernel;
use crate::model::InSync;

impl<K: Kernel> Dataplane<K> {
    /// Whether a part may be looked at alone: nothing is to be read back, nothing failed, and our tables are there.
    #[must_use]
    pub fn is_settled(&self, in_sync: InSync) -> bool {
        in_sync.datastore && !self.is_in_doubt(in_sync) && self.retry.is_idle() && self.nft.is_settled()
    }

    /// Whether there is a link of this name, as far as is known.
    #[must_use]
    pub fn has_link(&self, name: &str) -> bool {
        self.links.known().contains_key(name)
    }

    /// Makes the part be as desired. `None`: something failed, or the kernel is not what it was believed to be;
    /// [`Self::apply`] finds out and goes on.
    pub fn apply_part(&mut self, part: &Part, in_sync: InSync) -> Option<ApplyReport> {
        let mut ops = self.links.difference(&part.links);
        ops.extend(self.sysctls.difference_of(&mut self.kernel, &part.sysctls).ok()?);
        // Those of a workload that is gone go with its link.
        ops.extend(
            self.neighbors
                .difference_of(part.workloads.keys(), &part.neighbors),
        );
        ops.extend(
            self.routes
                .difference_to(&part.scope.addresses, &part.routes, in_sync),
        );
        ops.extend(
            self.proxy_neighbors
                .difference_to(&part.scope.addresses, &part.proxy_neighbors, in_sync),
        );
        ops.extend(self.nft.difference_of(part));
        let mut report = ApplyReport::default();
        let failed = self.perform(order::in_order(ops), &mut report);
        let is_whole = failed.is_empty() && report.failures.is_empty() && !self.is_in_doubt(in_sync);
        is_whole.then_some(report)
    }
}
