//! From the tables to what a peer is told: who may hear of a route, export policy, and what becomes of its attributes.
//!
//! RFC 4271 §5.1 and §9.1.3 (attributes by attribute), §9.2 (IBGP routes are not passed on to IBGP), RFC 4456 (except by a reflector), RFC 1997
//! (well-known communities), RFC 8212 (nothing to EBGP peers without policy), RFC 7705 (another local AS), RFC 7947 (route server), RFC 8326 (graceful shutdown), RFC 9494
//! (long-lived stale routes go to peers that know what they are).

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};

use super::PeerEntry;
use crate::config::{NextHopMode, OwnAs, PeerConfig, PrivateAs, Role, SpeakerConfig, StaleExport};
use crate::family::{AfiSafi, Family, Prefix};
use crate::policy::{Outcome, PeerKind, Policy, RouteView, SourceKind, evaluate, matching_terms};
use crate::priority::to_local_pref;
use crate::rib::{Source, Withheld};
use crate::wire::attr::{AsPath, Attributes, Community, LocalFacts, NextHop};

/// What export has to know of a peer and of us. Equal exporters make the same of every route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exporter {
    /// What does not matter is blank.
    peer: PeerConfig,
    kind: PeerKind,
    /// What we are to the peer; EBGP only.
    role: Option<Role>,
    local_as: u32,
    cluster_id: Ipv4Addr,
    default_local_pref: u32,
    own_ipv4: Option<Ipv4Addr>,
    own_ipv6: Option<NextHop>,
    /// IPv4 routes may have IPv6 next hops (RFC 8950).
    extended_next_hop: bool,
    /// The session runs over IPv6.
    over_ipv6: bool,
    /// Whether the peer knows what long-lived stale routes are (RFC 9494).
    knows_stale: bool,
}

impl Exporter {
    pub(super) fn new(entry: &PeerEntry, config: &SpeakerConfig) -> Self {
        let session = entry.peer.transport().map(|(local, _)| local.ip().to_canonical());
        let (mut own_ipv4, mut own_ipv6) = (config.next_hop_ipv4, config.next_hop_ipv6.map(NextHop::V6));
        match session {
            Some(IpAddr::V4(address)) => own_ipv4 = Some(address),
            Some(IpAddr::V6(link_local)) if link_local.is_unicast_link_local() => {
                own_ipv6 = Some(match config.next_hop_ipv6 {
                    Some(global) => NextHop::V6WithLinkLocal { global, link_local },
                    None => NextHop::V6(link_local),
                });
            }
            Some(IpAddr::V6(address)) => own_ipv6 = Some(NextHop::V6(address)),
            None => {}
        }
        let terms = entry.session.as_ref();
        let restart = terms.and_then(|terms| terms.graceful_restart.as_ref());
        Self {
            peer: as_far_as_export_goes(entry.peer.config()),
            kind: entry.peer.kind(),
            role: entry.peer.role(),
            local_as: config.local_as,
            cluster_id: config.cluster_id.unwrap_or(config.router_id),
            default_local_pref: config.decision.default_local_pref,
            own_ipv4,
            own_ipv6,
            extended_next_hop: terms.is_some_and(|terms| terms.extended_next_hop),
            over_ipv6: session.is_some_and(|address| address.is_ipv6()),
            knows_stale: restart.is_some_and(|restart| restart.long_lived.is_some()),
        }
    }

    /// Whether all prefixes of an attribute set fare alike.
    pub(super) fn is_uniform(&self) -> bool {
        self.peer
            .export
            .as_ref()
            .is_none_or(|policy| !policy.depends_on_prefix())
    }

    /// What the peer is told of a best route with `attributes` from `source`, or why it is told nothing.
    pub(super) fn export<F: Family>(
        &self,
        prefix: F::Prefix,
        source: &Source,
        attributes: &Attributes,
    ) -> Result<Attributes, Withheld> {
        self.may_hear(source, attributes)?;
        let mut base = attributes.clone();
        // RFC 4271 §5.1.4: a MED from one neighbouring AS is not passed on to another.
        if self.kind == PeerKind::Ebgp
            && source.kind != SourceKind::Originated
            && !self.is_transparent(source)
        {
            base.med = None;
        }
        let carried = self.peer.priority_in_local_pref;
        let (before, priority) = (base.next_hop, base.local.priority);
        if carried && source.kind == SourceKind::Originated && base.local_pref.is_none() {
            base.local_pref = priority.map(to_local_pref);
        }
        let mut exported = self.apply_policy(prefix.into(), source, base)?;
        if carried && exported.local.priority != priority {
            exported.local_pref = exported.local.priority.map(to_local_pref);
        }
        let set_by_policy = exported.next_hop != before;
        if !set_by_policy && self.next_hop_is_us(source, &exported) {
            exported.next_hop = self.own_next_hop_of(F::AFI_SAFI);
        }
        let next_hop = exported.next_hop.ok_or(Withheld::NoNextHop)?;
        if !self.can_be_told(F::AFI_SAFI, next_hop) {
            return Err(Withheld::NoNextHop);
        }
        exported.local = LocalFacts::default();
        if attributes.communities.contains(Community::LLGR_STALE) {
            self.mark_stale(&mut exported);
        }
        match self.kind {
            PeerKind::Ebgp => self.to_ebgp(source, &mut exported),
            PeerKind::Ibgp => self.to_ibgp(source, &mut exported),
        }
        Ok(exported)
    }

