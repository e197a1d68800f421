//! ROUTE-REFRESH messages (RFC 2918) with the marks of begin and end (RFC 7313).

use super::cursor::Cursor;
use super::error::WireError;
use super::frame::{MAX_MESSAGE_LEN, MessageType, finish_message, start_message};
use super::notification::{NotificationCode, RouteRefreshError};
use crate::family::AfiSafi;

/// What a ROUTE-REFRESH says (RFC 7313 section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefreshSubtype {
    /// 0: send everything again.
    Request,
    /// 1: what follows replaces everything sent before (BoRR).
    BeginOfRefresh,
    /// 2: what was not repeated is gone (EoRR).
    EndOfRefresh,
    /// Any other; to be ignored (RFC 7313 section 5).
    Unknown(u8),
}

/// A ROUTE-REFRESH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteRefresh {
    /// The family it is about.
    pub family: AfiSafi,
    /// What it says. Without RFC 7313 negotiated only `Request` is to be sent.
    pub subtype: RefreshSubtype,
}

impl RouteRefresh {
    /// Reads the body of a ROUTE-REFRESH frame. A request may be longer (RFC 5291 puts filters there, which are not
    /// negotiated and so ignored).
    ///
    /// # Errors
    /// Invalid Message Length with the whole message as data, for a mark that is not exactly 4 octets long (RFC 7313 section 5).
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut cursor = Cursor::new(body);
        let fields = (cursor.u16(), cursor.u8(), cursor.u8());
        let (Some(afi), Some(subtype), Some(safi)) = fields else {
            return Err(invalid_length(body));
        };
        let subtype = match subtype {
            0 => RefreshSubtype::Request,
            1 => RefreshSubtype::BeginOfRefresh,
            2 => RefreshSubtype::EndOfRefresh,
            other => RefreshSubtype::Unknown(other),
        };
        let mark = matches!(
            subtype,
            RefreshSubtype::BeginOfRefresh | RefreshSubtype::EndOfRefresh
        );
        if mark && !cursor.is_empty() {
            return Err(invalid_length(body));
        }
        Ok(Self {
            family: AfiSafi { afi, safi },
            subtype,
        })
    }

    /// Appends the message to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let subtype = match self.subtype {
            RefreshSubtype::Request => 0,
            RefreshSubtype::BeginOfRefresh => 1,
            RefreshSubtype::EndOfRefresh => 2,
            RefreshSubtype::Unknown(other) => other,
        };
        let start = start_message(MessageType::RouteRefresh, out);
        out.extend_from_slice(&self.family.afi.to_be_bytes());
        out.extend_from_slice(&[subtype, self.family.safi]);
        finish_message(start, out);
    }
}

fn invalid_length(body: &[u8]) -> WireError {
    let mut message = Vec::new();
    let start = start_message(MessageType::RouteRefresh, &mut message);
    message.extend_from_slice(body.get(..MAX_MESSAGE_LEN).unwrap_or(body));
    finish_message(start, &mut message);
    let code = NotificationCode::RouteRefresh(RouteRefreshError::InvalidMessageLength);
    WireError::with_data(
        code,
        &message,
        format!("ROUTE-REFRESH body of {} octets, expected 4", body.len()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(subtype: RefreshSubtype) -> Vec<u8> {
        let mut out = Vec::new();
        RouteRefresh {
            family: AfiSafi::IPV6_UNICAST,
            subtype,
        }
        .encode(&mut out);
        out
    }

    #[test]
    fn requests_and_marks_are_read_and_written() {
        use RefreshSubtype::{BeginOfRefresh, EndOfRefresh, Request, Unknown};
        for (subtype, octet) in [
            (Request, 0),
            (BeginOfRefresh, 1),
            (EndOfRefresh, 2),
            (Unknown(9), 9),
        ] {
            let message = encoded(subtype);
            assert_eq!(message[16..], [0, 23, 5, 0, 2, octet, 1]);
            let decoded = RouteRefresh::decode(&message[19..]);
            assert_eq!(
                decoded,
                Ok(RouteRefresh {
                    family: AfiSafi::IPV6_UNICAST,
                    subtype
                })
            );
        }
    }

    #[test]
    fn a_mark_of_wrong_length_is_refused_with_the_message_as_data() {
        let mut body = encoded(RefreshSubtype::BeginOfRefresh).split_off(19);
        body.push(0);
        let error = RouteRefresh::decode(&body).unwrap_err();
        assert_eq!(error.code().numbers(), (7, 1));
        let data = error.notification().data();
        assert_eq!(
            (data.len(), &data[16..19], &data[19..]),
            (24, [0, 24, 5].as_slice(), body.as_slice())
        );
    }

    #[test]
    fn filters_behind_a_request_are_ignored() {
        assert!(RouteRefresh::decode(&[0, 1, 0, 1, 1, 64, 0, 0]).is_ok());
        assert!(RouteRefresh::decode(&[0, 1, 0]).is_err());
    }
}
