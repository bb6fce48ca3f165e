//! `cargo xtask demo`: from nothing to a real answer across three nodes, a node killed in the middle of an
//! answer, and the receipts of both sides verified offline.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;
use xtask::node::{Node, Scratch};
use xtask::trio::{Holders, MODEL, Trio};
use xtask::{model, packages, sh, stage};

const QUESTION: &str = "Explain in three short sentences why the sky is blue.";
const STORY: &str = "Write a long story about a lighthouse keeper who finds a message in a bottle.";
/// Tokens of the story: enough to be in the middle of when the node dies.
const STORY_TOKENS: &str = "160";
/// Tokens after which the answering node is killed.
const KILL_AFTER: usize = 40;

/// Where to work.
#[derive(Args)]
pub struct Options {
    /// Use the programs staged before instead of building them
    #[arg(long, value_name = "FOLDER", requires = "model")]
    bin: Option<PathBuf>,
    /// Use this copy of the model
    #[arg(long, value_name = "FILE", requires = "bin")]
    model: Option<PathBuf>,
}

/// One streamed answer of the command line.
struct Told {
    text: String,
    node: String,
    job: String,
    attempts: u64,
    tokens: u64,
    decode_ms: u64,
    wall: String,
    scope: String,
    longest_gap: Duration,
    moved: Option<Seam>,
}

/// What had come when the answer moved to another node.
#[derive(Clone, Copy)]
struct Seam {
    tokens: u64,
    characters: usize,
}

/// Sets everything up, then shows it.
pub fn run(options: &Options) -> Result<()> {
    if let (Some(bin), Some(model)) = (&options.bin, &options.model) {
        return run_with(bin, model);
    }
    println!(
        "This demo builds The Substrate, fetches a small model (SmolLM2-135M-Instruct, 93 MB, Apache-2.0)"
    );
    println!(
        "and runs three nodes on this machine as an unprivileged user. From nothing it takes about 15 minutes"
    );
    println!("on two cores, nearly all of it compiling; a second run takes about a minute.");
    println!("It may install build packages by apt (as root) or tells which are missing.\n");
    sh::step("system packages", packages::ensure_for_build)?;
    let model = sh::step("demo model", model::fetch)?;
    let model = model::publish(&model)?;
    let bin = sh::step("binaries", stage::build)?;
    run_with(&bin, &model)
}

/// Shows it with what was built before.
pub fn run_with(bin: &Path, model: &Path) -> Result<()> {
    let scratch = Scratch::new("demo")?;
    let mut trio = part(
        "three nodes: A founds a network, B and C join its circle by code and import the same file",
        || Trio::start(bin, scratch.path(), model, Holders::All),
    )?;
    let told = part("a prompt typed at A, answered on another node", || {
        first_answer(&trio)
    })?;
    part(
        "receipts, verified offline from each side's own export",
        || {
            verify_both(&trio, &told.node, &told.job)?;
            flipped_byte_fails(&trio.a, &told.job)
        },
    )?;
    part(
        "the same question twice: unbroken, then with the answering node killed (kill -9) in the middle",
        || broken_answer(&mut trio),
    )?;
    println!(
        "\nThe node that answers can read the prompt. Both halves of every receipt are kept on both sides."
    );
    Ok(())
}

/// Runs one part under its title and says how long it took.
fn part<T>(title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("\n-- {title}");
    let start = Instant::now();
    let result = work()?;
    println!("   ({:.1} s)", start.elapsed().as_secs_f64());
    Ok(result)
}

fn first_answer(trio: &Trio) -> Result<Told> {
    let told = ask(&trio.a, QUESTION, "96", |_, _| Ok(()))?;
    show(&told);
    if told.node == xtask::trio::id(&trio.a)? {
        bail!("the answer came from A itself");
    }
    let rate = told.tokens as f64 * 1000.0 / told.decode_ms.max(1) as f64;
    println!(
        "   answered by {} over the mesh, scope {}, wall {}, {rate:.1} tok/s",
        &told.node[..8],
        told.scope,
        told.wall
    );
    Ok(told)
}

fn broken_answer(trio: &mut Trio) -> Result<()> {
    let unbroken = ask(&trio.a, STORY, STORY_TOKENS, |_, _| Ok(()))?;
    let broken = with_a_kill(trio)?;
    println!(
        "   unbroken: {} tokens by {}",
        unbroken.tokens,
        &unbroken.node[..8]
    );
    println!("{}", indent(&unbroken.text));
    println!(
        "   broken after {} tokens, {} attempts, longest silence {:.2} s, finished by {}",
        broken.moved.map_or(0, |seam| seam.tokens),
        broken.attempts,
        broken.longest_gap.as_secs_f64(),
        &broken.node[..8]
    );
    println!("{}", indent(&broken.text));
    compare(&unbroken, &broken)?;
    verify_both(trio, &broken.node, &broken.job)
}

fn with_a_kill(trio: &mut Trio) -> Result<Told> {
    let Trio { a, b, c } = trio;
    let keys = [xtask::trio::id(b)?, xtask::trio::id(c)?];
    let mut guests = [b, c];
    let mut killed = false;
    let told = ask(a, STORY, STORY_TOKENS, |node, tokens| {
        if killed || tokens < KILL_AFTER {
            return Ok(());
        }
        killed = true;
        let index = keys
            .iter()
            .position(|key| key == node)
            .context("the answering node is no guest")?;
        guests[index].kill()
    })?;
    if told.attempts < 2 || told.moved.is_none() {
        bail!(
            "the answering node was killed, but the answer did not move: {} attempts",
            told.attempts
        );
    }
    Ok(told)
}

