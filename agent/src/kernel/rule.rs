//! Rules of routing policy: the requests, and what the kernel's answers and notifications say.
//!
//! Layouts: `struct fib_rule_hdr`, `FRA_…` (linux/fib_rules.h). Since Linux 4.17 a rule says who made it (`FRA_PROTOCOL`), and rules of
//! several makers stand side by side. An older kernel keeps no mark: there the rules are made once, and then reported as not seen.

use std::collections::BTreeSet;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NlasIterator};

use super::message::number;
use super::netlink::NetlinkSocket;
use super::wire::{attribute, message};
use super::{KernelError, RuleChange};
use crate::delta::Change;
use crate::desired::{Rule, RuleAction};
use crate::ours::ROUTE_PROTOCOL_LOCAL;

const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
const FRA_PRIORITY: u16 = 6;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_PROTOCOL: u16 = 21;
const FR_ACT_TO_TBL: u8 = 1;
/// Where `FRA_SUPPRESS_PREFIXLEN` says nothing.
const NO_PREFIX_LENGTH: u32 = u32::MAX;
const HEADER_BYTES: usize = 12;

/// The rules of ours.
pub(super) fn list(socket: &mut NetlinkSocket) -> Result<BTreeSet<Rule>, KernelError> {
    let mut all = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = Vec::new();
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        message(RTM_GETRULE, flags, &mut request, |request| {
            header(family, 0, 0, request);
        });
        let mut rules = BTreeSet::new();
        let result = socket.dump_bytes(&request, "list the rules", |payload| {
            match payload {
                None => rules.clear(),
                Some(payload) => rules.extend(parse(payload)?),
            }
            Ok(())
        });
        match result {
            // A kernel without policy routing, or without the family, has none.
            Err(error) if matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) => {}
            result => {
                result?;
                all.extend(rules);
            }
        }
    }
    Ok(all)
}

pub(super) fn change(socket: &mut NetlinkSocket, change: &RuleChange) -> Result<(), KernelError> {
    let write = |_: usize, datagram: &mut Vec<u8>| request(change, datagram);
    let action = |_: usize| match change {
        Change::Delete { key, .. } => format!("delete rule {key}"),
        Change::Create { key, .. } | Change::Replace { key, .. } => format!("create rule {key}"),
    };
    socket.batch_bytes(1, write, action).pop().unwrap_or(Ok(()))
}

/// Appends the request for a change. A creation is refused where there is the same rule with our mark.
fn request(change: &RuleChange, datagram: &mut Vec<u8>) {
    let (kind, flags, rule) = match change {
        Change::Create { key, .. } | Change::Replace { key, .. } => {
            (RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, key)
        }
        Change::Delete { key, .. } => (RTM_DELRULE, 0, key),
    };
    let family = if rule.is_ipv6 {
        libc::AF_INET6
    } else {
        libc::AF_INET
    };
    message(kind, flags | NLM_F_REQUEST, datagram, |datagram| {
        let (table, without_default) = match &rule.action {
            RuleAction::Other(told) => return datagram.extend_from_slice(told),
            RuleAction::Lookup {
                table,
                without_default,
            } => (*table, *without_default),
        };
        header(family, table, FR_ACT_TO_TBL, datagram);
        attribute(FRA_PRIORITY, &rule.priority.to_ne_bytes(), datagram);
        attribute(FRA_TABLE, &table.to_ne_bytes(), datagram);
        if without_default {
            attribute(FRA_SUPPRESS_PREFIXLEN, &0_u32.to_ne_bytes(), datagram);
        }
        attribute(FRA_PROTOCOL, &[ROUTE_PROTOCOL_LOCAL], datagram);
    });
}

/// `struct fib_rule_hdr`: family, lengths of destination and source, type of service, table, two reserved, action, flags. A table
/// for which eight bits do not do is in its attribute.
fn header(family: i32, table: u32, action: u8, datagram: &mut Vec<u8>) {
    let family = u8::try_from(family).unwrap_or_default();
    let table = u8::try_from(table).unwrap_or_default();
    datagram.extend_from_slice(&[family, 0, 0, 0, table, 0, 0, action, 0, 0, 0, 0]);
}

