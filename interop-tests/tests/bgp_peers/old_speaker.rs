//! A speaker from before RFC 6793: a peer built on `bgp-rs`, which writes AS numbers with two octets as such speakers do.
//!
//! It stands between us and a world of longer numbers: what it tells us has AS_TRANS in AS_PATH and the truth in AS4_PATH, and
//! what we tell it must be so too.

use std::io::Write;
use std::net::{IpAddr, TcpStream};

use anyhow::{Context, bail, ensure};
use bgp_rs::{
    AFI, ASPath, Identifier, Message, NLRIEncoding, Open, OpenCapability, OpenParameter, Origin,
    PathAttribute, Prefix, Reader, SAFI, Segment, Update,
};
use calidris_interop::eventually::eventually;
use calidris_interop::interop::ours::{Ours, PeerKeys};
use calidris_interop::interop::peers::Kind;
use calidris_interop::interop::site::{Member, SOON, Site, announced, setup_of};
use calidris_interop::require;

use super::{NEEDS, contestants};

const OLD_AS: u16 = 65010;
/// The 2-octet stand-in for a longer number (RFC 6793 §9).
const AS_TRANS: u32 = 23456;
const LONG_AS: u32 = 4_200_000_009;

/// The old speaker's end of a session.
struct OldSpeaker {
    reader: Reader<TcpStream, bgp_rs::Capabilities>,
}

impl OldSpeaker {
    /// Connects and exchanges OPENs without the capability of 4-octet AS numbers.
    fn connect(site: &Site) -> anyhow::Result<Self> {
        let target = (Member::Us.v4(), 179);
        let stream = site
            .namespace(Member::Peer)?
            .enter(|| TcpStream::connect(target))?
            .context("connect to our speaker")?;
        stream.set_read_timeout(Some(SOON))?;
        let mut old = Self {
            reader: Reader::new(stream),
        };
        let families = OpenCapability::MultiProtocol((AFI::IPV4, SAFI::Unicast));
        old.say(&Message::Open(Open {
            version: 4,
            peer_asn: OLD_AS,
            hold_timer: 90,
            identifier: Member::Peer.v4().into(),
            parameters: vec![OpenParameter::Capabilities(vec![
                families,
                OpenCapability::RouteRefresh,
            ])],
        }))?;
        let Message::Open(open) = old.hear()? else {
            bail!("our speaker does not begin with OPEN");
        };
        ensure!(
            u32::from(open.peer_asn) == AS_TRANS,
            "our AS does not fit: {open:?}"
        );
        old.say(&Message::KeepAlive)?;
        ensure!(matches!(old.hear()?, Message::KeepAlive));
        Ok(old)
    }

    fn say(&mut self, message: &Message) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes)?;
        self.reader.stream.write_all(&bytes)?;
        Ok(())
    }

    fn hear(&mut self) -> anyhow::Result<Message> {
        Ok(self.reader.read().context("read a message of our speaker")?.1)
    }

    /// Announces 10.9.0.0/24 with an AS_PATH, and what the path would be with long numbers.
    fn announce(&mut self, path: &[u32], as4_path: &[u32]) -> anyhow::Result<()> {
        let sequence = |asns: &[u32]| ASPath {
            segments: vec![Segment::AS_SEQUENCE(asns.to_vec())],
        };
        let next_hop = IpAddr::V4(Member::Peer.v4());
        let mut attributes = vec![
            PathAttribute::ORIGIN(Origin::IGP),
            PathAttribute::AS_PATH(sequence(path)),
            PathAttribute::NEXT_HOP(next_hop),
        ];
        if !as4_path.is_empty() {
            attributes.push(PathAttribute::AS4_PATH(sequence(as4_path)));
        }
        let prefix = Prefix {
            protocol: AFI::IPV4,
            length: 24,
            prefix: vec![10, 9, 0],
        };
        self.say(&Message::Update(Update {
            withdrawn_routes: Vec::new(),
            attributes,
            announced_routes: vec![NLRIEncoding::IP(prefix)],
        }))
    }

    /// Reads on until a prefix is announced; returns AS_PATH and AS4_PATH.
    fn await_route(&mut self, octets: [u8; 3]) -> anyhow::Result<(Vec<u32>, Option<Vec<u32>>)> {
        for _ in 0..1000 {
            let Message::Update(update) = self.hear()? else {
                continue;
            };
            let wanted = |route: &NLRIEncoding| matches!(route, NLRIEncoding::IP(prefix) if prefix.length == 24 && prefix.prefix == octets);
            if !update.announced_routes.iter().any(wanted) {
                continue;
            }
            let path = match update.get(Identifier::AS_PATH) {
                Some(PathAttribute::AS_PATH(path)) => path.sequence().context("a sequence")?,
                other => bail!("AS_PATH: {other:?}"),
            };
            let as4_path = match update.get(Identifier::AS4_PATH) {
                Some(PathAttribute::AS4_PATH(path)) => Some(path.sequence().context("a sequence")?),
                _ => None,
            };
            return Ok((path, as4_path));
        }
        bail!("a thousand messages without {octets:?}")
    }
}

/// Waits until our path to the old speaker's prefix is this one.
fn wait_path(ours: &Ours, wanted: &str) -> anyhow::Result<()> {
    eventually(&format!("the path {wanted}"), SOON, || {
        let candidates = ours.candidates("10.9.0.0/24")?;
        let found = candidates
            .iter()
            .any(|candidate| candidate["attributes"]["as_path"] == wanted);
        ensure!(found, "{candidates:?}");
        Ok(())
    })
}

#[test]
fn a_two_octet_speaker_hides_no_long_as_number() -> anyhow::Result<()> {
    require!(NEEDS);
    let us = 4_200_000_001;
    let site = Site::create(&format!("old-{}", std::process::id()), &contestants(Kind::Bird)?)?;
    let mut third = setup_of(Member::Third, LONG_AS, announced("10.3.0.0/24")?);
    third.sessions[0].remote_as = us;
    let _third = site.third_bird(third)?;
    let mut config = site.config()?;
    config.asn = us;
    config.peers[0].set("as_number", OLD_AS).set("passive", true);
    config
        .peers
        .push(PeerKeys::new("third", Member::Third.v4().into(), LONG_AS));
    let ours = site.us(&config)?;
    let mut old = OldSpeaker::connect(&site)?;
    eventually("Established", SOON, || {
        let peer = ours.peer("peer")?;
        ensure!(peer["state"] == "established", "{peer}");
        ensure!(peer["negotiated"]["four_octet_as"] == false, "{peer}");
        Ok(())
    })?;

    // RFC 6793 §4.2.3: the long numbers come back; without AS4_PATH the stand-in is all there is; an AS4_PATH that is longer than the
    // AS_PATH counts for nothing.
    old.announce(
        &[u32::from(OLD_AS), AS_TRANS, AS_TRANS],
        &[LONG_AS, 4_200_000_010],
    )?;
    wait_path(&ours, "65010 4200000009 4200000010")?;
    old.announce(&[u32::from(OLD_AS), AS_TRANS], &[])?;
    wait_path(&ours, "65010 23456")?;
    old.announce(&[u32::from(OLD_AS), 7], &[LONG_AS, 4_200_000_010, 4_200_000_011])?;
    wait_path(&ours, "65010 7")?;

    // §4.2.2: what we tell it.
    let (path, as4_path) = old.await_route([10, 3, 0])?;
    assert_eq!(path, [AS_TRANS, AS_TRANS]);
    assert_eq!(as4_path.as_deref(), Some(&[us, LONG_AS][..]));
    drop(old);
    drop(ours);
    site.lab.take_down()
}
