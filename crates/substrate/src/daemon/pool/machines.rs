//! Virtual machines for jobs that demand a wall of them: each has one, for itself, which ends with it.
//!
//! A machine of each size is booted once, saved before it has anything of a job in it, and from then on every job gets a copy,
//! which takes a third of a second even where the processor is emulated.
//!
//! Invariant: a tier is offered only after a machine of this image has booted here and answered; one that later does not boot in
//! time withdraws it, with the reason.
//! Invariant: what is saved is nobody's: no model, no worker, and no seed of the generator.
//! Absent by design: machines that serve more than one job.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use substrate_record::{ContentHash, WallTier};
use substrate_sandbox::guest::Start;
use substrate_sandbox::launch::Worker;
use substrate_sandbox::microvm::{
    Accelerator, BOOT_DEADLINE, GuestImage, ImageError, Machine, MachineSpec, Qemu, Snapshot,
    Trust, VmError,
};

use super::lock;

/// Sizes of machines that are kept saved. Each takes about 70 MB of disk; a node serves few models at a time.
const MOST_SAVED: usize = 4;

/// How long the processor may take to boot a guest: it takes a quarter of a second, and where KVM is there but does not work, for
/// ever.
const KVM_DEADLINE: Duration = Duration::from_secs(10);

/// What a machine is tried with: it starts no worker.
const TRIAL_MEMORY: u64 = 64 << 20;

/// What the owner lets be tried.
#[derive(Debug, Clone)]
pub struct MachineSettings {
    /// The folder of the guest image.
    pub image: PathBuf,
    /// Whose word about it counts.
    pub trust: Trust,
    /// Where saved machines are kept.
    pub folder: PathBuf,
    /// Whether a machine may be emulated: for trying things, as it is a hundred times slower and more.
    pub emulated: bool,
}

/// Why this machine offers no wall of virtual machines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoMachines(pub String);

/// A wall of virtual machines that stands.
pub struct Machines {
    settings: MachineSettings,
    accelerator: Accelerator,
    image: Mutex<GuestImage>,
    name: ContentHash,
    saved: Mutex<VecDeque<(Size, Snapshot)>>,
    withdrawn: Mutex<Option<NoMachines>>,
}

/// What must be the same for a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    memory: u64,
    processors: u32,
}

/// What a worker in a machine is for.
pub struct Work {
    /// The model, its projector and its adapter.
    pub files: [Option<PathBuf>; 3],
    /// Bytes it is reckoned to take beyond them.
    pub memory: u64,
    /// Processors it may use.
    pub processors: u32,
}

impl Machines {
    /// Boots one of the best kind that may be tried. Blocks for as long as that takes.
    ///
    /// # Errors
    /// There is no image, no VMM, or no machine of it boots here.
    pub fn try_out(settings: MachineSettings) -> Result<Self, NoMachines> {
        let image = open(&settings)?;
        let mut why = String::new();
        for (accelerator, deadline) in kinds(settings.emulated) {
            match boots(&image, accelerator, deadline) {
                Ok(()) => return Self::of(settings, image, accelerator),
                Err(error) => {
                    tracing::info!(?accelerator, %error, "no virtual machine boots this way");
                    let gap = if why.is_empty() { "" } else { "; " };
                    why.push_str(&format!("{gap}{}: {error}", word(accelerator)));
                }
            }
        }
        Err(NoMachines(why))
    }

