//! Which layers this machine really gives, found by sending a child through them.
//!
//! Invariant: a layer `Works` only if a child was stopped by it just now.
//! Absent by design: judging by kernel version, and caching.

use std::{fmt, time::Duration};

use super::{
    ExitKind, HardLimits, Identity, LaunchError, Worker,
    advice::{self, Layer},
    cgroup,
    plan::Last,
    probe_parts, spawner,
};

/// The Landlock version that covers all we ask for.
const FULL_LANDLOCK: u32 = 7;

/// The namespace of a dead probe is torn down in milliseconds; a machine that needs longer is too
/// loaded to be measured.
const PATIENCE: Duration = Duration::from_secs(10);

/// What this machine can offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WallReport {
    /// Namespaces and the empty root.
    pub namespaces: LayerState,
    /// Landlock.
    pub landlock: LayerState,
    /// The system call filter.
    pub seccomp: LayerState,
    /// All of them at once, as a worker has them.
    pub whole: LayerState,
    /// Whether the kernel limits what workers have resident. The wall is `process` either way.
    pub hard_limits: HardLimits,
}

/// Whether a layer is to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// A child was stopped by it.
    Works,
    /// It works, but this kernel knows less of it than we ask for.
    Partial(String),
    /// It does not work.
    Missing {
        /// What happened.
        why: String,
        /// What to change.
        hint: Option<String>,
    },
}

/// Sends children through each layer and through all of them. Takes some 10 ms.
///
/// `become_uid` is as in [`WallSpec`](super::WallSpec).
pub fn probe(become_uid: Option<u32>) -> WallReport {
    let only = |namespaces, landlock, seccomp| Last::Probe {
        namespaces,
        landlock,
        seccomp,
    };
    let state = |layer, last| LayerState::from_attempt(layer, attempt(last, become_uid));
    let mut landlock = state(Layer::Landlock, only(false, true, false));
    if let (LayerState::Works, Ok(abi)) = (&landlock, advice::landlock_abi())
        && abi < FULL_LANDLOCK
    {
        landlock = LayerState::Partial(format!("version {abi} of {FULL_LANDLOCK}"));
    }
    WallReport {
        namespaces: state(Layer::Namespaces, only(true, false, false)),
        landlock,
        seccomp: state(Layer::Seccomp, only(false, false, true)),
        whole: state(Layer::Namespaces, only(true, true, true)),
        hard_limits: cgroup::look(),
    }
}

impl WallReport {
    /// Whether workers can be started here, behind the wall advertised as `process`.
    pub fn offers_process(&self) -> bool {
        self.whole == LayerState::Works
    }
}

/// Sends one child; `Ok(None)` if it did what a held-back child does.
fn attempt(last: Last, become_uid: Option<u32>) -> Result<Option<ExitKind>, LaunchError> {
    let (plan, descriptors, ours) = probe_parts(last, Identity::choose(become_uid)?)?;
    let child = spawner::start(plan, descriptors, become_uid)?;
    let mut worker = Worker::new(child, ours, None, None);
    let expected = match last {
        Last::Probe { seccomp: true, .. } => ExitKind::Signalled(libc::SIGSYS),
        _ => ExitKind::Exited(0),
    };
    let exit = worker
        .wait_at_most(PATIENCE)
        .map_err(LaunchError::setup("sense of a probe's end"))?;
    Ok((exit != Some(expected)).then_some(exit.unwrap_or(ExitKind::Signalled(0))))
}

impl LayerState {
    fn from_attempt(layer: Layer, attempt: Result<Option<ExitKind>, LaunchError>) -> Self {
        match attempt {
            Ok(None) => Self::Works,
            Ok(Some(exit)) => Self::Missing {
                why: format!("a child was not stopped by it ({exit:?})"),
                hint: Some(advice::hint(layer)),
            },
            Err(error) => Self::Missing {
                hint: error.hint().or_else(|| Some(advice::hint(layer))),
                why: describe(&error),
            },
        }
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

impl fmt::Display for LayerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => f.write_str("works"),
            Self::Partial(what) => write!(f, "works in part ({what})"),
            Self::Missing { why, hint: None } => write!(f, "missing: {why}"),
            Self::Missing {
                why,
                hint: Some(hint),
            } => write!(f, "missing: {why}; {hint}"),
        }
    }
}

impl fmt::Display for WallReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "namespaces  {}", self.namespaces)?;
        writeln!(f, "landlock    {}", self.landlock)?;
        writeln!(f, "seccomp     {}", self.seccomp)?;
        writeln!(f, "whole wall  {}", self.whole)?;
        write!(f, "hard limits {}", self.hard_limits)
    }
}
