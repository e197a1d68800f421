//! OPEN messages (RFC 4271 section 4.2 and 6.2) with capabilities (RFC 5492), extended optional parameters (RFC 9072)
//! and AS-wide unique identifiers (RFC 6286).

use std::net::Ipv4Addr;

use super::capability::Capabilities;
use super::cursor::Cursor;
use super::error::WireError;
use super::frame::{MessageType, finish_message, start_message};
use super::notification::{NotificationCode, OpenError};

/// The AS number that stands for one that does not fit into two octets (RFC 6793).
pub const AS_TRANS: u16 = 23456;

const VERSION: u8 = 4;
const PARAMETER_CAPABILITIES: u8 = 2;
/// Both the length and the type octet that announce extended optional parameters (RFC 9072 section 2).
const EXTENDED: u8 = 255;

/// The parameters with which a speaker opens a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The two-octet My Autonomous System field; [`Open::asn`] is the real number.
    pub my_as: u16,
    /// Proposed hold time in seconds: 0 or at least 3.
    pub hold_time: u16,
    /// The sender's identifier, never zero.
    pub bgp_identifier: Ipv4Addr,
    /// What the sender can do.
    pub capabilities: Capabilities,
}

/// Why an OPEN cannot be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenEncodeError {
    /// A capability has a value of more than 255 octets.
    #[error("capability {code} has a value of more than 255 octets")]
    CapabilityTooLong {
        /// The capability code.
        code: u8,
    },
    /// The capabilities do not fit into a message of 4096 octets.
    #[error("capabilities of {octets} octets do not fit into an OPEN")]
    TooLong {
        /// Length of all capabilities.
        octets: usize,
    },
}

impl Open {
    /// An OPEN of the speaker `asn`, whose two-octet field is `AS_TRANS` where the number does not fit. Announcing the four-octet AS
    /// capability is up to the caller.
    pub fn new(asn: u32, hold_time: u16, bgp_identifier: Ipv4Addr, capabilities: Capabilities) -> Self {
        Self {
            my_as: u16::try_from(asn).unwrap_or(AS_TRANS),
            hold_time,
            bgp_identifier,
            capabilities,
        }
    }

    /// The sender's AS number: that of the four-octet AS capability if there is one, else the two-octet field.
    pub fn asn(&self) -> u32 {
        self.capabilities
            .four_octet_as()
            .unwrap_or_else(|| self.my_as.into())
    }

