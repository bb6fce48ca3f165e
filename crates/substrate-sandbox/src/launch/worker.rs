//! A worker that runs: its pipe, its end.
//!
//! Invariant: a worker does not outlive its `Worker`: dropping it kills and reaps, so no process
//! and no zombie stays. It does not outlive the daemon either (`spawner`).
//! Absent by design: judging. Why a worker ended is read from the pipe and the exit together.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    os::unix::net::UnixStream,
    time::Duration,
};

use super::{cgroup::Group, spawner::Child};

/// The most that is kept of a worker's standard error: what a pipe holds.
const MAX_STDERR: usize = 64 * 1024;

/// The kernel's number for a process under filters.
const FILTERED: u32 = 2;

/// Filters of a worker that has set both seals: two of stage one, one of stage two.
const FILTERS: u32 = 3;

/// A running worker. Dropping it kills it and waits for its end, which takes milliseconds.
#[derive(Debug)]
pub struct Worker {
    pid: u32,
    pidfd: OwnedFd,
    pipe: Option<UnixStream>,
    stderr: Option<File>,
    heard: Vec<u8>,
    exit: Option<ExitKind>,
    /// Gone once the worker was reaped.
    group: Option<Group>,
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// It left with this code.
    Exited(i32),
    /// This signal ended it. SIGSYS (31) is the filter's verdict.
    Signalled(i32),
}

impl ExitKind {
    /// Whether the system call filter ended it.
    pub fn is_violation(self) -> bool {
        self == Self::Signalled(libc::SIGSYS)
    }
}

/// What the kernel says about a worker, seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutsideView {
    /// Real, effective, saved and file system user.
    pub uids: [u32; 4],
    /// Effective capabilities.
    pub cap_eff: u64,
    /// Capabilities it could ever get.
    pub cap_bounds: u64,
    /// 0 off, 2 filtered.
    pub seccomp: u32,
    /// Filters in place.
    pub seccomp_filters: u32,
    /// Whether new privileges are forbidden.
    pub no_new_privs: bool,
}

impl Worker {
    pub(super) fn new(
        child: Child,
        pipe: UnixStream,
        stderr: Option<File>,
        group: Option<Group>,
    ) -> Self {
        Self {
            pid: child.pid,
            pidfd: child.pidfd,
            pipe: Some(pipe),
            stderr,
            heard: Vec::new(),
            exit: None,
            group,
        }
    }

    /// The worker's process id, as the daemon sees it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The daemon's end of the pipe, once. For tokio: `set_nonblocking(true)`, then
    /// `UnixStream::from_std`.
    pub fn take_pipe(&mut self) -> Option<UnixStream> {
        self.pipe.take()
    }

    /// A descriptor that becomes readable when the worker ends, to be polled.
    pub fn exit_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// What the worker has written to standard error so far, at most 64 KiB. Empty unless asked
    /// for by [`Stderr::Pipe`](super::Stderr::Pipe). It may hold anything once the worker has read
    /// a prompt: show it for failures before that only.
    pub fn stderr_so_far(&mut self) -> &[u8] {
        if let Some(stderr) = &mut self.stderr {
            let room = MAX_STDERR.saturating_sub(self.heard.len()) as u64;
            // The end does not block: this stops at what is there, by end or by WouldBlock.
            let _ = stderr.take(room).read_to_end(&mut self.heard);
        }
        &self.heard
    }

    /// How the worker ended, if it has.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitKind>> {
        self.wait_with(libc::WNOHANG)
    }

    /// Waits until the worker ends. Blocks.
    pub fn wait(&mut self) -> io::Result<ExitKind> {
        loop {
            if let Some(exit) = self.wait_with(0)? {
                return Ok(exit);
            }
        }
    }

    /// Waits until the worker ends, but not longer than this. Blocks.
    pub fn wait_at_most(&mut self, patience: Duration) -> io::Result<Option<ExitKind>> {
        let milliseconds = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        let mut ended = libc::pollfd {
            fd: self.pidfd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: poll reads and writes one pollfd on this stack.
        unsafe { libc::poll(&raw mut ended, 1, milliseconds) };
        self.try_wait()
    }

    /// Ends the worker now. Harmless if it has ended.
    pub fn kill(&self) -> io::Result<()> {
        if self.exit.is_some() {
            return Ok(());
        }
        // SAFETY: the descriptor is a pidfd, so no other process can be meant; no siginfo is given.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match sent {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                error => Err(error),
            },
        }
    }

    /// What the kernel says about this worker: a check of its seals that does not believe it.
    pub fn outside_view(&self) -> io::Result<OutsideView> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        OutsideView::parse(&status).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn wait_with(&mut self, flags: i32) -> io::Result<Option<ExitKind>> {
        if self.exit.is_some() {
            return Ok(self.exit);
        }
        // SAFETY: siginfo_t is plain memory that the kernel fills. It is zeroed, and si_pid stays
        // zero if the worker has not ended; otherwise the kernel has written pid and status.
        let (pid, code, status) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let id = self.pidfd.as_raw_fd() as libc::id_t;
            let waited = libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED | flags);
            if waited < 0 {
                return match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => Ok(None),
                    error => Err(error),
                };
            }
            (info.si_pid(), info.si_code, info.si_status())
        };
        if pid != 0 {
            self.exit = Some(match code {
                libc::CLD_EXITED => ExitKind::Exited(status),
                _ => ExitKind::Signalled(status),
            });
            self.group = None;
        }
        Ok(self.exit)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A worker that cannot be killed or waited for is not there any more.
        if self.kill().is_ok() {
            let _ = self.wait();
        }
    }
}

impl OutsideView {
    /// Whether both seals are down: nobody's user, no capability, none to be had, and every filter in place.
    pub fn is_sealed(&self) -> bool {
        let powerless = !self.uids.contains(&0) && self.cap_eff == 0 && self.cap_bounds == 0;
        let filtered = self.seccomp == FILTERED && self.seccomp_filters >= FILTERS;
        powerless && filtered && self.no_new_privs
    }

    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim)
        };
        let hex = |name| u64::from_str_radix(field(name)?, 16).ok();
        let number = |name| field(name)?.parse::<u32>().ok();
        let mut uids = field("Uid:")?.split_whitespace().map(str::parse);
        let mut uid = || uids.next()?.ok();
        Some(Self {
            uids: [uid()?, uid()?, uid()?, uid()?],
            cap_eff: hex("CapEff:")?,
            cap_bounds: hex("CapBnd:")?,
            seccomp: number("Seccomp:")?,
            seccomp_filters: number("Seccomp_filters:")?,
            no_new_privs: number("NoNewPrivs:")? == 1,
        })
    }
}
