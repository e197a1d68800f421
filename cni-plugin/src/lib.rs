//! The CNI plugin's library: the specification's types, and the contract with the agent.
//!
//! The plugin is thin. It checks what the runtime gave it against the CNI specification (0.3.1 to 1.1.0), hands it to
//! the agent over a unix socket, and prints the answer in the version the runtime speaks. The agent owns links,
//! addresses and routes; it uses [`contract`] and [`socket`] from here.
//!
//! | module | what it holds |
//! |---|---|
//! | [`invocation`] | environment and stdin, checked, become a request |
//! | [`spec`], [`args`] | what the runtime says: configuration, `CNI_ARGS` |
//! | [`result`], [`version`], [`error`] | what the runtime is told |
//! | [`contract`] | request and reply, as values and bytes |
//! | [`socket`] | moves them, with the namespace's descriptor |
//!
//! Runtimes start the binary once for each operation, often on a host whose C library is not the one it was built with.
//! So `make release` links it statically, with musl: glibc begins by asking the processor for each of its features, and in a
//! virtual machine every such question goes to the hypervisor, which is more than all the rest of a start costs. The plugin
//! resolves no names, so nothing of glibc is missed. The file name is
//! the `type` in the network configuration; an example is `deploy/cni/10-calidris.conflist`. Its `cniVersion` is what runtimes before CNI 1.1 take; newer ones choose the highest of
//! `cniVersions`, and every plugin of the list must speak it.
//!
//! Invariants: nothing here panics on input; every read has a size limit and a time limit; a result is converted to
//! another version in one place, [`result::AddResult::to_json`].

pub mod args;
pub mod contract;
pub mod error;
pub mod invocation;
pub mod result;
pub mod socket;
pub mod spec;
pub mod version;
