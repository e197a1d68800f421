//! What lives on this machine, as its routes say: each host route (/32, /128) of the main table to a workload's
//! interface. Calico's agent and this one both make them, and they need no rights to be read.
//!
//! Formats: the columns of `/proc/net/route` (hexadecimal, addresses in the
//! machine's byte order) and of `/proc/net/ipv6_route` (hexadecimal, network byte order), of the reading thread's namespace.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ours::LINK_PREFIX;

/// The addresses of workloads, with the interface that each is behind.
///
/// # Errors
/// The kernel's files cannot be read. That there is no IPv6 is none.
pub fn workload_addresses() -> io::Result<BTreeMap<IpAddr, String>> {
    let v4 = std::fs::read_to_string("/proc/thread-self/net/route")?;
    let v6 = match std::fs::read_to_string("/proc/thread-self/net/ipv6_route") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        result => result?,
    };
    Ok(v4
        .lines()
        .filter_map(ipv4)
        .chain(v6.lines().filter_map(ipv6))
        .collect())
}

/// Columns: interface, destination, gateway, flags, references, uses, metric, mask, …
fn ipv4(line: &str) -> Option<(IpAddr, String)> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let (interface, destination, mask) = (*columns.first()?, *columns.get(1)?, *columns.get(7)?);
    if !interface.starts_with(LINK_PREFIX) || u32::from_str_radix(mask, 16).ok()? != u32::MAX {
        return None;
    }
    let bytes = u32::from_str_radix(destination, 16).ok()?.to_ne_bytes();
    Some((Ipv4Addr::from(bytes).into(), interface.to_owned()))
}

/// Columns: destination, its prefix length, source, its prefix length, next hop, metric, references, uses, flags,
/// interface.
fn ipv6(line: &str) -> Option<(IpAddr, String)> {
    /// `RTF_LOCAL`: an address of the interface itself (`include/uapi/linux/ipv6_route.h`).
    const LOCAL: u32 = 0x8000_0000;
    let columns: Vec<&str> = line.split_whitespace().collect();
    let (destination, length, flags) = (*columns.first()?, *columns.get(1)?, *columns.get(8)?);
    let interface = *columns.get(9)?;
    let flags = u32::from_str_radix(flags, 16).ok()?;
    if !interface.starts_with(LINK_PREFIX) || length != "80" || flags & LOCAL != 0 {
        return None;
    }
    let address = Ipv6Addr::from(u128::from_str_radix(destination, 16).ok()?);
    let is_a_workloads = !address.is_multicast() && !address.is_unicast_link_local();
    is_a_workloads.then(|| (address.into(), interface.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
calic0ffee01\t80AEF40A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0
cali0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0
eth0\t01AEF40A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0
";
    const V6: &str = "\
fd000010024400000000000000000007 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000400 00000001 00000000 00000001 calic0ffee01
fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001 calic0ffee01
fe80000000000000ecee00fffeee0000 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000002 00000000 80200001 calic0ffee01
fd000010024400000000000000000008 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000002 00000000 80200001 calic0ffee01
ff000000000000000000000000000000 08 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001 calic0ffee01
";

    #[test]
    #[cfg(target_endian = "little")]
    fn host_routes_to_workloads_are_found_and_nothing_else() {
        let v4: Vec<_> = V4.lines().filter_map(ipv4).collect();
        assert_eq!(
            v4,
            [("10.244.174.128".parse().unwrap(), "calic0ffee01".to_owned())]
        );
        let v6: Vec<_> = V6.lines().filter_map(ipv6).collect();
        assert_eq!(
            v6,
            [("fd00:10:244::7".parse().unwrap(), "calic0ffee01".to_owned())]
        );
    }

    #[test]
    fn lines_of_another_form_are_passed_over() {
        for line in [
            "",
            "cali0",
            "cali0 zz 0 0 0 0 0 FFFFFFFF",
            "cali0 00000000 0 0 0 0 0 FFFFFFFFF",
        ] {
            assert_eq!(ipv4(line), None, "{line}");
            assert_eq!(ipv6(line), None, "{line}");
        }
    }

    #[test]
    fn this_machines_routes_can_be_read() {
        workload_addresses().unwrap();
    }
}
