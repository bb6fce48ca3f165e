//! Images with the real engine, through every API: what is seen is counted and answered, what is broken fails its own job,
//! and a node that dies in the middle is gone on from.
//!
//! The projector's weights are drawn by chance (tests/models/projector.py), so what is said means nothing.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use xtask::node::{Node, Scratch};
use xtask::stream::Chat;
use xtask::trio::{
    Holders, MODEL, SEES, Trio, answering, import, import_seeing, signal, test_bin, test_model,
    test_projector,
};

/// Rows of one image through the test's projector.
const ROWS: u64 = 64;
/// Tokens of the answer that is broken, and after how many pieces it is.
const TOKENS: u32 = 48;
const BREAK_AFTER: usize = 16;

fn image(name: &str) -> Result<Vec<u8>> {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../substrate-worker/tests/images"
    );
    let path = PathBuf::from(folder).join(name);
    std::fs::read(&path).with_context(|| path.display().to_string())
}

fn base64_of(name: &str) -> Result<String> {
    Ok(STANDARD.encode(image(name)?))
}

fn uri_of(name: &str) -> Result<String> {
    Ok(format!("data:image/png;base64,{}", base64_of(name)?))
}

/// The status and the JSON of an answer.
fn post(node: &Node, path: &str, body: &Value) -> Result<(u16, Value)> {
    let response = ureq::post(&format!("http://{}{path}", node.api))
        .config()
        .http_status_as_error(false)
        .build()
        .header("x-substrate-scope", "circle")
        .send_json(body)?;
    let status = response.status().as_u16();
    let text = response.into_body().read_to_string()?;
    Ok((status, serde_json::from_str(&text).context(text)?))
}

fn chat(model: &str, url: &str) -> Value {
    let image = json!({ "type": "image_url", "image_url": { "url": url } });
    let question = json!({ "type": "text", "text": "What is this?" });
    json!({
        "model": model, "max_tokens": 8, "temperature": 0,
        "messages": [{ "role": "user", "content": [image, question] }],
    })
}

fn seeing(scratch: &Scratch) -> Result<Node> {
    let mut node = Node::create(&test_bin(), scratch.path(), "n")?;
    node.start()?;
    import_seeing(&node, &test_model(), &test_projector())?;
    import(&node, &test_model(), &[])?;
    Ok(node)
}

#[test]
fn every_api_takes_an_image_and_counts_it() -> Result<()> {
    let scratch = Scratch::new("images")?;
    let node = seeing(&scratch)?;
    let shown = node.json(&["show", SEES])?;
    ensure!(shown["vision"] == true, "{shown}");
    ensure!(node.json(&["show", MODEL])?["vision"] == false);
    let (_, told) = post(&node, "/api/show", &json!({ "model": SEES }))?;
    ensure!(
        told["capabilities"].to_string().contains("vision"),
        "{told}"
    );

    let (url, data) = (uri_of("gradient.png")?, base64_of("gradient.png")?);
    let sources = json!({ "type": "base64", "media_type": "image/png", "data": data });
    let said = "What is this?";
    let options = json!({ "num_predict": 8, "temperature": 0 });
    let asked = [
        (
            "/v1/chat/completions",
            chat(SEES, &url),
            "/usage/prompt_tokens",
        ),
        (
            "/v1/responses",
            json!({ "model": SEES, "max_output_tokens": 8, "input": [{ "role": "user", "content": [
                { "type": "input_image", "image_url": url }, { "type": "input_text", "text": said },
            ] }] }),
            "/usage/input_tokens",
        ),
        (
            "/v1/messages",
            json!({ "model": SEES, "max_tokens": 8, "messages": [{ "role": "user", "content": [
                { "type": "image", "source": sources }, { "type": "text", "text": said },
            ] }] }),
            "/usage/input_tokens",
        ),
        (
            "/api/chat",
            json!({ "model": SEES, "stream": false, "options": options,
                "messages": [{ "role": "user", "content": said, "images": [data] }] }),
            "/prompt_eval_count",
        ),
        (
            "/api/generate",
            json!({ "model": SEES, "stream": false, "options": options, "prompt": said, "images": [data] }),
            "/prompt_eval_count",
        ),
    ];
    let mut counts = Vec::new();
    for (path, body, count) in asked {
        let (status, told) = post(&node, path, &body)?;
        ensure!(status == 200, "{path}: {told}");
        counts.push(
            told.pointer(count)
                .and_then(Value::as_u64)
                .context("a count")?,
        );
    }
    // The same conversation, whichever way it came.
    ensure!(
        counts
            .iter()
            .all(|count| *count == counts[0] && *count > ROWS),
        "{counts:?}"
    );

    // Two images, and what is said of one is not what is said of the other.
    let answer = |name: &str| -> Result<String> {
        let (_, told) = post(&node, "/v1/chat/completions", &chat(SEES, &uri_of(name)?))?;
        Ok(told["choices"][0]["message"]["content"].to_string())
    };
    ensure!(
        answer("gradient.png")? != answer("stripes.png")?,
        "it sees nothing"
    );

    // On the command line a path in the prompt is an image.
    let place = scratch.path().join("stripes.png");
    std::fs::write(&place, image("stripes.png")?)?;
    let prompt = format!("What is {} ?", place.display());
    let told = node.cli(&[
        "--json",
        "run",
        SEES,
        &prompt,
        "--temperature",
        "0",
        "--max-tokens",
        "4",
    ])?;
    let last = told.lines().last().context("it says something")?;
    let last: Value = serde_json::from_str(last)?;
    ensure!(last["n_in"].as_u64().context("a count")? > ROWS, "{last}");
    Ok(())
}

