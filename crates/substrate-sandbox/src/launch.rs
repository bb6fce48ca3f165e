//! The daemon's side of the wall: starting a worker behind it.
//!
//! The order for a reader: [`Wall::spawn`] prepares everything (`plan`), has a thread of its own
//! clone (`spawner`), the child builds the wall around itself (`child`, `root`) and becomes the
//! worker, and the daemon holds a [`Worker`].
//!
//! Invariant: a worker runs behind every layer or not at all. Each failure names its step, and
//! where the machine is at fault, what to change ([`LaunchError::hint`]).
//! Invariant: nothing of the daemon's reaches the worker but the pipe, `/dev/null` and a pipe for
//! standard error: no other descriptor, no environment, no path, no root.
//!
//! Invariant: hard limits (`cgroup`) are on for all workers of a process or for none, and
//! [`WallReport`] says which.
//!
//! Absent by design: an asynchronous interface. `spawn` takes some 2 ms; an asynchronous daemon calls it from a
//! blocking task.

#![allow(unsafe_code)]

mod advice;
mod cgroup;
mod cgroup_paths;
mod child;
mod error;
mod gpu;
mod plan;
mod probe;
mod process;
mod recall;
mod root;
mod spawner;
mod worker;

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::fd::OwnedFd,
    os::unix::ffi::OsStrExt,
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

pub use advice::Layer;
pub use cgroup::{HardLimits, set_hard_limits};
pub use error::{LaunchError, Step};
pub use gpu::{GpuDriver, gpu_drivers};
pub use probe::{LayerState, WallReport, probe};
pub use process::{ExitKind, Process};
pub(crate) use worker::Inside;
pub use worker::{OutsideView, Worker};

use cgroup::Group;
use plan::{Last, Plan};

/// Memory for context and computation unless a job's need is known: enough for an 8k context of a
/// 7B model.
pub const DEFAULT_MEMORY: u64 = 2 << 30;

/// Starts workers behind the `process` wall.
pub struct Wall;

/// Which worker, with which model, within which limits.
#[derive(Clone, Debug)]
pub struct WallSpec {
    /// The worker's binary; statically linked, because its root holds no libraries.
    pub worker: PathBuf,
    /// The model, which the worker may read.
    pub model: PathBuf,
    /// The model's projector, if it has one.
    pub projector: Option<PathBuf>,
    /// The LoRA adapter laid over the model, if it has one.
    pub adapter: Option<PathBuf>,
    /// Bytes the worker may use beyond the model: context and computation.
    pub memory_limit: u64,
    /// If given, a worker with another digest is not started. The digest is taken from the very
    /// descriptor that is executed.
    pub expected_worker_sha256: Option<[u8; 32]>,
    /// For a daemon that runs as root only: who the worker is outside its namespaces. The model
    /// must be readable by this user.
    pub become_uid: Option<u32>,
    /// Where the engine's chatter goes.
    pub stderr: Stderr,
    /// Whether the model's files are read-only disks instead: in a guest, where each is one.
    pub models_are_disks: bool,
}

/// Where a worker's standard error goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stderr {
    /// Nowhere.
    #[default]
    Null,
    /// Into a pipe that holds what the kernel's buffer holds (64 KiB); what does not fit is lost
    /// and the worker goes on. Read it with [`Worker::stderr_so_far`].
    Pipe,
}

impl WallSpec {
    /// A worker and a model with default limits.
    pub fn new(worker: impl Into<PathBuf>, model: impl Into<PathBuf>) -> Self {
        Self {
            worker: worker.into(),
            model: model.into(),
            projector: None,
            adapter: None,
            memory_limit: DEFAULT_MEMORY,
            expected_worker_sha256: None,
            become_uid: None,
            stderr: Stderr::Null,
            models_are_disks: false,
        }
    }
}

