//! Why a worker was not started.
//!
//! Invariant: a failure inside the child names its step; a failure of the machine names what to
//! change. Absent by design: a fall-back.

use std::{fmt, io, path::PathBuf};

use super::advice::{self, Layer};

/// Why a worker was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The worker would be root outside its namespaces.
    #[error("a worker is never started as root")]
    Root,
    /// Another user was asked for by a daemon that cannot become it.
    #[error("only root can start a worker as user {uid}")]
    NotRoot {
        /// The user asked for.
        uid: u32,
    },
    /// A layer of the wall is not to be had on this machine. No weaker wall is built instead.
    #[error("this machine has no {layer}, so it cannot build the wall")]
    Unavailable {
        /// The layer.
        layer: Layer,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The worker's binary cannot be read.
    #[error("cannot open the worker {}", path.display())]
    Worker {
        /// The binary.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The worker's binary is not the one that was promised.
    #[error("the worker {} has digest {found}, not {expected}", path.display())]
    WrongWorker {
        /// The binary.
        path: PathBuf,
        /// The digest wanted.
        expected: String,
        /// The digest found.
        found: String,
    },
    /// The model is not a file that can be read.
    #[error("cannot open the model {}", path.display())]
    Model {
        /// The model.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The daemon ran out of something.
    #[error("cannot make {what}")]
    Setup {
        /// What was to be made.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The child could not build its wall; it has left without running the worker.
    #[error("could not {step}")]
    Step {
        /// Where it stopped.
        step: Step,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl LaunchError {
    /// What the owner of this machine can change, in a sentence.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Root => Some("run the daemon as an ordinary user".to_owned()),
            Self::Unavailable { layer, .. } => Some(advice::hint(*layer)),
            Self::Step { step, source } => step.hint(source),
            _ => None,
        }
    }

    pub(super) fn setup(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Setup { what, source }
    }
}

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// A step of the child between clone and exec, in order.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        #[non_exhaustive]
        pub enum Step { $($(#[$doc])* $name,)+ }

        impl Step {
            const ALL: &[Self] = &[$(Self::$name,)+];
        }

        impl fmt::Display for Step {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $text,)+ })
            }
        }
    };
}

steps! {
    /// 0–5 are in place, the rest is closed.
    Descriptors = "put the worker's descriptors in place",
    /// The child dies with the daemon.
    ParentDeath = "tie the worker's life to the daemon's",
    /// The daemon was already gone.
    Orphaned = "find the daemon alive",
    /// A session of its own.
    Session = "leave the daemon's session",
    /// No signal stays blocked.
    Signals = "unblock signals",
    /// Its own `/proc` entries can be written.
    Dumpable = "open its own user maps",
    /// `/proc/self/setgroups`.
    SetGroups = "give up supplementary groups",
    /// `/proc/self/uid_map`.
    UidMap = "write the user map",
    /// `/proc/self/gid_map`.
    GidMap = "write the group map",
    /// Mounts no longer propagate.
    PrivateMounts = "make the mounts private",
    /// A mount of the model alone.
    CloneModel = "take the model's file out of its folder",
    /// It is the file the daemon checked.
    SameModel = "find the same model at its path",
    /// The model is read-only.
    SealModel = "make the model read-only",
    /// The new root.
    Root = "mount an empty root",
    /// The place of the model in it.
    PlaceModel = "place the model in the empty root",
    /// The new root is the root.
    Pivot = "enter the empty root",
    /// The old one is gone.
    Detach = "let go of the old root",
    /// The new one is read-only.
    SealRoot = "make the empty root read-only",
    /// The host's name is hidden.
    HostName = "hide the host's name",
    /// No capability can come back.
    Capabilities = "drop the capability bounds",
    /// Limits of resources.
    Limits = "set the resource limits",
    /// No set-uid program gains anything.
    NoNewPrivs = "forbid new privileges",
    /// A probe's Landlock rules.
    ProbeLandlock = "forbid all files",
    /// A probe's filter.
    ProbeSeccomp = "install the system call filter",
    /// The worker's own code.
    Exec = "execute the worker",
}

impl Step {
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    fn hint(self, source: &io::Error) -> Option<String> {
        match (self, source.raw_os_error()) {
            (Self::Exec, Some(libc::ENOENT)) => {
                Some("the worker must be statically linked: its root holds no libraries".to_owned())
            }
            (Self::Exec, Some(libc::EACCES)) => {
                Some("the worker must be executable and not on a noexec mount".to_owned())
            }
            (Self::CloneModel, Some(libc::EACCES)) => {
                Some("the model must be readable by the user the worker runs as".to_owned())
            }
            _ => None,
        }
    }
}
