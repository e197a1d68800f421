//! The ground of a case: one subnet with our speaker, a peer, and room for a third.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use ipnetwork::IpNetwork;

use super::ours::{Config, Ours, PeerKeys, Route};
use super::peer::Peer;
use super::peers::Kind;
use super::setup::{Announced, AsWidth, Family, Kernel, Opening, Remote, Session, Setup};
use crate::daemon::seat::{Installation, Seat};
use crate::eventually::eventually;
use crate::fabric::Fabric;
use crate::lab::Lab;
use crate::netns::Namespace;

/// How long anything that ought to happen may take.
pub const SOON: Duration = Duration::from_secs(45);

/// Our AS in most cases.
pub const OUR_AS: u32 = 65001;
/// The peer's AS in most cases.
pub const PEER_AS: u32 = 65002;
/// The third's AS in most cases.
pub const THIRD_AS: u32 = 65003;

/// The subnet's name, and that of everybody's interface in it.
pub const LAN: &str = "lan";

/// Who is in the subnet: the number is the last of the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    /// Our speaker.
    Us = 1,
    /// The peer.
    Peer = 2,
    /// Somebody else.
    Third = 3,
}

impl Member {
    const ALL: [Self; 3] = [Self::Us, Self::Peer, Self::Third];

    fn name(self) -> &'static str {
        match self {
            Self::Us => "us",
            Self::Peer => "peer",
            Self::Third => "third",
        }
    }

    /// Its IPv4 address in the subnet.
    #[must_use]
    pub fn v4(self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, self as u8)
    }

    /// Its IPv6 address in the subnet.
    #[must_use]
    pub fn v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, self as u16)
    }
}

/// The ground of a case.
#[derive(Debug)]
pub struct Site {
    /// Everything of it.
    pub lab: Lab,
    /// The cables.
    pub fabric: Fabric,
    kind: Kind,
    installation: Installation,
    calidris: PathBuf,
    namespaces: BTreeMap<u8, Namespace>,
}

/// What runs in a case.
#[derive(Clone, Debug)]
pub struct Contestants {
    /// Our program.
    pub calidris: PathBuf,
    /// The peer.
    pub kind: Kind,
    /// Where its programs are.
    pub installation: Installation,
}

impl Site {
    /// Makes the lab and the subnet; nobody runs yet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(name: &str, contestants: &Contestants) -> anyhow::Result<Self> {
        let lab = Lab::create(name)?;
        let fabric = Fabric::create(&lab)?;
        fabric.add_subnet(LAN)?;
        let mut namespaces = BTreeMap::new();
        for member in Member::ALL {
            let namespace = lab.namespace(member.name())?;
            let address = format!("{}/24", member.v4()).parse()?;
            fabric.plug((member.name(), &namespace), LAN, address)?;
            namespace.ip(&format!("addr add {}/64 dev {LAN} nodad", member.v6()))?;
            namespaces.insert(member as u8, namespace);
        }
        Ok(Self {
            lab,
            fabric,
            kind: contestants.kind,
            installation: contestants.installation.clone(),
            calidris: contestants.calidris.clone(),
            namespaces,
        })
    }

    /// The kind of the peer.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The first number of the peer's version.
    ///
    /// # Errors
    /// When it does not tell.
    pub fn major(&self) -> anyhow::Result<u32> {
        self.kind.major(&self.installation)
    }

    /// The namespace of a member.
    ///
    /// # Errors
    /// Never: every member has one.
    pub fn namespace(&self, member: Member) -> anyhow::Result<&Namespace> {
        self.namespaces
            .get(&(member as u8))
            .context("every member has a namespace")
    }

    /// Our side of a plain EBGP session with the peer over IPv4; we announce 10.1.0.0/24.
    ///
    /// # Errors
    /// Never: the addresses are constants.
    pub fn config(&self) -> anyhow::Result<Config> {
        Ok(Config {
            asn: OUR_AS,
            router_id: Member::Us.v4(),
            keys: BTreeMap::new(),
            routes: vec![route("10.1.0.0/24")?],
            peers: vec![PeerKeys::new("peer", Member::Peer.v4().into(), PEER_AS)],
            dynamic: Vec::new(),
        })
    }

    /// The peer's side of it; it announces 10.2.0.0/24.
    ///
    /// # Errors
    /// Never: the addresses are constants.
    pub fn setup(&self) -> anyhow::Result<Setup> {
        Ok(setup_of(Member::Peer, PEER_AS, announced("10.2.0.0/24")?))
    }

    /// Starts our speaker.
    ///
    /// # Errors
    /// See [`Ours::start`].
    pub fn us(&self, config: &Config) -> anyhow::Result<Ours> {
        Ours::start(&self.lab, &self.calidris, self.namespace(Member::Us)?, config)
    }

    /// Starts the peer.
    ///
    /// # Errors
    /// See [`Kind::start`].
    pub fn peer(&self, setup: Setup) -> anyhow::Result<Box<dyn Peer>> {
        let seat = Seat::take(
            &self.lab,
            "peer",
            self.namespace(Member::Peer)?,
            &self.installation,
        )?;
        self.kind.start(&self.lab, seat, setup)
    }

    /// Starts another daemon of the peer's kind as the third.
    ///
    /// # Errors
    /// See [`Kind::start`].
    pub fn twin(&self, setup: Setup) -> anyhow::Result<Box<dyn Peer>> {
        let seat = Seat::take(
            &self.lab,
            "third",
            self.namespace(Member::Third)?,
            &self.installation,
        )?;
        self.kind.start(&self.lab, seat, setup)
    }

    /// Starts this machine's BIRD as the third.
    ///
    /// # Errors
    /// See [`Kind::start`].
    pub fn third_bird(&self, setup: Setup) -> anyhow::Result<Box<dyn Peer>> {
        let seat = Seat::take(
            &self.lab,
            "third",
            self.namespace(Member::Third)?,
            &Installation::Machine,
        )?;
        Kind::Bird.start(&self.lab, seat, setup)
    }

    /// Starts the program that echoes datagrams (and serves HTTP) on every address of a member.
    ///
    /// # Errors
    /// When it does not start.
    pub fn serve(&self, member: Member) -> anyhow::Result<()> {
        let program = self.calidris.with_file_name("calidris-lab");
        let mut command = Command::new(program);
        command.args(["serve", "--name", member.name()]);
        self.lab
            .start(member.name(), "serve", self.namespace(member)?, &mut command)?;
        Ok(())
    }
}

