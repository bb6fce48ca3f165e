//! Hard limits: a cgroup for each worker, where the system gave the daemon a subtree of its own (systemd: `Delegate=yes`).
//!
//! cgroup v2 lets a group have either processes or children with limits, so the daemon moves into a leaf of its own first.
//! It does so only if nobody else is in its group: other programs are not moved about.
//!
//! Invariant: once the limits are on, a worker is born in its group (`CLONE_INTO_CGROUP`) or not at all; a group that cannot be
//! made or filled in is a failed launch. Invariant: a group goes when its worker was reaped.
//! Absent by design: cgroup v1, and asking the system for a subtree.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{LaunchError, WallSpec, cgroup_paths, plan};

/// What a group must be able to limit.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The daemon's own group, beside those of its workers.
const LEAF: &str = "daemon";

/// What the groups of workers are called, before their number.
const WORKER: &str = "worker-";

/// Resident memory beyond the model and what was allowed: the binary, touched stacks, the pipe's buffers, and what the kernel
/// keeps for all of it (page tables are 1/512 of what is mapped).
const BASE_RESIDENT: u64 = 128 << 20;

/// Share of the processor beside the daemon's leaf, which has the kernel's default of 100: frames and the network first.
const CPU_WEIGHT: u32 = 50;

/// Whether workers are limited by the kernel in what they may have resident, in threads, and in their share of processors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HardLimits {
    /// Each worker has a cgroup of its own.
    On,
    /// There is no group to be had. The wall stands all the same; memory is bounded by address space only.
    Off {
        /// Why not.
        why: String,
    },
}

impl HardLimits {
    /// What a process has, or would have if it started workers. Looks only.
    pub fn of(process: u32) -> Self {
        let found = own_group(process).and_then(|group| match is_leaf(&group) {
            true => Ok(()),
            false => vacant(&group, process),
        });
        Self::from_result(found)
    }

    fn from_result(found: Result<(), String>) -> Self {
        match found {
            Ok(()) => Self::On,
            Err(why) => Self::Off { why },
        }
    }
}

impl std::fmt::Display for HardLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::On => f.write_str("each worker has a cgroup of its own"),
            Self::Off { why } => write!(
                f,
                "no cgroup delegated ({why}): resident memory is bounded by address space only; \
                 run under a unit with Delegate=yes"
            ),
        }
    }
}

/// The group under which workers get theirs; prepared once, for the first of them.
static SUBTREE: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
    SETTLED.store(true, Ordering::SeqCst);
    settle()
});

/// Whether [`SUBTREE`] was asked for: looking at it would prepare it.
static SETTLED: AtomicBool = AtomicBool::new(false);

/// Prepares the limits for this process, once: it moves to a leaf of its group if that group is its own. Call before anything
/// else is started; what is already running in the group stands in the way.
pub fn set_hard_limits() -> HardLimits {
    HardLimits::from_result(SUBTREE.as_ref().map(drop).map_err(Clone::clone))
}

/// The state for this process; changes nothing.
pub(super) fn look() -> HardLimits {
    match SETTLED.load(Ordering::SeqCst) {
        true => set_hard_limits(),
        false => HardLimits::of(std::process::id()),
    }
}

/// A worker's group. Dropping it removes it, which works once nobody is in it.
#[derive(Debug)]
pub(super) struct Group {
    path: PathBuf,
}

impl Group {
    /// The group of a worker to be, with its limits in place; none where the limits are off.
    pub fn for_worker(spec: &WallSpec, model: u64) -> Result<Option<Self>, LaunchError> {
        // A thread of another user may not put anything into our groups. Only tests start workers that way.
        if spec.become_uid.is_some() {
            return Ok(None);
        }
        let Ok(subtree) = &*SUBTREE else {
            return Ok(None);
        };
        let memory = model
            .saturating_add(spec.memory_limit)
            .saturating_add(BASE_RESIDENT);
        let group = Self::make(subtree).and_then(|group| group.limit(memory).map(|()| group));
        group
            .map(Some)
            .map_err(LaunchError::setup("a cgroup for the worker"))
    }