impl Wall {
    /// Starts a worker. Returns when the wall stands and the worker's own code has begun.
    pub fn spawn(spec: WallSpec) -> Result<Worker, LaunchError> {
        let identity = Identity::choose(spec.become_uid)?;
        advice::require_layers()?;
        let worker = open_worker(&spec)?;
        let open = |path: &Path| open_model(path, spec.models_are_disks);
        let model = Some(open(&spec.model)?);
        let projector = spec.projector.as_deref().map(open).transpose()?;
        let adapter = spec.adapter.as_deref().map(open).transpose()?;

        let (ours, theirs) = UnixStream::pair().map_err(LaunchError::setup("a socket pair"))?;
        let (stderr, stderr_reader) = stderr_pipe(spec.stderr)?;
        let files = [model, projector, adapter];
        let sizes = files.iter().flatten().map(|file| file.size);
        let size = sizes.fold(0, u64::saturating_add);
        let group = Group::for_worker(&spec, size)?;
        let plan = Plan::for_worker(&spec, identity, files, size);
        let descriptors = plan::Descriptors {
            null: null()?,
            stderr,
            control: theirs.into(),
            worker: Some(worker.into()),
            group: group.as_ref().map(Group::open).transpose()?,
        };
        let child = spawner::start(plan, descriptors, spec.become_uid)?;
        Ok(Worker::new(child, ours, stderr_reader, group))
    }
}

/// Who the worker is outside its namespaces; never root.
#[derive(Clone, Copy)]
struct Identity {
    uid: u32,
    gid: u32,
}

impl Identity {
    fn choose(become_uid: Option<u32>) -> Result<Self, LaunchError> {
        // SAFETY: the calls have no arguments and cannot fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        match (uid, become_uid) {
            (0, None) | (_, Some(0)) => Err(LaunchError::Root),
            // The spawner's thread takes the group of the same number.
            (0, Some(uid)) => Ok(Self { uid, gid: uid }),
            (_, Some(wanted)) if wanted != uid => Err(LaunchError::NotRoot { uid: wanted }),
            (_, _) => Ok(Self { uid, gid }),
        }
    }
}

fn open_worker(spec: &WallSpec) -> Result<File, LaunchError> {
    let failed = |source| LaunchError::Worker {
        path: spec.worker.clone(),
        source,
    };
    let mut worker = File::open(&spec.worker).map_err(failed)?;
    if let Some(expected) = spec.expected_worker_sha256 {
        let found = recall::digest(&mut worker).map_err(failed)?;
        if found != expected {
            let path = spec.worker.clone();
            return Err(LaunchError::WrongWorker {
                path,
                expected: hex(&expected),
                found: hex(&found),
            });
        }
    }
    Ok(worker)
}

fn open_model(path: &Path, is_disk: bool) -> Result<plan::ModelFile, LaunchError> {
    let failed = |source| LaunchError::Model {
        path: path.to_owned(),
        source,
    };
    // Without O_NONBLOCK a named pipe in the model's place would hold the daemon here.
    let options = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .clone();
    let mut file = options.open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let (is_kind, what) = match is_disk {
        true => (metadata.file_type().is_block_device(), "not a disk"),
        false => (metadata.is_file(), "not a regular file"),
    };
    if !is_kind {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, what)));
    }
    // A disk's metadata say nothing of its size.
    let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
    Ok(plan::ModelFile {
        path: CString::new(path.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?,
        _held: file,
        device: metadata.dev(),
        inode: metadata.ino(),
        size,
        is_disk,
    })
}

/// The SHA-256 of a worker's binary, as [`WallSpec::expected_worker_sha256`] wants it.
pub fn worker_sha256(path: &Path) -> io::Result<[u8; 32]> {
    digest(&mut File::open(path)?)
}

fn digest(file: &mut File) -> io::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn null() -> Result<OwnedFd, LaunchError> {
    let null = File::options().read(true).write(true).open("/dev/null");
    Ok(null.map_err(LaunchError::setup("/dev/null"))?.into())
}

/// The worker's end and, for a pipe, ours. Both ends never block: a worker must not stop because
/// nobody listens, nor a daemon because nobody speaks.
pub(crate) fn stderr_pipe(kind: Stderr) -> Result<(OwnedFd, Option<File>), LaunchError> {
    match kind {
        Stderr::Null => Ok((null()?, None)),
        Stderr::Pipe => {
            let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
            let (reader, writer) =
                plan::pipe(flags).map_err(LaunchError::setup("a pipe for standard error"))?;
            Ok((writer, Some(reader.into())))
        }
    }
}

/// The plan and the descriptors of a probe: no model, no worker, the same wall.
fn probe_parts(
    last: Last,
    identity: Identity,
) -> Result<(Plan, plan::Descriptors, UnixStream), LaunchError> {
    let (ours, theirs) = UnixStream::pair().map_err(LaunchError::setup("a socket pair"))?;
    let descriptors = plan::Descriptors {
        null: null()?,
        stderr: null()?,
        control: theirs.into(),
        worker: None,
        group: None,
    };
    Ok((Plan::for_probe(last, identity), descriptors, ours))
}