/// A daemon in the subnet with one plain session, called `us`, with our speaker.
#[must_use]
pub fn setup_of(member: Member, asn: u32, route: Announced) -> Setup {
    Setup {
        asn,
        router_id: member.v4(),
        sessions: vec![Session {
            name: "us",
            remote: Remote::Address(Member::Us.v4().into()),
            local: Some(member.v4().into()),
            remote_as: OUR_AS,
            opening: Opening::Either,
            families: vec![Family::Ipv4],
            hold_time: 30,
            password: None,
            gtsm: false,
            graceful_restart: None,
            long_lived: None,
            add_path: false,
            extended_next_hop: false,
            role: None,
            max_prefixes: None,
            as_width: AsWidth::FourOctets,
            reflector_client: false,
        }],
        routes: vec![route],
        kernel: Kernel::Untouched,
        next_hop_v6: member.v6(),
    }
}

/// A prefix that a peer announces.
///
/// # Errors
/// When it is none.
pub fn announced(prefix: &str) -> anyhow::Result<Announced> {
    Ok(Announced::plain(net(prefix)?))
}

/// A prefix that we announce.
///
/// # Errors
/// When it is none.
pub fn route(prefix: &str) -> anyhow::Result<Route> {
    Ok(Route {
        announced: announced(prefix)?,
        next_hop: None,
    })
}

/// A prefix.
///
/// # Errors
/// When it is none.
pub fn net(prefix: &str) -> anyhow::Result<IpNetwork> {
    prefix.parse().with_context(|| format!("prefix {prefix:?}"))
}

/// Waits until both sides call the session Established: ours under `name`, theirs under `us`.
///
/// # Errors
/// When they do not, with what each says.
pub fn wait_established(ours: &Ours, name: &str, peer: &dyn Peer) -> anyhow::Result<()> {
    eventually("Established on both sides", SOON, || {
        let us = ours.peer(name)?;
        let them = peer.session("us")?;
        ensure!(
            us["state"] == "established" && them.established,
            "we: {} ({}); they: {} ({})",
            us["state"],
            us["last_error"],
            them.state,
            them.last_error
        );
        Ok(())
    })
}

/// Waits until the peer has a prefix.
///
/// # Errors
/// When it does not get it.
pub fn wait_theirs(peer: &dyn Peer, prefix: &str) -> anyhow::Result<()> {
    let prefix = net(prefix)?;
    eventually(&format!("{prefix} at the peer"), SOON, || {
        let prefixes = peer.prefixes(Family::of(prefix))?;
        ensure!(prefixes.contains(&prefix), "it has {prefixes:?}");
        Ok(())
    })
}

/// Waits until the peer has a prefix no more.
///
/// # Errors
/// When it keeps it.
pub fn wait_theirs_gone(peer: &dyn Peer, prefix: &str) -> anyhow::Result<()> {
    let prefix = net(prefix)?;
    eventually(&format!("{prefix} gone at the peer"), SOON, || {
        let prefixes = peer.prefixes(Family::of(prefix))?;
        ensure!(!prefixes.contains(&prefix), "it has {prefixes:?}");
        Ok(())
    })
}

/// Waits until we have an accepted route to a prefix; returns the first candidate.
///
/// # Errors
/// When we do not get one.
pub fn wait_ours(ours: &Ours, prefix: &str) -> anyhow::Result<serde_json::Value> {
    eventually(&format!("{prefix} at us"), SOON, || {
        let candidates = ours.candidates(prefix)?;
        let used = candidates
            .iter()
            .find(|candidate| candidate["standing"] == "best");
        used.cloned().with_context(|| format!("we have {candidates:?}"))
    })
}

/// Waits until we have a prefix no more.
///
/// # Errors
/// When we keep it.
pub fn wait_ours_gone(ours: &Ours, prefix: &str) -> anyhow::Result<()> {
    eventually(&format!("{prefix} gone at us"), SOON, || {
        let candidates = ours.candidates(prefix)?;
        ensure!(candidates.is_empty(), "we have {candidates:?}");
        Ok(())
    })
}
