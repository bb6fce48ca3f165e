//! What cannot be answered, with the real engine: weights that rotted, a prompt that does not fit, a model that is gone.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::node::{Node, Scratch, files_below};
use xtask::stream::complete;
use xtask::trio::{Holders, MODEL, Trio, import, test_bin, test_model};

/// More words than the default context of 4,096 tokens holds.
const WORDS: usize = 6_000;
/// The default context.
const CONTEXT: u64 = 4_096;
/// A client must not wait for what cannot come.
const SOON: Duration = Duration::from_secs(20);

fn started(scratch: &Scratch) -> Result<Node> {
    let mut node = Node::create(&test_bin(), scratch.path(), "n")?;
    node.start()?;
    import(&node, &test_model(), &[])?;
    Ok(node)
}

#[test]
fn weights_that_rotted_are_refused_before_use_and_quarantined() -> Result<()> {
    let scratch = Scratch::new("rot")?;
    let mut node = started(&scratch)?;
    complete(node.api, MODEL, "a", 1, "mine")?;
    node.stop()?;
    flip_a_byte(&blob(&node)?)?;
    node.start()?;
    let begun = Instant::now();
    let error = complete(node.api, MODEL, "a", 1, "mine").expect_err("no whole weights are here");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let told = error.to_string();
    assert!(
        told.starts_with("503") && told.contains("damaged"),
        "{told}"
    );
    let quarantine = node.home.join("blobs/quarantine");
    assert_eq!(files_below(&quarantine)?.len(), 1, "the file is kept aside");
    // The daemon is well, and the model comes back with its bytes.
    assert!(node.cli(&["status"]).is_ok());
    import(&node, &test_model(), &[])?;
    complete(node.api, MODEL, "a", 1, "mine").map(drop)
}

#[test]
fn weights_that_rot_while_the_daemon_runs_fail_the_job_and_not_the_daemon() -> Result<()> {
    let scratch = Scratch::new("swap")?;
    let node = started(&scratch)?;
    complete(node.api, MODEL, "a", 1, "mine")?;
    node.cli(&["stop", MODEL])?;
    flip_a_byte(&blob(&node)?)?;
    let begun = Instant::now();
    let error = complete(node.api, MODEL, "a", 1, "mine").expect_err("no whole weights are here");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let told = error.to_string();
    assert!(
        told.starts_with("503") && told.contains("damaged"),
        "{told}"
    );
    let again = complete(node.api, MODEL, "a", 1, "mine").expect_err("it is still not here");
    assert_eq!(again.to_string(), told);
    assert!(node.cli(&["status"]).is_ok(), "the daemon is well");
    Ok(())
}

#[test]
fn a_node_without_models_says_what_is_wrong_as_one_with_models_does() -> Result<()> {
    let scratch = Scratch::new("overflow")?;
    let trio = Trio::start(&test_bin(), scratch.path(), &test_model(), Holders::Guests)?;
    let error = complete(trio.a.api, "smollm2:136m", "a", 1, "circle").expect_err("a slip");
    assert!(
        error.to_string().contains(MODEL),
        "the circle's is offered: {error}"
    );
    // A prompt that does not fit has an error of its own.
    let long = "word ".repeat(WORDS);
    let message = json!([{ "role": "user", "content": long }]);
    // B holds the model itself, A asks the circle.
    for (node, scope, counts) in [(&trio.b, "mine", true), (&trio.a, "circle", false)] {
        let chat = json!({ "model": MODEL, "messages": message });
        let (status, told) = post(node, "/v1/chat/completions", scope, &chat)?;
        let error = &told["error"];
        assert_eq!(status, 400, "{told}");
        assert_eq!(error["code"], "context_length_exceeded", "{told}");
        assert_eq!(error["param"], "messages", "{told}");
        assert_eq!(counts, says_both_counts(&error["message"]), "{told}");

        let text = json!({ "model": MODEL, "prompt": long });
        let (status, told) = post(node, "/v1/completions", scope, &text)?;
        assert_eq!(
            (status, &told["error"]["param"]),
            (400, &json!("prompt")),
            "{told}"
        );

        let generate = json!({ "model": MODEL, "prompt": long, "stream": false });
        let (status, told) = post(node, "/api/generate", scope, &generate)?;
        assert_eq!(status, 400, "{told}");
        assert_eq!(counts, says_both_counts(&told["error"]), "{told}");
    }
    Ok(())
}

