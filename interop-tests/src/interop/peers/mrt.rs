//! A table in the MRT format (RFC 6396, TABLE_DUMP_V2), which GoBGP takes much faster than one command a route.

use std::net::Ipv4Addr;

use anyhow::Context;
use ipnetwork::IpNetwork;

/// A dump of one peer's IPv4 routes, all with an empty path and the same next hop.
///
/// # Errors
/// For other families, and lengths that do not fit their fields.
pub(super) fn table_dump(
    prefixes: &[IpNetwork],
    next_hop: Ipv4Addr,
    router_id: Ipv4Addr,
) -> anyhow::Result<Vec<u8>> {
    let mut out = Vec::new();
    // PEER_INDEX_TABLE: collector, no view name, one peer of 4-octet AS and IPv4 address.
    let mut peers = router_id.octets().to_vec();
    peers.extend([0, 0, 0, 1, 2]);
    peers.extend(router_id.octets());
    peers.extend(next_hop.octets());
    peers.extend(0_u32.to_be_bytes());
    record(&mut out, 1, &peers)?;
    // ORIGIN IGP, AS_PATH empty, NEXT_HOP.
    let mut attributes = vec![0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 3, 4];
    attributes.extend(next_hop.octets());
    for (sequence, prefix) in prefixes.iter().enumerate() {
        let IpNetwork::V4(prefix) = prefix else {
            anyhow::bail!("{prefix} is not IPv4");
        };
        let mut entry = u32::try_from(sequence)?.to_be_bytes().to_vec();
        entry.push(prefix.prefix());
        let octets = usize::from(prefix.prefix()).div_ceil(8);
        entry.extend(
            prefix
                .network()
                .octets()
                .get(..octets)
                .context("at most four octets")?,
        );
        // One entry, of peer 0, at time 0.
        entry.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        entry.extend(u16::try_from(attributes.len())?.to_be_bytes());
        entry.extend(&attributes);
        record(&mut out, 2, &entry)?;
    }
    Ok(out)
}

/// Timestamp 0, type TABLE_DUMP_V2, subtype, length, body.
fn record(out: &mut Vec<u8>, subtype: u16, body: &[u8]) -> anyhow::Result<()> {
    out.extend([0, 0, 0, 0, 0, 13]);
    out.extend(subtype.to_be_bytes());
    out.extend(u32::try_from(body.len())?.to_be_bytes());
    out.extend(body);
    Ok(())
}
