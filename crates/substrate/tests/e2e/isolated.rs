//! Jobs that demand a worker of their own, with the real engine: the same answer, another process, which is gone afterwards.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::node::{Node, Scratch};
use xtask::trio::{MODEL, import, test_bin, test_model, test_vectors};

const PROMPT: &str = "Tell me a long story about a town and everyone who lives in it.";
/// Tokens of a short answer, and of one that lasts while it is looked at.
const SHORT: u32 = 24;
const LONG: u32 = 300;
/// A load and an answer on a busy machine.
const SOON: Duration = Duration::from_secs(60);

fn started(scratch: &Scratch, config: &str) -> Result<Node> {
    let mut node = Node::create(&test_bin(), scratch.path(), "n")?;
    node.write_config(&format!("[models]\nkeep_alive = -1\n{config}"))?;
    node.start()?;
    import(&node, &test_model(), &[])?;
    Ok(node)
}

/// The text of an answer at temperature 0, and the facts of its end.
fn ask(node: &Node, tokens: u32, more: &[&str]) -> Result<(String, Value)> {
    let tokens = tokens.to_string();
    let mut args = vec!["--json", "run", MODEL, PROMPT, "--temperature", "0"];
    args.extend(["--max-tokens", &tokens]);
    args.extend(more);
    let told = node.cli(&args)?;
    let events = told.lines().map(serde_json::from_str);
    let events: Vec<Value> = events.collect::<Result<_, _>>()?;
    let texts = events.iter().filter_map(|event| event["text"].as_str());
    let end = events.last().context("no event")?.clone();
    ensure!(end["event"] == "finished", "{end}");
    Ok((texts.collect(), end))
}

/// Process ids of the workers that answer, those of one job each or the shared ones.
fn pids(node: &Node, isolated: bool) -> Result<BTreeSet<u64>> {
    let listed = node.json(&["ps"])?;
    let models = listed["models"].as_array().context("no list")?;
    let wanted = models.iter().filter(|one| one["isolated"] == isolated);
    Ok(wanted.filter_map(|one| one["pid"].as_u64()).collect())
}

fn is_gone(pid: u64) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn an_isolated_job_gets_the_same_answer_from_a_worker_that_is_gone_afterwards() -> Result<()> {
    let scratch = Scratch::new("isolated")?;
    let node = started(&scratch, "")?;
    let (shared, end) = ask(&node, SHORT, &[])?;
    assert_eq!(end["isolated"], false);
    let workers = pids(&node, false)?;
    assert_eq!(workers.len(), 1);

    let (alone, end) = ask(&node, SHORT, &["--isolated"])?;
    assert_eq!(alone, shared, "the same tokens");
    assert_eq!(end["isolated"], true);
    assert!(end["receipt"].is_string(), "it is settled as any job is");
    let load = end["timings_ms"]["load"].as_u64().context("no load")?;
    assert!(load > 0, "the cost is told: {end}");

    // Two at once, each with a process of its own, beside the shared one, which answers meanwhile.
    node.wait_for("the end of the one before", SOON, |node| {
        Ok(pids(node, true)?.is_empty())
    })?;
    let mut seen = BTreeSet::new();
    std::thread::scope(|scope| -> Result<()> {
        let two = [(); 2].map(|()| scope.spawn(|| ask(&node, LONG, &["--isolated"])));
        node.wait_for("two workers of one job each", SOON, |node| {
            seen = pids(node, true)?;
            Ok(seen.len() == 2)
        })?;
        assert_eq!(ask(&node, SHORT, &[])?.0, shared);
        for one in two {
            let (_, end) = one.join().expect("no panic")?;
            assert_eq!(end["isolated"], true);
        }
        Ok(())
    })?;
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen.is_disjoint(&workers));
    node.wait_for("the end of both", SOON, |_| {
        Ok(seen.iter().copied().all(is_gone))
    })?;
    assert!(pids(&node, true)?.is_empty());
    assert_eq!(
        pids(&node, false)?,
        workers,
        "the shared worker is the same"
    );
    Ok(())
}

#[test]
fn over_http_a_header_asks_for_it_and_a_client_that_leaves_ends_it() -> Result<()> {
    let scratch = Scratch::new("isolated-http")?;
    let node = started(&scratch, "")?;
    let url = format!("http://{}/v1/completions", node.api);
    let body = |tokens: u32| json!({ "model": MODEL, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0 });
    let mut texts = Vec::new();
    for isolated in ["false", "true"] {
        let answer = ureq::post(&url)
            .header("x-substrate-isolated", isolated)
            .send_json(body(SHORT))?;
        let answer: Value = answer.into_body().read_json()?;
        texts.push(answer["choices"][0]["text"].clone());
    }
    assert_eq!(texts[0], texts[1]);

    // Given up in the middle of a long answer.
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(SOON))
        .build();
    let stream = json!({ "model": MODEL, "prompt": PROMPT, "max_tokens": 2_000, "stream": true });
    let answer = ureq::Agent::new_with_config(agent)
        .post(&url)
        .header("x-substrate-isolated", "true")
        .send_json(stream)?;
    let mut seen = BTreeSet::new();
    node.wait_for("its worker", SOON, |node| {
        seen = pids(node, true)?;
        Ok(!seen.is_empty())
    })?;
    drop(answer);
    node.wait_for("its end", SOON, |_| Ok(seen.iter().copied().all(is_gone)))
}

#[test]
fn vectors_are_made_alone_too_and_are_the_same() -> Result<()> {
    let scratch = Scratch::new("isolated-vectors")?;
    let mut node = Node::create(&test_bin(), scratch.path(), "n")?;
    node.start()?;
    let file = test_vectors();
    let file = file.to_str().context("a path in UTF-8")?;
    node.cli(&["import", file, "--as", "vectors"])?;
    let shared = node.cli(&["embed", "vectors", "one text", "and another"])?;
    let alone = node.cli(&["embed", "vectors", "one text", "and another", "--isolated"])?;
    assert_eq!(shared, alone);
    assert!(pids(&node, true)?.is_empty());
    Ok(())
}

#[test]
fn one_that_does_not_fit_is_refused_with_the_reason() -> Result<()> {
    let scratch = Scratch::new("isolated-fit")?;
    let node = started(&scratch, "\n[lending]\nmemory = \"32MiB\"\n")?;
    let told = ask(&node, SHORT, &["--isolated"]).expect_err("it does not fit");
    let told = told.to_string();
    assert!(told.contains("does not fit the memory"), "{told}");
    assert!(pids(&node, true)?.is_empty());
    Ok(())
}
