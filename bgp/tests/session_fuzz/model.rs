//! What the speaker may answer: RFC 4271 §8.2.2, §6, RFC 6608, in the words of a table and nothing of the speaker's code.

use std::time::Duration;

use calidris_bgp::Time;
use calidris_bgp::session::ConnId;
use calidris_bgp::wire::frame::MessageType;

use crate::script::Said;

/// Where a connection is, as seen from the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    OpenSent,
    OpenConfirm,
    Established,
}

/// One connection as the model knows it.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) conn: ConnId,
    pub(crate) phase: Phase,
    /// When it must end for silence.
    pub(crate) deadline: Option<Time>,
    pub(crate) hold: u16,
    /// The peer offered graceful restart on it.
    pub(crate) graceful: bool,
    /// Something was said that the model cannot judge: only the general rules hold from here on.
    pub(crate) murky: bool,
    /// Messages the speaker has sent on it.
    pub(crate) heard: Vec<MessageType>,
}

/// What an act must lead to on the connection it was done on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// The connection goes on, in this phase.
    Stays(Phase),
    /// A NOTIFICATION with these numbers, and the end.
    Notifies(u8, u8),
    /// The end without a word.
    Ends,
    /// An acceptable OPEN while another connection is further: one of the two ends, by RFC 4271 §6.8 or RFC 4724 §5.
    Collides,
    /// Anything legal.
    Anything,
}

/// The hold time before OPENs are exchanged.
const LARGE_HOLD: Duration = Duration::from_secs(240);
/// Our own offer.
pub(crate) const OUR_HOLD: u16 = 30;

impl Link {
    pub(crate) fn new(conn: ConnId, now: Time) -> Self {
        Self {
            conn,
            phase: Phase::OpenSent,
            deadline: Some(now + LARGE_HOLD),
            hold: 0,
            graceful: false,
            murky: false,
            heard: Vec::new(),
        }
    }

    /// What must follow when the peer says this. `rival` is whether another connection of the peer is in OpenConfirm or Established.
    pub(crate) fn reaction(&self, said: &Said, rival: bool) -> Reaction {
        if self.murky {
            return Reaction::Anything;
        }
        let unexpected = match self.phase {
            Phase::OpenSent => Reaction::Notifies(5, 1),
            Phase::OpenConfirm => Reaction::Notifies(5, 2),
            Phase::Established => Reaction::Notifies(5, 3),
        };
        match (said, self.phase) {
            (Said::Noise(_), _) => Reaction::Anything,
            (Said::BadHeader(subcode, _), _) => Reaction::Notifies(1, *subcode),
            (Said::Notification(_), _) => Reaction::Ends,
            (Said::Open { .. }, Phase::OpenSent) if rival => Reaction::Collides,
            (Said::Open { .. }, Phase::OpenSent) => Reaction::Stays(Phase::OpenConfirm),
            (Said::BadOpen(subcode, _), Phase::OpenSent) => Reaction::Notifies(2, *subcode),
            (Said::Keepalive, Phase::OpenConfirm | Phase::Established) => Reaction::Stays(Phase::Established),
            (Said::Update(_) | Said::Refresh(_), Phase::Established) => Reaction::Stays(Phase::Established),
            (Said::FatalUpdate(subcode, _), Phase::Established) => Reaction::Notifies(3, *subcode),
            _ => unexpected,
        }
    }

    /// Notes that the peer said something and the connection went on to `phase`.
    pub(crate) fn advance(&mut self, said: &Said, phase: Phase, now: Time) {
        self.phase = phase;
        if let Said::Open { hold, graceful, .. } = said {
            self.hold = (*hold).min(OUR_HOLD);
            self.graceful = *graceful;
        }
        self.deadline = (self.hold > 0).then(|| now + Duration::from_secs(self.hold.into()));
    }

    /// Judges what the speaker sent: one OPEN first; KEEPALIVE after the peer's OPEN; UPDATE and ROUTE-REFRESH when Established;
    /// nothing after a NOTIFICATION.
    pub(crate) fn hear(&mut self, message: MessageType) {
        let first = self.heard.is_empty();
        let legal = match message {
            MessageType::Open => first,
            MessageType::Notification => !first,
            MessageType::Keepalive => !first && (self.murky || self.phase >= Phase::OpenConfirm),
            MessageType::Update | MessageType::RouteRefresh => {
                !first && (self.murky || self.phase == Phase::Established)
            }
        };
        let ended = self.heard.contains(&MessageType::Notification);
        assert!(legal && !ended, "{message:?} after {:?} in {self:?}", self.heard);
        self.heard.push(message);
    }
}
