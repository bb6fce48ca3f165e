//! What the tests stand on: the images, a folder, and machines that have booted.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use substrate_sandbox::{
    guest::Start,
    launch::ExitKind,
    microvm::{Accelerator, BOOT_DEADLINE, GuestImage, Machine, MachineSpec, Qemu, Trust, name_of},
};

/// No answer takes longer on a loaded machine; a hang must not hang the tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the attacker's model is: as long as nothing else, so that its last sector is not full.
pub const MODEL: &[u8] = b"GGUF and some more, which is no whole sector";

/// Memory of an attacker.
pub const MEMORY: u64 = 64 << 20;

/// The folder of the attacker's image; `None` where the tier cannot be tried, which the gate does not accept.
pub fn image_folder() -> Option<PathBuf> {
    let stage = std::env::var_os("SUBSTRATE_TEST_BIN")?;
    let folder = Path::new(&stage).join("microvm-attacker");
    let there = folder.join("image.json").is_file() && Qemu::is_installed();
    let wanted = std::env::var_os("SUBSTRATE_TEST_MICROVM").is_some();
    assert!(
        there || !wanted,
        "no image in {}, or no QEMU",
        folder.display()
    );
    if !there {
        eprintln!("skipped: no image in {}, or no QEMU", folder.display());
    }
    there.then_some(folder)
}

/// The image of that folder.
pub fn image(folder: &Path) -> GuestImage {
    GuestImage::open(folder, Trust::Name(name_of(folder).unwrap())).unwrap()
}

/// A folder of the test's own, gone with its value.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("substrate-vm-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    /// A machine's parts, with this for its model.
    pub fn spec(&self, model: &[u8]) -> MachineSpec {
        let path = self.0.join("model");
        // A new file each time: a machine may still read the old one.
        let _ = fs::remove_file(&path);
        fs::write(&path, model).unwrap();
        MachineSpec {
            files: [Some(File::open(&path).unwrap()), None, None],
            worker_memory: MEMORY,
            processors: 1,
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A machine that is ready and has its seed.
pub fn booted(image: &GuestImage, spec: &MachineSpec) -> Machine {
    let vmm = Qemu::boot(image, spec, Accelerator::Emulation).unwrap();
    let mut machine = Machine::await_boot(Box::new(vmm), BOOT_DEADLINE).unwrap();
    machine.seed().unwrap();
    machine
}

/// A worker with this model.
pub fn start(model: &[u8]) -> Start {
    Start {
        files: [model.len() as u64, 0, 0],
        memory: MEMORY,
    }
}

/// Starts the attacker, gives it an order, and returns what it wrote and how it ended.
pub fn order(machine: &mut Machine, model: &[u8], order: &str) -> (String, ExitKind) {
    use std::io::{Read, Write};
    machine.start(start(model)).unwrap();
    writeln!(machine.pipe(), "{order}").unwrap();
    let (exit, sent) = machine.await_end(PATIENCE).unwrap();
    let mut said = vec![0; sent as usize];
    machine.pipe().read_exact(&mut said).unwrap();
    (String::from_utf8(said).unwrap(), exit)
}

/// One image for all tests of this process.
pub static IMAGE: LazyLock<Option<GuestImage>> = LazyLock::new(|| Some(image(&image_folder()?)));
