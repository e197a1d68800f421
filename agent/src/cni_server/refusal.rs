//! Errors of address management in the runtime's terms.

use calidris_cni::error::{CniError, ErrorCode};
use calidris_ipam::{
    AssignError, AssignRefusal, ErrorClass, ReadError, ReleaseError, ReleaseRefusal, StoreError,
};

/// Why no address was assigned.
pub(super) fn of_assign(error: &AssignError) -> CniError {
    let code = match error {
        AssignError::Store(error) => return of_store(error),
        AssignError::Contention { .. } => ErrorCode::TRY_AGAIN_LATER,
        AssignError::Refused(refusal) => match refusal {
            AssignRefusal::Exhausted { .. } => ErrorCode::ADDRESSES_EXHAUSTED,
            AssignRefusal::InvalidRequest(_)
            | AssignRefusal::UnknownPool { .. }
            | AssignRefusal::OutsidePools { .. }
            | AssignRefusal::BlockUnusable { .. } => ErrorCode::INVALID_CONFIG,
            AssignRefusal::Corrupt(_) => ErrorCode::INTERNAL,
            // All of these pass: the lock is lifted, the former owner is deleted, the node is registered.
            AssignRefusal::DatastoreLocked
            | AssignRefusal::AlreadyAssigned { .. }
            | AssignRefusal::UnknownNode { .. }
            | AssignRefusal::ExtraConflict { .. } => ErrorCode::TRY_AGAIN_LATER,
        },
    };
    CniError::new(code, error.to_string())
}

/// Why an address was not released.
pub(super) fn of_release(error: &ReleaseError) -> CniError {
    let code = match error {
        ReleaseError::Store(error) => return of_store(error),
        ReleaseError::Refused(ReleaseRefusal::Corrupt(_) | ReleaseRefusal::InvalidRequest(_)) => {
            ErrorCode::INTERNAL
        }
        ReleaseError::Contention { .. } | ReleaseError::Refused(_) => ErrorCode::TRY_AGAIN_LATER,
    };
    CniError::new(code, error.to_string())
}

/// Why a question was not answered.
pub(super) fn of_read(error: &ReadError) -> CniError {
    match error {
        ReadError::Store(error) => of_store(error),
        ReadError::Corrupt(error) => CniError::new(ErrorCode::INTERNAL, error.to_string()),
    }
}

/// Why the datastore did not do as asked.
pub(super) fn of_store(error: &StoreError) -> CniError {
    match error.class() {
        ErrorClass::Transient | ErrorClass::Reevaluate => {
            CniError::new(ErrorCode::TRY_AGAIN_LATER, "the datastore is unreachable")
                .with_details(error.to_string())
        }
        ErrorClass::Refused => CniError::new(ErrorCode::IO_FAILURE, error.to_string()),
    }
}
