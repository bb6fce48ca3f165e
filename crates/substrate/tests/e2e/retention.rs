//! A provider keeps no prompt: after crashes and a kill -9, a marker is in none of its files, logs and cores.
//!
//! The control is the same search over the same disk while the provider answers: what its processes hold in memory is
//! written into its home from outside, as a debugger would, and there the marker is found. So the provider did hold it,
//! a prompt that reached the disk would be found, and there is no setting to turn on that would log one
//! (`log.prompts` knows only `never`).

use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::node::{Node, Scratch, files_below};
use xtask::packages::is_root;
use xtask::size;
use xtask::stream::complete;
use xtask::trio::{Holders, MODEL, Trio, signal, test_bin, test_model};

const MARKER: &str = "zebra-quartz-vulcan-7731";
/// Jobs in all, in the gate and in `prove`.
const JOBS: (usize, usize) = (30, 200);
/// Jobs in whose middle the worker is killed, spread over all.
const CRASHES: usize = 5;
/// Long enough to be looked at while it is answered.
const LONG: u32 = 400;
/// Times that an answer may end before it is seen.
const TRIES: usize = 20;

#[test]
fn a_marker_prompt_is_in_no_file_of_its_provider_after_crashes() -> Result<()> {
    let scratch = Scratch::new("retention")?;
    std::fs::write(scratch.path().join(BEGAN), "")?;
    let mut trio = Trio::start_with(
        &test_bin(),
        scratch.path(),
        &test_model(),
        Holders::Guests,
        |node| {
            node.with_env("SUBSTRATE_LOG", "trace,h2=info,libp2p=debug")
                .with_prefix(&UNLIMITED_CORES)
        },
    )?;
    let mut answered = 0;
    let jobs = size::of(JOBS.0, JOBS.1);
    let crash_every = jobs / CRASHES;
    for job in 0..jobs {
        let crash = job % crash_every == crash_every / 2;
        let asked = if crash {
            let (asked, _, worker) = ask_and_see(&trio, job, LONG)?;
            signal(worker, "SEGV")?;
            asked
        } else {
            ask(&trio, job, 1)
        };
        answered += usize::from(asked.join().expect("the client does not panic").is_ok());
        if job == jobs / 2 {
            trio.b.kill()?;
            trio.b.start()?;
            trio.wait_until_seen()?;
        }
    }
    assert_eq!(answered, jobs, "every job was answered, crashes or not");
    for guest in [&trio.b, &trio.c] {
        assert_eq!(
            holding(guest)?,
            Vec::<PathBuf>::new(),
            "node {}",
            guest.name
        );
    }
    nothing_is_left_outside_the_home(&trio)?;
    the_search_finds_what_a_provider_holds(&trio)?;
    its_own_user_cannot_look_into_a_daemon(&trio)?;
    what_freed_memory_still_holds_is_bounded(&trio)?;
    no_core_is_left_of_a_provider_that_aborts(&mut trio)
}

fn the_search_finds_what_a_provider_holds(trio: &Trio) -> Result<()> {
    if !is_root() {
        // The daemon and its worker let nobody but root look into them.
        println!("control left out: only root may look into a provider's memory");
        return Ok(());
    }
    let (asked, node, worker) = ask_and_see(trio, JOBS.1, LONG)?;
    let (node, daemon) = (trio.guest(&node)?, trio.guest(&node)?.pid());
    let image = node.home.join("memory");
    let mut file = std::fs::File::create(&image)?;
    for pid in [daemon.context("it runs")?, worker] {
        write_memory(pid, &mut file)?;
    }
    assert_eq!(
        holding(node)?,
        std::slice::from_ref(&image),
        "the provider holds the marker while it answers, and the search finds it"
    );
    assert!(copies(&image)? > 0, "and what counts copies finds some");
    std::fs::remove_file(image)?;
    asked.join().expect("the client does not panic")?;
    Ok(())
}

/// Folders for what is temporary, which any program may have been told to use.
const TEMPORARY: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// A file as old as the test.
const BEGAN: &str = "began";