    /// The terms of the export policy that match a best route.
    pub(super) fn matching_terms<F: Family>(
        &self,
        prefix: F::Prefix,
        source: &Source,
        attributes: &Attributes,
    ) -> Vec<String> {
        let policy = self.peer.export.as_ref();
        let view = self.view(prefix.into(), source);
        policy.map_or_else(Vec::new, |policy| matching_terms(policy, &view, attributes))
    }

    fn view(&self, prefix: Prefix, source: &Source) -> RouteView<'_> {
        RouteView {
            prefix,
            source: source.kind,
            peer: &self.peer.name,
            peer_kind: self.kind,
        }
    }

    fn may_hear(&self, source: &Source, attributes: &Attributes) -> Result<(), Withheld> {
        let communities = &attributes.communities;
        if communities.contains(Community::NO_ADVERTISE) {
            return Err(Withheld::NoAdvertise);
        }
        if communities.contains(Community::LLGR_STALE) && !self.may_hear_stale() {
            return Err(Withheld::LongLivedStale);
        }
        // RFC 9234 §5, egress 2: what came from above goes down only.
        let up = matches!(
            self.role,
            Some(Role::Customer | Role::Peer | Role::RouteServerClient)
        );
        if up && attributes.otc.is_some() {
            return Err(Withheld::OnlyToCustomer);
        }
        match self.kind {
            PeerKind::Ebgp
                if communities.contains(Community::NO_EXPORT)
                    || communities.contains(Community::NO_EXPORT_SUBCONFED) =>
            {
                Err(Withheld::NoExport)
            }
            PeerKind::Ibgp
                if source.kind == SourceKind::Ibgp
                    && !source.reflector_client
                    && !self.peer.route_reflector_client =>
            {
                Err(Withheld::IbgpToIbgp)
            }
            _ => Ok(()),
        }
    }

    fn apply_policy(
        &self,
        prefix: Prefix,
        source: &Source,
        attributes: Attributes,
    ) -> Result<Attributes, Withheld> {
        let Some(policy) = &self.peer.export else {
            return match self.kind {
                PeerKind::Ibgp => Ok(attributes),
                PeerKind::Ebgp => Err(Withheld::NoPolicy),
            };
        };
        match evaluate(policy, &self.view(prefix, source), Cow::Owned(attributes)) {
            Outcome::Accept(changed) => Ok(changed.into_owned()),
            Outcome::Reject { term } => Err(Withheld::Policy(term)),
        }
    }

    fn next_hop_is_us(&self, source: &Source, attributes: &Attributes) -> bool {
        let reflected = source.kind == SourceKind::Ibgp && self.kind == PeerKind::Ibgp;
        match (attributes.next_hop, self.peer.next_hop) {
            (None, _) => true,
            (Some(_), _) if source.kind == SourceKind::Originated || reflected => false,
            (Some(_), NextHopMode::Auto) => self.kind == PeerKind::Ebgp && !self.is_transparent(source),
            (Some(_), NextHopMode::Itself) => true,
            (Some(_), NextHopMode::Keep) => false,
        }
    }

    /// Whether the session can carry routes of a family with such a next hop.
    fn can_be_told(&self, family: AfiSafi, next_hop: NextHop) -> bool {
        match (family, next_hop) {
            (AfiSafi::IPV4_UNICAST, NextHop::V4(_)) => true,
            (AfiSafi::IPV4_UNICAST, _) => self.extended_next_hop,
            (_, next_hop) => !matches!(next_hop, NextHop::V4(_)),
        }
    }

    /// Our address as the peer is told it.
    pub(super) fn own_next_hop(&self, family: AfiSafi) -> Option<IpAddr> {
        self.own_next_hop_of(family).map(NextHop::address)
    }

    fn own_next_hop_of(&self, family: AfiSafi) -> Option<NextHop> {
        match family {
            AfiSafi::IPV4_UNICAST if self.extended_next_hop && self.over_ipv6 => self.own_ipv6,
            AfiSafi::IPV4_UNICAST => self.own_ipv4.map(NextHop::V4),
            AfiSafi::IPV6_UNICAST => self.own_ipv6,
            _ => None,
        }
    }

    /// RFC 9494 §4.3: no policy takes the mark off. §4.6: who does not know the mark is told by other means.
    fn mark_stale(&self, attributes: &mut Attributes) {
        attributes.communities.insert(Community::LLGR_STALE);
        if !self.knows_stale {
            attributes.communities.insert(Community::NO_EXPORT);
            attributes.local_pref = Some(0);
        }
    }

    /// Whether the peer may hear of long-lived stale routes.
    fn may_hear_stale(&self) -> bool {
        let restart = self.peer.graceful_restart.as_ref();
        let partial = restart.is_some_and(|restart| restart.long_lived.export == StaleExport::Depreference);
        self.knows_stale || (partial && self.kind == PeerKind::Ibgp)
    }

    /// Whether the route passes as if we were not there: from one client of a route server to another (RFC 7947 §2.2).
    fn is_transparent(&self, source: &Source) -> bool {
        self.peer.route_server_client && source.kind == SourceKind::Ebgp
    }

    fn to_ebgp(&self, source: &Source, attributes: &mut Attributes) {
        if !self.is_transparent(source) {
            attributes.as_path = self.leaving_as(&attributes.as_path);
        }
        // RFC 9234 §5, egress 1.
        if let Some(Role::Provider | Role::Peer | Role::RouteServer) = self.role {
            attributes.otc.get_or_insert(self.peer.local_as(self.local_as));
        }
        if self.peer.graceful_shutdown {
            attributes.communities.insert(Community::GRACEFUL_SHUTDOWN);
        }
        attributes.local_pref = None;
        attributes.originator_id = None;
        attributes.cluster_list = Box::default();
        attributes.aigp = None;
        attributes
            .extended_communities
            .retain(|community| community.is_transitive());
        attributes
            .ipv6_extended_communities
            .retain(|community| community.is_transitive());
    }

    /// The path as it leaves our AS: what we were asked to hide hidden, ourselves in front.
    fn leaving_as(&self, path: &AsPath) -> AsPath {
        let (front, theirs) = (self.peer.local_as(self.local_as), self.peer.remote_as);
        let mut path = path.without_confederation();
        if let Some(private) = self.peer.remove_private_as {
            let instead = match private {
                PrivateAs::Remove => None,
                PrivateAs::Replace => Some(front),
            };
            path = path.map_asns(|asn| {
                if is_private(asn) && asn != theirs {
                    instead
                } else {
                    Some(asn)
                }
            });
        }
        if self.peer.as_override {
            path = path.map_asns(|asn| Some(if asn == theirs { front } else { asn }));
        }
        if self
            .peer
            .local_as
            .is_some_and(|local| local.shown == OwnAs::Shown)
        {
            path = path.prepend(self.local_as, 1);
        }
        path.prepend(front, 1)
    }

    fn to_ibgp(&self, source: &Source, attributes: &mut Attributes) {
        attributes.local_pref.get_or_insert(self.default_local_pref);
        if self.peer.graceful_shutdown {
            attributes.local_pref = Some(0);
        }
        if source.kind == SourceKind::Ibgp {
            attributes.originator_id.get_or_insert(source.router_id);
            let mut clusters = vec![self.cluster_id];
            clusters.extend_from_slice(&attributes.cluster_list);
            attributes.cluster_list = clusters.into();
        }
    }
}

