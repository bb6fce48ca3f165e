//! The attacks, as data: a name, what it is after, what it does outside the wall, and a few calls.
//!
//! Each is run in a child of its own at both stages, because the wall's answer is death. Outside, it finds a folder with
//! `model.gguf` and `file` in it and a socket at the pipe's place, so that what it needs is there: a refusal inside is the wall's.
//!
//! Invariant: none leaves anything behind on a machine where it succeeds, beyond that folder and its own process.
//! An attack of several calls is denied at the first that is.
//! Those of `machine` are for a guest that is taken over, and are tried in one only.
//! Absent by design: attacks that take several workers, or time. The tests have those.

mod files;
mod kernel;
mod machine;
mod network;
mod processes;
mod resources;

use std::ffi::CStr;

use libc::{c_long, syscall};
use substrate_sandbox::seal;

/// One attempt to get out.
pub struct Attack {
    /// What it tries.
    pub name: &'static str,
    /// What it is after.
    pub kind: Kind,
    /// What happens to an ordinary process that does this.
    pub outside: Outside,
    /// Gives −1 and sets errno when refused.
    pub run: fn() -> c_long,
}

/// What an attack is after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Files of the machine.
    Files,
    /// The weights it was given.
    Weights,
    /// Other machines, and services of this one.
    Network,
    /// Other processes, and more of its own.
    Processes,
    /// Parts of the kernel that a worker has no business with.
    Kernel,
    /// More than its share, or a longer life.
    Resources,
    /// The host, from a guest that it has taken over.
    Machine,
}

/// What an attack does outside the wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// It succeeds on every machine that can build the wall, for the same user: so what denies it inside is the wall.
    Works,
    /// The same for a process that is root in namespaces of its own.
    WorksForRoot,
    /// It depends on the kernel and its settings. Inside it must not even be asked.
    Depends,
}

/// All attacks.
pub fn all() -> impl Iterator<Item = &'static Attack> {
    [
        files::ATTACKS,
        network::ATTACKS,
        processes::ATTACKS,
        kernel::ATTACKS,
        resources::ATTACKS,
        machine::ATTACKS,
    ]
    .into_iter()
    .flatten()
}

const fn attack(name: &'static str, kind: Kind, outside: Outside, run: fn() -> c_long) -> Attack {
    Attack {
        name,
        kind,
        outside,
        run,
    }
}

/// The pipe to the daemon, and what stands in its place outside.
const PIPE: c_long = seal::CONTROL as c_long;

/// A call with up to six arguments.
fn call<const N: usize>(number: c_long, arguments: [c_long; N]) -> c_long {
    let mut all = [0; 6];
    for (place, argument) in all.iter_mut().zip(arguments) {
        *place = argument;
    }
    let [a, b, c, d, e, f] = all;
    // SAFETY: every attack gives integers, null, or pointers to static strings and to memory of its own that lives until the
    // call returns and is as large as the kernel expects.
    unsafe { syscall(number, a, b, c, d, e, f) }
}

/// A path as an argument.
fn at(path: &'static CStr) -> c_long {
    path.as_ptr() as c_long
}

/// A value of one's own as an argument. It must outlive the call.
fn to<T: ?Sized>(value: &T) -> c_long {
    std::ptr::from_ref(value).cast::<u8>() as c_long
}

/// As [`to`], for what the kernel writes.
fn into<T: ?Sized>(value: &mut T) -> c_long {
    std::ptr::from_mut(value).cast::<u8>() as c_long
}

fn open(path: &'static CStr, flags: i32) -> c_long {
    call(
        libc::SYS_openat,
        [
            c_long::from(libc::AT_FDCWD),
            at(path),
            c_long::from(flags),
            0o600,
        ],
    )
}

fn own_pid() -> c_long {
    c_long::from(std::process::id())
}
