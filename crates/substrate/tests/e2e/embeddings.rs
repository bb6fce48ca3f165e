//! Vectors over the mesh: asked where no model is, made at another node, signed by both, and whole though the node that
//! makes them dies in the middle.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use xtask::node::Scratch;
use xtask::trio::{Holders, Trio, VECTORS, answering, signal, test_bin, test_model, test_vectors};

/// Lines of the list that is broken: some seconds of work for one node.
const LINES: usize = 1_500;
/// Rows after which the answering node dies.
const BREAK_AFTER: usize = 200;

#[test]
fn vectors_come_from_another_node_and_survive_its_death() -> Result<()> {
    let scratch = Scratch::new("embeddings")?;
    let mut trio = Trio::start(&test_bin(), scratch.path(), &test_model(), Holders::Guests)?;
    trio.share_vectors(&test_vectors())?;

    // Over HTTP, from a node without a model.
    let texts = ["A cat sleeps on the sofa.", "The interest rate was raised."];
    let (job, told) = embeddings(&trio, &texts)?;
    assert_eq!(told["data"].as_array().map(Vec::len), Some(2), "{told}");
    let story = trio.a.cli(&["receipts", "show", &job])?;
    assert!(story.contains("both halves"), "{story}");
    let exported = trio.a.home.join("job.export");
    let path = exported.to_str().context("a path in UTF-8")?;
    trio.a
        .cli(&["receipts", "export", &job, "--output", path])?;
    let verified = trio.a.cli(&["receipts", "verify", path])?;
    assert!(verified.contains("both halves: 2 tokens"), "{verified}");

    // By nearness to a query.
    let near = reranked(&trio, "a sleeping pet", &[texts[1], texts[0]])?;
    assert_eq!(near["results"][0]["index"], json!(1), "{near}");

    // From the command line, a line for each line, and a death on the way.
    let lines: Vec<String> = (0..LINES)
        .map(|n| format!("Boat {n} brought {} apples.", n * 7 % 31))
        .collect();
    let unbroken = embed(&trio, &lines, |_, _| Ok(()))?;
    let mut dead = None;
    let broken = embed(&trio, &lines, |trio, row| {
        if row == BREAK_AFTER {
            let node = answering(&trio.a)?;
            signal(trio.guest(&node)?.pid().context("it runs")?, "KILL")?;
            dead = Some(node);
        }
        Ok(())
    })?;
    let dead = dead.context("a node was killed")?;
    let (end, rows) = broken.split_last().context("an end")?;
    assert_eq!(end["attempts"], 2, "{end}");
    assert_ne!(end["node"].as_str(), Some(dead.as_str()));
    assert_eq!((rows.len(), unbroken.len()), (LINES, LINES + 1));
    for (at, (row, wanted)) in rows.iter().zip(&unbroken).enumerate() {
        assert_eq!(row["index"], json!(at));
        let same = cosine(&row["embedding"], &wanted["embedding"])?;
        assert!(same > 0.99999, "row {at} is another text's: {same}");
    }
    let story = trio
        .a
        .cli(&["receipts", "show", end["job"].as_str().context("a job")?])?;
    assert!(story.contains("accepted, then vanished"), "{story}");
    trio.guest_mut(&dead)?.kill()
}

fn embeddings(trio: &Trio, texts: &[&str]) -> Result<(String, Value)> {
    let body = json!({ "model": VECTORS, "input": texts });
    let mut response = ureq::post(&format!("http://{}/v1/embeddings", trio.a.api))
        .header("x-substrate-scope", "circle")
        .send_json(&body)?;
    let job = response
        .headers()
        .get("x-substrate-job")
        .context("no job")?;
    let job = job.to_str()?.to_owned();
    Ok((job, response.body_mut().read_json()?))
}

fn reranked(trio: &Trio, query: &str, documents: &[&str]) -> Result<Value> {
    let body = json!({ "model": VECTORS, "query": query, "documents": documents });
    let mut response = ureq::post(&format!("http://{}/v1/rerank", trio.a.api))
        .header("x-substrate-scope", "circle")
        .send_json(&body)?;
    Ok(response.body_mut().read_json()?)
}

/// Every line of `substrate --json embed` at the founder; `on_row` sees each as it comes.
fn embed(
    trio: &Trio,
    lines: &[String],
    mut on_row: impl FnMut(&Trio, usize) -> Result<()>,
) -> Result<Vec<Value>> {
    let input = trio.a.home.join("lines");
    std::fs::write(&input, lines.join("\n"))?;
    let mut child = trio
        .a
        .command()
        .args(["--json", "embed", VECTORS, "--scope", "circle"])
        .stdin(std::fs::File::open(&input)?)
        .stdout(Stdio::piped())
        .spawn()?;
    let out = BufReader::new(child.stdout.take().context("a pipe")?);
    let mut told = Vec::new();
    for (row, line) in out.lines().enumerate() {
        told.push(serde_json::from_str(&line?)?);
        on_row(trio, row)?;
    }
    assert!(child.wait()?.success());
    Ok(told)
}

fn cosine(a: &Value, b: &Value) -> Result<f64> {
    let numbers = |value: &Value| -> Result<Vec<f64>> {
        let list = value.as_array().context("no list")?;
        list.iter()
            .map(|x| x.as_f64().context("no number"))
            .collect()
    };
    Ok(numbers(a)?
        .iter()
        .zip(numbers(b)?)
        .map(|(a, b)| a * b)
        .sum())
}
