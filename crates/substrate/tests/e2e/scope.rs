//! Scope, with real nodes: a job that may not leave the machine does not, however slow it is there and whoever offers.
//!
//! The one who offers is a stranger: in the network and in nobody's circle, lending to the commons, with the same
//! registry-signed model, and faster by both sides' own measurement, because the asking node is held to a part of one
//! core while it measures itself. The control, before and after, is the same load with scope `commons`: some of it
//! leaves, so the router does prefer the stranger when it may.

use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::node::{Node, Scratch};
use xtask::size;
use xtask::stream::{Completed, complete};
use xtask::trio::{Holders, MODEL, found, id, import, join, test_bin, test_model};

/// Jobs asked with scope `mine`, in the gate and in `prove`. Each is a whole signed job with a receipt.
const JOBS: (usize, usize) = (120, 1000);
/// Jobs of each control.
const CONTROL: usize = 24;
/// Clients at once.
const CLIENTS: usize = 4;
/// A measurement of speed, and gossip's way after it: its interval is a minute.
const MEASURED: Duration = Duration::from_secs(90);

#[test]
fn no_job_of_scope_mine_leaves_although_a_faster_stranger_lends() -> Result<()> {
    let scratch = Scratch::new("scope")?;
    let (own, stranger) = own_and_faster_stranger(&scratch)?;
    let key = id(&own)?;

    let before = left(&ask_all(&own, CONTROL, "commons")?, &key);
    let served = receipts(&stranger)?;
    println!("control: {before} of {CONTROL} jobs of scope commons left");
    assert!(
        before > 0,
        "the stranger is a real choice: of scope commons some jobs leave"
    );
    assert!(
        served >= before,
        "{served} receipts at the stranger for {before} jobs"
    );

    for done in ask_all(&own, size::of(JOBS.0, JOBS.1), "mine")? {
        assert!(
            done.node == key && done.route == "local" && done.scope == "mine",
            "a job left: {done:?}"
        );
    }
    assert_eq!(
        receipts(&stranger)?,
        served,
        "the stranger answered none of them"
    );

    // It was there to the end.
    let after = left(&ask_all(&own, CONTROL, "commons")?, &key);
    println!("control: {after} of {CONTROL} jobs of scope commons left afterwards");
    assert!(
        after > 0,
        "of scope commons some jobs leave afterwards as well"
    );
    Ok(())
}

/// Two nodes of one network that are in no circle with each other; the second lends, and is the faster one.
fn own_and_faster_stranger(scratch: &Scratch) -> Result<(Node, Node)> {
    let core = first_allowed_core()?;
    let pinned = ["taskset", "-c", &core];
    let mut own = Node::create(&test_bin(), scratch.path(), "own")?.with_prefix(&pinned);
    // What the owner's default allows is the owner's consent for callers of this machine without a key.
    // One answer at a time, so that several clients always make a queue and the stranger is the faster choice.
    own.write_config(
        "[api]\ndefault_scope = \"commons\"\n\n[lending]\nwhen = \"always\"\n\n[models]\nparallel = 1\n",
    )?;
    found(&own, &test_model(), Holders::All)?;
    let mut stranger = Node::create(&test_bin(), scratch.path(), "stranger")?;
    stranger.start()?;
    let busy = Busy::on(&core)?;
    own.start()?;
    join(&own, &stranger)?;
    let slow = rate_of(&stranger, &own)?;
    drop(busy);
    import(&stranger, &test_model(), &[])?;
    stranger.cli(&["node", "lend", "always"])?;
    let fast = rate_of(&own, &stranger)?;
    println!("own {slow}, stranger {fast} millitokens per second");
    assert!(
        fast > slow,
        "the stranger measured {fast} and the own node {slow}"
    );
    // They know each other from the invite; from here on they are strangers.
    for (node, other) in [(&own, &stranger), (&stranger, &own)] {
        node.cli(&["circle", "remove", "friends", &id(other)?])?;
    }
    own.wait_for("a stranger that offers the model", MEASURED, |own| {
        Ok(seen(own, &stranger)?.is_some_and(|peer| {
            peer["circle"] == false
                && peer["connected"] == true
                && peer["models"].as_array().is_some_and(|m| !m.is_empty())
        }))
    })?;
    Ok((own, stranger))
}

/// Asks so many short jobs by several clients at once.
fn ask_all(own: &Node, jobs: usize, scope: &'static str) -> Result<Vec<Completed>> {
    let api = own.api;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            std::thread::spawn(move || -> Result<Vec<Completed>> {
                (client..jobs)
                    .step_by(CLIENTS)
                    .map(|job| {
                        complete(api, MODEL, "a", 1, scope).with_context(|| format!("job {job}"))
                    })
                    .collect()
            })
        })
        .collect();
    let mut all = Vec::with_capacity(jobs);
    for client in clients {
        all.extend(client.join().expect("no client panics")?);
    }
    Ok(all)
}

fn left(done: &[Completed], own: &str) -> usize {
    done.iter().filter(|done| done.node != own).count()
}

/// What `node` knows of `other`.
fn seen(node: &Node, other: &Node) -> Result<Option<serde_json::Value>> {
    let (peers, key) = (node.json(&["peers"])?, id(other)?);
    let peers = peers["peers"].as_array().context("no list of peers")?;
    Ok(peers.iter().find(|peer| peer["node"] == key).cloned())
}

/// The speed that `other` measured and told `node`.
fn rate_of(node: &Node, other: &Node) -> Result<u64> {
    let mut rate = 0;
    node.wait_for(
        &format!("the speed of node {}", other.name),
        MEASURED,
        |node| {
            rate = seen(node, other)?
                .and_then(|peer| peer["decode"].as_u64())
                .unwrap_or_default();
            Ok(rate > 0)
        },
    )?;
    Ok(rate)
}

fn receipts(node: &Node) -> Result<usize> {
    let listed = node.json(&["receipts", "list"])?;
    Ok(listed["receipts"]
        .as_array()
        .context("no list of receipts")?
        .len())
}

/// A program that leaves its core no rest, until dropped.
struct Busy(Child);

impl Busy {
    fn on(core: &str) -> Result<Self> {
        let spin = ["-c", core, "sh", "-c", "while :; do :; done"];
        Ok(Self(Command::new("taskset").args(spin).spawn()?))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // It has no end of its own.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The first core this process may run on.
fn first_allowed_core() -> Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .context("no list of allowed cores")?;
    let first = list.trim().split([',', '-']).next().unwrap_or_default();
    Ok(first.to_owned())
}
