//! The worker's side of the wall: it locks itself in, twice.
//!
//! [`stage_one`] comes before any untrusted byte: Landlock leaves the model's files to read, a filter kills
//! on every system call that loading does not need. [`stage_two`] comes after loading and before
//! the first prompt: nothing can be opened and no thread started any more.
//!
//! Invariant: each stage is complete or an error; a worker that gets an error must leave.
//! Invariant: after stage two the process makes only the calls of `policy/seccomp/stage-b.json`.
//! In particular a `File` must not be dropped then (`close` kills), and every thread that computes
//! must have been started before.
//!
//! Absent by design: unsealing, and a list of calls given at run time.

#![allow(unsafe_code)]

mod filter;
mod landlock;

use std::{
    fs::File,
    io,
    os::fd::{FromRawFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

#[cfg(feature = "launch")]
pub(crate) use filter::{STAGE_A, STAGE_B, load};

use crate::wire::FromWorker;

/// The worker's end of the pipe.
pub const CONTROL: RawFd = 4;

/// The model in a worker's root.
pub const MODEL_PATH: &str = "/model.gguf";

/// The model's projector, if it has one.
pub const PROJECTOR_PATH: &str = "/mmproj.gguf";

/// The LoRA adapter laid over the model, if it has one. There is no other file in that root.
pub const ADAPTER_PATH: &str = "/adapter.gguf";

/// A seal that is in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// 1 or 2.
    pub stage: u8,
    /// How much of what we asked of Landlock this kernel knows.
    pub landlock: Landlock,
    /// Whether the filter is on; a seal without it is an error, so this is always true.
    pub seccomp: bool,
}

/// How much of the Landlock rule set the kernel enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landlock {
    /// Files are walled off; the kernel is too old for all of network, signals and sockets, which
    /// the namespaces and the filter refuse by themselves.
    Partial = 1,
    /// Everything we asked for.
    Full = 2,
}

/// Why a worker could not lock itself in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The kernel has no Landlock, or it is switched off at boot.
    #[error("landlock is not available")]
    NoLandlock,
    /// Landlock refused the rules.
    #[error("landlock refused the rules for the model's files")]
    Landlock(#[source] ::landlock::RulesetError),
    /// A file of the model is not where the launcher puts it.
    #[error("cannot open a file of the model")]
    Model(#[source] ::landlock::PathFdError),
    /// There is no policy for this processor.
    #[error("no system call policy for {}", std::env::consts::ARCH)]
    NoPolicy,
    /// The kernel refused a filter.
    #[error("seccomp refused the filter of stage {stage}")]
    Seccomp {
        /// The stage.
        stage: u8,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A thread could not be put under the filter.
    #[error("thread {thread} could not be put under the filter of stage {stage}")]
    Thread {
        /// The stage.
        stage: u8,
        /// The thread.
        thread: i64,
    },
    /// Landlock binds the calling thread and those it starts; another one would be free.
    #[error("a second thread runs before the first seal")]
    SecondThread,
    /// The process could not be made undumpable.
    #[error("cannot make the process undumpable")]
    Dumpable(#[source] io::Error),
    /// Stage two without stage one.
    #[error("stage two before stage one")]
    OutOfOrder,
}

/// Set by stage one to what Landlock gave; stage two needs it.
static STAGE_ONE: AtomicBool = AtomicBool::new(false);
static FULL: AtomicBool = AtomicBool::new(false);

/// The worker's end of the pipe, as a file: it is used with `read` and `write` only.
///
/// Call once, before [`stage_one`].
///
/// # Errors
/// Descriptor 4 is not open, or was taken before.
pub fn control() -> io::Result<File> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    // SAFETY: fcntl with F_GETFD only looks at a number.
    if unsafe { libc::fcntl(CONTROL, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // SAFETY: the descriptor is open, the launcher put it there for the worker alone, and TAKEN
    // lets only one owner have it.
    Ok(unsafe { File::from_raw_fd(CONTROL) })
}

/// Locks the worker in, before any untrusted byte. No second thread may run yet.
pub fn stage_one() -> Result<Sealed, SealError> {
    require_one_thread()?;
    undump()?;
    one_arena();
    let landlock = landlock::only_model()?;
    filter::install(1, filter::STAGE_A)?;
    FULL.store(landlock == Landlock::Full, Ordering::SeqCst);
    STAGE_ONE.store(true, Ordering::SeqCst);
    Ok(Sealed {
        stage: 1,
        landlock,
        seccomp: true,
    })
}

/// Locks the worker in for good, after loading and before the first prompt. Covers all threads.
pub fn stage_two() -> Result<Sealed, SealError> {
    if !STAGE_ONE.load(Ordering::SeqCst) {
        return Err(SealError::OutOfOrder);
    }
    filter::install(2, filter::STAGE_B)?;
    Ok(Sealed {
        stage: 2,
        landlock: match FULL.load(Ordering::SeqCst) {
            true => Landlock::Full,
            false => Landlock::Partial,
        },
        seccomp: true,
    })
}

impl From<Sealed> for FromWorker {
    fn from(sealed: Sealed) -> Self {
        Self::Sealed {
            stage: sealed.stage,
            landlock: sealed.landlock as u8,
            seccomp: sealed.seccomp,
        }
    }
}

fn require_one_thread() -> Result<(), SealError> {
    // SAFETY: with this flag alone the call changes nothing; it fails if there is another thread.
    match unsafe { libc::unshare(libc::CLONE_THREAD) } {
        0 => Ok(()),
        _ => Err(SealError::SecondThread),
    }
}

/// No core dump and no ptrace by the same user. `execve` undoes what the launcher sets, so the
/// worker sets it itself. It covers every mapping, so none needs `MADV_DONTDUMP` of its own.
fn undump() -> Result<(), SealError> {
    // SAFETY: PR_SET_DUMPABLE takes plain integers.
    match unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(SealError::Dumpable(io::Error::last_os_error())),
    }
}

/// All threads share one malloc arena. A second arena, when it shrinks, reads
/// `/proc/sys/vm/overcommit_memory`: an open, which kills after stage two.
fn one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes plain integers; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
