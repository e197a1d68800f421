//! What `nft -j list table` prints, as a table of ours. What we never make (chains without hook, elements that are no
//! addresses, names, ports or ranges) comes out as something that no table of ours is equal to.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::Value;

use super::{NftChain, NftElement, NftPart, NftRule, NftSet, NftTable};

pub(super) fn parse(json: &[u8]) -> Result<NftTable, String> {
    let document: Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let objects = document["nftables"].as_array().ok_or("no array \"nftables\"")?;
    let mut table = NftTable::default();
    for object in objects {
        let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next()) else {
            return Err(format!("expected an object, found {object}"));
        };
        match kind.as_str() {
            "set" | "map" => {
                table.sets.insert(text(body, "name")?, set(body));
            }
            "chain" => {
                let chain = NftChain {
                    kind: text(body, "type").unwrap_or_default(),
                    hook: text(body, "hook").unwrap_or_default(),
                    priority: body["prio"].as_i64().unwrap_or(i64::MAX),
                    policy: text(body, "policy").unwrap_or_default(),
                    rules: Vec::new(),
                };
                table.chains.insert(text(body, "name")?, chain);
            }
            "rule" => {
                let chain = text(body, "chain")?;
                let rule = NftRule {
                    text: String::new(),
                    comment: body["comment"].as_str().map(str::to_owned),
                };
                let rules = table
                    .chains
                    .get_mut(&chain)
                    .ok_or_else(|| format!("rule of unknown chain {chain}"))?;
                rules.rules.push(rule);
            }
            "metainfo" | "table" => {}
            other => {
                table
                    .sets
                    .insert(format!("{other}, which is not ours"), NftSet::default());
            }
        }
    }
    Ok(table)
}

fn set(body: &Value) -> NftSet {
    let flags: Vec<&Value> = body["flags"].as_array().into_iter().flatten().collect();
    let is_interval = flags.iter().any(|flag| *flag == "interval");
    let (key, value) = (kind(&body["type"]), kind(&body["map"]));
    let elements = body["elem"].as_array().map(Vec::as_slice).unwrap_or_default();
    let parsed: Option<BTreeSet<NftElement>> = elements
        .iter()
        .map(|printed| element((&key, &value), printed))
        .collect();
    match parsed {
        Some(elements) if flags.len() == usize::from(is_interval) => NftSet {
            kind: key,
            maps_to: Some(value).filter(|kind| !kind.is_empty()),
            is_interval,
            elements,
        },
        // Not a set that we could have made: none of ours is without a type.
        _ => NftSet::default(),
    }
}

/// `"ifname"`, `["ifname", "ipv4_addr"]`, or, of what a map leads to, `"ipv4_addr . inet_service"`.
fn kind(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let parts: Vec<&str> = parts.iter().filter_map(Value::as_str).collect();
            parts.join(" . ")
        }
        _ => String::new(),
    }
}

/// An element of a set, or of a map: `[key, value]`. The types of key and value say how to read it.
fn element((key, value): (&str, &str), printed: &Value) -> Option<NftElement> {
    match printed.as_array().map(Vec::as_slice) {
        Some([from, to]) => Some(NftElement::mapping(parts(key, from)?, parts(value, to)?)),
        Some(_) => None,
        None => Some(NftElement::key(parts(key, printed)?)),
    }
}

/// One part, or several: `{"concat":[…]}`.
fn parts(kind: &str, printed: &Value) -> Option<Vec<NftPart>> {
    let kinds: Vec<&str> = kind.split(" . ").collect();
    let concatenated = printed.get("concat").and_then(Value::as_array);
    let printed = concatenated.map_or(std::slice::from_ref(printed), Vec::as_slice);
    (printed.len() == kinds.len())
        .then(|| {
            kinds
                .iter()
                .zip(printed)
                .map(|(kind, printed)| part(kind, printed))
                .collect()
        })
        .flatten()
}

/// `"10.0.0.1"`, `"cali1"`, `"tcp"`, `80`, or `{"prefix":{"addr":"10.0.0.0","len":8}}`.
fn part(kind: &str, printed: &Value) -> Option<NftPart> {
    match kind {
        "ifname" => Some(NftPart::Interface(printed.as_str()?.to_owned())),
        "inet_service" => Some(NftPart::Port(printed.as_u64()?.try_into().ok()?)),
        "inet_proto" => Some(NftPart::Protocol(protocol(printed)?)),
        "ipv4_addr" | "ipv6_addr" => match printed.as_str() {
            Some(text) => Some(NftPart::Address(text.parse().ok()?)),
            None => {
                let prefix = &printed["prefix"];
                let address: IpAddr = prefix["addr"].as_str()?.parse().ok()?;
                let length = prefix["len"].as_u64()?.try_into().ok()?;
                Some(NftPart::range(IpNetwork::new(address, length).ok()?))
            }
        },
        _ => None,
    }
}

/// By its number, or by its name where there is an `/etc/protocols`.
fn protocol(printed: &Value) -> Option<u8> {
    let number = match printed.as_str() {
        Some("tcp") => libc::IPPROTO_TCP,
        Some("udp") => libc::IPPROTO_UDP,
        Some("sctp") => libc::IPPROTO_SCTP,
        Some(_) => return None,
        None => return printed.as_u64()?.try_into().ok(),
    };
    number.try_into().ok()
}

fn text(body: &Value, field: &str) -> Result<String, String> {
    body[field]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| format!("no text \"{field}\" in {body}"))
}
