//! Netlink messages written straight into a datagram.
//!
//! Layouts: `struct nlmsghdr` (linux/netlink.h) and attributes (`struct nlattr`, the same as `struct rtattr`), which are
//! aligned to four bytes.

/// `NLA_F_NESTED`: the attribute's value is attributes.
pub(crate) const NESTED: u16 = 0x8000;

/// Appends a message, its sequence number 0. `content` writes what is behind its header.
pub(crate) fn message(kind: u16, flags: u16, datagram: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) {
    let start = datagram.len();
    // The length is filled in at the end.
    datagram.extend_from_slice(&[0; 4]);
    datagram.extend_from_slice(&kind.to_ne_bytes());
    datagram.extend_from_slice(&flags.to_ne_bytes());
    datagram.extend_from_slice(&[0; 8]);
    content(datagram);
    let length = u32::try_from(datagram.len() - start).unwrap_or_default();
    if let Some(field) = datagram.get_mut(start..start + 4) {
        field.copy_from_slice(&length.to_ne_bytes());
    }
}

/// Appends an attribute.
pub(crate) fn attribute(kind: u16, value: &[u8], datagram: &mut Vec<u8>) {
    let length = u16::try_from(4 + value.len()).unwrap_or_default();
    datagram.extend_from_slice(&length.to_ne_bytes());
    datagram.extend_from_slice(&kind.to_ne_bytes());
    datagram.extend_from_slice(value);
    let padding = value.len().next_multiple_of(4) - value.len();
    datagram.extend_from_slice(&[0; 3][..padding]);
}

/// Appends an attribute that holds attributes, which `content` writes: less than 64 KiB.
pub(crate) fn nested(kind: u16, datagram: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) {
    let start = datagram.len();
    datagram.extend_from_slice(&[0; 2]);
    datagram.extend_from_slice(&(kind | NESTED).to_ne_bytes());
    content(datagram);
    let length = u16::try_from(datagram.len() - start).unwrap_or_default();
    if let Some(field) = datagram.get_mut(start..start + 2) {
        field.copy_from_slice(&length.to_ne_bytes());
    }
}