    /// Reads the body of an OPEN frame.
    ///
    /// # Errors
    /// OPEN Message Error, as RFC 4271 section 6.2 lists them. Whether the AS number, identifier and role are those expected of the
    /// peer is for the session to judge.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut cursor = Cursor::new(body);
        let truncated = || open_error(OpenError::Unspecific, "OPEN is truncated");
        let version = cursor.u8().ok_or_else(truncated)?;
        if version != VERSION {
            let code = NotificationCode::Open(OpenError::UnsupportedVersionNumber);
            let supported = u16::from(VERSION).to_be_bytes();
            return Err(WireError::with_data(
                code,
                &supported,
                format!("version {version}, expected {VERSION}"),
            ));
        }
        let my_as = cursor.u16().ok_or_else(truncated)?;
        let hold_time = cursor.u16().ok_or_else(truncated)?;
        let bgp_identifier = Ipv4Addr::from(cursor.array::<4>().ok_or_else(truncated)?);
        let capabilities = decode_optional_parameters(cursor.rest())?;
        let open = Self {
            my_as,
            hold_time,
            bgp_identifier,
            capabilities,
        };
        open.check()?;
        Ok(open)
    }

    fn check(&self) -> Result<(), WireError> {
        // RFC 7607 section 2: AS 0 is nobody's.
        if self.my_as == 0 || self.asn() == 0 {
            return Err(open_error(OpenError::BadPeerAs, "AS number 0"));
        }
        if matches!(self.hold_time, 1 | 2) {
            let detail = format!("hold time {} s, expected 0 or at least 3", self.hold_time);
            return Err(open_error(OpenError::UnacceptableHoldTime, detail));
        }
        if self.bgp_identifier.is_unspecified() {
            return Err(open_error(OpenError::BadBgpIdentifier, "BGP identifier 0"));
        }
        Ok(())
    }

    /// Appends the message to `out`: one parameter with all capabilities, in the extended form only when it does not fit otherwise.
    ///
    /// # Errors
    /// When the capabilities are too long; `out` is then as before.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), OpenEncodeError> {
        let mut capabilities = Vec::new();
        for capability in self.capabilities.iter() {
            let code = capability.code();
            capability
                .encode(&mut capabilities)
                .ok_or(OpenEncodeError::CapabilityTooLong { code })?;
        }
        let octets = capabilities.len();
        // 4096 less header, fixed fields and the seven octets of the extended parameter heads.
        if octets > 4096 - 29 - 6 {
            return Err(OpenEncodeError::TooLong { octets });
        }
        let start = start_message(MessageType::Open, out);
        out.push(VERSION);
        out.extend_from_slice(&self.my_as.to_be_bytes());
        out.extend_from_slice(&self.hold_time.to_be_bytes());
        out.extend_from_slice(&self.bgp_identifier.octets());
        match (u8::try_from(octets), u16::try_from(octets)) {
            (Ok(0), _) => out.push(0),
            // The two octets of the parameter head count too, and 255 itself means "extended".
            (Ok(length @ ..=252), _) => {
                out.extend_from_slice(&[length.saturating_add(2), PARAMETER_CAPABILITIES, length]);
            }
            (_, length) => {
                let length = length.unwrap_or(u16::MAX);
                out.extend_from_slice(&[EXTENDED, EXTENDED]);
                out.extend_from_slice(&length.saturating_add(3).to_be_bytes());
                out.push(PARAMETER_CAPABILITIES);
                out.extend_from_slice(&length.to_be_bytes());
            }
        }
        out.extend_from_slice(&capabilities);
        finish_message(start, out);
        Ok(())
    }
}

fn decode_optional_parameters(bytes: &[u8]) -> Result<Capabilities, WireError> {
    let malformed = |what: &str| open_error(OpenError::Unspecific, format!("optional parameters: {what}"));
    let mut cursor = Cursor::new(bytes);
    let mut capabilities = Capabilities::default();
    let length = cursor.u8().ok_or_else(|| malformed("length is missing"))?;
    // The type octet alone decides about the extended form, whatever the length octet says (RFC 9072 section 2), unless it says
    // that there are none.
    let extended = length != 0 && cursor.rest().first() == Some(&EXTENDED);
    let total = if extended {
        cursor.u8();
        cursor.u16().map(usize::from)
    } else {
        Some(usize::from(length))
    };
    if total != Some(cursor.rest().len()) {
        return Err(malformed("length does not match the message"));
    }
    while let Some(parameter_type) = cursor.u8() {
        let length = if extended {
            cursor.u16().map(usize::from)
        } else {
            cursor.u8().map(usize::from)
        };
        let value = length.and_then(|length| cursor.take(length));
        let value = value.ok_or_else(|| malformed("a parameter runs out of the message"))?;
        if parameter_type != PARAMETER_CAPABILITIES {
            let detail =
                format!("optional parameter of type {parameter_type}, expected {PARAMETER_CAPABILITIES}");
            return Err(open_error(OpenError::UnsupportedOptionalParameter, detail));
        }
        let complete = capabilities.decode_into(value);
        complete.ok_or_else(|| malformed("a capability runs out of its parameter"))?;
    }
    Ok(capabilities)
}

fn open_error(error: OpenError, detail: impl Into<String>) -> WireError {
    WireError::new(NotificationCode::Open(error), detail)
}

#[cfg(test)]
mod tests;
