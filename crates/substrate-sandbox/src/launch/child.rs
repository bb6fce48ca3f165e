//! The child, from clone to exec: it builds the wall around itself, then becomes the worker.
//!
//! Invariant: only raw system calls on memory made before. No allocation, no lock, no panic, no
//! destructor: another thread of the daemon may have held the allocator when this one was copied.
//! Invariant: the first failing step is reported by name and the child leaves; it never goes on
//! with less wall.
//!
//! Absent by design: Landlock and the filter. They come from inside ([`crate::seal`]), because the
//! worker's own start needs what they forbid.

use std::{
    ffi::{CStr, c_char, c_int, c_long},
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    ptr::null_mut,
};

use super::{
    Step,
    plan::{Last, Plan},
    root,
};
use crate::seal::{self, CONTROL};

/// Everything a process can have of its own. Time stays the host's.
pub(super) const NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u64;

/// A step's number and an errno.
pub(super) const REPORT: usize = 8;

/// Where the report goes until exec closes it.
const REPORT_FD: RawFd = 3;
/// The worker's binary until exec closes it.
const WORKER_FD: RawFd = 5;
/// The first descriptor that is not the child's.
const FIRST_FOREIGN: libc::c_uint = 6;
/// Where descriptors wait while 0–5 are filled; above all of those.
const PARKING: c_int = 32;

/// Exit code of a child that could not become a worker; the report says why.
const FAILED: c_int = 127;
/// Exit code of a probe that a layer did not hold.
const LEAKED: c_int = 1;

/// The daemon's descriptors that the child takes over.
pub(super) struct Inherited {
    pub null: RawFd,
    pub stderr: RawFd,
    pub report: RawFd,
    pub control: RawFd,
    pub worker: Option<RawFd>,
}

pub(super) struct Failure {
    pub step: Step,
    pub errno: c_int,
}

pub(super) type Outcome = Result<(), Failure>;

/// Runs the child to its end: the worker's code, a probe's exit, or a report.
pub(super) fn run(
    plan: &Plan,
    inherited: &Inherited,
    argv: &[*const c_char; 2],
    envp: &[*const c_char; 2],
) -> ! {
    let mut report_fd = inherited.report;
    let outcome = take_descriptors(inherited, &mut report_fd)
        .and_then(|()| build(plan))
        .and_then(|()| finish(plan, argv, envp));
    if let Err(failure) = outcome {
        let report = pack(failure.step as u32, failure.errno);
        // SAFETY: the pointer and the length are those of a live array.
        unsafe { libc::write(report_fd, report.as_ptr().cast(), report.len()) };
    }
    // SAFETY: _exit takes a plain integer and runs no destructors of the daemon.
    unsafe { libc::_exit(FAILED) }
}

pub(super) fn unpack(report: [u8; REPORT]) -> (u32, c_int) {
    let [a, b, c, d, e, f, g, h] = report;
    (
        u32::from_ne_bytes([a, b, c, d]),
        c_int::from_ne_bytes([e, f, g, h]),
    )
}

fn pack(step: u32, errno: c_int) -> [u8; REPORT] {
    let [a, b, c, d] = step.to_ne_bytes();
    let [e, f, g, h] = errno.to_ne_bytes();
    [a, b, c, d, e, f, g, h]
}

/// Waits for a child that has reported its failure and is leaving.
pub(super) fn reap(pidfd: &OwnedFd) {
    // SAFETY: siginfo_t is plain memory that the kernel fills; the descriptor is a pidfd.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let id = pidfd.as_raw_fd() as libc::id_t;
        libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED);
    }
}

fn build(plan: &Plan) -> Outcome {
    die_with_parent()?;
    let in_namespaces = plan.last.in_namespaces();
    if in_namespaces {
        map_users(plan)?;
        root::enter(plan)?;
        hide_host()?;
    }
    drop_privileges(plan, in_namespaces)
}

