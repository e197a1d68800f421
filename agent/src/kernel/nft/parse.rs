//! What `nft -j list table` prints, as a table of ours. What we never make (chains without hook, elements that are no
//! addresses, names, ports or ranges) comes out as something that no table of ours is equal to.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::{NftChain, NftElement, NftRule, NftSet, NftTable};

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
    let elements = body["elem"].as_array().map(Vec::as_slice).unwrap_or_default();
    let parsed: Option<BTreeSet<NftElement>> = elements.iter().map(element).collect();
    match parsed {
        Some(elements) if flags.len() == usize::from(is_interval) => NftSet {
            kind: kind(&body["type"]),
            maps_to: Some(kind(&body["map"])).filter(|kind| !kind.is_empty()),
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

/// An element of a set, or of a map: `[key, value]`.
fn element(value: &Value) -> Option<NftElement> {
    let text = match value.as_array().map(Vec::as_slice) {
        Some([from, to]) => format!("{} : {}", key(from)?, key(to)?),
        Some(_) => return None,
        None => key(value)?,
    };
    Some(NftElement(text))
}

/// One part, or several: `{"concat":[…]}`.
fn key(value: &Value) -> Option<String> {
    match value.get("concat").and_then(Value::as_array) {
        Some(parts) => {
            let parts: Option<Vec<String>> = parts.iter().map(part).collect();
            parts.map(|parts| parts.join(" . "))
        }
        None => part(value),
    }
}

/// `"10.0.0.1"`, `"cali1"`, `"tcp"`, `80`, or `{"prefix":{"addr":"10.0.0.0","len":8}}`.
fn part(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(match text.parse::<IpAddr>() {
            Ok(address) => address.to_string(),
            Err(_) => match text.as_str() {
                "tcp" => libc::IPPROTO_TCP.to_string(),
                "udp" => libc::IPPROTO_UDP.to_string(),
                "sctp" => libc::IPPROTO_SCTP.to_string(),
                name => format!("\"{name}\""),
            },
        }),
        _ => {
            let prefix = &value["prefix"];
            let address: IpAddr = prefix["addr"].as_str()?.parse().ok()?;
            Some(format!("{address}/{}", prefix["len"].as_u64()?))
        }
    }
}

fn text(body: &Value, field: &str) -> Result<String, String> {
    body[field]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| format!("no text \"{field}\" in {body}"))
}