#[test]
fn a_removed_model_leaves_no_worker_and_an_unload_ahead_changes_nothing() -> Result<()> {
    let scratch = Scratch::new("removed")?;
    let node = started(&scratch)?;
    node.wait_for("the first measurement", SOON, |node| Ok(loaded(node)? == 1))?;
    node.cli(&["stop", MODEL])?;
    node.wait_for("the unload", SOON, |node| Ok(loaded(node)? == 0))?;
    // Ollama's clients unload what is not loaded; the next worker must stay all the same.
    let unload = json!({ "model": MODEL, "keep_alive": 0 });
    assert_eq!(post(&node, "/api/generate", "mine", &unload)?.0, 200);
    complete(node.api, MODEL, "a", 1, "mine")?;
    // Longer than housekeeping needs to end a worker whose time is over.
    let until = uptime_ms(&node)? + 2_500;
    node.wait_for("two rounds of housekeeping", SOON, |node| {
        Ok(uptime_ms(node)? >= until)
    })?;
    assert_eq!(loaded(&node)?, 1, "the worker stays for its keep-alive");
    let shown = post(&node, "/api/show", "mine", &json!({ "model": MODEL }))?.1;
    let served = shown["parameters"].as_str().context("parameters")?;
    let served = served
        .split_whitespace()
        .last()
        .context("num_ctx")?
        .parse::<u64>()?;
    assert_eq!(served, CONTEXT);
    assert_eq!(shown["capabilities"], json!(["completion"]));

    node.cli(&["cp", MODEL, "second"])?;
    node.cli(&["rm", MODEL])?;
    assert_eq!(loaded(&node)?, 1, "it has a name still");
    node.cli(&["rm", "second"])?;
    node.wait_for("the worker's end", SOON, |node| Ok(loaded(node)? == 0))?;
    let blobs = files_below(&node.home.join("blobs"))?;
    assert!(blobs.is_empty(), "{blobs:?}");
    Ok(())
}

fn uptime_ms(node: &Node) -> Result<u64> {
    let status = node.json(&["status"])?;
    status["uptime_ms"].as_u64().context("an uptime")
}

fn loaded(node: &Node) -> Result<usize> {
    let told = node.json(&["ps"])?;
    Ok(told["models"].as_array().context("a list")?.len())
}

/// The only blob there is.
fn blob(node: &Node) -> Result<PathBuf> {
    let blobs = files_below(&node.home.join("blobs"))?;
    let blob = blobs.into_iter().next();
    blob.context("no blob")
}

fn flip_a_byte(file: &std::path::Path) -> Result<()> {
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644))?;
    let own = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)?;
    let (mut byte, middle) = ([0], own.metadata()?.len() / 2);
    own.read_exact_at(&mut byte, middle)?;
    own.write_all_at(&[byte[0] ^ 1], middle)?;
    Ok(())
}

/// The prompt's tokens, which are more than a word each, and the context's.
fn says_both_counts(told: &Value) -> bool {
    let told = told.as_str().unwrap_or_default();
    let numbers: Vec<u64> = told
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect();
    matches!(numbers[..], [used, CONTEXT] if used >= WORDS as u64)
}

fn post(node: &Node, path: &str, scope: &str, body: &Value) -> Result<(u16, Value)> {
    let begun = Instant::now();
    let response = ureq::post(&format!("http://{}{path}", node.api))
        .config()
        .http_status_as_error(false)
        .build()
        .header("x-substrate-scope", scope)
        .send_json(body)?;
    ensure!(begun.elapsed() < SOON, "{path} took {:?}", begun.elapsed());
    Ok((
        response.status().as_u16(),
        response.into_body().read_json()?,
    ))
}