/// Whether an AS number is for private use (RFC 6996 §5).
fn is_private(asn: u32) -> bool {
    matches!(asn, 64_512..=65_534 | 4_200_000_000..=4_294_967_294)
}

/// A peer's configuration without what export does not look at, so that peers that differ in that only are treated alike.
fn as_far_as_export_goes(peer: &PeerConfig) -> PeerConfig {
    let by_name = peer.export.as_ref().is_some_and(Policy::depends_on_peer);
    let by_as = peer.as_override || peer.remove_private_as.is_some();
    let blank = PeerConfig::new("", Ipv4Addr::UNSPECIFIED.into(), 0);
    PeerConfig {
        name: if by_name { peer.name.clone() } else { blank.name },
        remote_as: if by_as { peer.remote_as } else { blank.remote_as },
        address: blank.address,
        scope_id: blank.scope_id,
        interface: blank.interface,
        open_as: blank.open_as,
        extended_next_hop: blank.extended_next_hop,
        send_hold_time: blank.send_hold_time,
        port: blank.port,
        local_address: blank.local_address,
        connect: blank.connect,
        families: blank.families,
        hold_time: blank.hold_time,
        connect_retry: blank.connect_retry,
        delay_open: blank.delay_open,
        idle_hold: blank.idle_hold,
        idle_hold_max: blank.idle_hold_max,
        add_path: blank.add_path,
        import: blank.import,
        weight: blank.weight,
        allow_own_as: blank.allow_own_as,
        enforce_first_as: blank.enforce_first_as,
        blackhole: blank.blackhole,
        prefix_limit_in: blank.prefix_limit_in,
        prefix_limit_out: blank.prefix_limit_out,
        shutdown: blank.shutdown,
        transport: blank.transport,
        ..peer.clone()
    }
}
