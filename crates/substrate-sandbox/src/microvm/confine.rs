//! What is around a VMM: it emulates devices for a guest that a worker may have taken over, so it is walled, too.
//!
//! A VMM is someone else's program with libraries of its own, so the worker's empty root is not for it. It gets Landlock
//! rules (its own files to read, the image, a few devices; nothing to write), no network, no capability, no core, few
//! descriptors, and dies with the daemon. Its own filter of system calls (QEMU's `-sandbox`, Firecracker's built in one) comes on top.
//!
//! Invariant: between fork and exec nothing is allocated: the rules are made before, and only put into force there.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command},
    sync::{
        Mutex, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

use ::landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr,
};

/// Where programs, libraries and firmware are.
const PROGRAMS: [&str; 5] = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache"];

/// As for the worker (`seal::landlock`).
const WANTED: ABI = ABI::V7;

/// Disks, ports, firmware, and what libraries open.
const MAX_DESCRIPTORS: u64 = 128;

/// What a VMM may open beyond its own programs.
pub(super) struct Reach<'a> {
    /// Files to read, by descriptors that are open already.
    pub files: &'a [RawFd],
    /// Devices to read and write.
    pub devices: &'a [&'a Path],
    /// A folder of its own, if it must make sockets or files.
    pub folder: Option<&'a Path>,
}

/// Starts a program behind all this. Descriptors in `kept` stay open in it, at their own numbers.
pub(super) fn start(
    mut command: Command,
    reach: &Reach<'_>,
    kept: Vec<OwnedFd>,
) -> io::Result<Child> {
    let rules = rules(reach).map_err(io::Error::other)?;
    let numbers: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    let writes = reach.folder.is_some();
    let mut rules = Some(rules);
    command.env_clear();
    // SAFETY: the closure makes system calls with memory made before, and allocates nothing: `restrict_self` makes two calls
    // and closes the rules' descriptor.
    unsafe {
        command.pre_exec(move || {
            prepare(&numbers, writes)?;
            match rules.take().map(RulesetCreated::restrict_self) {
                Some(Ok(_)) => Ok(()),
                _ => Err(io::ErrorKind::PermissionDenied.into()),
            }
        });
    }
    let child = spawn(command);
    drop(kept);
    child
}

fn rules(reach: &Reach<'_>) -> Result<RulesetCreated, ::landlock::RulesetError> {
    let read = AccessFs::from_read(WANTED);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(WANTED))?
        .create()?;
    for path in PROGRAMS {
        if let Ok(path) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(path, read))?;
        }
    }
    for file in reach.files {
        // SAFETY: the descriptor is open for as long as the borrow lives, which ends in this statement.
        let file = unsafe { std::os::fd::BorrowedFd::borrow_raw(*file) };
        rules = rules.add_rule(PathBeneath::new(file, AccessFs::ReadFile))?;
    }
    for device in reach.devices {
        if let Ok(device) = PathFd::new(device) {
            let use_it = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
            rules = rules.add_rule(PathBeneath::new(device, use_it))?;
        }
    }
    if let Some(folder) = reach.folder
        && let Ok(folder) = PathFd::new(folder)
    {
        rules = rules.add_rule(PathBeneath::new(folder, AccessFs::from_all(WANTED)))?;
    }
    Ok(rules)
}

/// In the child, before exec.
fn prepare(kept: &[RawFd], writes: bool) -> io::Result<()> {
    // SAFETY: every call takes plain integers, or a pointer to an rlimit on this stack.
    unsafe {
        let own =
            libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        done(libc::unshare(own))?;
        done(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
        done(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0))?;
        for capability in 0..64 {
            // The first number that is no capability ends the list.
            if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 {
                break;
            }
        }
        for descriptor in kept {
            done(libc::fcntl(*descriptor, libc::F_SETFD, 0))?;
        }
        let mut limits = [
            (libc::RLIMIT_CORE, 0),
            (libc::RLIMIT_NOFILE, MAX_DESCRIPTORS),
            (libc::RLIMIT_FSIZE, 0),
        ];
        if writes {
            limits[2].1 = libc::RLIM_INFINITY;
        }
        for (resource, value) in limits {
            let limit = libc::rlimit {
                rlim_cur: value,
                rlim_max: value,
            };
            done(libc::setrlimit(resource, &raw const limit))?;
        }
        done(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    }
}

fn done(answer: libc::c_int) -> io::Result<()> {
    match answer {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

type Order = (Command, SyncSender<io::Result<Child>>);

/// The one thread that forks, which never ends: a child dies with the thread that forked it (`launch::spawner`).
static FORKER: Mutex<Option<SyncSender<Order>>> = Mutex::new(None);

fn spawn(command: Command) -> io::Result<Child> {
    let mut forker = FORKER.lock().unwrap_or_else(PoisonError::into_inner);
    let orders = match &*forker {
        Some(orders) => orders.clone(),
        None => {
            let (orders, received) = sync_channel::<Order>(0);
            thread::Builder::new()
                .name("vmm-spawner".to_owned())
                .spawn(move || {
                    for (mut command, answer) in received {
                        // Whoever asked may have gone, with the daemon.
                        let _ = answer.send(command.spawn());
                    }
                })?;
            forker.insert(orders).clone()
        }
    };
    drop(forker);
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    let (answer, answered) = sync_channel(1);
    orders.send((command, answer)).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}
