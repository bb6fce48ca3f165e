//! Everything a child will need, put together before it exists.
//!
//! Invariant: between clone and exec the child allocates nothing and takes no lock, because another
//! thread of the daemon may have held it. So every string, number and descriptor is made here.
//! Absent by design: choices. What varies between workers is the model, the user and the limits.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::fd::{FromRawFd, OwnedFd},
    thread,
};

use super::{Identity, WallSpec};

/// Who the worker is inside its user namespace: nobody.
pub(super) const INNER_ID: u32 = 65534;

/// Descriptors a worker can have at a time: four of the launcher's, each file of the model twice, some
/// for reading about the machine.
const MAX_DESCRIPTORS: u64 = 16;

/// Address space of a thread: 8 MiB of stack, guard pages, and what malloc keeps for it.
const THREAD_SPACE: u64 = 16 << 20;

/// Address space of the binary, its heap and the pipe's largest frame, several times over.
const BASE_SPACE: u64 = 512 << 20;

/// What the files of a model are called in the worker's root: the model, its projector and its adapter if it has them.
pub(super) const FILES: [&CStr; 3] = [c"model.gguf", c"mmproj.gguf", c"adapter.gguf"];

/// A file of the model as the daemon saw it, to be recognised by the child.
pub(super) struct ModelFile {
    pub path: CString,
    /// Keeps the inode from being given to another file meanwhile.
    pub _held: File,
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    /// A guest's read-only disk instead of a file.
    pub is_disk: bool,
}

/// What the child ends with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    /// Becomes the worker.
    Exec,
    /// Tries layers and leaves.
    Probe {
        /// Whether to enter the namespaces and the empty root first.
        namespaces: bool,
        /// Whether to forbid itself all files, and see that it holds.
        landlock: bool,
        /// Whether to install the filter, and die of it.
        seccomp: bool,
    },
}

impl Last {
    pub fn in_namespaces(self) -> bool {
        !matches!(
            self,
            Self::Probe {
                namespaces: false,
                ..
            }
        )
    }
}

/// The child's descriptors, still where the daemon opened them.
pub(super) struct Descriptors {
    pub null: OwnedFd,
    pub stderr: OwnedFd,
    pub control: OwnedFd,
    pub worker: Option<OwnedFd>,
    /// The cgroup it is born in, instead of the daemon's.
    pub group: Option<OwnedFd>,
}

/// What the child does; plain memory.
pub(super) struct Plan {
    pub last: Last,
    /// In the order of [`FILES`].
    pub files: [Option<ModelFile>; FILES.len()],
    pub uid_map: Vec<u8>,
    pub gid_map: Vec<u8>,
    pub limits: [(libc::__rlimit_resource_t, u64); 6],
    pub argv: [CString; 1],
    pub envp: [CString; 1],
}

impl Plan {
    pub fn for_worker(
        spec: &WallSpec,
        identity: Identity,
        files: [Option<ModelFile>; FILES.len()],
        size: u64,
    ) -> Self {
        let (space, writable) = memory(size, spec.memory_limit);
        let mut plan = Self::new(Last::Exec, identity, space, writable);
        plan.files = files;
        plan
    }

    pub fn for_probe(last: Last, identity: Identity) -> Self {
        // A probe has a copy of the daemon's memory, so its limits cannot be a worker's.
        Self::new(last, identity, libc::RLIM_INFINITY, libc::RLIM_INFINITY)
    }

    fn new(last: Last, identity: Identity, space: u64, writable: u64) -> Self {
        Self {
            last,
            files: [None, None, None],
            uid_map: format!("{INNER_ID} {} 1", identity.uid).into_bytes(),
            gid_map: format!("{INNER_ID} {} 1", identity.gid).into_bytes(),
            limits: [
                (libc::RLIMIT_CORE, 0),
                (libc::RLIMIT_FSIZE, 0),
                (libc::RLIMIT_MEMLOCK, 0),
                (libc::RLIMIT_AS, space),
                (libc::RLIMIT_DATA, writable),
                (libc::RLIMIT_NOFILE, MAX_DESCRIPTORS),
            ]
            .map(|(resource, value)| (resource, value.min(hard_limit(resource)))),
            argv: [c"substrate-worker".to_owned()],
            // Without it ggml's abort handler opens files and starts a debugger.
            envp: [c"GGML_NO_BACKTRACE=1".to_owned()],
        }
    }
}

/// The limits of address space and of private writable memory.
///
/// The model's files count once in memory, because the engine may repack its weights, and once more in
/// address space, where it is mapped. Threads reserve far more than they touch.
fn memory(model: u64, limit: u64) -> (u64, u64) {
    let writable = model
        .saturating_add(limit)
        .saturating_add(threads() * THREAD_SPACE)
        .saturating_add(BASE_SPACE);
    (writable.saturating_add(model), writable)
}

/// More threads than a worker ever starts: the engine's are at most one for each processor.
pub(super) fn threads() -> u64 {
    let processors = thread::available_parallelism().map_or(1, |n| n.get() as u64);
    2 * processors + 8
}

/// The daemon's own limit, over which an ordinary user cannot go.
fn hard_limit(resource: libc::__rlimit_resource_t) -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the kernel writes one rlimit on this stack; on failure it stays unlimited, and
    // setting the limit will then say what is wrong.
    unsafe { libc::getrlimit(resource, &raw mut limit) };
    limit.rlim_max
}

/// A pipe: reading end, writing end.
pub(super) fn pipe(flags: libc::c_int) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors the kernel writes.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both descriptors are new and owned by nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}
