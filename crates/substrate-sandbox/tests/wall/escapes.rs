//! Attempts to get out, one child each, at both stages, and outside as a control.

use std::{fs, path::PathBuf, sync::LazyLock};

use substrate_sandbox::{
    launch::ExitKind,
    suite::{Attempt, ProcessWall, Suite},
};

use crate::ground::{become_uid, ground, run};

/// Every attack once; some two seconds.
static ATTEMPTS: LazyLock<Vec<Attempt>> = LazyLock::new(|| {
    let folder: PathBuf = ground().model.with_file_name("controls");
    fs::create_dir_all(&folder).unwrap();
    let suite = Suite {
        attacker: ground().worker.clone(),
        ground: folder,
        become_uid: become_uid(),
    };
    let attacks = suite.attacks().unwrap();
    attacks
        .into_iter()
        .map(|attack| suite.attempt(&mut ProcessWall, attack).unwrap())
        .collect()
});

#[test]
fn no_attack_works() {
    let escaped: Vec<&Attempt> = ATTEMPTS.iter().filter(|one| !one.denied).collect();
    assert!(escaped.is_empty(), "{escaped:#?}");
}

#[test]
fn outside_the_wall_the_attacks_work() {
    let failed: Vec<&Attempt> = ATTEMPTS
        .iter()
        .filter(|one| one.attack.works_outside && !one.control_succeeded)
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let counted = ATTEMPTS.iter().filter(|one| one.counts()).count();
    println!("{counted} of {} attacks count", ATTEMPTS.len());
    assert!(ATTEMPTS.len() >= 60 && counted >= 40);
}

/// How an attack ends that no filter lets through.
const KILLED: &str = "killed by the filter";

/// Before the model is loaded, a path may be opened, as the model is; the empty root has no other.
const NO_SUCH_PATH: &str = "No such file or directory, then killed by the filter";

/// What is refused by an error number instead of death, at one stage or both, and why that is enough.
const REFUSED_ALIVE: [(&str, &str); 9] = [
    ("open a file of the host", NO_SUCH_PATH),
    ("climb out by ..", NO_SUCH_PATH),
    ("open its own status", NO_SUCH_PATH),
    ("open the host's root through /proc", NO_SUCH_PATH),
    ("open a file of /sys", NO_SUCH_PATH),
    ("open a device", NO_SUCH_PATH),
    ("open the machine's memory", NO_SUCH_PATH),
    // Its flags cannot be seen by a filter; ENOSYS makes the C library use clone, whose can.
    (
        "make a process by clone3",
        "Function not implemented, then killed by the filter",
    ),
    // Memory may be asked for, within the limit of addresses.
    ("reserve a terabyte", "Cannot allocate memory"),
];

#[test]
fn whoever_tries_is_killed_but_for_what_is_listed() {
    let alive: Vec<(&str, &str)> = ATTEMPTS
        .iter()
        .filter(|one| one.how != KILLED)
        .map(|one| (one.attack.name.as_str(), one.how.as_str()))
        .collect();
    assert_eq!(alive, REFUSED_ALIVE);
}

#[test]
fn a_loaded_worker_cannot_open_even_its_model() {
    assert_eq!(
        run(1, "read the model"),
        ("GGUF".to_owned(), ExitKind::Exited(0))
    );
    assert!(run(2, "read the model").1.is_violation());
}
