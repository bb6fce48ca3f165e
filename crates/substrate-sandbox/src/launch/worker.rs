//! A worker that runs: its pipe, its seals, its end.
//!
//! Invariant: a worker does not outlive its `Worker`, because its [`Process`] does not.
//! Absent by design: judging. Why a worker ended is read from the pipe and the exit together.

use std::{
    fs::{self, File},
    io,
    os::fd::BorrowedFd,
    os::unix::net::UnixStream,
    time::Duration,
};

use super::{
    cgroup::Group,
    process::{ExitKind, Process},
    spawner::Child,
};

/// The kernel's number for a process under filters.
const FILTERED: u32 = 2;

/// Filters of a worker that has set both seals: two of stage one, one of stage two.
const FILTERS: u32 = 3;

/// A running worker. Dropping it kills it and waits for its end, which takes milliseconds.
pub struct Worker {
    process: Process,
    pipe: Option<UnixStream>,
    /// The machine it runs in, if it is not this one.
    guest: Option<Box<dyn Inside>>,
    /// Gone once the worker was reaped.
    group: Option<Group>,
}

/// A worker's own machine, which alone can tell about it.
pub(crate) trait Inside: Send {
    /// Whether both seals are down, as the guest's kernel tells.
    fn is_sealed(&self) -> io::Result<bool>;

    /// How the worker ended, if it was the worker that ended.
    fn exit(&self) -> Option<ExitKind>;
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
            process: Process::new(child.pid, child.pidfd, stderr),
            pipe: Some(pipe),
            guest: None,
            group,
        }
    }

    /// A worker inside a machine, whose process is its VMM.
    pub(crate) fn in_machine(process: Process, pipe: UnixStream, guest: Box<dyn Inside>) -> Self {
        Self {
            process,
            pipe: Some(pipe),
            guest: Some(guest),
            group: None,
        }
    }

    /// The worker's process id, as the daemon sees it; of its VMM, if it runs in a machine.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The daemon's end of the pipe, once. For tokio: `set_nonblocking(true)`, then
    /// `UnixStream::from_std`.
    pub fn take_pipe(&mut self) -> Option<UnixStream> {
        self.pipe.take()
    }

    /// A descriptor that becomes readable when the worker ends, to be polled.
    pub fn exit_fd(&self) -> BorrowedFd<'_> {
        self.process.exit_fd()
    }

    /// As [`Process::stderr_so_far`]. It may hold anything once the worker has read a prompt: show it for failures before that
    /// only.
    pub fn stderr_so_far(&mut self) -> &[u8] {
        self.process.stderr_so_far()
    }

    /// How the worker ended, if it has.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitKind>> {
        let ended = self.process.try_wait()?;
        Ok(ended.map(|exit| self.ended(exit)))
    }

    /// Waits until the worker ends. Blocks.
    pub fn wait(&mut self) -> io::Result<ExitKind> {
        let exit = self.process.wait()?;
        Ok(self.ended(exit))
    }

    /// Waits until the worker ends, but not longer than this. Blocks.
    pub fn wait_at_most(&mut self, patience: Duration) -> io::Result<Option<ExitKind>> {
        let ended = self.process.wait_at_most(patience)?;
        Ok(ended.map(|exit| self.ended(exit)))
    }

    /// Ends the worker now. Harmless if it has ended.
    pub fn kill(&self) -> io::Result<()> {
        self.process.kill()
    }

    /// Whether both seals are down, as a kernel tells: this one, or that of the worker's own machine.
    pub fn is_sealed(&self) -> io::Result<bool> {
        match &self.guest {
            Some(guest) => guest.is_sealed(),
            None => Ok(self.outside_view()?.is_sealed()),
        }
    }

    /// What the kernel says about this worker: a check of its seals that does not believe it.
    pub fn outside_view(&self) -> io::Result<OutsideView> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        OutsideView::parse(&status).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Its group has nobody in it now. A machine is ended with its worker; what tells is how the worker ended.
    fn ended(&mut self, exit: ExitKind) -> ExitKind {
        self.group = None;
        self.guest
            .as_ref()
            .and_then(|guest| guest.exit())
            .unwrap_or(exit)
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("pid", &self.pid())
            .finish_non_exhaustive()
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