/// Asks at `node` for an answer elsewhere; `on_text` sees the answering node and the number of tokens so far.
fn ask(
    node: &Node,
    prompt: &str,
    tokens: &str,
    mut on_text: impl FnMut(&str, usize) -> Result<()>,
) -> Result<Told> {
    let args = [
        "--json",
        "run",
        MODEL,
        prompt,
        "--elsewhere",
        "--scope",
        "circle",
        "--temperature",
        "0",
        "--seed",
        "1",
        "--max-tokens",
        tokens,
    ];
    let mut child = node
        .command()
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let mut told = Told {
        text: String::new(),
        node: String::new(),
        job: String::new(),
        attempts: 0,
        tokens: 0,
        decode_ms: 0,
        wall: String::new(),
        scope: String::new(),
        longest_gap: Duration::ZERO,
        moved: None,
    };
    let (mut ids, mut last) = (0, None::<Instant>);
    for line in lines {
        let event: Value = serde_json::from_str(&line?)?;
        take(&mut told, &event)?;
        if event["event"] == "text" {
            told.longest_gap = last
                .map_or(Duration::ZERO, |last| last.elapsed())
                .max(told.longest_gap);
            last = Some(Instant::now());
            ids += event["ids"].as_array().map_or(0, Vec::len);
            on_text(&told.node, ids)?;
        }
    }
    if !child.wait()?.success() {
        bail!("the question was not answered");
    }
    Ok(told)
}

fn take(told: &mut Told, event: &Value) -> Result<()> {
    let word = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
    match event["event"].as_str() {
        Some("taken") => told.job = word("job"),
        Some("started") => told.node = word("node"),
        Some("text") => told.text.push_str(&word("text")),
        Some("moved") => {
            told.moved = Some(Seam {
                tokens: event["after_tokens"].as_u64().unwrap_or_default(),
                characters: told.text.chars().count(),
            });
        }
        Some("failed") => bail!("the job failed: {}", event["error"]),
        Some("finished") => {
            told.attempts = event["attempts"].as_u64().unwrap_or_default();
            told.tokens = event["n_out"].as_u64().unwrap_or_default();
            told.decode_ms = event["timings_ms"]["decode"].as_u64().unwrap_or_default();
            (told.wall, told.scope) = (word("wall"), word("scope"));
        }
        _ => {}
    }
    Ok(())
}

/// Exports the job on both sides and verifies each file with no home and no daemon at hand.
fn verify_both(trio: &Trio, provider: &str, job: &str) -> Result<()> {
    for node in [&trio.a, trio.guest(provider)?] {
        // The provider stores the requester's half a moment after the answer's end.
        node.wait_for("the receipt", Duration::from_secs(10), |node| {
            Ok(node.cli(&["receipts", "show", job]).is_ok())
        })?;
        let file = export(node, job)?;
        println!(
            "   {}: substrate receipts verify {job}.receipt",
            node.name.to_uppercase()
        );
        print!("{}", indent(&offline(node, &file)?));
    }
    Ok(())
}

fn export(node: &Node, job: &str) -> Result<String> {
    let file = node.home.join(format!("{job}.receipt"));
    let file = file.to_str().context("a path in UTF-8")?.to_owned();
    node.cli(&["receipts", "export", job, "--output", &file])?;
    Ok(file)
}

/// Verifies with a home that does not exist: nothing but the file can decide.
fn offline(node: &Node, file: &str) -> Result<String> {
    let output = node
        .command()
        .env("SUBSTRATE_HOME", "/nonexistent")
        .args(["receipts", "verify", file])
        .output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn flipped_byte_fails(node: &Node, job: &str) -> Result<()> {
    let file = export(node, job)?;
    let mut bytes = std::fs::read(&file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes)?;
    match offline(node, &file) {
        Ok(_) => bail!("an export with a flipped byte was believed"),
        Err(error) => {
            println!(
                "   byte {middle} of {} flipped:",
                file.rsplit('/').next().unwrap_or_default()
            );
            println!("{}", indent(&error.to_string()));
            Ok(())
        }
    }
}

/// Two greedy answers to one question, each read whole (a seed sees to that). They are one up to the seam; after it they
/// may part where the model's best two tokens are nearly tied (PROTOCOL.md 3), which `prove failover` judges.
fn compare(unbroken: &Told, broken: &Told) -> Result<()> {
    if unbroken.text == broken.text {
        println!("   the two answers are equal, character for character");
        return Ok(());
    }
    let same = shared(&unbroken.text, &broken.text);
    let seam = broken.moved.map_or(0, |seam| seam.characters);
    if same < seam {
        bail!("the two answers part after {same} characters, before the seam at {seam}");
    }
    println!(
        "   the two answers are equal up to the seam and {} characters on; prefill and decode round differently",
        same - seam
    );
    Ok(())
}

/// Characters that two texts have in common from their start.
fn shared(one: &str, other: &str) -> usize {
    one.chars()
        .zip(other.chars())
        .take_while(|(left, right)| left == right)
        .count()
}

fn show(told: &Told) {
    println!("   > {QUESTION}\n{}", indent(&told.text));
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("   | {line}\n")).collect()
}
