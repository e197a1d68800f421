//! Reading UPDATE bodies.

use super::Update;
use crate::wire::context::DecodeContext;
use crate::wire::error::WireError;
use crate::wire::notification::{NotificationCode, UpdateError};

impl<'a> Update<'a> {
    /// Reads the body of an UPDATE frame.
    ///
    /// # Errors
    /// UPDATE Message Error, for what RFC 7606 leaves as a reason to reset the session.
    pub fn decode(body: &'a [u8], context: &DecodeContext) -> Result<Self, WireError> {
        let _ = (body, context);
        Err(WireError::new(
            NotificationCode::Update(UpdateError::Unspecific),
            "UPDATE cannot be read yet",
        ))
    }
}