/// Of all files there that the provider's user has written since the test began, only the control's holds the marker.
fn nothing_is_left_outside_the_home(trio: &Trio) -> Result<()> {
    let scratch = trio.b.home.parent().context("a parent")?;
    let owner = std::fs::metadata(&trio.b.home)?.uid();
    let control = scratch.join("control-of-temporary-files");
    std::fs::write(&control, MARKER)?;
    chown(&control, Some(owner), None)?;
    let folders = TEMPORARY.iter().filter(|folder| Path::new(folder).is_dir());
    let listed = Command::new("find")
        .args(folders)
        .args(["-xdev", "-type", "f", "-user", &owner.to_string(), "-newer"])
        .arg(scratch.join(BEGAN))
        .output()?;
    // What other programs remove meanwhile makes `find` fail, and is not ours; nor is the folder of another test.
    let listed = String::from_utf8(listed.stdout)?;
    let is_ours =
        |file: &&Path| file.starts_with(scratch) || !file.to_string_lossy().contains("/substrate-");
    let files = listed.lines().map(Path::new).filter(is_ours);
    let found: Vec<&Path> = files.filter(|file| holds(file).unwrap_or(false)).collect();
    assert_eq!(found, [control.as_path()]);
    std::fs::remove_file(control)?;
    Ok(())
}

/// What `gcore` and every debugger need first: the map of another process and its memory. The kernel keeps those of the daemon from
/// its own user, as it is not dumpable; the control is a program of the same user that is. Of workers this is not promised
/// (docs/sandbox.md).
fn its_own_user_cannot_look_into_a_daemon(trio: &Trio) -> Result<()> {
    let owner = std::fs::metadata(&trio.b.home)?.uid();
    let look = |pid: u32, what: &str| -> Result<bool> {
        let mut program = Command::new("dd");
        let from = format!("if=/proc/{pid}/{what}");
        program.args([&from, "of=/dev/null", "bs=1", "count=0"]);
        if is_root() {
            program.uid(owner).gid(owner);
        }
        Ok(program.output()?.status.success())
    };
    let mut control = Command::new("sleep");
    if is_root() {
        control.uid(owner).gid(owner);
    }
    let mut control = control.arg("600").spawn()?;
    let [map, memory] = ["maps", "mem"].map(|what| look(control.id(), what));
    control.kill()?;
    control.wait()?;
    assert!(map?, "the map of an ordinary program can be read");
    println!(
        "the memory of an ordinary program can be opened: {}",
        memory?
    );
    let (asked, node, _) = ask_and_see(trio, JOBS.1 + 2, LONG)?;
    let daemon = trio.guest(&node)?.pid().context("it runs")?;
    for what in ["maps", "mem"] {
        assert!(!look(daemon, what)?, "/proc/{daemon}/{what} can be opened");
    }
    asked.join().expect("the client does not panic")?;
    Ok(())
}

/// Copies of the marker that a provider's memory may hold after all its jobs: buffers of the streams that nobody has used again. They
/// are a few, however many jobs there were.
const MOST_LEFT: usize = 16;

fn what_freed_memory_still_holds_is_bounded(trio: &Trio) -> Result<()> {
    if !is_root() {
        println!("left out: only root may look into a provider's memory");
        return Ok(());
    }
    for guest in [&trio.b, &trio.c] {
        let workers = guest.json(&["ps"])?;
        let workers = workers["models"].as_array().into_iter().flatten();
        let workers = workers.filter_map(|worker| worker["pid"].as_u64());
        let daemon = guest.pid().context("it runs")?;
        for (whose, pid) in [("daemon", daemon)]
            .into_iter()
            .chain(workers.map(|pid| ("worker", pid as u32)))
        {
            let image = guest.home.join("memory");
            write_memory(pid, &mut std::fs::File::create(&image)?)?;
            let copies = copies(&image)?;
            std::fs::remove_file(image)?;
            println!(
                "node {}: the {whose} holds {copies} copies of the marker after its jobs",
                guest.name
            );
            assert!(copies <= MOST_LEFT, "the {whose} holds {copies} copies");
        }
    }
    Ok(())
}

/// Aborts a daemon that holds the marker, as a failed assertion in it would, where cores are wanted without limit.
fn no_core_is_left_of_a_provider_that_aborts(trio: &mut Trio) -> Result<()> {
    let others_leave_cores =
        another_program_leaves_a_core(trio.b.home.parent().context("a parent")?)?;
    println!("another program aborted in the same way leaves a core: {others_leave_cores}");
    let (asked, node, worker) = ask_and_see(trio, JOBS.1 + 1, LONG)?;
    let node = trio.guest_mut(&node)?;
    let ended = node.abort()?;
    assert_eq!(ended.signal(), Some(6), "{ended}");
    assert!(!ended.core_dumped(), "the daemon left a core: {ended}");
    let gone = PathBuf::from(format!("/proc/{worker}"));
    node.wait_for("the worker's end", Duration::from_secs(5), |_| {
        Ok(!gone.exists())
    })?;
    assert_eq!(holding(node)?, Vec::<PathBuf>::new());
    for core in cores()? {
        assert!(!holds(&core)?, "the marker is in {}", core.display());
    }
    // The answer went on elsewhere.
    asked.join().expect("the client does not panic")?;
    Ok(())
}