/// Reads a rule; `None` unless it is one of ours.
pub(crate) fn parse(payload: &[u8]) -> Result<Option<Rule>, String> {
    let header: &[u8; HEADER_BYTES] = payload.first_chunk().ok_or("rule header cut short")?;
    let [family, to, from, tos, table, _, _, action, flags @ ..] = *header;
    let is_ipv6 = match i32::from(family) {
        libc::AF_INET => false,
        libc::AF_INET6 => true,
        _ => return Ok(None),
    };
    let mut is_plain = (to, from, tos, action) == (0, 0, 0, FR_ACT_TO_TBL) && flags == [0; 4];
    let (mut priority, mut table, mut protocol) = (0, u32::from(table), 0);
    let mut suppressed = NO_PREFIX_LENGTH;
    for attribute in NlasIterator::new(payload.get(HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        match attribute.kind() {
            FRA_PRIORITY => priority = number(&attribute)?,
            FRA_TABLE => table = number(&attribute)?,
            FRA_SUPPRESS_PREFIXLEN => suppressed = number(&attribute)?,
            FRA_PROTOCOL => protocol = attribute.value().first().copied().unwrap_or_default(),
            // It asks for something of the packet, or does something else.
            _ => is_plain = false,
        }
    }
    let action = match suppressed {
        0 | NO_PREFIX_LENGTH if is_plain => RuleAction::Lookup {
            table,
            without_default: suppressed == 0,
        },
        _ => RuleAction::Other(payload.to_vec()),
    };
    let rule = Rule {
        is_ipv6,
        priority,
        action,
    };
    Ok((protocol == ROUTE_PROTOCOL_LOCAL).then_some(rule))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// The request for a change of the rule, without the header of netlink.
    fn bytes_of(rule: &Rule) -> Vec<u8> {
        let change = Change::Create {
            key: rule.clone(),
            value: (),
        };
        let mut bytes = Vec::new();
        request(&change, &mut bytes);
        bytes.split_off(16)
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        (any::<bool>(), any::<u32>(), any::<u32>(), any::<bool>()).prop_map(
            |(is_ipv6, priority, table, without_default)| Rule {
                is_ipv6,
                priority,
                action: RuleAction::Lookup {
                    table,
                    without_default,
                },
            },
        )
    }

    proptest! {
        #[test]
        fn a_rule_is_read_as_it_was_written(rule in any_rule()) {
            prop_assert_eq!(parse(&bytes_of(&rule)).unwrap(), Some(rule));
        }

        #[test]
        fn no_bytes_make_reading_panic(
            rule in any_rule(),
            garbage in vec(any::<u8>(), 0..80),
            position in 0_usize..60,
            value in any::<u8>(),
            cut in 0_usize..80,
        ) {
            let _ = parse(&garbage);
            let mut bytes = bytes_of(&rule);
            if let Some(byte) = bytes.get_mut(position) {
                *byte = value;
            }
            bytes.truncate(cut);
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn what_asks_for_something_of_the_packet_is_of_another_kind_and_named_as_it_was_told() {
        const FRA_FWMARK: u16 = 10;
        let rule = Rule {
            is_ipv6: false,
            priority: 7,
            action: RuleAction::Lookup {
                table: 100,
                without_default: false,
            },
        };
        let mut bytes = bytes_of(&rule);
        attribute(FRA_FWMARK, &1_u32.to_ne_bytes(), &mut bytes);
        let marked = parse(&bytes).unwrap().unwrap();
        assert_eq!(marked.action, RuleAction::Other(bytes.clone()));
        assert_eq!(bytes_of(&marked), bytes);
    }

    #[test]
    fn a_rule_of_others_is_none() {
        let mut bytes = Vec::new();
        header(libc::AF_INET, 254, FR_ACT_TO_TBL, &mut bytes);
        attribute(FRA_PROTOCOL, &[2], &mut bytes);
        assert_eq!(parse(&bytes).unwrap(), None);
    }
}
