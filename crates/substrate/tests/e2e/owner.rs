//! The owner comes first: a machine that is taken back in the middle of a stranger's answer refuses what is new within a
//! second, has its memory back within three, and loses nobody a word; its owner's own answers go on.
//!
//! What takes the machine is a file that the settings name: a device that a test can hold. `cargo xtask prove owner` takes
//! one back ten times.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::node::{Node, Scratch};
use xtask::size;
use xtask::stream::{Answer, Chat, complete};
use xtask::trio::{Holders, MODEL, Trio, answering, id, import, test_bin, test_model};

use super::failover::{BREAK_AFTER, PROMPT, ask, goes_on};

/// From the first sign of the owner to the last job that is taken for others.
const REFUSES_WITHIN: Duration = Duration::from_secs(1);
/// And to the end of the worker's process.
const FREE_WITHIN: Duration = Duration::from_secs(3);
/// How long the owner of these machines must be away.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// How long before that the owner may have been seen last.
const LAST_LOOK: Duration = Duration::from_millis(500);
/// From then on: one look, and one round of housekeeping.
const LENDS_WITHIN: Duration = Duration::from_secs(2);
/// A node that was refused asks again after 30 s.
const ASKED_AGAIN: Duration = Duration::from_secs(60);
/// How long a job waits that no node may take.
const PATIENCE: &str = "2s";
/// Between two looks at a process or a daemon.
const POLL: Duration = Duration::from_millis(5);

#[test]
fn a_machine_is_its_owners_at_once_and_no_answer_is_lost() -> Result<()> {
    let scratch = Scratch::new("owner")?;
    let trio = Trio::start_with(
        &test_bin(),
        scratch.path(),
        &test_model(),
        Holders::Guests,
        |node| {
            node.write_config(&settings(&node.home.join("busy")))
                .expect("settings");
            node
        },
    )?;
    let unbroken = ask(&trio, PROMPT, |_| Ok(()))?;
    let mut rounds = Vec::new();
    let count = size::of(1, 10);
    for number in 1..=count {
        // Who was refused stays away for a while, so only the last time.
        let round = take_back(&trio, &unbroken, number == count)?;
        println!("{round}");
        rounds.push(round);
    }
    let longest = |of: fn(&Round) -> Duration| rounds.iter().map(of).max().unwrap_or_default();
    println!(
        "{} times taken back: refuses after {:?} at most, memory free after {:?}, the longest silence of an answer {:?}, lends again after {:?}",
        rounds.len(),
        longest(|round| round.refused),
        longest(|round| round.free),
        longest(|round| round.gap),
        longest(|round| round.lent),
    );
    Ok(())
}

#[test]
fn the_owners_own_answer_goes_on_while_nothing_is_lent() -> Result<()> {
    let scratch = Scratch::new("pause")?;
    let mut node = Node::create(&test_bin(), scratch.path(), "n")?;
    node.write_config("[lending]\nwhen = 'always'\n")?;
    node.start()?;
    import(&node, &test_model(), &[])?;
    complete(node.api, MODEL, "1, 2, 3,", 1, "mine")?;
    let worker = worker(&node)?;
    let mut paused = false;
    let answer = Chat::new(node.api, MODEL, PROMPT, 96)
        .in_scope("mine")
        .run_with(|answer| {
            if !paused && answer.times.len() >= BREAK_AFTER {
                node.cli(&["pause", "1h"])?;
                paused = true;
            }
            Ok(())
        })?;
    assert!(paused, "the answer was too short: {}", answer.text);
    assert_eq!(answer.substrate["attempts"], 1, "{}", answer.substrate);
    assert!(is_running(worker), "its worker was ended");
    let told = node.cli(&["status"])?;
    assert!(told.contains("always, not now: paused until 2"), "{told}");
    let told = node.cli(&["node", "lend"])?;
    assert!(told.contains("not now  paused until 2"), "{told}");

    // Idle now, it goes as soon as the machine is its owner's again; and comes back for its owner.
    node.cli(&["resume"])?;
    assert_eq!(withheld(&node)?, Value::Null);
    node.cli(&["pause"])?;
    node.wait_for("the end of the idle worker", FREE_WITHIN, |_| {
        Ok(!is_running(worker))
    })?;
    complete(node.api, MODEL, "1, 2, 3,", 4, "mine").map(drop)
}

/// What was seen while a machine was taken back.
struct Round {
    refused: Duration,
    free: Duration,
    gap: Duration,
    lent: Duration,
}

impl std::fmt::Display for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "taken back: refuses after {:?}, memory free after {:?}, longest silence {:?}, lends again {:?} after its owner left",
            self.refused, self.free, self.gap, self.lent
        )
    }
}

