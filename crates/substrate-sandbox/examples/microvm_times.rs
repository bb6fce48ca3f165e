//! How long a machine takes to boot, to be saved, and to be made again from that: one JSON object, for `cargo xtask prove microvm`.
//!
//! Usage: `microvm_times IMAGE_FOLDER SCRATCH_FOLDER ROUNDS emulation|kvm`.

use std::{
    error::Error,
    fs::{self, File},
    path::Path,
    time::Instant,
};

use substrate_sandbox::microvm::{
    Accelerator, BOOT_DEADLINE, GuestImage, Machine, MachineSpec, Qemu, Trust, name_of,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, scratch, rounds, accelerator] = &arguments[..] else {
        return Err("usage: microvm_times IMAGE_FOLDER SCRATCH_FOLDER ROUNDS emulation|kvm".into());
    };
    let accelerator = match accelerator.as_str() {
        "kvm" => Accelerator::Kvm,
        _ => Accelerator::Emulation,
    };
    let image = Path::new(image);
    let image = GuestImage::open(image, Trust::Name(name_of(image)?))?;
    let scratch = Path::new(scratch);
    let rounds: usize = rounds.parse()?;

    let mut boots = Vec::new();
    for _ in 0..rounds {
        let since = Instant::now();
        let mut machine = booted(&image, accelerator, scratch)?;
        machine.seed()?;
        boots.push(since.elapsed().as_secs_f64());
    }
    let machine = booted(&image, accelerator, scratch)?;
    let since = Instant::now();
    let saved = machine.save(&scratch.join("saved"))?;
    let saving = since.elapsed().as_secs_f64();
    let bytes: u64 = fs::read_dir(&saved.folder)?
        .flatten()
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum();
    let mut restores = Vec::new();
    for _ in 0..rounds {
        let since = Instant::now();
        let vmm = Qemu::restore(&image, &spec(scratch)?, accelerator, &saved.folder)?;
        let mut machine = Machine::take_up(Box::new(vmm))?;
        // The first answer of the copy.
        machine.seed()?;
        restores.push(since.elapsed().as_secs_f64());
    }
    println!(
        "{}",
        serde_json::json!({
            "boots": boots,
            "saving": saving,
            "saved_bytes": bytes,
            "restores": restores,
        })
    );
    Ok(())
}

fn booted(
    image: &GuestImage,
    accelerator: Accelerator,
    scratch: &Path,
) -> Result<Machine, Box<dyn Error>> {
    let vmm = Qemu::boot(image, &spec(scratch)?, accelerator)?;
    Ok(Machine::await_boot(Box::new(vmm), BOOT_DEADLINE)?)
}

/// As for a small model.
fn spec(scratch: &Path) -> Result<MachineSpec, Box<dyn Error>> {
    let path = scratch.join("model.gguf");
    fs::write(&path, b"GGUF")?;
    Ok(MachineSpec {
        files: [Some(File::open(&path)?), None, None],
        worker_memory: 256 << 20,
        processors: 1,
    })
}
