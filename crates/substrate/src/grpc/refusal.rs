//! Refusals on the wire: [`AskError`] as a gRPC status for people and a [`v1::Refusal`] for programs.
//!
//! Invariant: the status message alone is a whole sentence; the metadata never says more than it.

use prost::Message;
use substrate_api::{REFUSAL_METADATA, v1};
use tonic::{Code, Status, metadata::MetadataValue};

use crate::door::{AskError, Overflow};

use super::convert::scope_out;

/// A refused call.
pub fn status_of(error: &AskError) -> Status {
    let mut status = Status::new(code_of(error), error.to_string());
    let detail = MetadataValue::from_bytes(&refusal_of(error).encode_to_vec());
    status.metadata_mut().insert_bin(REFUSAL_METADATA, detail);
    status
}

/// What the other side finds in a refused call, if it was refused by [`status_of`].
pub fn refusal_in(status: &Status) -> Option<v1::Refusal> {
    let detail = status
        .metadata()
        .get_bin(REFUSAL_METADATA)?
        .to_bytes()
        .ok()?;
    v1::Refusal::decode(detail).ok()
}

/// The same for programs.
pub fn refusal_of(error: &AskError) -> v1::Refusal {
    v1::Refusal {
        message: error.to_string(),
        cause: cause_of(error),
    }
}

/// `None` where the message says all there is.
fn cause_of(error: &AskError) -> Option<v1::refusal::Cause> {
    use v1::refusal::Cause;
    Some(match error.clone() {
        AskError::UnknownModel { model, similar } => {
            Cause::UnknownModel(v1::UnknownModel { model, similar })
        }
        AskError::NoNode { model, scope, why } => Cause::NoNode(v1::NoNode {
            model,
            scope: scope_out(scope).into(),
            why,
        }),
        AskError::BadRequest { param, .. } => Cause::BadRequest(v1::BadRequest { param }),
        AskError::ContextOverflow { tokens } => {
            let Overflow { used, limit } = tokens.unwrap_or(Overflow { used: 0, limit: 0 });
            Cause::ContextOverflow(v1::ContextOverflow { used, limit })
        }
        AskError::Forbidden { .. } => Cause::Forbidden(v1::Forbidden {}),
        AskError::Busy {
            waiting,
            retry_after_ms,
        } => Cause::Busy(v1::Busy {
            waiting,
            retry_after_ms,
        }),
        AskError::Deadline { deadline_ms, .. } => Cause::Deadline(v1::Deadline { deadline_ms }),
        AskError::Cancelled { .. } => Cause::Cancelled(v1::Cancelled {}),
        AskError::Internal { .. } => Cause::Internal(v1::Internal {}),
        AskError::Stopping => return None,
    })
}

fn code_of(error: &AskError) -> Code {
    match error {
        AskError::UnknownModel { .. } => Code::NotFound,
        AskError::NoNode { .. } | AskError::Stopping => Code::Unavailable,
        AskError::BadRequest { .. } => Code::InvalidArgument,
        AskError::ContextOverflow { .. } => Code::OutOfRange,
        AskError::Forbidden { .. } => Code::PermissionDenied,
        AskError::Busy { .. } => Code::ResourceExhausted,
        AskError::Deadline { .. } => Code::DeadlineExceeded,
        AskError::Cancelled { .. } => Code::Cancelled,
        AskError::Internal { .. } => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_wire() {
        let error = AskError::UnknownModel {
            model: "smollm3".into(),
            similar: vec!["smollm2:135m".into()],
        };
        let status = status_of(&error);
        assert_eq!(
            (status.code(), status.message()),
            (Code::NotFound, "model 'smollm3' not found")
        );
        assert_eq!(refusal_in(&status), Some(refusal_of(&error)));
        assert_eq!(refusal_in(&Status::internal("from elsewhere")), None);
    }
}
