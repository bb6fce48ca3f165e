//! A machine's life: what works in it, what is missing in it, how it ends.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    time::{Duration, Instant},
};

use substrate_sandbox::{
    launch::ExitKind,
    microvm::{
        Accelerator, BOOT_DEADLINE, Firecracker, GuestImage, Machine, MachineSpec, Qemu, Trust,
        VmError, Vmm, name_of,
    },
};

use crate::stand::{Folder, IMAGE, MODEL, PATIENCE, booted, image_folder, order, start};

#[test]
fn a_worker_in_a_machine_reads_its_model_computes_and_is_sealed() {
    let Some(image) = &*IMAGE else { return };
    let folder = Folder::new("work");
    let mut machine = booted(image, &folder.spec(MODEL));
    assert_eq!(
        order(&mut machine, MODEL, "1 read the model"),
        ("GGUF\n".to_owned(), ExitKind::Exited(0))
    );
    let (said, exit) = order(&mut machine, MODEL, "2 compute");
    assert!(said.starts_with("computed "), "{said}");
    assert_eq!(exit, ExitKind::Exited(0));
    // The view from inside: one file, four descriptors, nobody, no interface that is up.
    let (said, _) = order(&mut machine, MODEL, "0 look around");
    for seen in [
        "root=[\"model.gguf\"]",
        "pid=1 uid=65534 gid=65534",
        "interfaces=0",
        "host=\"worker\"",
    ] {
        assert!(said.contains(seen), "{seen} in {said}");
    }
    // A killed worker is told as such, and the machine takes the next.
    let (said, exit) = order(&mut machine, MODEL, "2 open a file of the host");
    assert_eq!((said.as_str(), exit.is_violation()), ("", true));
    assert_eq!(order(&mut machine, MODEL, "0 hello").0, "hello\n");
    // A frame's worth of bytes there and back, whole.
    machine.start(start(MODEL)).unwrap();
    let sent: Vec<u8> = (0..300_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    let mut pipe = machine.pipe().try_clone().unwrap();
    writeln!(pipe, "2 echo").unwrap();
    let mut writing = pipe.try_clone().unwrap();
    let copy = sent.clone();
    let writer = std::thread::spawn(move || writing.write_all(&copy));
    let mut back = vec![0; sent.len()];
    pipe.set_read_timeout(Some(PATIENCE)).unwrap();
    pipe.read_exact(&mut back).unwrap();
    writer.join().unwrap().unwrap();
    assert!(back == sent, "what came back is not what went in");
}

#[test]
fn a_worker_of_a_machine_is_a_worker_like_any_other() {
    let Some(image) = &*IMAGE else { return };
    let folder = Folder::new("like");
    let mut machine = booted(image, &folder.spec(MODEL));
    machine.start(start(MODEL)).unwrap();
    let mut worker = machine.into_worker().unwrap();
    assert!(!worker.is_sealed().unwrap());
    let mut pipe = worker.take_pipe().unwrap();
    writeln!(pipe, "2 wait").unwrap();
    let mut line = String::new();
    BufReader::new(&pipe).read_line(&mut line).unwrap();
    assert_eq!(line, "waiting\n");
    assert!(worker.is_sealed().unwrap());
    // Its VMM, seen from here: no capability, a filter, no new privileges, no core.
    let view = worker.outside_view().unwrap();
    assert_eq!((view.cap_eff, view.cap_bounds), (0, 0), "{view:?}");
    assert!(view.no_new_privs && view.seccomp == 2, "{view:?}");
    assert_eq!(worker.try_wait().unwrap(), None);
    worker.kill().unwrap();
    assert_eq!(worker.wait().unwrap(), ExitKind::Signalled(9));
}

#[test]
fn the_end_of_a_worker_ends_its_machine_and_is_told() {
    let Some(image) = &*IMAGE else { return };
    let folder = Folder::new("end");
    let mut machine = booted(image, &folder.spec(MODEL));
    machine.start(start(MODEL)).unwrap();
    let mut worker = machine.into_worker().unwrap();
    let mut pipe = worker.take_pipe().unwrap();
    writeln!(pipe, "2 open a file of the host").unwrap();
    let exit = worker.wait_at_most(PATIENCE).unwrap();
    assert!(exit.is_some_and(ExitKind::is_violation), "{exit:?}");
    // And the pipe ends, which is what the daemon sees.
    let mut rest = Vec::new();
    pipe.read_to_end(&mut rest).unwrap();
}

#[test]
fn a_copy_of_a_saved_machine_wants_a_seed_of_its_own_and_takes_another_model() {
    let Some(image) = &*IMAGE else { return };
    let folder = Folder::new("copy");
    let saved = booted(image, &folder.spec(MODEL))
        .save(&folder.0.join("saved"))
        .unwrap();
    let other =
        b"GGML is another model, and a longer one than that, of more than a sector".repeat(20);
    let copy = || {
        let vmm = Qemu::restore(
            image,
            &folder.spec(&other),
            Accelerator::Emulation,
            &saved.folder,
        );
        Machine::take_up(Box::new(vmm.unwrap())).unwrap()
    };
    let mut first = copy();
    let error = first.start(start(&other)).unwrap_err();
    assert!(error.to_string().contains("no seed"), "{error}");
    first.seed().unwrap();
    assert_eq!(order(&mut first, &other, "1 read the model").0, "GGML\n");
    drop(first);
    // The file that it was made from is as good for the next.
    let mut second = copy();
    second.seed().unwrap();
    assert_eq!(order(&mut second, &other, "0 hello").0, "hello\n");
}

#[test]
fn a_disk_of_another_size_is_refused() {
    let Some(image) = &*IMAGE else { return };
    let folder = Folder::new("size");
    let mut machine = booted(image, &folder.spec(MODEL));
    let error = machine.start(start(&MODEL.repeat(100))).unwrap_err();
    assert!(error.to_string().contains("sectors"), "{error}");
}

#[test]
fn a_guest_that_hangs_at_boot_is_ended_at_its_deadline() {
    let Some(image) = &*IMAGE else { return };
    let folder = Folder::new("hang");
    let vmm = Qemu::boot(image, &folder.spec(MODEL), Accelerator::Emulation).unwrap();
    let pid = vmm.pid();
    // It executes nothing any more, as if its kernel stood still.
    let stopped = std::process::Command::new("kill")
        .args(["-STOP", &pid.to_string()])
        .status();
    assert!(stopped.unwrap().success());
    let (since, deadline) = (Instant::now(), Duration::from_secs(3));
    let error = Machine::await_boot(Box::new(vmm), deadline)
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, VmError::Boot { .. }), "{error}");
    assert!(since.elapsed() >= deadline, "{:?}", since.elapsed());
    // It is gone, not left behind.
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_guest_whose_kernel_panics_is_told_before_its_deadline() {
    let Some(from) = image_folder() else { return };
    let folder = Folder::new("panics");
    for name in ["image.json", "initrd.cpio", "root.erofs", "vmlinux"] {
        fs::copy(from.join(name), folder.0.join(name)).unwrap();
    }
    let image = without_first_process(&folder.0);
    let vmm = Qemu::boot(&image, &folder.spec(MODEL), Accelerator::Emulation).unwrap();
    let error = Machine::await_boot(Box::new(vmm), BOOT_DEADLINE)
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, VmError::Vmm { .. }), "{error}");
}

