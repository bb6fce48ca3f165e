//! What a model takes, reckoned from its header, against what its worker took; and what happens to one that does not fit.
//!
//! What is counted is the worker's highest resident size (`VmHWM`) after every cell of the cache and every kept prefix
//! was used once, whole batches were read over a full context, and two long answers ran together, which gives each cells of
//! its own where that may be: pages mapped from the file count, because every token reads all weights.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::node::{Node, Scratch};
use xtask::size;
use xtask::stream::{Chat, complete};
use xtask::trio::{MODEL, import, test_bin, test_model};

/// How far the reckoning may be from what is measured.
const WITHIN: f64 = 0.10;

/// Of a context, the share of a prompt that leaves room for what the words' tokens are more than words.
const LONG: f64 = 0.70;

/// Tokens of their answers: enough that the two run together for a while.
const LONG_ANSWER: u32 = 32;

/// Prompts that fill what is kept: the room is two contexts, and each of them is a fifth of one.
const SHORT: f64 = 0.15;
const SHORTS: usize = 14;

/// What must happen within the time of some loads of a small model.
const SOON: Duration = Duration::from_secs(60);

/// The second model's name.
const OTHER: &str = "other:135m";

/// Context, answers at a time, and further settings.
type Case = (u32, u32, &'static str);

const CASES: [Case; 10] = [
    (512, 1, ""),
    (1024, 8, ""),
    // Only at full size:
    (2048, 1, ""),
    (4096, 8, ""),
    (8192, 1, ""),
    (8192, 2, ""),
    (4096, 2, "kv_cache_type = \"q8_0\"\n"),
    (4096, 8, "kv_cache_type = \"q4_0\"\n"),
    (2048, 4, "flash_attention = false\n"),
    (4096, 32, ""),
];

#[test]
fn a_worker_takes_what_was_reckoned() -> Result<()> {
    let cases = &CASES[..size::of(2, CASES.len())];
    println!(
        "{:>7} {:>5}  {:<26} {:>10} {:>10} {:>7}",
        "context", "slots", "settings", "reckoned", "measured", "off by"
    );
    let mut wrong = Vec::new();
    for case in cases {
        let (reckoned, measured) = measured(case)?;
        let off = reckoned as f64 / measured as f64 - 1.0;
        let (context, slots, settings) = case;
        let settings = settings.trim();
        let line = format!(
            "{context:>7} {slots:>5}  {settings:<26} {:>6} MiB {:>6} MiB {:>+6.1}%",
            reckoned >> 20,
            measured >> 20,
            off * 100.0
        );
        println!("{line}");
        if off.abs() > WITHIN {
            wrong.push(line);
        }
    }
    ensure!(wrong.is_empty(), "off by more than a tenth: {wrong:#?}");
    Ok(())
}

/// Bytes reckoned, and taken at most.
fn measured(&(context, slots, settings): &Case) -> Result<(u64, u64)> {
    let scratch = Scratch::new("fit")?;
    let node = started(
        &scratch,
        &format!("context = {context}\nparallel = {slots}\n{settings}"),
    )?;
    let shown = node.json(&["show", MODEL])?["memory"].clone();
    ensure!(
        shown["context"] == context && shown["slots"] == slots,
        "{shown}"
    );
    ensure!(shown["place"] == "cpu", "{shown}");
    let asked = node.json(&["show", MODEL, "--context", "256"])?["memory"].clone();
    ensure!(asked["context"] == 256, "{asked}");
    let words = |share: f64| ((f64::from(context) * share) as usize).max(1);
    let long = |number| {
        let prompt = text(number, words(LONG));
        complete(node.api, MODEL, &prompt, LONG_ANSWER, "mine")
    };
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| long(0));
        long(1)?;
        beside.join().expect("no client panics")
    })?;
    for number in 2..2 + SHORTS {
        complete(node.api, MODEL, &text(number, words(SHORT)), 1, "mine")?;
    }
    let reckoned = number(&shown["total"])? + number(&shown["mapped"])?;
    Ok((reckoned, peak(&node)?))
}

#[test]
fn a_model_that_does_not_fit_is_refused_and_says_what_to_do() -> Result<()> {
    let scratch = Scratch::new("nofit")?;
    let node = started_in(&scratch, "[lending]\nmemory = \"150MiB\"\n", &test_model())?;
    let error = complete(node.api, MODEL, "a", 1, "mine").expect_err("it does not fit");
    let told = error.to_string();
    assert!(told.starts_with("503"), "{told}");
    for part in ["it needs", "lending.memory", "150.0 MiB", "models.context"] {
        assert!(told.contains(part), "{told}");
    }
    let shown = &node.json(&["show", MODEL])?["memory"];
    assert_eq!(shown["place"], Value::Null, "{shown}");
    assert!(
        shown["why"]
            .as_str()
            .is_some_and(|why| why.contains("it needs"))
    );
    assert!(workers(&node)?.is_empty(), "no worker was started for it");
    let empty = json!({ "model": MODEL });
    let loaded = ureq::post(&format!("http://{}/api/generate", node.api))
        .config()
        .http_status_as_error(false)
        .build()
        .send_json(&empty)?;
    assert_eq!(loaded.status().as_u16(), 503, "an empty prompt only loads");
    assert!(node.cli(&["status"]).is_ok(), "the daemon is well");
    Ok(())
}