/// 0 and 1 nothing, 2 standard error, 3 the report, 4 the pipe, 5 the binary; no other.
fn take_descriptors(inherited: &Inherited, report_fd: &mut RawFd) -> Outcome {
    let step = Step::Descriptors;
    let park = |fd: RawFd| {
        // SAFETY: fcntl on a descriptor number touches no memory.
        check(
            step,
            c_long::from(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, PARKING) }),
        )
    };
    let place = |fd: c_long, at: RawFd, flags: c_int| {
        // SAFETY: dup3 on descriptor numbers touches no memory.
        check(
            step,
            c_long::from(unsafe { libc::dup3(fd as c_int, at, flags) }),
        )
    };
    let null = park(inherited.null)?;
    let stderr = park(inherited.stderr)?;
    let report = park(inherited.report)?;
    let control = park(inherited.control)?;
    let worker = park(inherited.worker.unwrap_or(inherited.null))?;
    *report_fd = report as RawFd;
    place(null, 0, 0)?;
    place(null, 1, 0)?;
    place(stderr, 2, 0)?;
    place(report, REPORT_FD, libc::O_CLOEXEC)?;
    *report_fd = REPORT_FD;
    place(control, CONTROL, 0)?;
    place(worker, WORKER_FD, libc::O_CLOEXEC)?;
    // SAFETY: close_range closes descriptors that this child does not use.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, FIRST_FOREIGN, u32::MAX, 0) };
    check(step, closed).map(drop)
}

/// The kernel kills the child when the daemon dies. If it died before we asked, the pipe's other
/// end is already gone: no copy of it is left in this child.
fn die_with_parent() -> Outcome {
    // SAFETY: the prctl takes plain integers; poll and the signal calls read and write one pollfd
    // and one set on this stack; setsid has no arguments.
    unsafe {
        let tied = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        check(Step::ParentDeath, c_long::from(tied))?;
        let mut daemon = libc::pollfd {
            fd: CONTROL,
            events: 0,
            revents: 0,
        };
        check(
            Step::Orphaned,
            c_long::from(libc::poll(&raw mut daemon, 1, 0)),
        )?;
        if daemon.revents & libc::POLLHUP != 0 {
            return Err(Failure {
                step: Step::Orphaned,
                errno: libc::EPIPE,
            });
        }
        check(Step::Session, c_long::from(libc::setsid()))?;
        // A mask survives exec; the daemon's threads may block signals, the worker shall not.
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        let unblocked = libc::sigprocmask(libc::SIG_SETMASK, &raw const none, null_mut());
        check(Step::Signals, c_long::from(unblocked)).map(drop)
    }
}

/// Nobody inside is the daemon's user outside; no other user or group exists.
fn map_users(plan: &Plan) -> Outcome {
    // SAFETY: the prctl takes plain integers.
    let dumpable = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    check(Step::Dumpable, c_long::from(dumpable))?;
    write_file(Step::SetGroups, c"/proc/self/setgroups", b"deny")?;
    write_file(Step::UidMap, c"/proc/self/uid_map", &plan.uid_map)?;
    write_file(Step::GidMap, c"/proc/self/gid_map", &plan.gid_map)
}

fn hide_host() -> Outcome {
    let name = c"worker";
    // SAFETY: the pointer and the length are those of a static string.
    let hidden = unsafe { libc::sethostname(name.as_ptr(), name.count_bytes()) };
    check(Step::HostName, c_long::from(hidden)).map(drop)
}

/// No capability in reach, no privilege by exec, limits on what is left.
fn drop_privileges(plan: &Plan, in_namespaces: bool) -> Outcome {
    if in_namespaces {
        drop_capability_bounds()?;
    }
    for (resource, value) in plan.limits {
        let limit = libc::rlimit {
            rlim_cur: value,
            rlim_max: value,
        };
        // SAFETY: the kernel reads one rlimit from this stack.
        let set = unsafe { libc::setrlimit(resource, &raw const limit) };
        check(Step::Limits, c_long::from(set))?;
    }
    // SAFETY: the prctl takes plain integers.
    let sealed = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    check(Step::NoNewPrivs, c_long::from(sealed)).map(drop)
}

