//! A route's priority in LOCAL_PREF, as Calico's nodes carry it to each other since v3.32 (confd's `buildExportFilter` and `SetMetricForBGPRoutes`):
//! both add up to the largest number of BIRD, so that what is to be preferred in a forwarding table is preferred by BGP as well.
//!
//! A priority is the metric of a route in a forwarding table: lower wins, and 0 is none.

/// What both add up to.
const SUM: u32 = 2_147_483_647;

/// The LOCAL_PREF that says a priority; 0 for one that is too large.
pub const fn to_local_pref(priority: u32) -> u32 {
    SUM.saturating_sub(priority)
}

/// The priority that a LOCAL_PREF says, 1 at least.
pub const fn from_local_pref(local_pref: u32) -> u32 {
    match SUM.saturating_sub(local_pref) {
        0 => 1,
        priority => priority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_calicos() {
        for (priority, local_pref) in [(1024, 2_147_482_623), (512, 2_147_483_135), (1, SUM - 1)] {
            assert_eq!(to_local_pref(priority), local_pref);
            assert_eq!(from_local_pref(local_pref), priority);
        }
    }

    #[test]
    fn nothing_is_out_of_range() {
        assert_eq!(to_local_pref(u32::MAX), 0);
        assert_eq!([from_local_pref(SUM), from_local_pref(u32::MAX)], [1, 1]);
        assert_eq!(from_local_pref(100), 2_147_483_547);
    }
}
