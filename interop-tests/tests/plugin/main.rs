//! The plugin as runtimes call it: against the specification, with nonsense, and in a list with other plugins.

mod announced;
mod chain;
mod clauses;
mod malformed;