    fn of(
        settings: MachineSettings,
        image: GuestImage,
        accelerator: Accelerator,
    ) -> Result<Self, NoMachines> {
        // What an earlier daemon saved may be of another image.
        let cleared = match fs::remove_dir_all(&settings.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        cleared
            .and_then(|()| {
                let mut private = fs::DirBuilder::new();
                private.recursive(true).mode(0o700).create(&settings.folder)
            })
            .map_err(|error| NoMachines(format!("{}: {error}", settings.folder.display())))?;
        Ok(Self {
            name: ContentHash::from_bytes(image.name()),
            image: Mutex::new(image),
            settings,
            accelerator,
            saved: Mutex::default(),
            withdrawn: Mutex::default(),
        })
    }

    /// What is offered; `None` once a machine did not boot.
    pub fn tier(&self) -> Option<WallTier> {
        let stands = lock(&self.withdrawn).is_none();
        stands.then_some(match self.accelerator {
            Accelerator::Kvm => WallTier::Microvm,
            Accelerator::Emulation => WallTier::MicrovmEmulated,
        })
    }

    /// Why it is not offered any more.
    pub fn withdrawn(&self) -> Option<NoMachines> {
        lock(&self.withdrawn).clone()
    }

    /// The image's name, which says what runs a job down to the kernel.
    pub fn image(&self) -> ContentHash {
        self.name
    }

    /// A worker in a machine of its own. Blocks.
    ///
    /// # Errors
    /// Why there is none.
    pub fn worker(&self, work: &Work) -> Result<Worker, NoMachines> {
        let machine = self.machine(work).map_err(|error| {
            let did_not_boot = matches!(error, VmError::Boot { .. });
            let why = NoMachines(with_causes(error));
            if did_not_boot {
                tracing::warn!(%why, "the wall of virtual machines is withdrawn");
                *lock(&self.withdrawn) = Some(why.clone());
            }
            why
        })?;
        machine
            .into_worker()
            .map_err(|error| NoMachines(with_causes(error)))
    }

    fn machine(&self, work: &Work) -> Result<Machine, VmError> {
        let spec = self.spec(work)?;
        let start = Start {
            files: spec.sizes().map_err(unknown_size)?,
            memory: work.memory,
        };
        let mut machine = self.ready(&spec)?;
        machine.seed()?;
        machine.start(start)?;
        Ok(machine)
    }

    fn spec(&self, work: &Work) -> Result<MachineSpec, VmError> {
        let open = |path: &PathBuf| {
            File::open(path).map_err(|source| VmError::Setup {
                what: "the model's disks",
                source,
            })
        };
        let [model, projector, adapter] = &work.files;
        Ok(MachineSpec {
            files: [
                model.as_ref().map(open).transpose()?,
                projector.as_ref().map(open).transpose()?,
                adapter.as_ref().map(open).transpose()?,
            ],
            worker_memory: work.memory,
            processors: work.processors,
        })
    }

    /// A copy of a saved machine of that size; the first one is booted, and saved for those that follow.
    fn ready(&self, spec: &MachineSpec) -> Result<Machine, VmError> {
        let size = Size {
            memory: spec.memory().map_err(unknown_size)?,
            processors: spec.processors,
        };
        let image = self.checked_image()?;
        let known = lock(&self.saved)
            .iter()
            .find(|(saved, _)| *saved == size)
            .map(|(_, snapshot)| snapshot.clone());
        let snapshot = match known {
            Some(snapshot) => snapshot,
            None => {
                // Nobody's disks: the guest looks into those it finds.
                let blank = spec.without_files().map_err(unknown_size)?;
                let vmm = Qemu::boot(&image, &blank, self.accelerator)?;
                let machine = Machine::await_boot(Box::new(vmm), BOOT_DEADLINE)?;
                self.save(machine, size)?
            }
        };
        let vmm = Qemu::restore(&image, spec, self.accelerator, &snapshot.folder)?;
        Machine::take_up(Box::new(vmm))
    }

    fn save(&self, machine: Machine, size: Size) -> Result<Snapshot, VmError> {
        let name = format!("{}-{}", size.memory >> 20, size.processors);
        let folder = self.settings.folder.join(name);
        let snapshot = machine.save(&folder)?;
        let mut saved = lock(&self.saved);
        saved.push_back((size, snapshot.clone()));
        if saved.len() > MOST_SAVED
            && let Some((_, oldest)) = saved.pop_front()
        {
            // A copy that is being made from it has it open.
            let _ = fs::remove_dir_all(oldest.folder);
        }
        Ok(snapshot)
    }

    /// The image, hashed once more if something has touched it since.
    fn checked_image(&self) -> Result<std::sync::MutexGuard<'_, GuestImage>, VmError> {
        let mut image = lock(&self.image);
        if !image.is_untouched() {
            let again = GuestImage::open(&self.settings.image, Trust::Name(*self.name.as_bytes()));
            *image = again.map_err(VmError::Image)?;
        }
        Ok(image)
    }
}

fn open(settings: &MachineSettings) -> Result<GuestImage, NoMachines> {
    GuestImage::open(&settings.image, settings.trust).map_err(|error| {
        let absent = matches!(&error, ImageError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
        NoMachines(match absent {
            true => format!("there is no guest image in {}", settings.image.display()),
            false => with_causes(error),
        })
    })
}

fn unknown_size(source: std::io::Error) -> VmError {
    VmError::Setup {
        what: "a machine of that size",
        source,
    }
}

fn kinds(emulated: bool) -> Vec<(Accelerator, Duration)> {
    let mut kinds = vec![(Accelerator::Kvm, KVM_DEADLINE)];
    if emulated {
        kinds.push((Accelerator::Emulation, BOOT_DEADLINE));
    }
    kinds
}

fn boots(image: &GuestImage, accelerator: Accelerator, deadline: Duration) -> Result<(), String> {
    if let Some(why) = accelerator.missing() {
        return Err(why);
    }
    let spec = MachineSpec {
        files: [None, None, None],
        worker_memory: TRIAL_MEMORY,
        processors: 1,
    };
    Qemu::boot(image, &spec, accelerator)
        .and_then(|vmm| Machine::await_boot(Box::new(vmm), deadline))
        .and_then(|mut machine| machine.seed())
        .map_err(with_causes)
}

fn word(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "with KVM",
        Accelerator::Emulation => "emulated",
    }
}

fn with_causes(error: impl Into<anyhow::Error>) -> String {
    format!("{:#}", error.into())
}
