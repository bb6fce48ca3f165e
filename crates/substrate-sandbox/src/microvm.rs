//! The microVM wall: a virtual machine around a worker that is behind the process wall already.
//!
//! The order for a reader: a [`GuestImage`] is checked (`image`); a [`Vmm`] runs it behind a wall of its own (`confine`, `qemu`,
//! `firecracker`); a [`Machine`] is one that has booted and speaks (`machine`); its guest is `guest/` in this crate.
//!
//! Invariant: a machine has no network device, its disks are read-only, and its two ports are the only ways out of it.
//! Invariant: a machine that does not say in time that it is ready is ended, and what its console said is in the error.
//! Invariant: no copy of a saved machine starts a worker before it was given a seed of its own.
//! Absent by design: shared folders, a network, hotplug, a clock of the guest that anything rests on.

#![allow(unsafe_code)]

mod confine;
mod firecracker;
mod image;
mod machine;
mod qemu;
mod qmp;

use std::{
    fs::File,
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::launch::LaunchError;

pub use firecracker::Firecracker;
pub use image::{
    GuestImage, ImageError, MANIFEST, Manifest, Part, SIGNATURE, Trust, name_of, to_sign,
};
pub use machine::{Machine, Snapshot};
pub use qemu::{Accelerator, Qemu};

/// What the guest itself takes: its kernel, its first process, and tables for its memory.
const GUEST_MEMORY: u64 = 160 << 20;

/// Memory is given in steps of this, so that machines of nearly the same size can be copies of one.
const MEMORY_STEP: u64 = 64 << 20;

/// How long a machine may take to say that it is ready. Emulated it takes four seconds on an idle core, and several times as
/// long on a busy one.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(60);

/// How long a guest may take to answer a line. Starting a worker takes one a second under emulation.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// Where VMMs are looked for; the daemon's own PATH is not asked, as what it starts gets a guest's ports.
const FOLDERS: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/bin"];

fn program(name: &str) -> Option<PathBuf> {
    let folders = FOLDERS.iter().map(|folder| Path::new(folder).join(name));
    folders.into_iter().find(|path| path.is_file())
}

/// The most that is kept of a guest's console, for the error of a boot that failed.
const MAX_CONSOLE: usize = 16 * 1024;

/// What a machine is made of.
#[derive(Debug)]
pub struct MachineSpec {
    /// The model, its projector and its adapter, open for reading; each becomes a read-only disk.
    pub files: [Option<File>; 3],
    /// Bytes that the worker may use beyond them.
    pub worker_memory: u64,
    /// Processors.
    pub processors: u32,
}

impl MachineSpec {
    /// Sizes of the files, 0 for none.
    ///
    /// # Errors
    /// A file does not tell.
    pub fn sizes(&self) -> io::Result<[u64; 3]> {
        let mut sizes = [0; 3];
        for (size, file) in sizes.iter_mut().zip(&self.files) {
            if let Some(file) = file {
                *size = file.metadata()?.len();
            }
        }
        Ok(sizes)
    }

    /// A machine of the same size without them, to be saved: what it finds on a disk would be saved with it.
    ///
    /// # Errors
    /// A file does not tell its size.
    pub fn without_files(&self) -> io::Result<Self> {
        let files = self
            .sizes()?
            .iter()
            .fold(0, |sum: u64, size| sum.saturating_add(*size));
        Ok(Self {
            files: [None, None, None],
            worker_memory: self.worker_memory.saturating_add(files),
            processors: self.processors,
        })
    }

    /// Bytes of the machine's memory: the files are read through it, and what does not fit would be read again for each token.
    ///
    /// # Errors
    /// A file does not tell its size.
    pub fn memory(&self) -> io::Result<u64> {
        let files = self
            .sizes()?
            .iter()
            .fold(0, |sum: u64, size| sum.saturating_add(*size));
        let all = files
            .saturating_add(self.worker_memory)
            .saturating_add(GUEST_MEMORY);
        Ok(all.div_ceil(MEMORY_STEP).saturating_mul(MEMORY_STEP))
    }
}

/// A running virtual machine monitor. Dropping it ends the machine.
pub trait Vmm: Send {
    /// Its process.
    fn pid(&self) -> u32;

    /// A stream to the guest's port of lines, and one to the worker's pipe; once after each boot or restore.
    ///
    /// # Errors
    /// The guest does not answer there within the time left.
    fn connect(&mut self, patience: Duration) -> Result<(UnixStream, UnixStream), VmError>;

    /// Stops the machine and writes its memory and state where a machine can be made from them.
    ///
    /// # Errors
    /// The VMM refused, or the disk is full.
    fn save(&mut self, folder: &Path) -> Result<(), VmError>;

    /// What the guest's console said last.
    fn console(&mut self) -> String;

    /// Its end of the process, to be waited for and killed.
    fn into_process(self: Box<Self>) -> crate::launch::Process;

    /// Ends the machine now.
    fn kill(&mut self);
}

/// Why a machine does not run, or not any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// There is no such program.
    #[error("{name} is not installed")]
    NoVmm {
        /// The VMM's program.
        name: &'static str,
    },
    /// The VMM could not be started.
    #[error("cannot start {name}")]
    Start {
        /// The VMM's program.
        name: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The image is not what it was when it was opened.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The VMM refused an order, or ended.
    #[error("the VMM did not {what}: {why}")]
    Vmm {
        /// What it was told.
        what: &'static str,
        /// Its answer.
        why: String,
    },
    /// The guest did not say in time that it is ready; it was ended.
    #[error("the guest did not boot within {} s{console}", deadline.as_secs())]
    Boot {
        /// How long it had.
        deadline: Duration,
        /// What its console said last, after a colon; may be empty.
        console: String,
    },
    /// The guest refused.
    #[error("the guest could not start the worker: {0}")]
    Guest(String),
    /// The guest said something else than an answer, or nothing.
    #[error("the guest did not answer as it should")]
    Line(#[source] io::Error),
    /// Something of the host's failed.
    #[error("cannot make {what}")]
    Setup {
        /// What was to be made.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The worker's process wall, which is inside, cannot be had.
    #[error(transparent)]
    Wall(#[from] LaunchError),
}

impl VmError {
    fn setup(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Setup { what, source }
    }

    /// What the owner of this machine can change, in a sentence.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoVmm { name } => Some(format!(
                "install it (on Debian: apt-get install --no-install-recommends {})",
                match *name {
                    qemu::PROGRAM => "qemu-system-x86",
                    _ => "its release from github.com/firecracker-microvm/firecracker",
                }
            )),
            _ => None,
        }
    }
}