/// Takes back the node that answers, in the middle of it, and gives it back afterwards.
fn take_back(trio: &Trio, unbroken: &Answer, ask_for_more: bool) -> Result<Round> {
    let (answer, taken) = thread::scope(|scope| -> Result<_> {
        let mut taken = None;
        let answer = ask(trio, PROMPT, |answer| {
            if taken.is_none() && answer.times.len() >= BREAK_AFTER {
                let node = trio.guest(&answering(&trio.a)?)?;
                let worker = worker(node)?;
                let at = Instant::now();
                node.write_file("busy", "")?;
                let refused = scope.spawn(move || until_withheld(node, at));
                let free = scope.spawn(move || until_ended(worker, at));
                taken = Some((node, refused, free));
            }
            Ok(())
        })?;
        let (node, refused, free) = taken.context("the answer was too short")?;
        let joined = |outcome: thread::Result<Result<Duration>>| outcome.expect("no panic");
        Ok((
            answer,
            (node, joined(refused.join())?, joined(free.join())?),
        ))
    })?;
    let (node, refused, free) = taken;
    assert!(refused <= REFUSES_WITHIN, "it lent for another {refused:?}");
    assert!(free <= FREE_WITHIN, "its worker lived for another {free:?}");
    goes_on(&answer, unbroken)?;
    if ask_for_more {
        refuses(trio, node)?;
    }
    let own = complete(node.api, MODEL, "1, 2, 3,", 2, "mine")?;
    assert_eq!(own.node, id(node)?, "its owner's own job is answered here");
    Ok(Round {
        refused,
        free,
        gap: answer.longest_gap(),
        lent: give_back(trio, node)?,
    })
}

/// A job that only this node may answer is answered by nobody, and none begins here.
fn refuses(trio: &Trio, node: &Node) -> Result<()> {
    let (key, before) = (id(node)?, receipts(node)?);
    let output = trio.a.command().args(directed(&key)).output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it answered: {told}");
    println!("refused: {}", told.trim().replace('\n', " / "));
    assert_eq!(receipts(node)?, before, "{told}");
    Ok(())
}

fn directed(key: &str) -> [&str; 11] {
    let place = ["run", MODEL, "hi", "--scope", "circle", "--node", key];
    let limits = ["--deadline", PATIENCE, "--max-tokens", "1"];
    let mut args = [""; 11];
    args[..7].copy_from_slice(&place);
    args[7..].copy_from_slice(&limits);
    args
}

/// The owner leaves; returns how long it took until the machine was lent again.
fn give_back(trio: &Trio, node: &Node) -> Result<Duration> {
    std::fs::remove_file(node.home.join("busy"))?;
    let left = Instant::now();
    let within = IDLE_AFTER + LENDS_WITHIN;
    node.wait_for("lending", within, |node| Ok(withheld(node)?.is_null()))?;
    let lent = left.elapsed();
    assert!(
        lent + LAST_LOOK >= IDLE_AFTER,
        "it lends again after {lent:?} already"
    );
    trio.wait_until_seen()?;
    let key = id(node)?;
    trio.a.wait_for("an answer from it", ASKED_AGAIN, |a| {
        Ok(a.command().args(directed(&key)).output()?.status.success())
    })?;
    Ok(lent)
}

fn until_withheld(node: &Node, since: Instant) -> Result<Duration> {
    loop {
        if !withheld(node)?.is_null() {
            return Ok(since.elapsed());
        }
        ensure!(since.elapsed() < FREE_WITHIN * 5, "the node lends still");
    }
}

fn until_ended(pid: u64, since: Instant) -> Result<Duration> {
    while is_running(pid) {
        ensure!(since.elapsed() < FREE_WITHIN * 5, "the worker runs still");
        thread::sleep(POLL);
    }
    Ok(since.elapsed())
}

/// Why a node lends nothing now.
fn withheld(node: &Node) -> Result<Value> {
    Ok(node.json(&["status"])?["withheld"].take())
}

/// The process of the node's one worker.
fn worker(node: &Node) -> Result<u64> {
    let workers = node.json(&["ps"])?;
    workers["models"][0]["pid"].as_u64().context("no worker")
}

/// Whether it holds memory still: one that waits to be reaped holds none.
fn is_running(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ") && !stat.contains(") X ")
}

fn receipts(node: &Node) -> Result<usize> {
    let receipts = node.json(&["receipts", "list", "--limit", "200"])?;
    let receipts = receipts["receipts"].as_array().context("no list")?;
    Ok(receipts.len())
}

fn settings(busy_file: &Path) -> String {
    format!(
        "[lending]\nbusy_file = '{}'\nidle_after = {}\n",
        busy_file.display(),
        IDLE_AFTER.as_secs()
    )
}
