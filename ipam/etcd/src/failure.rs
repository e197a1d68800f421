//! What an error of etcd means: above all, whether a write may have happened.

use calidris_ipam::StoreError;

use crate::config::ConnectError;

// gRPC status codes (https://grpc.github.io/grpc/core/md_doc_statuscodes.html).
const INVALID_ARGUMENT: i32 = 3;
const PERMISSION_DENIED: i32 = 7;
const RESOURCE_EXHAUSTED: i32 = 8;
const FAILED_PRECONDITION: i32 = 9;
const OUT_OF_RANGE: i32 = 11;
const UNAUTHENTICATED: i32 = 16;

/// What went wrong with a request, before it is known whether it was a read or a write.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No client could be made; nothing was sent.
    NotConnected(ConnectError),
    /// etcd or the transport says no.
    Etcd(etcd_client::Error),
    /// No answer in time.
    NoAnswer,
    /// An answer without what must be in it.
    Malformed(&'static str),
}

impl Failure {
    /// The error of a read: it changed nothing whatever happened.
    pub(crate) fn of_read(self) -> StoreError {
        if let Some(definite) = self.definite() {
            return definite;
        }
        match self {
            Self::NoAnswer => StoreError::Timeout(self.describe()),
            _ => StoreError::Unavailable(self.describe()),
        }
    }

    /// The error of a write: unless etcd said that it did nothing, it may have happened.
    pub(crate) fn of_write(self) -> StoreError {
        if let Some(definite) = self.definite() {
            return definite;
        }
        match self {
            Self::NotConnected(_) => StoreError::Unavailable(self.describe()),
            _ => StoreError::UnknownOutcome(self.describe()),
        }
    }

    /// Whether the revision that was asked for is compacted.
    pub(crate) fn is_compacted(&self) -> bool {
        matches!(self.status(), Some((OUT_OF_RANGE, message)) if message.contains("compacted"))
    }

    /// Whether a new client could help: the connection, the certificates or the token may be stale.
    pub(crate) fn is_of_connection(&self) -> bool {
        let answered = [
            INVALID_ARGUMENT,
            PERMISSION_DENIED,
            RESOURCE_EXHAUSTED,
            FAILED_PRECONDITION,
            OUT_OF_RANGE,
        ];
        match self {
            Self::Malformed(_) => false,
            _ => !self.status().is_some_and(|(code, _)| answered.contains(&code)),
        }
    }

    /// The error if etcd has answered and said that nothing was done.
    fn definite(&self) -> Option<StoreError> {
        let (code, message) = self.status()?;
        let message = message.to_owned();
        match code {
            PERMISSION_DENIED | UNAUTHENTICATED => Some(StoreError::PermissionDenied(message)),
            // etcd says so, too, of a missing user and of a wrong password.
            INVALID_ARGUMENT
                if message.contains("user name is empty") || message.contains("authentication") =>
            {
                Some(StoreError::PermissionDenied(message))
            }
            // etcd uses this code for its quota and for too many requests in flight; both did nothing.
            RESOURCE_EXHAUSTED if message.contains("space") => Some(StoreError::NoSpace(message)),
            RESOURCE_EXHAUSTED => Some(StoreError::Unavailable(message)),
            INVALID_ARGUMENT | FAILED_PRECONDITION | OUT_OF_RANGE => Some(StoreError::Rejected(message)),
            _ => None,
        }
    }

    /// The gRPC status, if there is one, as code and message.
    fn status(&self) -> Option<(i32, &str)> {
        match self {
            Self::Etcd(etcd_client::Error::GRpcStatus(status))
            | Self::NotConnected(ConnectError::Client {
                source: etcd_client::Error::GRpcStatus(status),
                ..
            }) => Some((status.code() as i32, status.message())),
            _ => None,
        }
    }

    pub(crate) fn describe(&self) -> String {
        match self {
            Self::NotConnected(error) => error.to_string(),
            Self::Etcd(etcd_client::Error::GRpcStatus(status)) => {
                format!("{:?}: {}", status.code(), status.message())
            }
            Self::Etcd(error) => error.to_string(),
            Self::NoAnswer => "no answer within the time limit".to_owned(),
            Self::Malformed(what) => format!("malformed answer: {what}"),
        }
    }
}
