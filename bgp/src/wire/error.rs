//! An error that ends the session: which NOTIFICATION to send and, for our own log, what was wrong.

use std::fmt;

use super::notification::{Notification, NotificationCode};

/// Why a message cannot be accepted and the session has to be closed. Errors inside path attributes that RFC 7606
/// allows to survive are no `WireError`; they are listed in [`Update::errors`](super::update::Update::errors).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError {
    notification: Notification,
    detail: String,
}

impl WireError {
    /// An error to be reported with `code` and without data.
    pub(crate) fn new(code: NotificationCode, detail: impl Into<String>) -> Self {
        Self::with_data(code, &[], detail)
    }

    /// An error to be reported with `code` and `data`.
    pub(crate) fn with_data(code: NotificationCode, data: &[u8], detail: impl Into<String>) -> Self {
        Self {
            notification: Notification::new(code, data),
            detail: detail.into(),
        }
    }

    /// The NOTIFICATION that tells the peer.
    pub fn notification(&self) -> &Notification {
        &self.notification
    }

    /// Its error code and subcode.
    pub fn code(&self) -> NotificationCode {
        self.notification.code()
    }

    /// What was found and what was expected, for the log.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl From<WireError> for Notification {
    fn from(error: WireError) -> Self {
        error.notification
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code(), self.detail)
    }
}

impl std::error::Error for WireError {}
