//! Malformed UPDATEs, sent by ExaBGP, and what RFC 7606 and the attribute's own specification make of each.

use std::fmt::Write;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::Feature;
use crate::eventually::eventually;
use crate::interop::ours::Ours;
use crate::interop::peer::Peer;
use crate::interop::setup::Setup;
use crate::interop::site::{OUR_AS, SOON, Site, announced, wait_established, wait_ours, wait_ours_gone};

pub(super) const FEATURES: &[Feature] = &[
    Feature {
        name: "malformed-external",
        title: "Malformed attributes from an external peer (RFC 7606)",
        quick: true,
        run: external,
    },
    Feature {
        name: "malformed-internal",
        title: "Malformed attributes from an internal peer (RFC 7606)",
        quick: false,
        run: internal,
    },
    Feature {
        name: "unknown-attributes",
        title: "Unknown attributes: passed on with the Partial bit, or dropped (RFC 4271 §5)",
        quick: false,
        run: unknown,
    },
];

/// What becomes of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The routes count as withdrawn.
    Withdrawn,
    /// The routes are taken without the attribute.
    Discarded,
    /// All is well.
    Taken,
    /// The session ends.
    Reset,
}

use Outcome::{Discarded, Reset, Taken, Withdrawn};

/// What is wrong, the attribute as type, flags and value, the outcome, and where it is written.
type Case = (&'static str, u8, u8, &'static str, Outcome, &'static str);

/// From any peer.
const ANY: &[Case] = &[
    (
        "ORIGIN of a value nobody knows",
        1,
        0x40,
        "09",
        Withdrawn,
        "7606 §7.1",
    ),
    ("ORIGIN of two octets", 1, 0x40, "0000", Withdrawn, "7606 §7.1"),
    ("ORIGIN without value", 1, 0x40, "", Withdrawn, "7606 §7.1"),
    ("ORIGIN marked optional", 1, 0xc0, "00", Withdrawn, "7606 §3 c"),
    (
        "ORIGIN marked non-transitive",
        1,
        0x00,
        "00",
        Withdrawn,
        "7606 §3 c",
    ),
    (
        "AS_PATH with a segment of an unknown type",
        2,
        0x40,
        "05010000fdea",
        Withdrawn,
        "7606 §7.2",
    ),
    (
        "AS_PATH with a segment longer than the attribute",
        2,
        0x40,
        "02020000fdea",
        Withdrawn,
        "7606 §7.2",
    ),
    (
        "AS_PATH with an octet left over",
        2,
        0x40,
        "02010000fdea02",
        Withdrawn,
        "7606 §7.2",
    ),
    (
        "AS_PATH with an empty segment",
        2,
        0x40,
        "02010000fdea0200",
        Withdrawn,
        "7606 §7.2",
    ),
    (
        "AS_PATH with AS 0",
        2,
        0x40,
        "02020000fdea00000000",
        Withdrawn,
        "7607 §2",
    ),
    (
        "AS_PATH marked optional",
        2,
        0xc0,
        "02010000fdea",
        Withdrawn,
        "7606 §3 c",
    ),
    ("MED of three octets", 4, 0x80, "000001", Withdrawn, "7606 §7.4"),
    (
        "MED of five octets",
        4,
        0x80,
        "0000000001",
        Withdrawn,
        "7606 §7.4",
    ),
    (
        "MED marked transitive",
        4,
        0xc0,
        "00000001",
        Withdrawn,
        "7606 §3 c",
    ),
    ("MED as it should be", 4, 0x80, "00000001", Taken, "4271 §4.3"),
    (
        "ATOMIC_AGGREGATE with a value",
        6,
        0x40,
        "00",
        Discarded,
        "7606 §7.6",
    ),
    (
        "AGGREGATOR of six octets on a 4-octet session",
        7,
        0xc0,
        "fdeac0000201",
        Discarded,
        "7606 §7.7",
    ),
    (
        "AGGREGATOR of nine octets",
        7,
        0xc0,
        "0000fdeac000020100",
        Discarded,
        "7606 §7.7",
    ),
    (
        "AGGREGATOR with AS 0",
        7,
        0xc0,
        "00000000c0000201",
        Discarded,
        "7607 §2",
    ),
    (
        "AGGREGATOR as it should be",
        7,
        0xc0,
        "0000fdeac0000201",
        Taken,
        "4271 §4.3",
    ),
    (
        "COMMUNITIES of five octets",
        8,
        0xc0,
        "fdea000100",
        Withdrawn,
        "7606 §7.8",
    ),
    (
        "COMMUNITIES of three octets",
        8,
        0xc0,
        "fdea00",
        Withdrawn,
        "7606 §7.8",
    ),
    ("COMMUNITIES without value", 8, 0xc0, "", Withdrawn, "7606 §7.8"),
    (
        "COMMUNITIES marked non-transitive",
        8,
        0x80,
        "fdea0001",
        Withdrawn,
        "7606 §3 c",
    ),
    (
        "COMMUNITIES marked well-known",
        8,
        0x40,
        "fdea0001",
        Withdrawn,
        "7606 §3 c",
    ),
    (
        "EXTENDED COMMUNITIES of seven octets",
        16,
        0xc0,
        "0002fdea000000",
        Withdrawn,
        "7606 §7.14",
    ),
    (
        "EXTENDED COMMUNITIES of nine octets",
        16,
        0xc0,
        "0002fdea0000000100",
        Withdrawn,
        "7606 §7.14",
    ),
    (
        "EXTENDED COMMUNITIES without value",
        16,
        0xc0,
        "",
        Withdrawn,
        "7606 §7.14",
    ),
    (
        "LARGE_COMMUNITY of eleven octets",
        32,
        0xc0,
        "0000fdea0000000100000",
        Withdrawn,
        "8092 §6",
    ),
    (
        "LARGE_COMMUNITY of thirteen octets",
        32,
        0xc0,
        "0000fdea000000010000000200",
        Withdrawn,
        "8092 §6",
    ),
    (
        "LARGE_COMMUNITY without value",
        32,
        0xc0,
        "",
        Withdrawn,
        "8092 §6",
    ),
    (
        "AS4_PATH from a peer with 4-octet AS numbers",
        17,
        0xc0,
        "02010000fdea",
        Discarded,
        "6793 §6",
    ),
    (
        "AS4_AGGREGATOR from a peer with 4-octet AS numbers",
        18,
        0xc0,
        "0000fdeac0000201",
        Discarded,
        "6793 §6",
    ),
    (
        "a well-known attribute nobody knows",
        99,
        0x40,
        "01",
        Reset,
        "4271 §6.3",
    ),
    (
        "MP_REACH_NLRI too short for its next hop",
        14,
        0x80,
        "00010104c0",
        Reset,
        "7606 §5.3",
    ),
    (
        "MP_UNREACH_NLRI of two octets",
        15,
        0x80,
        "0001",
        Reset,
        "7606 §5.3",
    ),
];

/// From external peers: what only internal ones may send is dropped. (ExaBGP never sends LOCAL_PREF to external peers.)
const EXTERNAL: &[Case] = &[
    (
        "ORIGINATOR_ID from an external peer",
        9,
        0x80,
        "c0000209",
        Discarded,
        "7606 §7.9",
    ),
    (
        "ORIGINATOR_ID of three octets from an external peer",
        9,
        0x80,
        "c00002",
        Discarded,
        "7606 §7.9",
    ),
    (
        "CLUSTER_LIST from an external peer",
        10,
        0x80,
        "c0000209",
        Discarded,
        "7606 §7.10",
    ),
    (
        "CLUSTER_LIST of three octets from an external peer",
        10,
        0x80,
        "c00002",
        Discarded,
        "7606 §7.10",
    ),
    (
        "ONLY_TO_CUSTOMER of three octets",
        35,
        0xc0,
        "00fdea",
        Withdrawn,
        "9234 §5",
    ),
    (
        "ONLY_TO_CUSTOMER without value",
        35,
        0xc0,
        "",
        Withdrawn,
        "9234 §5",
    ),
];

/// From internal peers.
const INTERNAL: &[Case] = &[
    (
        "LOCAL_PREF of three octets",
        5,
        0x40,
        "000064",
        Withdrawn,
        "7606 §7.5",
    ),
    (
        "LOCAL_PREF marked optional",
        5,
        0xc0,
        "00000064",
        Withdrawn,
        "7606 §3 c",
    ),
    (
        "ORIGINATOR_ID of three octets",
        9,
        0x80,
        "c00002",
        Withdrawn,
        "7606 §7.9",
    ),
    (
        "ORIGINATOR_ID as it should be",
        9,
        0x80,
        "c0000209",
        Taken,
        "4456 §8",
    ),
    (
        "CLUSTER_LIST of three octets",
        10,
        0x80,
        "c00002",
        Withdrawn,
        "7606 §7.10",
    ),
    (
        "CLUSTER_LIST without value",
        10,
        0x80,
        "",
        Withdrawn,
        "7606 §7.10",
    ),
    (
        "CLUSTER_LIST as it should be",
        10,
        0x80,
        "c0000209",
        Taken,
        "4456 §8",
    ),
];

fn external(site: &Site) -> anyhow::Result<String> {
    judge_all(site, site.setup()?, &[ANY, EXTERNAL])
}

fn internal(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    setup.asn = OUR_AS;
    judge_all(site, setup, &[ANY, INTERNAL])
}

fn judge_all(site: &Site, setup: Setup, tables: &[&[Case]]) -> anyhow::Result<String> {
    let mut config = site.config()?;
    config
        .peer()?
        .set("as_number", setup.asn)
        .text("restart_time", "0s");
    let mut peer = site.peer(setup)?;
    // A peer that sends nothing it was not told to send is the only one of use.
    peer.send_attributes("10.255.255.0/24".parse()?, "")?;
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "10.2.0.0/24")?;
    let mut wrong = String::new();
    let mut count = 0;
    for (number, case) in tables.iter().copied().flatten().enumerate() {
        count += 1;
        if let Err(error) = judge(&ours, &mut *peer, number, case) {
            let _ = write!(wrong, "\n{} ({}): {error:#}", case.0, case.5);
            peer.withdraw(format!("10.200.{number}.0/24").parse()?)?;
            wait_established(&ours, "peer", &*peer)?;
        }
    }
    ensure!(wrong.is_empty(), "of {count} cases:{wrong}");
    Ok(format!("{count} cases"))
}