#[test]
fn what_cannot_be_seen_is_the_askers_mistake_and_costs_nobody_else_anything() -> Result<()> {
    let scratch = Scratch::new("unseen")?;
    let node = seeing(&scratch)?;
    let (status, _) = post(
        &node,
        "/v1/chat/completions",
        &chat(SEES, &uri_of("wide.png")?),
    )?;
    ensure!(status == 200);
    let worker = |node: &Node| -> Result<Value> {
        let told = node.json(&["ps"])?;
        Ok(told["models"][0]["pid"].clone())
    };
    let before = worker(&node)?;
    let noise = STANDARD.encode([&image("stripes.png")?[..60], &[0x5a; 300]].concat());
    for (model, url, why) in [
        (MODEL, uri_of("wide.png")?, "no projector"),
        (
            SEES,
            "https://example.org/a.png".into(),
            "not fetched from the web",
        ),
        (
            SEES,
            "data:image/png;base64,aGVsbG8=".into(),
            "neither PNG, JPEG nor GIF",
        ),
        (SEES, uri_of("bomb.png")?, "60000 by 60000"),
        (SEES, uri_of("cut.png")?, "image 1: "),
        (SEES, uri_of("empty-promise.png")?, "image 1: "),
        (SEES, format!("data:image/png;base64,{noise}"), "image 1: "),
    ] {
        let (status, told) = post(&node, "/v1/chat/completions", &chat(model, &url))?;
        ensure!(
            status == 400 && told.to_string().contains(why),
            "{status} {told}"
        );
    }
    let (status, told) = post(
        &node,
        "/v1/chat/completions",
        &chat(SEES, &uri_of("wide.png")?),
    )?;
    ensure!(status == 200, "{told}");
    ensure!(worker(&node)? == before, "the worker lived on");
    Ok(())
}

#[test]
fn an_image_travels_to_another_node_and_the_answer_survives_its_death() -> Result<()> {
    let scratch = Scratch::new("far-images")?;
    let mut trio = Trio::start(&test_bin(), scratch.path(), &test_model(), Holders::Guests)?;
    trio.share_seeing(&test_model(), &test_projector())?;
    let about = Chat::new(trio.a.api, SEES, "What is this?", TOKENS)
        .in_scope("circle")
        .with_image(&uri_of("gradient.png")?);
    let unbroken = about.run()?;
    ensure!(unbroken.used("prompt_tokens")? > ROWS, "{}", unbroken.usage);
    let mut dead = None;
    let broken = about.run_with(|received| {
        if received.times.len() == BREAK_AFTER && dead.is_none() {
            let node = answering(&trio.a)?;
            signal(trio.guest(&node)?.pid().context("it runs")?, "KILL")?;
            dead = Some(node);
        }
        Ok(())
    })?;
    let dead = dead.context("a node was killed")?;
    ensure!(broken.moved_after.len() == 1, "it did not move");
    ensure!(broken.used("completion_tokens")? == unbroken.used("completion_tokens")?);
    let story = trio.a.cli(&["receipts", "show", &broken.job])?;
    ensure!(story.contains("accepted, then vanished"), "{story}");
    trio.guest_mut(&dead)?.kill()
}