    fn make(subtree: &Path) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = subtree.join(format!("{WORKER}{number}"));
        fs::create_dir(&path)?;
        Ok(Self { path })
    }

    /// No more memory than this, none of it swapped out, all of the worker killed if it wants more.
    fn limit(&self, memory: u64) -> io::Result<()> {
        self.set("memory.max", &memory.to_string())?;
        self.set("memory.oom.group", "1")?;
        match self.set("memory.swap.max", "0") {
            // A kernel without swap has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
        self.set("pids.max", &plan::threads().to_string())?;
        self.set("cpu.weight", &CPU_WEIGHT.to_string())
    }

    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        write(&self.path.join(file), value)
    }

    /// What a child is cloned into.
    pub fn open(&self) -> Result<OwnedFd, LaunchError> {
        let folder = File::open(&self.path);
        Ok(folder
            .map_err(LaunchError::setup("a cgroup for the worker"))?
            .into())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // One that stays is empty, costs a few kilobytes, and goes when the daemon starts again.
        let _ = fs::remove_dir(&self.path);
    }
}

/// Moves this process into the leaf and lets its former group give limits to children.
fn settle() -> Result<PathBuf, String> {
    let process = std::process::id();
    let group = own_group(process)?;
    vacant(&group, process)?;
    sweep(&group);
    let leaf = group.join(LEAF);
    let settled = match fs::create_dir(&leaf) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
    .and_then(|()| write(&leaf.join("cgroup.procs"), &process.to_string()))
    .and_then(|()| write(&group.join("cgroup.subtree_control"), &wanted()));
    settled.map_err(|error| format!("{}: {error}", group.display()))?;
    Ok(group)
}

/// All controllers, as a group is told to hand them down.
fn wanted() -> String {
    CONTROLLERS
        .map(|controller| format!("+{controller}"))
        .join(" ")
}

/// The folder of the group that a process is in.
fn own_group(process: u32) -> Result<PathBuf, String> {
    let read = |name: &str| {
        let path = format!("/proc/{process}/{name}");
        fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))
    };
    let path = cgroup_paths::unified(&read("cgroup")?)
        .ok_or("the kernel has no cgroup v2")?
        .to_owned();
    // Ours, not the process's: it is we who look there.
    let mounts = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| format!("/proc/self/mountinfo: {error}"))?;
    cgroup_paths::folder(&mounts, &path).ok_or_else(|| "no cgroup v2 is mounted".to_owned())
}

/// Whether a daemon of this program has settled here.
fn is_leaf(group: &Path) -> bool {
    let above = group.parent().filter(|_| group.ends_with(LEAF));
    above.is_some_and(|above| missing(&above.join("cgroup.subtree_control")).is_none())
}

/// The group can limit all there is to limit, is ours to change, and nobody else is in it.
fn vacant(group: &Path, process: u32) -> Result<(), String> {
    if let Some(missing) = missing(&group.join("cgroup.controllers")) {
        return Err(format!(
            "{missing} is not handed down to {}",
            group.display()
        ));
    }
    for file in ["cgroup.procs", "cgroup.subtree_control"] {
        let path = group.join(file);
        // Opening asks the kernel and changes nothing.
        OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let path = group.join("cgroup.procs");
    let inside =
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    match inside.lines().any(|line| line != process.to_string()) {
        true => Err(format!("other programs are in {}", group.display())),
        false => Ok(()),
    }
}

/// The first controller that this file does not name.
fn missing(file: &Path) -> Option<&'static str> {
    let named = fs::read_to_string(file).unwrap_or_default();
    let has = |wanted: &str| named.split_whitespace().any(|name| name == wanted);
    CONTROLLERS.into_iter().find(|wanted| !has(wanted))
}

/// Groups that a daemon left behind which had no time to tidy up. Those in use stay: the kernel sees to that.
fn sweep(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(WORKER) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// One write: the kernel takes a value as a whole.
fn write(path: &Path, value: &str) -> io::Result<()> {
    use io::Write;
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
