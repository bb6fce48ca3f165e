//! Hard limits, tried where a subtree of cgroups can be had: the tests make one as root and give it to nobody, as systemd
//! does for a unit with `Delegate=yes`.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
};

use substrate_sandbox::launch::{ExitKind, HardLimits, WallSpec, probe, set_hard_limits};

use crate::ground::{NOBODY, PATIENCE, ground, is_root, order, spawn, spec};

/// Set in a child that plays a daemon with a subtree: the subtree.
const ROLE: &str = "SUBSTRATE_TEST_SUBTREE";

/// Beyond the model and what the kernel may keep for it. The limits of address space leave half a gigabyte more.
const MEMORY: u64 = 32 << 20;

#[test]
fn a_worker_that_takes_more_than_its_group_allows_is_killed() {
    let subtree = match Subtree::delegate() {
        Ok(subtree) => subtree,
        Err(why) => return eprintln!("skipped: no cgroup can be delegated here: {why}"),
    };
    // The control: without a group it is address space that ends, later, and the worker is told.
    let mut worker = spawn(WallSpec {
        memory_limit: MEMORY,
        ..spec()
    });
    let (answer, _pipe) = order(&mut worker, 2, "fill memory");
    assert!(answer.starts_with("refused after"), "{answer}");

    // A copy that nobody may run. It moves before it becomes nobody, as systemd puts a unit's first process into its group.
    let program = ground().worker.with_file_name("tests");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let script = "echo $$ > \"$0/cgroup.procs\" && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
    let output = Command::new("sh")
        .args(["-c", script])
        .args([&subtree.0, &program])
        .args([
            "--exact",
            "limits::plays_a_daemon_with_a_subtree",
            "--nocapture",
        ])
        .env(ROLE, &subtree.0)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("killed at its limit"), "{said} {output:?}");
    assert!(output.status.success(), "{said} {output:?}");
}

/// The daemon of the test above; does nothing in an ordinary run.
#[test]
fn plays_a_daemon_with_a_subtree() {
    let Some(subtree) = std::env::var_os(ROLE).map(PathBuf::from) else {
        return;
    };
    let own = std::process::id();
    assert_eq!(HardLimits::of(own), HardLimits::On);
    assert_eq!(set_hard_limits(), HardLimits::On);
    assert_eq!(probe(None).hard_limits, HardLimits::On);
    // From outside, now that the daemon is in its leaf.
    assert_eq!(HardLimits::of(own), HardLimits::On);
    let program = std::env::current_exe().unwrap();
    let spec = WallSpec {
        memory_limit: MEMORY,
        ..WallSpec::new(
            program.with_file_name("attacker"),
            program.with_file_name("model.bin"),
        )
    };
    let mut worker = spawn(spec.clone());
    let groups = groups(&subtree);
    assert_eq!(groups.len(), 1, "{groups:?}");
    let told = |file: &str| {
        let text = fs::read_to_string(groups[0].join(file)).unwrap();
        text.trim().to_owned()
    };
    assert_eq!(told("cgroup.procs"), worker.pid().to_string());
    let allowed = (1 << 20) + MEMORY + (128 << 20);
    assert_eq!(told("memory.max"), allowed.to_string());
    assert_eq!(told("memory.oom.group"), "1");
    assert_eq!(told("cpu.weight"), "50");
    assert_ne!(told("pids.max"), "max");
    assert_eq!(order(&mut worker, 2, "hello").0, "hello");
    drop(worker);
    assert!(!groups[0].exists(), "the group of a reaped worker is left");

    let mut worker = spawn(spec);
    let (answer, _pipe) = order(&mut worker, 2, "fill memory");
    assert_eq!(answer, "");
    let exit = worker.wait_at_most(PATIENCE).unwrap();
    assert_eq!(exit, Some(ExitKind::Signalled(libc::SIGKILL)));
    println!("killed at its limit");
}

fn groups(subtree: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(subtree)
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    entries
        .filter(|path| path.is_dir() && !path.ends_with("daemon"))
        .collect()
}

/// A group that belongs to nobody, with all controllers.
struct Subtree(PathBuf);

impl Subtree {
    fn delegate() -> Result<Self, String> {
        if !is_root() {
            return Err("only root can give a group away".to_owned());
        }
        let mounts = fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
        let mounted = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let (_, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(place))
        });
        let top = mounted.ok_or("no cgroup v2 is mounted")?;
        let given = top.join(format!("substrate-wall-{}", std::process::id()));
        let failed = |error: std::io::Error| format!("{}: {error}", given.display());
        // Refused where another hierarchy holds a controller, or a group with processes lies between.
        fs::write(top.join("cgroup.subtree_control"), "+cpu +memory +pids").map_err(|error| {
            format!(
                "{} hands down no cpu, memory and pids: {error}",
                top.display()
            )
        })?;
        fs::create_dir(&given).map_err(failed)?;
        let subtree = Self(given.clone());
        for file in [
            "",
            "cgroup.procs",
            "cgroup.threads",
            "cgroup.subtree_control",
        ] {
            chown(given.join(file), Some(NOBODY), Some(NOBODY)).map_err(failed)?;
        }
        Ok(subtree)
    }
}

impl Drop for Subtree {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.0.join("daemon"));
        let _ = fs::remove_dir(&self.0);
    }
}