fn drop_capability_bounds() -> Outcome {
    /// More than any kernel has; the first unknown one ends the loop.
    const CAPABILITIES: c_int = 64;
    for capability in 0..CAPABILITIES {
        // SAFETY: the prctl takes plain integers.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match check(Step::Capabilities, c_long::from(dropped)) {
            Err(failure) if failure.errno == libc::EINVAL && capability > 0 => break,
            other => other?,
        };
    }
    Ok(())
}

fn finish(plan: &Plan, argv: &[*const c_char; 2], envp: &[*const c_char; 2]) -> Outcome {
    let Last::Probe {
        landlock, seccomp, ..
    } = plan.last
    else {
        return execute(argv, envp);
    };
    if landlock {
        probe_landlock()?;
    }
    if seccomp {
        probe_seccomp()?;
    }
    // SAFETY: _exit takes a plain integer.
    unsafe { libc::_exit(0) }
}

fn execute(argv: &[*const c_char; 2], envp: &[*const c_char; 2]) -> Outcome {
    // SAFETY: both arrays end with null and point to C strings that outlive the call. The
    // descriptor is the one whose digest the daemon checked.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            WORKER_FD,
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    check(Step::Exec, answer).map(drop)
}

/// Forbids itself all files, then tries to open one.
fn probe_landlock() -> Outcome {
    /// The thirteen rights over files of ABI 1.
    static FILES: u64 = 0x1fff;
    let step = Step::ProbeLandlock;
    // SAFETY: the kernel reads eight bytes of attributes; the rest are integers and static strings.
    unsafe {
        let create = libc::SYS_landlock_create_ruleset;
        let rules = check(
            step,
            libc::syscall(create, &raw const FILES, size_of::<u64>(), 0),
        )?;
        check(
            step,
            libc::syscall(libc::SYS_landlock_restrict_self, rules, 0),
        )?;
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        if libc::open(c"/".as_ptr(), flags) >= 0 {
            libc::_exit(LEAKED);
        }
    }
    Ok(())
}

/// Installs the worker's last filter, then makes a call that it does not list.
fn probe_seccomp() -> Outcome {
    let missing = || Failure {
        step: Step::ProbeSeccomp,
        errno: libc::ENOSYS,
    };
    let programs = seal::STAGE_B.ok_or_else(missing)?;
    for program in [programs.refuse, programs.allow] {
        if seal::load(program).is_err() {
            return Err(failure(Step::ProbeSeccomp));
        }
    }
    // SAFETY: getppid has no arguments; _exit takes a plain integer.
    unsafe {
        libc::getppid();
        libc::_exit(LEAKED)
    }
}

fn write_file(step: Step, path: &CStr, bytes: &[u8]) -> Outcome {
    // SAFETY: the path is a live C string, the pointer and length those of a live slice.
    unsafe {
        let flags = libc::O_WRONLY | libc::O_CLOEXEC;
        let file = check(step, c_long::from(libc::open(path.as_ptr(), flags)))? as c_int;
        check(
            step,
            libc::write(file, bytes.as_ptr().cast(), bytes.len()) as c_long,
        )?;
        libc::close(file);
    }
    Ok(())
}

/// The answer of a system call, or the step it failed.
pub(super) fn check(step: Step, answer: c_long) -> Result<c_long, Failure> {
    match answer < 0 {
        true => Err(failure(step)),
        false => Ok(answer),
    }
}

fn failure(step: Step) -> Failure {
    Failure {
        step,
        // Reading errno allocates nothing.
        errno: io::Error::last_os_error().raw_os_error().unwrap_or(0),
    }
}
