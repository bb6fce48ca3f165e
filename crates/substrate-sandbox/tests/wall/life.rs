//! Who outlives whom.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use substrate_sandbox::launch::ExitKind;

use crate::ground::{PATIENCE, order, spawn, spec};

/// Set in a child that plays the daemon.
const ROLE: &str = "SUBSTRATE_TEST_DAEMON_ROLE";

#[test]
fn a_dropped_worker_is_killed_and_reaped() {
    let worker = spawn(spec());
    let process = format!("/proc/{}", worker.pid());
    assert!(Path::new(&process).exists());
    drop(worker);
    assert!(!Path::new(&process).exists());
}

#[test]
fn a_killed_worker_says_so_as_often_as_asked() {
    let mut worker = spawn(spec());
    assert_eq!(worker.try_wait().unwrap(), None);
    worker.kill().unwrap();
    let killed = ExitKind::Signalled(libc::SIGKILL);
    assert_eq!(worker.wait().unwrap(), killed);
    assert_eq!(worker.try_wait().unwrap(), Some(killed));
    worker.kill().unwrap();
}

#[test]
fn a_worker_outlives_the_thread_that_asked_for_it() {
    let asker = thread::spawn(|| {
        // SAFETY: gettid has no arguments and cannot fail.
        let thread = unsafe { libc::gettid() };
        (spawn(spec()), thread)
    });
    let (mut worker, thread) = asker.join().unwrap();
    // `join` returns a little before the thread is gone. The kernel signals the children of a thread
    // before it takes the thread out of this list, and a worker under SIGKILL answers nothing.
    let task = format!("/proc/self/task/{thread}");
    until("the thread is gone", || !Path::new(&task).exists());
    assert_eq!(worker.try_wait().unwrap(), None);
    assert_eq!(order(&mut worker, 2, "hello").0, "hello");
}

#[test]
fn many_workers_start_at_once() {
    let starters: Vec<_> = (0..8)
        .map(|_| {
            thread::spawn(|| {
                for _ in 0..4 {
                    let mut worker = spawn(spec());
                    assert_eq!(order(&mut worker, 2, "hello").0, "hello");
                }
            })
        })
        .collect();
    for starter in starters {
        starter.join().unwrap();
    }
}

#[test]
fn a_worker_dies_with_its_daemon() {
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "life::plays_the_daemon", "--nocapture"])
        .env(ROLE, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
    let worker = lines
        .map_while(Result::ok)
        .find_map(|line| Some(line.split_once("worker=")?.1.to_owned()))
        .expect("the daemon names its worker");
    assert!(alive(&worker));
    // SIGKILL: the daemon has no chance to tidy up.
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    until("the worker is gone", || !alive(&worker));
}

/// The daemon of the test above; does nothing in an ordinary run.
#[test]
fn plays_the_daemon() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let mut worker = spawn(spec());
    // The worker waits on its pipe without writing, so that only the signal can end it at once.
    let (answer, _pipe) = order(&mut worker, 2, "wait");
    assert_eq!(answer, "waiting");
    println!("worker={}", worker.pid());
    thread::sleep(PATIENCE);
}

/// Looks until it holds.
fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process runs; one that nobody has reaped yet does not.
fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}
