//! What a worker sees, what it can still do, and what the kernel says about it from outside.

use std::{fs, io::Write, net::Shutdown, os::unix::fs::PermissionsExt};

use substrate_sandbox::launch::{ExitKind, Stderr, WallSpec};

use crate::ground::{NOBODY, PATIENCE, ground, order, run, spawn, spec};

#[test]
fn a_worker_sees_its_model_and_nothing_else() {
    let (seen, exit) = run(0, "look around");
    assert_eq!(
        seen,
        format!(
            "root=[\"model.gguf\"] descriptors=[0, 1, 2, 4] environment=[\"GGML_NO_BACKTRACE=1\"] \
             pid=1 uid={NOBODY} gid={NOBODY} write=Some({erofs}) create=Some({erofs}) \
             host=\"worker\" limits=[16, 0, 0] interfaces=0",
            erofs = libc::EROFS
        )
    );
    assert_eq!(exit, ExitKind::Exited(0));
}

#[test]
fn projector_and_adapter_are_the_only_other_files_that_a_worker_sees() {
    let beside = |name: &str| {
        let file = ground().model.with_file_name(name);
        fs::write(&file, "GGUF").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        file
    };
    let (projector, adapter) = (beside("mmproj.bin"), beside("lora.bin"));
    let mut worker = spawn(WallSpec {
        projector: Some(projector.clone()),
        adapter: Some(adapter.clone()),
        ..spec()
    });
    let (seen, _pipe) = order(&mut worker, 0, "look around");
    let root = seen.split(']').next().unwrap();
    for name in ["model.gguf", "mmproj.gguf", "adapter.gguf"] {
        assert!(root.contains(&format!("\"{name}\"")), "{seen}");
    }
    assert_eq!(root.matches('"').count(), 6, "{seen}");
    for file in [projector, adapter] {
        fs::remove_file(file).unwrap();
    }
}

#[test]
fn the_kernel_confirms_the_seals() {
    for (stage, filters) in [(1, 2), (2, 3)] {
        let mut worker = spawn(spec());
        let (answer, pipe) = order(&mut worker, stage, "wait");
        assert_eq!(answer, "waiting");
        let view = worker.outside_view().unwrap();
        assert!(!view.uids.contains(&0), "{view:?}");
        assert_eq!((view.cap_eff, view.cap_bounds), (0, 0));
        assert_eq!((view.seccomp, view.seccomp_filters), (2, filters));
        assert!(view.no_new_privs);
        assert_eq!(view.is_sealed(), stage == 2);
        // An undumpable process shows as root's. Its owner has its files shut, and yet may trace it (docs/sandbox.md).
        let own = fs::metadata(format!("/proc/{}/fd", worker.pid())).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&own), 0);
        pipe.shutdown(Shutdown::Write).unwrap();
        assert_eq!(
            worker.wait_at_most(PATIENCE).unwrap(),
            Some(ExitKind::Exited(0))
        );
    }
}

#[test]
fn a_sealed_worker_still_works() {
    for stage in [1, 2] {
        for (command, expected) in [
            ("hello", "hello"),
            ("compute", "computed 67108876"),
            ("grow", "grown to 67108864"),
        ] {
            assert_eq!(
                run(stage, command),
                (expected.to_owned(), ExitKind::Exited(0))
            );
        }
    }
}

#[test]
fn a_thread_that_is_still_starting_survives_the_second_seal() {
    for _ in 0..60 {
        let (answer, exit) = run(2, "start a thread late");
        assert_eq!(
            (answer.as_str(), exit),
            ("Some(499500)", ExitKind::Exited(0))
        );
    }
}

#[test]
fn a_thread_that_would_escape_the_first_seal_prevents_it() {
    assert_eq!(
        run(1, "start a thread early"),
        (String::new(), ExitKind::Exited(1))
    );
}

#[test]
fn an_abort_of_the_engine_does_not_look_like_an_attack() {
    assert_no_violation(1, "abort");
}

#[test]
fn nor_does_one_amid_an_answer() {
    assert_no_violation(2, "abort");
}

#[test]
fn nor_does_a_fault() {
    for stage in [1, 2] {
        let exit = assert_no_violation(stage, "fault");
        assert_eq!(exit, ExitKind::Signalled(libc::SIGSEGV));
    }
}

#[track_caller]
fn assert_no_violation(stage: u8, command: &str) -> ExitKind {
    let (_, exit) = run(stage, command);
    assert!(
        matches!(exit, ExitKind::Signalled(_)) && !exit.is_violation(),
        "{exit:?}"
    );
    exit
}

#[test]
fn memory_is_refused_beyond_the_limit() {
    let (answer, exit) = run(2, "allocate too much");
    let blocks: u64 = answer
        .strip_prefix("refused after ")
        .unwrap()
        .parse()
        .unwrap();
    // Blocks of 256 MiB within 2 GiB and what threads and heap may take besides.
    assert!((8..64).contains(&blocks), "{answer}");
    assert_eq!(exit, ExitKind::Exited(0));
}

#[test]
fn the_pipe_carries_a_large_message_both_ways() {
    let mut worker = spawn(spec());
    let (answer, mut pipe) = order(&mut worker, 2, "wait");
    assert_eq!(answer, "waiting");
    let message: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
    let mut reader = pipe.try_clone().unwrap();
    let sent = message.clone();
    let writer = std::thread::spawn(move || pipe.write_all(&sent).unwrap());
    let mut back = vec![0; message.len()];
    std::io::Read::read_exact(&mut reader, &mut back).unwrap();
    writer.join().unwrap();
    assert!(back == message);
}

#[test]
fn an_engine_that_chatters_neither_blocks_nor_fills_anything() {
    for stderr in [Stderr::Null, Stderr::Pipe] {
        let mut worker = spawn(WallSpec { stderr, ..spec() });
        let (answer, _pipe) = order(&mut worker, 2, "chatter");
        assert_eq!(answer, "still here");
        assert_eq!(
            worker.wait_at_most(PATIENCE).unwrap(),
            Some(ExitKind::Exited(0))
        );
        let heard = worker.stderr_so_far().len();
        assert_eq!(heard > 0, stderr == Stderr::Pipe);
        assert!(heard <= 64 * 1024, "{heard}");
    }
}