/// An image that is whole by its own manifest and whose first process is no program: its kernel panics, which ends the machine.
fn without_first_process(folder: &std::path::Path) -> GuestImage {
    use sha2::{Digest, Sha256};
    let initrd = folder.join("initrd.cpio");
    let mut bytes = fs::read(&initrd).unwrap();
    // A name ends its entry's header, and the content begins at the next multiple of four.
    let name = b"00000000init\0";
    let at = bytes.windows(name.len()).position(|window| window == name);
    let at = (at.unwrap() + name.len()).next_multiple_of(4);
    assert_eq!(&bytes[at..at + 4], b"\x7fELF");
    bytes[at..at + 4].copy_from_slice(b"\x7fELG");
    fs::write(&initrd, &bytes).unwrap();
    let manifest = folder.join("image.json");
    let mut json: serde_json::Value =
        serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    let hash: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    json["initrd"]["sha256"] = hash.into();
    fs::write(&manifest, serde_json::to_vec(&json).unwrap()).unwrap();
    GuestImage::open(folder, Trust::Name(name_of(folder).unwrap())).unwrap()
}

#[test]
fn a_machine_without_its_files_is_not_made() {
    let Some(image) = &*IMAGE else { return };
    let folder = Folder::new("none");
    let spec = MachineSpec {
        files: [None, None, None],
        worker_memory: 64 << 20,
        processors: 1,
    };
    let mut machine = booted(image, &spec);
    let error = machine.start(start(MODEL)).unwrap_err();
    assert!(error.to_string().contains("sectors"), "{error}");
    // A folder is no disk.
    let spec = MachineSpec {
        files: [Some(File::open(&folder.0).unwrap()), None, None],
        ..spec
    };
    let vmm = Qemu::boot(image, &spec, Accelerator::Emulation).unwrap();
    let error = Machine::await_boot(Box::new(vmm), PATIENCE)
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, VmError::Vmm { .. }), "{error}");
}

/// As far as Firecracker's interface goes: on a machine whose KVM boots nothing, everything but the guest's first line.
#[test]
fn firecracker_takes_the_machine_as_it_is_described() {
    let (Some(image), true) = (&*IMAGE, Firecracker::is_installed()) else {
        eprintln!("skipped: no firecracker in /usr/bin or /usr/local/bin");
        return;
    };
    let folder = Folder::new("fire");
    let own = folder.0.join("own");
    fs::create_dir(&own).unwrap();
    let spec = folder.spec(MODEL);
    let mut vmm = Firecracker::boot(image, &spec, &own).unwrap();
    let saved = folder.0.join("saved");
    fs::create_dir(&saved).unwrap();
    vmm.save(&saved).unwrap();
    drop(vmm);
    fs::remove_dir_all(&own).unwrap();
    fs::create_dir(&own).unwrap();
    Firecracker::restore(image, &spec, &own, &saved).unwrap();
}

#[test]
fn an_image_that_answers_starts_nothing_without_a_wall() {
    let Some(attackers) = image_folder() else {
        return;
    };
    let folder = Folder::new("honest");
    let image = crate::stand::image(&attackers.with_file_name("microvm"));
    let mut machine = booted(&image, &folder.spec(MODEL));
    let error = machine.breach(start(MODEL)).unwrap_err();
    assert!(
        error.to_string().contains("nothing without a wall"),
        "{error}"
    );
}