/// First the prefix as it should be, then with the attribute, then something else to see that the session lives.
fn judge(ours: &Ours, peer: &mut dyn Peer, number: usize, case: &Case) -> anyhow::Result<()> {
    let (_, code, flags, value, outcome, _) = *case;
    let prefix = format!("10.200.{number}.0/24");
    peer.announce(&announced(&prefix)?)?;
    wait_ours(ours, &prefix)?;
    let before = Counters::of(ours)?;
    let value = if value.len() % 2 == 1 {
        format!("{value}0")
    } else {
        value.to_owned()
    };
    peer.send_attributes(
        prefix.parse()?,
        &format!("attribute [ 0x{code:02x} 0x{flags:02x} 0x{value} ]"),
    )?;
    let after = eventually("we have reacted", SOON, || {
        let after = Counters::of(ours)?;
        ensure!(after != before, "{after:?}");
        // What the last case left to be counted may come first.
        ensure!(
            after.reaction(&before) == outcome || after.established != before.established,
            "we reacted by {:?}: {after:?} after {before:?}",
            after.reaction(&before)
        );
        Ok(after)
    })?;
    ensure!(
        after.reaction(&before) == outcome,
        "{outcome:?} is due, but {:?}",
        after.reaction(&before)
    );
    match outcome {
        Withdrawn => wait_ours_gone(ours, &prefix)?,
        Discarded | Taken => {
            let candidate = wait_ours(ours, &prefix)?;
            ensure!(candidate["standing"] == "best", "{candidate}");
        }
        Reset => {}
    }
    // Before the session is back: it would send the same again.
    peer.withdraw(prefix.parse()?)?;
    if outcome == Reset {
        wait_established(ours, "peer", peer)?;
    }
    wait_ours_gone(ours, &prefix)?;
    wait_ours(ours, "10.2.0.0/24")?;
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counters {
    updates: u64,
    withdrawn: u64,
    discarded: u64,
    established: u64,
}

impl Counters {
    fn of(ours: &Ours) -> anyhow::Result<Self> {
        let us = ours.peer("peer")?;
        let count = |value: &Value| value.as_u64().context("a counter");
        let up = us["state"] == "established";
        Ok(Self {
            updates: count(&us["counters"]["updates_in"])?,
            withdrawn: count(&us["counters"]["treated_as_withdraw"])?,
            discarded: count(&us["counters"]["attributes_discarded"])?,
            // A session that has ended, or a new one.
            established: count(&us["established_count"])? * 2 + u64::from(!up),
        })
    }

    fn reaction(&self, before: &Self) -> Outcome {
        if self.established != before.established {
            Reset
        } else if self.withdrawn > before.withdrawn {
            Withdrawn
        } else if self.discarded > before.discarded {
            Discarded
        } else {
            Taken
        }
    }
}

/// An attribute that we do not know: transitive, it goes on with the Partial bit; otherwise it stays here.
fn unknown(site: &Site) -> anyhow::Result<String> {
    use crate::interop::ours::PeerKeys;
    use crate::interop::site::{Member, THIRD_AS, net, setup_of, wait_theirs};
    let mut peer = site.peer(site.setup()?)?;
    let third = site.twin(setup_of(Member::Third, THIRD_AS, announced("10.3.0.0/24")?))?;
    peer.send_attributes("10.2.1.0/24".parse()?, "attribute [ 0x63 0xc0 0xabcd ]")?;
    peer.send_attributes("10.2.2.0/24".parse()?, "attribute [ 0x63 0x80 0xabcd ]")?;
    let mut config = site.config()?;
    config
        .peers
        .push(PeerKeys::new("third", Member::Third.v4().into(), THIRD_AS));
    let ours = site.us(&config)?;
    wait_established(&ours, "third", &*third)?;
    wait_theirs(&*third, "10.2.1.0/24")?;
    wait_theirs(&*third, "10.2.2.0/24")?;
    let heard = crate::daemon::exabgp::heard_in(&site.lab.folder("third")?)?;
    let update_of = |prefix: &str| {
        let found = heard.iter().find(|event| {
            let update = &event["neighbor"]["message"]["update"];
            event["type"] == "update" && update["announce"].to_string().contains(prefix)
        });
        found.map(|event| event["neighbor"]["message"]["update"]["attribute"].clone())
    };
    let transitive = update_of("10.2.1.0/24").context("the UPDATE with the transitive attribute")?;
    ensure!(
        transitive
            .to_string()
            .to_lowercase()
            .contains("attribute-0x63-0xe0\":\"0xabcd"),
        "{transitive}"
    );
    let other = update_of("10.2.2.0/24").context("the UPDATE with the non-transitive attribute")?;
    ensure!(!other.to_string().to_lowercase().contains("0x63"), "{other}");
    net("10.2.1.0/24").map(|_| String::new())
}
