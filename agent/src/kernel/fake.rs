//! A kernel in memory, that can fail at any call.