#[test]
fn an_automatic_context_is_made_smaller_once_before_a_model_is_refused() -> Result<()> {
    let scratch = Scratch::new("smaller")?;
    let node = started_in(&scratch, "[lending]\nmemory = \"400MiB\"\n", &test_model())?;
    complete(node.api, MODEL, "a", 1, "mine")?;
    let all = workers(&node)?;
    assert_eq!(all[0]["context"], 2048, "{all:?}");
    let shown = ureq::post(&format!("http://{}/api/show", node.api))
        .send_json(json!({ "model": MODEL }))?
        .into_body()
        .read_json::<Value>()?;
    assert_eq!(shown["substrate"]["context"], 2048, "{shown}");
    let parameters = shown["parameters"].as_str().unwrap_or_default();
    assert!(
        parameters.ends_with(" 2048"),
        "what is served is told: {parameters}"
    );
    Ok(())
}

#[test]
fn a_full_house_waits_for_the_answer_and_then_changes_models() -> Result<()> {
    let scratch = Scratch::new("house")?;
    let node = started(&scratch, "max_loaded = 1\n")?;
    complete(node.api, MODEL, "a", 1, "mine")?;
    let other = sibling(&scratch)?;
    node.cli(&["import", &other, "--as", OTHER])?;
    // Its measurement takes the place of the idle one.
    node.wait_for("the other alone in memory", SOON, |node| {
        Ok(names(node)? == [OTHER])
    })?;
    let mut asked = None;
    let counting = Chat::new(node.api, MODEL, "1, 2, 3, 4, 5, 6,", 200)
        .raw()
        .in_scope("mine");
    let whole = counting.run_with(|so_far| {
        if so_far.times.len() != 2 {
            return Ok(());
        }
        let api = node.api;
        asked = Some(std::thread::spawn(move || {
            complete(api, OTHER, "a", 1, "mine").map(|done| done.node)
        }));
        node.wait_for("the wait to be told", SOON, waits_for_room)
    })?;
    assert!(!whole.times.is_empty());
    assert_eq!(
        whole.used("completion_tokens")?,
        200,
        "nothing cut it short"
    );
    let asked = asked.context("the other was asked for")?;
    asked.join().expect("the asker ends")?;
    assert_eq!(names(&node)?, [OTHER], "one at a time");
    Ok(())
}

/// Whether every list says that the other model waits while the first answers.
fn waits_for_room(node: &Node) -> Result<bool> {
    let told = &node.json(&["ps"])?["loading"][0];
    let coming = told["name"] == OTHER && told["loading"] == "waiting for room";
    let ps = ureq::get(&format!("http://{}/api/ps", node.api))
        .call()?
        .into_body()
        .read_json::<Value>()?;
    let listed = ps["loading"][0]["name"] == OTHER;
    let ready = ps["models"].as_array().map_or(0, Vec::len);
    let jobs = ps["substrate"].as_array().cloned().unwrap_or_default();
    let told = jobs
        .iter()
        .any(|job| job["why"] == "its model: waiting for room");
    Ok(coming && listed && told && ready == 1)
}

fn started(scratch: &Scratch, models: &str) -> Result<Node> {
    started_in(scratch, &format!("[models]\n{models}"), &test_model())
}

fn started_in(scratch: &Scratch, config: &str, model: &Path) -> Result<Node> {
    let mut node = Node::create(&test_bin(), scratch.path(), "n")?;
    node.write_config(&format!("[mesh]\nmdns = false\nkad = false\n{config}"))?;
    node.start()?;
    import(&node, model, &[])?;
    Ok(node)
}

/// The same weights under another digest: the model's own name differs in one letter.
fn sibling(scratch: &Scratch) -> Result<String> {
    let mut bytes = std::fs::read(test_model())?;
    let name = b"Smollm2 135M";
    let at = bytes.windows(name.len()).position(|window| window == name);
    bytes[at.context("the model's name")? + name.len() - 6] = b'3';
    let file = scratch.path().join("sibling.gguf");
    std::fs::write(&file, bytes)?;
    Ok(file.to_str().context("UTF-8")?.to_owned())
}

fn workers(node: &Node) -> Result<Vec<Value>> {
    let told = node.json(&["ps"])?;
    Ok(told["models"].as_array().context("a list")?.clone())
}

/// Models that are loaded.
fn names(node: &Node) -> Result<Vec<String>> {
    let ready = workers(node)?;
    let name = |worker: &Value| worker["name"].as_str().map(str::to_owned);
    Ok(ready.iter().filter_map(name).collect())
}

/// The most that the only worker has had resident.
fn peak(node: &Node) -> Result<u64> {
    let all = workers(node)?;
    let pid = all.first().context("a worker")?["pid"]
        .as_u64()
        .context("its id")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib.context("VmHWM")?.trim().parse::<u64>()? * 1024)
}

fn number(value: &Value) -> Result<u64> {
    value.as_u64().context("a number")
}

/// Words that no two prompts begin alike.
fn text(number: usize, words: usize) -> String {
    const WORDS: [&str; 7] = [
        "river", "stone", "window", "garden", "winter", "letter", "music",
    ];
    let all = (0..words).map(|at| WORDS[(at * (number + 3) + number) % WORDS.len()]);
    format!("{number} {}", all.collect::<Vec<_>>().join(" "))
}
