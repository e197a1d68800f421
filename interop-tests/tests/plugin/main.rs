//! The plugin as runtimes call it: against the specification, with nonsense, and in a list with other plugins.

mod chain;
mod clauses;
mod malformed;
