//! Batches over the mesh: asked where no model is, answered by others, whole though the asking daemon is killed in the
//! middle and a provider with it, and behind whoever waits for an answer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::node::{Node, Scratch};
use xtask::stream::complete;
use xtask::trio::{Holders, MODEL, Trio, test_bin, test_model};

/// Lines of the batch: some seconds of work for two nodes.
const LINES: usize = 60;
/// Tokens of each answer.
const TOKENS: u32 = 24;
/// Rows after which the asking daemon is killed.
const KILL_AFTER: u64 = 10;
/// For all lines, on two cores that also run two engines.
const ANSWERED: Duration = Duration::from_secs(100);
/// How long a person may wait for four tokens while a batch runs: the answers under way are short.
const PERSON: Duration = Duration::from_secs(15);

#[test]
fn a_batch_survives_its_daemon_and_a_provider_and_lets_people_go_first() -> Result<()> {
    let scratch = Scratch::new("batches")?;
    let mut trio = Trio::start(&test_bin(), scratch.path(), &test_model(), Holders::Guests)?;
    let a = &trio.a;
    a.write_file("in.jsonl", &lines())?;
    let file = a.home.join("in.jsonl");
    let file = file.to_str().context("a path in UTF-8")?;
    let made = a.json(&["batch", "submit", file, "--scope", "circle"])?;
    let id = made["id"].as_str().context("a name")?.to_owned();

    // In the middle, the daemon that asked is killed, and starts again.
    a.wait_for("the first rows", ANSWERED, |a| {
        Ok(batch(a, &id)?["completed"].as_u64() >= Some(KILL_AFTER))
    })?;
    trio.a.kill()?;
    let before = rows_on_disk(&trio.a, &id)?;
    ensure!(before.len() >= KILL_AFTER as usize, "{}", before.len());
    trio.a.start()?;
    trio.wait_until_seen()?;

    // A person asks while it goes on.
    let asked = Instant::now();
    complete(trio.a.api, MODEL, "One, two,", 4, "circle")?;
    let waited = asked.elapsed();
    println!("a person waited {waited:?} for four tokens while a batch ran");
    let running = batch(&trio.a, &id)?;
    ensure!(running["status"] == "in_progress", "{running}");
    ensure!(waited < PERSON, "a person waited {waited:?}");

    // A provider dies: what it was answering is answered by the other.
    trio.c.kill()?;
    trio.a.wait_for("the end of the batch", ANSWERED, |a| {
        Ok(batch(a, &id)?["over"] == true)
    })?;
    let ended = batch(&trio.a, &id)?;
    assert_eq!(
        (&ended["status"], &ended["completed"], &ended["failed"]),
        (&json!("completed"), &json!(LINES), &json!(0)),
        "{ended}"
    );
    let told = trio.a.cli(&["batch", "output", &id])?;
    let rows = rows(&told)?;
    assert_eq!(
        rows.len(),
        LINES,
        "every line has its row, and none has two"
    );
    for (name, row) in &before {
        assert_eq!(rows.get(name), Some(row), "{name} was asked again");
    }
    every_row_is_a_job_with_both_halves(&trio.a, &rows)
}

/// Written with its receipts as any other job is.
fn every_row_is_a_job_with_both_halves(a: &Node, rows: &BTreeMap<String, Value>) -> Result<()> {
    for row in rows.values().take(3) {
        let job = row["response"]["request_id"].as_str().context("a job")?;
        let story = a.cli(&["receipts", "show", job])?;
        ensure!(story.contains("both halves"), "{story}");
    }
    Ok(())
}

fn lines() -> String {
    let line = |n: usize| {
        let body = json!({
            "model": MODEL, "max_tokens": TOKENS, "temperature": 0,
            "messages": [{ "role": "user", "content": format!("Say something about the number {n}.") }],
        });
        let line = json!({
            "custom_id": format!("line {n}"), "method": "POST", "url": "/v1/chat/completions", "body": body,
        });
        format!("{line}\n")
    };
    (0..LINES).map(line).collect()
}

fn batch(a: &Node, id: &str) -> Result<Value> {
    a.json(&["batch", "show", id])
}

/// What had its row when the daemon was killed.
fn rows_on_disk(a: &Node, id: &str) -> Result<BTreeMap<String, Value>> {
    let text = std::fs::read_to_string(a.home.join("batches").join(format!("{id}.good")))?;
    // A half row at the end is none.
    rows(&text[..text.rfind('\n').map_or(0, |end| end + 1)])
}

/// Rows by their names, of which none may stand there twice.
fn rows(text: &str) -> Result<BTreeMap<String, Value>> {
    let mut named = BTreeMap::new();
    for row in text.lines() {
        let row: Value = serde_json::from_str(row)?;
        let name = row["custom_id"].as_str().context("a name")?.to_owned();
        ensure!(
            named.insert(name, row).is_none(),
            "a row stands there twice"
        );
    }
    Ok(named)
}
