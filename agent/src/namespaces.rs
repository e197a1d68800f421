//! Which addresses the machine's processes have: those of every network namespace but our own that a process is in.
//!
//! Read from `/proc/PID/net`, without entering any namespace. Of IPv4 the local routing table (`fib_trie`: each address
//! with `/32 host LOCAL` below it), of IPv6 `if_inet6`. A process that hides from us (another PID namespace) is not seen:
//! what is found proves life, what is not found proves nothing by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// How many namespaces were looked into.
    pub looked_into: usize,
    /// Addresses other than loopback and link-local ones, with a process that has them.
    pub addresses: BTreeMap<IpAddr, String>,
}

/// Looks into the namespace of every process that can be seen.
///
/// # Errors
/// `/proc` cannot be listed. A process that ends meanwhile is no error.
pub fn look() -> io::Result<Namespaces> {
    let mut found = Namespaces::default();
    // Our own has no pod's addresses, but may have a very long routing table.
    let mut seen = BTreeSet::from([std::fs::read_link("/proc/thread-self/ns/net")?]);
    for entry in std::fs::read_dir("/proc")? {
        let Ok(name) = entry?.file_name().into_string() else {
            continue;
        };
        let process = Path::new("/proc").join(&name);
        let is_process = name.bytes().all(|byte| byte.is_ascii_digit());
        let Some(namespace) = is_process
            .then(|| std::fs::read_link(process.join("ns/net")).ok())
            .flatten()
        else {
            continue;
        };
        if seen.contains(&namespace) {
            continue;
        }
        // A process that has ended says nothing; another one of its namespace will.
        let Ok(v4) = std::fs::read_to_string(process.join("net/fib_trie")) else {
            continue;
        };
        let v6 = std::fs::read_to_string(process.join("net/if_inet6")).unwrap_or_default();
        seen.insert(namespace);
        found.looked_into += 1;
        for address in local_v4(&v4).chain(local_v6(&v6)) {
            found
                .addresses
                .entry(address)
                .or_insert_with(|| format!("process {name}"));
        }
    }
    Ok(found)
}

fn local_v4(fib_trie: &str) -> impl Iterator<Item = IpAddr> {
    let mut leaf: Option<Ipv4Addr> = None;
    fib_trie.lines().filter_map(move |line| {
        let line = line.trim_start();
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
            return None;
        }
        let address = leaf.filter(|_| line == "/32 host LOCAL")?;
        (!address.is_loopback() && !address.is_link_local()).then_some(IpAddr::V4(address))
    })
}

fn local_v6(if_inet6: &str) -> impl Iterator<Item = IpAddr> {
    if_inet6.lines().filter_map(|line| {
        let digits = line
            .split_whitespace()
            .next()
            .filter(|digits| digits.len() == 32)?;
        let address = Ipv6Addr::from(u128::from_str_radix(digits, 16).ok()?);
        (!address.is_loopback() && !address.is_unicast_link_local()).then_some(IpAddr::V6(address))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIB_TRIE: &str = "\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     |-- 10.244.0.11
        /32 link UNICAST
Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 10.65.0.0/24 2 0 2
        |-- 10.65.0.7
           /32 host LOCAL
        |-- 10.65.0.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
";
    const IF_INET6: &str = "\
fd000010024400000000000000000007 02 80 00 80     eth0
fe80000000000000ecee00fffeee0000 02 40 20 80     eth0
00000000000000000000000000000001 01 80 10 80       lo
short 01 80 10 80 lo
";

    #[test]
    fn local_addresses_are_found_and_nothing_else() {
        let v4: Vec<IpAddr> = local_v4(FIB_TRIE).collect();
        assert_eq!(v4, ["10.65.0.7".parse::<IpAddr>().unwrap()]);
        let v6: Vec<IpAddr> = local_v6(IF_INET6).collect();
        assert_eq!(v6, ["fd00:10:244::7".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn processes_can_be_looked_at() {
        look().unwrap();
    }
}
