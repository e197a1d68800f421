//! How many files this process may have open: as many as it is allowed. A route reflector has two for each of its clients, and the usual
//! limit of 1024 is only what the process begins with.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::debug;

/// Raises the limit to the highest that is allowed. That it cannot be raised shows when a file cannot be opened.
pub fn allow_as_many_as_may_be() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    let wanted = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        debug!(%error, ?current, ?maximum, "the limit of open files stays");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_the_highest_that_is_allowed() {
        allow_as_many_as_may_be();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current, maximum);
    }
}
