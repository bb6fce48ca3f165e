//! Refusals between the node's words and the stream's codes.
//!
//! Both directions are total; codes the node has no word for mean that the provider could not do it.

use substrate_mesh::job::RefusalCode;
use substrate_node::Refusal;

/// The code sent for a refusal.
pub fn to_code(why: Refusal) -> RefusalCode {
    match why {
        Refusal::QueueFull => RefusalCode::QueueFull,
        Refusal::IdentityLimit => RefusalCode::IdentityLimit,
        Refusal::LendingOff => RefusalCode::LendingOff,
        Refusal::OutOfScope => RefusalCode::OutOfScope,
        Refusal::OwnerRefuses => RefusalCode::OwnerRefuses,
        Refusal::UnknownEntry => RefusalCode::UnknownEntry,
        Refusal::EntryNotValid => RefusalCode::EntryNotValid,
        Refusal::WallUnmet => RefusalCode::WallUnmet,
        Refusal::Replayed => RefusalCode::Replayed,
        Refusal::WrongSession => RefusalCode::WrongSession,
        Refusal::TooLarge => RefusalCode::TooLarge,
        Refusal::LeaseExpired => RefusalCode::LeaseExpired,
        Refusal::DeadlinePassed => RefusalCode::DeadlinePassed,
        Refusal::ContextOverflow => RefusalCode::ContextOverflow,
        Refusal::BadInput => RefusalCode::BadInput,
        Refusal::WorkerFailed => RefusalCode::WorkerFailed,
        Refusal::Draining => RefusalCode::Draining,
        Refusal::Unsupported => RefusalCode::Unsupported,
        _ => RefusalCode::Internal,
    }
}

/// What a received code means to the node.
pub fn from_code(code: RefusalCode) -> Refusal {
    match code {
        RefusalCode::QueueFull => Refusal::QueueFull,
        RefusalCode::IdentityLimit => Refusal::IdentityLimit,
        RefusalCode::LendingOff => Refusal::LendingOff,
        RefusalCode::OutOfScope => Refusal::OutOfScope,
        RefusalCode::OwnerRefuses => Refusal::OwnerRefuses,
        RefusalCode::UnknownEntry => Refusal::UnknownEntry,
        RefusalCode::EntryNotValid => Refusal::EntryNotValid,
        RefusalCode::WallUnmet => Refusal::WallUnmet,
        RefusalCode::Replayed => Refusal::Replayed,
        RefusalCode::WrongSession => Refusal::WrongSession,
        RefusalCode::TooLarge => Refusal::TooLarge,
        RefusalCode::LeaseExpired => Refusal::LeaseExpired,
        RefusalCode::DeadlinePassed => Refusal::DeadlinePassed,
        RefusalCode::ContextOverflow => Refusal::ContextOverflow,
        RefusalCode::BadInput => Refusal::BadInput,
        RefusalCode::WorkerFailed => Refusal::WorkerFailed,
        RefusalCode::Draining => Refusal::Draining,
        RefusalCode::Unsupported => Refusal::Unsupported,
        RefusalCode::BadManifest | RefusalCode::NothingToResume | RefusalCode::Internal => {
            Refusal::WorkerFailed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_blames_the_job_still_blames_it_after_the_wire() {
        for why in [
            Refusal::ContextOverflow,
            Refusal::BadInput,
            Refusal::Unsupported,
        ] {
            assert!(from_code(to_code(why)).blames_the_job());
        }
        for why in [
            Refusal::QueueFull,
            Refusal::WorkerFailed,
            Refusal::LendingOff,
            Refusal::Draining,
        ] {
            assert!(!from_code(to_code(why)).blames_the_job());
        }
    }
}
