//! nftables through the `nft` program: a script on its standard input, JSON from its standard output.
//!
//! Rules are recognised by a comment that each of them carries, the digest of its text: how `nft` prints a rule differs
//! between versions, the comment does not. Sets and chains are compared by what they contain.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use sha1::{Digest as _, Sha1};

use super::KernelError;
use crate::ours::NFT_TABLE;

/// How long one call of `nft` may take. A hundred times what replacing a table of 20,000 elements takes.
const DEADLINE: Duration = Duration::from_secs(15);

/// Our table, as wanted or as seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NftTable {
    /// Named sets of address ranges.
    pub sets: BTreeMap<String, NftSet>,
    /// Base chains.
    pub chains: BTreeMap<String, NftChain>,
}

/// A named set of address ranges (`flags interval`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NftSet {
    /// Whether it holds IPv6 addresses.
    pub is_ipv6: bool,
    /// Its elements; no range lies in another.
    pub elements: BTreeSet<IpNetwork>,
}

/// A base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftChain {
    /// Chain type: `nat`, `filter`.
    pub kind: String,
    /// Netfilter hook.
    pub hook: String,
    /// Priority in the hook.
    pub priority: i64,
    /// What happens to packets that no rule decides.
    pub policy: String,
    /// Its rules in order.
    pub rules: Vec<NftRule>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftRule {
    /// Its text in the language of `nft`; empty if it was read back.
    pub text: String,
    /// Its comment; `None` for a rule read back that has none, and so is not ours.
    pub comment: Option<String>,
}

impl NftRule {
    /// A rule of ours.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let digest = Sha1::digest(text.as_bytes());
        let hex = digest.iter().take(8).fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        Self {
            text: text.to_owned(),
            comment: Some(format!("calidris:{hex}")),
        }
    }
}

impl NftTable {
    /// Whether a table that was read back is this one.
    #[must_use]
    pub fn is_same_as(&self, seen: &Self) -> bool {
        let comments = |chain: &NftChain| -> Vec<Option<String>> {
            chain.rules.iter().map(|rule| rule.comment.clone()).collect()
        };
        self.sets == seen.sets
            && self.chains.keys().eq(seen.chains.keys())
            && self
                .chains
                .values()
                .zip(seen.chains.values())
                .all(|(wanted, seen)| {
                    (&wanted.kind, &wanted.hook, wanted.priority, &wanted.policy)
                        == (&seen.kind, &seen.hook, seen.priority, &seen.policy)
                        && comments(wanted) == comments(seen)
                })
    }

    /// The script that puts this table in the place of whatever is there. `nft -f` makes it one transaction.
    fn script(&self) -> String {
        let mut script = format!("add table inet {NFT_TABLE}\ndelete table inet {NFT_TABLE}\n");
        let _ = writeln!(script, "table inet {NFT_TABLE} {{");
        for (name, set) in &self.sets {
            let kind = if set.is_ipv6 { "ipv6_addr" } else { "ipv4_addr" };
            let _ = writeln!(script, "  set {name} {{\n    type {kind}\n    flags interval");
            if !set.elements.is_empty() {
                let elements: Vec<String> = set.elements.iter().map(ToString::to_string).collect();
                let _ = writeln!(script, "    elements = {{ {} }}", elements.join(", "));
            }
            script.push_str("  }\n");
        }
        for (name, chain) in &self.chains {
            let NftChain {
                kind,
                hook,
                priority,
                policy,
                rules,
            } = chain;
            let _ = writeln!(script, "  chain {name} {{");
            let _ = writeln!(
                script,
                "    type {kind} hook {hook} priority {priority}; policy {policy};"
            );
            for rule in rules {
                let _ = write!(script, "    {}", rule.text);
                if let Some(comment) = &rule.comment {
                    let _ = write!(script, " comment \"{comment}\"");
                }
                script.push('\n');
            }
            script.push_str("  }\n");
        }
        script.push_str("}\n");
        script
    }
}

/// Puts the table in place.
pub(super) fn replace(table: &NftTable) -> Result<(), KernelError> {
    let action = format!("replace table inet {NFT_TABLE}");
    let output = run(&["-f", "-"], table.script().into_bytes(), &action)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(refusal(action, &output))
    }
}