/// As a distribution that collects cores starts its services. Where even the hard limit forbids, it stays forbidden.
const UNLIMITED_CORES: [&str; 4] = [
    "sh",
    "-c",
    "ulimit -c unlimited 2>/dev/null; exec \"$@\"",
    "sh",
];

/// Whether this system writes cores at all, by a program that does not ask it not to.
fn another_program_leaves_a_core(folder: &Path) -> Result<bool> {
    let folder = folder.join("control");
    std::fs::create_dir(&folder)?;
    let [sh, c, script, name] = UNLIMITED_CORES;
    let ended = Command::new(sh)
        .args([c, script, name, sh, c, "kill -ABRT $$"])
        .current_dir(&folder)
        .status()?;
    Ok(ended.core_dumped())
}

/// Where the system would put a core that is not put into the program's own folder, which is the home and searched.
fn cores() -> Result<Vec<PathBuf>> {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern")?;
    // A pattern that begins with `|` names a program, which a process that may not be dumped never reaches.
    let folder = Path::new(pattern.trim()).parent();
    match folder.filter(|folder| folder.is_absolute() && folder.is_dir()) {
        Some(folder) => files_below(folder),
        None => Ok(Vec::new()),
    }
}

fn ask(trio: &Trio, job: usize, tokens: u32) -> Asked {
    let api = trio.a.api;
    std::thread::spawn(move || {
        let prompt = format!("{MARKER} number {job}: 1, 2, 3, 4, 5, 6, 7, 8,");
        complete(api, MODEL, &prompt, tokens, "circle").map(drop)
    })
}

/// An answer under way.
type Asked = std::thread::JoinHandle<Result<()>>;

/// Asks until a guest is seen to answer: the answer under way, the guest and its worker. Some answers end before anybody looks.
fn ask_and_see(trio: &Trio, job: usize, tokens: u32) -> Result<(Asked, String, u32)> {
    for _ in 0..TRIES {
        let asked = ask(trio, job, tokens);
        while !asked.is_finished() {
            if let Some((node, worker)) = busy_worker(trio)? {
                return Ok((asked, node, worker));
            }
        }
        asked.join().expect("the client does not panic")?;
    }
    anyhow::bail!("no worker was ever busy with job {job}")
}

/// The first guest that is found busy, and its worker.
fn busy_worker(trio: &Trio) -> Result<Option<(String, u32)>> {
    for node in [&trio.b, &trio.c] {
        let workers = node.json(&["ps"])?;
        let workers = workers["models"].as_array().into_iter().flatten();
        let mut busy = workers.filter(|worker| worker["busy"].as_u64() > Some(0));
        if let Some(pid) = busy.next().and_then(|worker| worker["pid"].as_u64()) {
            return Ok(Some((xtask::trio::id(node)?, u32::try_from(pid)?)));
        }
    }
    Ok(None)
}

/// Writes all that a process has of its own in memory, as a core would.
fn write_memory(pid: u32, to: &mut std::fs::File) -> Result<()> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = std::fs::File::open(format!("/proc/{pid}/mem"))?;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, until) = line
            .split_whitespace()
            .next()
            .and_then(|range| range.split_once('-'))
            .context("a line of maps without a range")?;
        let (from, until) = (
            u64::from_str_radix(from, 16)?,
            u64::from_str_radix(until, 16)?,
        );
        let mut bytes = vec![0; usize::try_from(until - from)?];
        // Guard pages and what was unmapped meanwhile cannot be read.
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            to.write_all(&bytes)?;
        }
    }
    Ok(())
}

/// Files of a node that hold the marker: its home, its log, whatever lies beside it.
fn holding(node: &Node) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for file in files_below(&node.home)?
        .into_iter()
        .chain([node.log_path()])
    {
        if holds(&file)? {
            found.push(file);
        }
    }
    Ok(found)
}

/// How often the marker is in a file, which may be of gigabytes.
fn copies(file: &Path) -> Result<usize> {
    let found = Command::new("grep")
        .env("LC_ALL", "C")
        .args(["-oaF", MARKER])
        .arg(file)
        .output()?;
    anyhow::ensure!(
        found.stderr.is_empty(),
        "grep {}: {found:?}",
        file.display()
    );
    Ok(found.stdout.iter().filter(|byte| **byte == b'\n').count())
}

fn holds(file: &Path) -> Result<bool> {
    let ended = Command::new("grep")
        .args(["-qaF", MARKER])
        .arg(file)
        .status()?;
    match ended.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => anyhow::bail!("grep {}: {ended}", file.display()),
    }
}
