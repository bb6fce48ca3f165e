//! Landlock: of all files, the worker may read those of its model.
//!
//! Invariant: what is not handled here is refused, because every right the kernel knows up to
//! ABI 7 is handled and only one is granted, on the files of the model.
//! Absent by design: a kernel without Landlock; that is an error.

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::{ADAPTER_PATH, Landlock, MODEL_PATH, PROJECTOR_PATH, SealError};

/// Files, truncation, devices (1–5), network (4), signals and abstract sockets (6), logging (7).
const WANTED: ABI = ABI::V7;

/// Leaves the process with nothing to open but the model.
pub(super) fn only_model() -> Result<Landlock, SealError> {
    let model = PathFd::new(MODEL_PATH).map_err(SealError::Model)?;
    let mut files = vec![model];
    for path in [PROJECTOR_PATH, ADAPTER_PATH] {
        // Most models have none; whoever was promised one finds it missing when it is loaded.
        if std::path::Path::new(path).exists() {
            files.push(PathFd::new(path).map_err(SealError::Model)?);
        }
    }
    match restrict(files).map_err(SealError::Landlock)? {
        RulesetStatus::FullyEnforced => Ok(Landlock::Full),
        RulesetStatus::PartiallyEnforced => Ok(Landlock::Partial),
        RulesetStatus::NotEnforced => Err(SealError::NoLandlock),
    }
}

fn restrict(files: Vec<PathFd>) -> Result<RulesetStatus, RulesetError> {
    let read = |file| PathBeneath::new(file, AccessFs::ReadFile);
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(WANTED))?
        .handle_access(AccessNet::from_all(WANTED))?
        .scope(Scope::from_all(WANTED))?
        .create()?
        .add_rules(
            files
                .into_iter()
                .map(|file| Ok::<_, RulesetError>(read(file))),
        )?
        .restrict_self()?;
    Ok(status.ruleset)
}