/// Reads our table back; `None` if it is not there.
pub(super) fn list() -> Result<Option<NftTable>, KernelError> {
    let action = format!("list table inet {NFT_TABLE}");
    let output = run(&["-j", "list", "table", "inet", NFT_TABLE], Vec::new(), &action)?;
    if !output.status.success() {
        let error = refusal(action, &output);
        let is_absent =
            matches!(&error, KernelError::Nft { stderr, .. } if stderr.contains("No such file or directory"));
        return if is_absent { Ok(None) } else { Err(error) };
    }
    match parse(&output.stdout) {
        Ok(table) => Ok(Some(table)),
        Err(reason) => Err(KernelError::Malformed { action, reason }),
    }
}

/// Runs `nft` to its end or kills it at the deadline. It inherits the network namespace of this thread.
fn run(arguments: &[&str], stdin: Vec<u8>, action: &str) -> Result<Output, KernelError> {
    let io_error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => KernelError::Nft {
            action: action.to_owned(),
            stderr: "the program nft is not in PATH: install nftables".to_owned(),
        },
        _ => KernelError::Io {
            action: format!("run nft to {action}"),
            source,
        },
    };
    let child = Command::new("nft")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(io_error)?;
    // Taken while the child is not yet waited for, so that the number is still its own.
    let handle = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("process number out of range"))
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from))
        .map_err(io_error)?;
    let (sender, receiver) = mpsc::channel();
    let worker = std::thread::Builder::new()
        .name("nft".to_owned())
        .spawn(move || {
            let _ = sender.send(feed_and_wait(child, &stdin));
        })
        .map_err(io_error)?;
    let outcome = receiver.recv_timeout(DEADLINE);
    if outcome.is_err() {
        let _ = pidfd_send_signal(&handle, Signal::KILL);
    }
    let _ = worker.join();
    match outcome {
        Ok(result) => result.map_err(io_error),
        Err(_) => Err(KernelError::Timeout {
            action: format!("nft: {action}"),
            limit: DEADLINE,
        }),
    }
}

fn feed_and_wait(mut child: Child, stdin: &[u8]) -> io::Result<Output> {
    if let Some(mut pipe) = child.stdin.take() {
        // An `nft` that dies early closes the pipe; its own words are then the better error.
        let _ = pipe.write_all(stdin);
    }
    child.wait_with_output()
}

fn refusal(action: String, output: &Output) -> KernelError {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stderr = match stderr.trim() {
        "" => output.status.to_string(),
        text => text.chars().take(1000).collect(),
    };
    KernelError::Nft { action, stderr }
}

/// Parses `nft -j list table`. What we never make (maps, chains without hook, elements that are not address ranges)
/// comes out as something that no table of ours is equal to.
fn parse(json: &[u8]) -> Result<NftTable, String> {
    let document: Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let objects = document["nftables"].as_array().ok_or("no array \"nftables\"")?;
    let mut table = NftTable::default();
    for object in objects {
        let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next()) else {
            return Err(format!("expected an object, found {object}"));
        };
        match kind.as_str() {
            "set" => {
                table.sets.insert(text(body, "name")?, parse_set(body));
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

fn parse_set(body: &Value) -> NftSet {
    let is_interval = body["flags"]
        .as_array()
        .is_some_and(|flags| flags.iter().any(|flag| flag == "interval"));
    let elements = body["elem"].as_array().map(Vec::as_slice).unwrap_or_default();
    let parsed: Option<BTreeSet<IpNetwork>> = elements.iter().map(parse_element).collect();
    match parsed {
        Some(elements) if is_interval => NftSet {
            is_ipv6: body["type"] == "ipv6_addr",
            elements,
        },
        // Not a set that we could have made: an IPv4 set with an IPv6 range is equal to none of ours.
        _ => NftSet {
            is_ipv6: false,
            elements: BTreeSet::from([super::default_prefix(true)]),
        },
    }
}

/// `"10.0.0.1"` or `{"prefix":{"addr":"10.0.0.0","len":8}}`.
fn parse_element(element: &Value) -> Option<IpNetwork> {
    if let Some(address) = element.as_str() {
        return address.parse::<IpAddr>().ok().map(IpNetwork::from);
    }
    let prefix = &element["prefix"];
    let address: IpAddr = prefix["addr"].as_str()?.parse().ok()?;
    IpNetwork::new(address, u8::try_from(prefix["len"].as_u64()?).ok()?).ok()
}

fn text(body: &Value, field: &str) -> Result<String, String> {
    body[field]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| format!("no text \"{field}\" in {body}"))
}

#[cfg(test)]
mod tests;
