//! Groups as this machine's kernel makes them, where it lets the tests; limits themselves are tried in `tests/wall/limits.rs`.

use std::time::Duration;

use super::super::{ExitKind, Identity, Worker, plan::Last, probe_parts, spawner};
use super::*;

/// A group in that of the tests, or why there is none.
fn group() -> Result<Group, String> {
    let own = own_group(std::process::id())?;
    let tests = own.join(format!("substrate-test-{}", std::process::id()));
    fs::create_dir(&tests).map_err(|error| format!("{}: {error}", tests.display()))?;
    Group::make(&tests).map_err(|error| format!("{}: {error}", tests.display()))
}

#[test]
fn a_child_is_born_in_its_group_which_goes_when_it_was_reaped() {
    let group = match group() {
        Ok(group) => group,
        Err(why) => return eprintln!("skipped: no cgroup can be made here: {why}"),
    };
    let folder = group.path.clone();
    let last = Last::Probe {
        namespaces: false,
        landlock: false,
        seccomp: false,
    };
    let identity = Identity { uid: 1, gid: 1 };
    let (plan, mut descriptors, ours) = probe_parts(last, identity).unwrap();
    descriptors.group = Some(group.open().unwrap());
    let child = spawner::start(plan, descriptors, None).unwrap();
    // Dead or alive: a process keeps its group until it was waited for.
    let told = fs::read_to_string(format!("/proc/{}/cgroup", child.pid)).unwrap();
    let mut worker = Worker::new(child, ours, None, Some(group));
    let name = folder.file_name().unwrap().to_str().unwrap();
    let path = cgroup_paths::unified(&told).unwrap();
    assert!(path.ends_with(name), "{path} is not {name}");
    let exit = worker.wait_at_most(Duration::from_secs(30)).unwrap();
    assert_eq!(exit, Some(ExitKind::Exited(0)));
    assert!(!folder.exists(), "{} is left", folder.display());
    fs::remove_dir(folder.parent().unwrap()).unwrap();
}

#[test]
fn a_group_that_cannot_be_limited_is_told_and_not_changed() {
    let group = match group() {
        Ok(group) => group,
        Err(why) => return eprintln!("skipped: no cgroup can be made here: {why}"),
    };
    // Its parent hands nothing down: only then may a group have both processes and children.
    let why = vacant(&group.path, std::process::id()).unwrap_err();
    assert!(why.starts_with("cpu is not handed down to /"), "{why}");
    let off = HardLimits::from_result(Err(why));
    assert!(
        off.to_string()
            .contains("run under a unit with Delegate=yes")
    );
    assert!(group.limit(1 << 30).is_err());
    let tests = group.path.parent().unwrap().to_owned();
    drop(group);
    fs::remove_dir(tests).unwrap();
}
