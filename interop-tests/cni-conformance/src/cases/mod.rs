//! All cases, in the order of the report. One file for each operation, one function for each clause.
//!
//! Section numbers are those of specification 1.1.0 (§2 execution protocol, §3 execution of configurations, §5 result types);
//! what older versions say differently is in the clause's text.

mod add;
mod chain;
mod check;
mod concurrency;
mod del;
mod errors;
mod gc;
mod result_shape;
mod status;
mod version;

use crate::judgement::Case;

/// Every case.
pub(crate) fn all() -> impl Iterator<Item = &'static Case> {
    [
        version::CASES,
        errors::CASES,
        add::CASES,
        check::CASES,
        del::CASES,
        chain::CASES,
        concurrency::CASES,
        status::CASES,
        gc::CASES,
    ]
    .into_iter()
    .flatten()
}
