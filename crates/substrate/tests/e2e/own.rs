//! Models of one's own, with the real engine: made from a Modelfile, obeyed, kept over a restart, and whole when the
//! model they were made from has lost its name.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::node::{Node, Scratch, files_below};
use xtask::trio::{Holders, MODEL, Trio, import, test_adapter, test_bin, test_model};

/// What is made, and a question to it.
const OWN: &str = "parrot:1";
const QUESTION: &str = "Name three colours and say one sentence about each of them.";

/// A capability comes within five seconds, and goes on from node to node.
const SEEN: Duration = Duration::from_secs(60);

/// Greedy, so that the same prompt is the same answer, and with a seed, so that each is read whole.
const MODELFILE: &str = r#"# a parrot
from smollm2:135m
SYSTEM """You are a parrot.
You repeat what you hear."""
PARAMETER temperature 0
PARAMETER seed 1
PARAMETER num_predict 16
MESSAGE user Hello!
MESSAGE assistant Hello! Hello!
LICENSE CC0-1.0
"#;

fn started(scratch: &Scratch) -> Result<Node> {
    let mut node = Node::create(&test_bin(), scratch.path(), "n")?;
    node.start()?;
    import(&node, &test_model(), &[])?;
    Ok(node)
}

fn make(node: &Node, name: &str, modelfile: &str) -> Result<()> {
    node.write_file("Modelfile", modelfile)?;
    let file = node.home.join("Modelfile");
    let file = file.to_str().context("a path in UTF-8")?;
    node.cli(&["create", name, "-f", file]).map(drop)
}

fn chat(node: &Node, model: &str, messages: &Value, options: &Value) -> Result<Value> {
    let body = json!({ "model": model, "messages": messages, "options": options, "stream": false });
    let url = format!("http://{}/api/chat", node.api);
    Ok(ureq::post(&url).send_json(body)?.body_mut().read_json()?)
}

fn asked() -> Value {
    json!([{ "role": "user", "content": QUESTION }])
}

fn said(answer: &Value) -> Result<String> {
    let text = answer["message"]["content"].as_str().context("no text")?;
    Ok(text.to_owned())
}

/// What the Modelfile adds, said in full.
fn in_full() -> (Value, Value) {
    let messages = json!([
        { "role": "system", "content": "You are a parrot.\nYou repeat what you hear." },
        { "role": "user", "content": "Hello!" },
        { "role": "assistant", "content": "Hello! Hello!" },
        { "role": "user", "content": QUESTION },
    ]);
    (
        messages,
        json!({ "temperature": 0, "seed": 1, "num_predict": 16 }),
    )
}

#[test]
fn a_model_of_ones_own_answers_as_its_modelfile_says_on_every_way() -> Result<()> {
    let scratch = Scratch::new("own")?;
    let mut node = started(&scratch)?;
    make(&node, OWN, MODELFILE)?;
    let (messages, options) = in_full();
    let full = chat(&node, MODEL, &messages, &options)?;
    let wanted = said(&full)?;
    let own = chat(&node, OWN, &asked(), &json!({}))?;
    assert_eq!(said(&own)?, wanted);
    assert_eq!(own["prompt_eval_count"], full["prompt_eval_count"]);
    assert!(own["eval_count"].as_u64() <= Some(16), "{own}");
    assert_ne!(said(&chat(&node, MODEL, &asked(), &options)?)?, wanted);

    assert_eq!(other_ways(&node)?, vec![wanted.trim().to_owned(); 5]);

    // A stop string of the model's own ends the answer, and the request's wins over it.
    let words: Vec<&str> = wanted.split_whitespace().collect();
    let stop = words.get(3).context("four words")?;
    make(
        &node,
        "brief:1",
        &format!("FROM {OWN}\nPARAMETER stop {stop}\n"),
    )?;
    let cut = wanted.split(stop).next().context("a beginning")?;
    assert_eq!(said(&chat(&node, "brief:1", &asked(), &json!({}))?)?, cut);
    let whole = chat(
        &node,
        "brief:1",
        &asked(),
        &json!({ "stop": ["\u{1f980}"] }),
    )?;
    assert_eq!(said(&whole)?, wanted);

    // All of it is still there after a restart, and after the first model's name is gone.
    node.stop()?;
    node.start()?;
    node.cli(&["rm", MODEL])?;
    assert_eq!(said(&chat(&node, OWN, &asked(), &json!({}))?)?, wanted);
    node.cli(&["rm", OWN])?;
    assert_eq!(said(&chat(&node, "brief:1", &asked(), &json!({}))?)?, cut);
    node.cli(&["rm", "brief:1"])?;
    let blobs = files_below(&node.home.join("blobs"))?;
    assert!(blobs.is_empty(), "the last name takes the bytes: {blobs:?}");
    Ok(())
}

