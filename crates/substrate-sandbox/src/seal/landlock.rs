//! Landlock: of all files, the worker may read one.
//!
//! Invariant: what is not handled here is refused, because every right the kernel knows up to
//! ABI 7 is handled and only one is granted, on one file.
//! Absent by design: a kernel without Landlock; that is an error.

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::{Landlock, MODEL_PATH, SealError};

/// Files, truncation, devices (1–5), network (4), signals and abstract sockets (6), logging (7).
const WANTED: ABI = ABI::V7;

/// Leaves the process with nothing to open but the model.
pub(super) fn only_model() -> Result<Landlock, SealError> {
    let model = PathFd::new(MODEL_PATH).map_err(SealError::Model)?;
    match restrict(model).map_err(SealError::Landlock)? {
        RulesetStatus::FullyEnforced => Ok(Landlock::Full),
        RulesetStatus::PartiallyEnforced => Ok(Landlock::Partial),
        RulesetStatus::NotEnforced => Err(SealError::NoLandlock),
    }
}

fn restrict(model: PathFd) -> Result<RulesetStatus, RulesetError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(WANTED))?
        .handle_access(AccessNet::from_all(WANTED))?
        .scope(Scope::from_all(WANTED))?
        .create()?
        .add_rule(PathBeneath::new(model, AccessFs::ReadFile))?
        .restrict_self()?;
    Ok(status.ruleset)
}
