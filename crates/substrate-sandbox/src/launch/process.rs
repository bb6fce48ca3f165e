//! A child that runs behind a wall: its end, and what it says on standard error.
//!
//! Invariant: a child does not outlive its `Process`: dropping it kills and reaps, so no process and no zombie stays. It does
//! not outlive the daemon either (`spawner`, `microvm::confine`).

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    process::Child,
    time::Duration,
};

/// The most that is kept of a child's standard error: what a pipe holds.
const MAX_STDERR: usize = 64 * 1024;

/// A running child. Dropping it kills it and waits for its end, which takes milliseconds.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    pidfd: OwnedFd,
    stderr: Option<File>,
    heard: Vec<u8>,
    exit: Option<ExitKind>,
}

/// How a child ended.
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

impl Process {
    pub(super) fn new(pid: u32, pidfd: OwnedFd, stderr: Option<File>) -> Self {
        Self {
            pid,
            pidfd,
            stderr,
            heard: Vec::new(),
            exit: None,
        }
    }

    /// Takes over a child that was started otherwise, with the reading end of its standard error, which must not block. Nobody
    /// may have waited for it.
    pub(crate) fn adopt(child: &Child, stderr: Option<File>) -> io::Result<Self> {
        let pid = child.id();
        // SAFETY: the call takes plain integers. The child was not waited for, so that no other process has its number.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        match i32::try_from(pidfd) {
            Ok(pidfd @ 0..) => {
                // SAFETY: the descriptor is new and nobody else's.
                let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
                Ok(Self::new(pid, pidfd, stderr))
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Its process id, as the daemon sees it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A descriptor that becomes readable when the child ends, to be polled.
    pub fn exit_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// What it has written to standard error so far, at most 64 KiB. Empty unless asked
    /// for by [`Stderr::Pipe`](super::Stderr::Pipe). It may hold anything once the child has read
    /// a prompt: show it for failures before that only.
    pub fn stderr_so_far(&mut self) -> &[u8] {
        if let Some(stderr) = &mut self.stderr {
            let room = MAX_STDERR.saturating_sub(self.heard.len()) as u64;
            // The end does not block: this stops at what is there, by end or by WouldBlock.
            let _ = stderr.take(room).read_to_end(&mut self.heard);
        }
        &self.heard
    }

    /// How the child ended, if it has.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitKind>> {
        self.wait_with(libc::WNOHANG)
    }

    /// Waits until the child ends. Blocks.
    pub fn wait(&mut self) -> io::Result<ExitKind> {
        loop {
            if let Some(exit) = self.wait_with(0)? {
                return Ok(exit);
            }
        }
    }

    /// Waits until the child ends, but not longer than this. Blocks.
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

    /// Ends the child now. Harmless if it has ended.
    pub fn kill(&self) -> io::Result<()> {
        match self.exit {
            Some(_) => Ok(()),
            None => kill(&self.pidfd),
        }
    }

    /// A way to end it for another thread, which stays harmless after its end.
    pub(crate) fn pidfd(&self) -> io::Result<Ending> {
        self.pidfd.try_clone().map(Ending)
    }

    fn wait_with(&mut self, flags: i32) -> io::Result<Option<ExitKind>> {
        if self.exit.is_some() {
            return Ok(self.exit);
        }
        // SAFETY: siginfo_t is plain memory that the kernel fills. It is zeroed, and si_pid stays
        // zero if the child has not ended; otherwise the kernel has written pid and status.
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
        }
        Ok(self.exit)
    }
}

/// A way to end a child.
pub(crate) struct Ending(OwnedFd);

impl Ending {
    /// Ends it now. Harmless if it has ended.
    pub fn kill(&self) -> io::Result<()> {
        kill(&self.0)
    }
}

fn kill(pidfd: &OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is a pidfd, so no other process can be meant; no siginfo is given.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
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

impl Drop for Process {
    fn drop(&mut self) {
        // One that cannot be killed or waited for is not there any more.
        if self.kill().is_ok() {
            let _ = self.wait();
        }
    }
}