/// The answer by the command line, and by every other API.
fn other_ways(node: &Node) -> Result<Vec<String>> {
    let post = |path: &str, body: Value| -> Result<Value> {
        let url = format!("http://{}{path}", node.api);
        Ok(ureq::post(&url).send_json(body)?.body_mut().read_json()?)
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().trim().to_owned();
    let run = node.cli(&["run", OWN, QUESTION])?;
    let generated = post(
        "/api/generate",
        json!({ "model": OWN, "prompt": QUESTION, "stream": false }),
    )?;
    let completed = post(
        "/v1/chat/completions",
        json!({ "model": OWN, "messages": asked() }),
    )?;
    let responded = post("/v1/responses", json!({ "model": OWN, "input": QUESTION }))?;
    let message = post(
        "/v1/messages",
        json!({ "model": OWN, "messages": asked(), "max_tokens": 16 }),
    )?;
    Ok(vec![
        run.trim().to_owned(),
        text(&generated["response"]),
        text(&completed["choices"][0]["message"]["content"]),
        text(&responded["output"][0]["content"][0]["text"]),
        text(&message["content"][0]["text"]),
    ])
}

#[test]
fn what_is_made_is_listed_and_shown_and_what_cannot_be_made_says_why() -> Result<()> {
    let scratch = Scratch::new("shown")?;
    let node = started(&scratch)?;
    make(&node, OWN, MODELFILE)?;
    let listed = node.json(&["list"])?.to_string();
    assert!(listed.contains(OWN) && listed.contains(MODEL), "{listed}");
    let shown = node.cli(&["show", OWN, "--modelfile"])?;
    make(&node, "again:1", &shown)?;
    assert_eq!(node.cli(&["show", "again:1", "--modelfile"])?, shown);
    let parameters = node.cli(&["show", OWN, "--parameters"])?;
    assert!(parameters.contains("num_predict"), "{parameters}");
    let system = node.cli(&["show", OWN, "--system"])?;
    assert!(system.starts_with("You are a parrot.\n"), "{system}");
    let licence = node.cli(&["show", OWN, "--license"])?;
    assert!(licence.ends_with("CC0-1.0\n"), "{licence}");

    node.cli(&["cp", OWN, "copy:1"])?;
    assert_eq!(node.cli(&["show", "copy:1", "--modelfile"])?, shown);

    for (modelfile, why) in [
        ("FROM nobody:1", "model 'nobody:1' not found"),
        ("FROM ./absent.gguf", "absent.gguf"),
        (
            "FROM smollm2:135m\nTEMPLATE {{ .Prompt }}",
            "line 2: the template is one of Go's",
        ),
        ("FROM smollm2:135m\nADAPTER ./lora.gguf", "lora.gguf"),
    ] {
        let told = make(&node, "never:1", modelfile).expect_err("it cannot be made");
        ensure!(format!("{told:#}").contains(why), "{modelfile}: {told:#}");
    }
    // From a file, with a template of its own; what the template writes is what the model reads.
    let file = test_model();
    let own = "TEMPLATE {% for m in messages %}{{ m.content }}{% endfor %}";
    make(
        &node,
        "bare:1",
        &format!("FROM {}\n{own}\nPARAMETER num_predict 4", file.display()),
    )?;
    let bare = chat(&node, "bare:1", &asked(), &json!({}))?;
    let plain = chat(&node, MODEL, &asked(), &json!({ "num_predict": 4 }))?;
    let tokens = |answer: &Value| answer["prompt_eval_count"].as_u64();
    assert!(
        tokens(&bare) < tokens(&plain),
        "no turns are marked: {bare} {plain}"
    );
    make(
        &node,
        "broken:1",
        "FROM bare:1\nTEMPLATE {% for m in messages %}",
    )?;
    let told = chat(&node, "broken:1", &asked(), &json!({})).expect_err("it does not end");
    assert!(told.to_string().contains("400"), "{told:#}");
    Ok(())
}

#[test]
fn another_node_that_holds_the_weights_answers_for_a_model_of_ones_own() -> Result<()> {
    let scratch = Scratch::new("elsewhere")?;
    let trio = Trio::start(&test_bin(), scratch.path(), &test_model(), Holders::All)?;
    make(&trio.a, OWN, MODELFILE)?;
    let here = trio.a.cli(&["run", OWN, QUESTION])?;
    let there = trio.a.cli(&["run", OWN, QUESTION, "--elsewhere"])?;
    assert_eq!(there.trim(), here.trim());
    Ok(())
}

#[test]
fn a_model_is_made_of_a_file_that_is_sent() -> Result<()> {
    let scratch = Scratch::new("sent")?;
    let mut node = Node::create(&test_bin(), scratch.path(), "n")?;
    node.start()?;
    let key = node.json(&["key", "add", "maker", "--admin"])?;
    let bearer = format!("Bearer {}", key["key"].as_str().context("no key")?);
    let file = test_model();
    let digest = digest_of(&std::fs::read(&file)?);
    let url = format!("http://{}/api/blobs/sha256:{digest}", node.api);
    let send = || {
        let body = std::fs::File::open(&file)?;
        let sent = ureq::post(&url).header("authorization", &bearer).send(body);
        anyhow::Ok(sent?.status().as_u16())
    };
    let head = || {
        ureq::head(&url)
            .call()
            .map(|answer| answer.status().as_u16())
    };
    assert!(head().is_err(), "it is not here yet");
    assert_eq!((send()?, head()?), (201, 200));
    assert_eq!(send()?, 200, "it is here already");
    let body = json!({
        "model": OWN, "files": { "m.gguf": format!("sha256:{digest}") }, "stream": false,
        "parameters": { "num_predict": 4 },
    });
    let made = ureq::post(&format!("http://{}/api/create", node.api))
        .header("authorization", &bearer)
        .send_json(body)?
        .body_mut()
        .read_json::<Value>()?;
    assert_eq!(made["status"], "success");
    let answer = chat(&node, OWN, &asked(), &json!({}))?;
    assert_eq!(answer["eval_count"], 4, "{answer}");
    Ok(())
}

fn digest_of(bytes: &[u8]) -> String {
    substrate_record::ContentHash::of(bytes).to_string()
}

/// The weights of the adapter are drawn by chance (tests/models/adapter.py): it says something else, and what that is means
/// nothing.
#[test]
fn an_adapter_changes_what_is_said_and_another_node_needs_it_too() -> Result<()> {
    let scratch = Scratch::new("adapter")?;
    let trio = Trio::start(&test_bin(), scratch.path(), &test_model(), Holders::All)?;
    let file = test_adapter();
    let modelfile = format!("FROM {MODEL}\nADAPTER {}", file.display());
    let options = json!({ "num_predict": 24, "temperature": 0, "seed": 1 });
    make(&trio.b, OWN, &modelfile)?;
    let plain = said(&chat(&trio.b, MODEL, &asked(), &options)?)?;
    let own = said(&chat(&trio.b, OWN, &asked(), &options)?)?;
    ensure!(own != plain, "it is not used: {own}");
    let shown = trio.b.json(&["show", OWN])?;
    let files = shown["files"].as_array().context("no files")?;
    ensure!(
        files.iter().any(|file| file["role"] == "adapter"),
        "{shown}"
    );
    // The requester holds the weights and not the adapter: the one that has both answers.
    trio.a.wait_for("the adapted model", SEEN, |a| {
        Ok(a.json(&["peers"])?.to_string().contains(OWN))
    })?;
    let there = json!({ "model": OWN, "messages": asked(), "options": options, "stream": false });
    let response = ureq::post(&format!("http://{}/api/chat", trio.a.api))
        .header("x-substrate-scope", "circle")
        .send_json(there)?
        .body_mut()
        .read_json()?;
    assert_eq!(said(&response)?, own);
    Ok(())
}
