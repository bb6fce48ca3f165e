//! What is not started, and what the owner is told.

use std::fs;

use substrate_sandbox::launch::{
    ExitKind, LaunchError, LayerState, Wall, WallSpec, probe, worker_sha256,
};

use crate::ground::{NOBODY, become_uid, ground, is_root, order, spawn, spec, story};

fn check(spec: WallSpec, expected: &str) {
    let told = Wall::spawn(spec).map(drop).map_err(|error| story(&error));
    let told = told.expect_err("refused");
    let home = ground().model.parent().unwrap().display().to_string();
    assert_eq!(told.replace(&home, "HOME"), expected);
}

fn in_home(name: &str) -> std::path::PathBuf {
    ground().model.with_file_name(name)
}

#[test]
fn a_missing_worker_is_named() {
    let worker = in_home("gone");
    check(
        WallSpec { worker, ..spec() },
        "cannot open the worker HOME/gone: No such file or directory (os error 2)",
    );
}

#[test]
fn a_worker_that_needs_libraries_is_refused_with_a_hint() {
    let worker = "/bin/true".into();
    check(
        WallSpec { worker, ..spec() },
        "could not execute the worker: No such file or directory (os error 2); the worker must be \
         statically linked: its root holds no libraries",
    );
}

#[test]
fn a_worker_that_is_no_program_is_refused() {
    let worker = ground().model.clone();
    check(
        WallSpec { worker, ..spec() },
        "could not execute the worker: Permission denied (os error 13); the worker must be \
         executable and not on a noexec mount",
    );
}

#[test]
fn a_worker_with_another_digest_is_not_started() {
    let found = worker_sha256(&ground().worker).unwrap();
    let right = WallSpec {
        expected_worker_sha256: Some(found),
        ..spec()
    };
    assert_eq!(order(&mut spawn(right), 1, "hello").0, "hello");

    let wrong = WallSpec {
        expected_worker_sha256: Some([7; 32]),
        ..spec()
    };
    let refused = Wall::spawn(wrong).map(drop);
    assert!(
        matches!(refused, Err(LaunchError::WrongWorker { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_model_that_is_no_file_is_named() {
    let cases = [
        (
            in_home("gone"),
            "HOME/gone: No such file or directory (os error 2)",
        ),
        (in_home("."), "HOME/.: not a regular file"),
        ("/dev/null".into(), "/dev/null: not a regular file"),
    ];
    for (model, expected) in cases {
        let expected = format!("cannot open the model {expected}");
        check(WallSpec { model, ..spec() }, &expected);
    }
}

#[test]
fn a_named_pipe_in_place_of_a_model_does_not_hang_the_daemon() {
    let model = in_home("fifo");
    let path = std::ffi::CString::new(model.to_str().unwrap()).unwrap();
    // SAFETY: the path is a live C string.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o644) }, 0);
    check(
        WallSpec {
            model: model.clone(),
            ..spec()
        },
        "cannot open the model HOME/fifo: not a regular file",
    );
    fs::remove_file(model).unwrap();
}

#[test]
fn root_is_never_a_worker() {
    // Left to itself, a daemon that is root would have workers that are root.
    let unsaid = is_root().then_some(None);
    for become_uid in unsaid.into_iter().chain([Some(0)]) {
        check(
            WallSpec {
                become_uid,
                ..spec()
            },
            "a worker is never started as root; run the daemon as an ordinary user",
        );
    }
}

#[test]
fn only_root_becomes_another_user() {
    if is_root() {
        return;
    }
    let become_uid = Some(NOBODY - 1);
    check(
        WallSpec {
            become_uid,
            ..spec()
        },
        "only root can start a worker as user 65533",
    );
}

#[test]
fn a_model_the_worker_cannot_read_is_refused() {
    if !is_root() {
        return;
    }
    let folder = in_home("closed");
    fs::create_dir_all(&folder).unwrap();
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&folder, closed).unwrap();
    let model = folder.join("model");
    fs::write(&model, "GGUF").unwrap();
    check(
        WallSpec { model, ..spec() },
        "could not take the model's file out of its folder: Permission denied (os error 13); the \
         model must be readable by the user the worker runs as",
    );
}

#[test]
fn a_probe_goes_through_every_layer() {
    let report = probe(become_uid());
    assert_eq!(report.namespaces, LayerState::Works);
    assert_eq!(report.seccomp, LayerState::Works);
    assert!(
        !matches!(report.landlock, LayerState::Missing { .. }),
        "{report}"
    );
    assert!(report.offers_process());
    if is_root() {
        let refused = probe(None);
        assert!(!refused.offers_process());
        let hint = "missing: a worker is never started as root; run the daemon as an ordinary user";
        assert_eq!(refused.whole.to_string(), hint);
    }
}

#[test]
fn where_user_namespaces_are_forbidden_the_owner_learns_which_switch() {
    // A user namespace in which no further one may be made: the sysctl is per namespace.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" \"$@\"";
    let output = std::process::Command::new("unshare")
        .args([
            "--user",
            "--map-current-user",
            "--keep-caps",
            "sh",
            "-c",
            script,
        ])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "refusals::tells_what_is_forbidden",
            "--nocapture",
        ])
        .env(FORBIDDEN, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("max_user_namespaces is 0"),
        "{said} {output:?}"
    );
}

const FORBIDDEN: &str = "SUBSTRATE_TEST_FORBIDDEN";

/// The process of the test above; does nothing in an ordinary run.
#[test]
fn tells_what_is_forbidden() {
    if std::env::var_os(FORBIDDEN).is_none() {
        return;
    }
    println!("{}", story(&Wall::spawn(spec()).map(drop).unwrap_err()));
    println!("{}", probe(become_uid()));
}

#[test]
fn what_a_probe_leaves_behind_is_nothing() {
    probe(become_uid());
    let mut worker = spawn(spec());
    worker.kill().unwrap();
    assert_eq!(worker.wait().unwrap(), ExitKind::Signalled(libc::SIGKILL));
    drop(worker);
    // SAFETY: waitid fills a siginfo_t on this stack; there must be no child to wait for.
    let left = unsafe {
        let mut none: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        libc::waitid(libc::P_ALL, 0, &raw mut none, flags)
    };
    let single = std::env::var_os("NEXTEST").is_some();
    assert!(left < 0 || !single, "a child is left");
}
