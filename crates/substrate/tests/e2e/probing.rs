//! Kept prefixes: a conversation goes on without being read again, and nobody can tell by the clock what another has asked.
//!
//! The one who probes has an API key of its own, asks what the other has asked and what nobody has, and looks at the time
//! to the first token. How well that tells one from the other is the area under the ROC curve (AUC): 0.5 is guessing.
//! The control is the other one itself: what it asked before is told well from what it did not.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::node::{Node, Scratch};
use xtask::size;
use xtask::stream::{complete, quantile};
use xtask::trio::{MODEL, import, test_bin, test_model};

/// Probes, half of them for what was asked, in the gate and in `prove`.
const PROBES: (usize, usize) = (16, 2000);
/// What a guess may be better than chance, for any number of probes.
const AUC: f64 = 0.55;
/// The least that tells the control's own prefixes.
const TOLD: f64 = 0.9;
/// Prompts asked before they are probed for: the cache holds them all.
const ROUND: usize = 10;
/// Words of a prompt: some 32 tokens, twice what is kept at all.
const WORDS: u64 = 24;
/// Turns of a conversation, and how much slower the last may begin than the first.
const TURNS: usize = 10;
const SLOWER: f64 = 1.2;
/// Conversations, of which the median counts, in the gate and in `prove`.
const CONVERSATIONS: (usize, usize) = (3, 15);

#[test]
fn nobody_tells_by_the_clock_what_another_has_asked() -> Result<()> {
    let scratch = Scratch::new("probing")?;
    let node = one(&scratch)?;
    let [ann, ben] = ["ann", "ben"].map(|name| key(&node, name));
    let (ann, ben) = (ann?, ben?);
    first(node.api, &ann, &prompt(0))?;

    let half = size::of(PROBES.0, PROBES.1) / 2;
    let (mut asked, mut new) = (Vec::new(), Vec::new());
    let (mut own_asked, mut own_new) = (Vec::new(), Vec::new());
    for round in 0..half.div_ceil(ROUND) as u64 {
        let number = |kind: u64, place: usize| 1 + round * 1000 + kind * 100 + place as u64;
        let places = || 0..ROUND.min(half - round as usize * ROUND);
        for place in places() {
            first(node.api, &ann, &prompt(number(0, place)))?;
        }
        for place in places() {
            // In turns, so that what the machine does meanwhile falls on both.
            asked.push(first(node.api, &ben, &prompt(number(0, place)))?);
            new.push(first(node.api, &ben, &prompt(number(1, place)))?);
            if round < 2 {
                own_asked.push(first(node.api, &ann, &prompt(number(0, place)))?);
                own_new.push(first(node.api, &ann, &prompt(number(2, place)))?);
            }
        }
    }
    let (probing, own) = (auc(&asked, &new), auc(&own_asked, &own_new));
    let chance = 3.0 * spread(asked.len(), new.len());
    println!(
        "{} probes: AUC {probing:.3} (chance alone reaches {:.3}); its own, the control: {own:.3}",
        asked.len() + new.len(),
        0.5 + chance
    );
    assert!(own > TOLD, "the control: {own}");
    // At full size chance is within the goal.
    assert!(probing <= AUC.max(0.5 + chance), "AUC {probing}");
    Ok(())
}

#[test]
fn the_tenth_turn_of_a_conversation_begins_as_soon_as_the_first() -> Result<()> {
    let scratch = Scratch::new("turns")?;
    let node = one(&scratch)?;
    let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
    // Loads the model.
    complete(node.api, MODEL, "a", 1, "mine")?;
    for conversation in 0..size::of(CONVERSATIONS.0, CONVERSATIONS.1) as u64 {
        // What each conversation begins with is new: its first turn reads all of it.
        let system = format!("{} Answer briefly.", prompt(9_000 + conversation));
        let mut messages = vec![json!({ "role": "system", "content": system })];
        for turn in 0..TURNS as u64 {
            messages.push(json!({ "role": "user", "content": prompt(conversation * 100 + turn) }));
            let body = json!({ "messages": messages, "max_tokens": 8 });
            let came = ask(node.api, "/v1/chat/completions", None, body)?;
            if turn == 0 {
                firsts.push(came.first);
            } else if turn + 1 == TURNS as u64 {
                lasts.push(came.first);
            }
            messages.push(json!({ "role": "assistant", "content": came.text }));
        }
    }
    let (first, last) = (quantile(&firsts, 0.5)?, quantile(&lasts, 0.5)?);
    let ratio = last.as_secs_f64() / first.as_secs_f64();
    println!(
        "first token of turn 1 after {first:?}, of turn {TURNS} after {last:?}: ratio {ratio:.2}"
    );
    assert!(ratio <= SLOWER, "{ratio}");
    Ok(())
}

fn one(scratch: &Scratch) -> Result<Node> {
    let mut node = Node::create(&test_bin(), scratch.path(), "n")?;
    node.write_config("[models]\nthreads = 1\nkeep_alive = -1\n")?;
    node.start()?;
    import(&node, &test_model(), &[])?;
    Ok(node)
}

fn key(node: &Node, name: &str) -> Result<String> {
    Ok(node.cli(&["key", "add", name])?.trim().to_owned())
}

/// Words that no other number begins with.
fn prompt(number: u64) -> String {
    const WORDS_OF: [&str; 16] = [
        "river", "stone", "window", "garden", "winter", "letter", "music", "harbour", "engine",
        "paper", "mountain", "story", "yellow", "quiet", "market", "teacher",
    ];
    let mut state = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let words = (0..WORDS).map(|_| {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        WORDS_OF[(state >> 32) as usize % WORDS_OF.len()]
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Time to the first token of a raw completion.
fn first(api: SocketAddr, key: &str, prompt: &str) -> Result<Duration> {
    let body = json!({ "prompt": prompt, "max_tokens": 1 });
    Ok(ask(api, "/v1/completions", Some(key), body)?.first)
}

struct Came {
    first: Duration,
    text: String,
}

fn ask(api: SocketAddr, path: &str, key: Option<&str>, mut body: Value) -> Result<Came> {
    body["model"] = json!(MODEL);
    body["temperature"] = json!(0);
    body["stream"] = json!(true);
    let start = Instant::now();
    let mut request = ureq::post(&format!("http://{api}{path}"));
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let response = request.send_json(body)?;
    let (mut first, mut text) = (None, String::new());
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let line = line?;
        let Some(chunk) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") else {
            continue;
        };
        let chunk: Value = serde_json::from_str(chunk)?;
        ensure!(chunk.get("error").is_none(), "{chunk}");
        let choice = &chunk["choices"][0];
        let content = choice["delta"]["content"].as_str();
        if choice["text"].is_string() || content.is_some_and(|content| !content.is_empty()) {
            first.get_or_insert_with(|| start.elapsed());
        }
        text.push_str(content.unwrap_or_default());
    }
    Ok(Came {
        first: first.context("an empty answer")?,
        text,
    })
}

/// How often one of `hits` is faster than one of `misses`; ties count half (Mann and Whitney).
fn auc(hits: &[Duration], misses: &[Duration]) -> f64 {
    let wins: f64 = hits
        .iter()
        .flat_map(|hit| misses.iter().map(move |miss| hit.cmp(miss)))
        .map(|order| match order {
            std::cmp::Ordering::Less => 1.0,
            std::cmp::Ordering::Equal => 0.5,
            std::cmp::Ordering::Greater => 0.0,
        })
        .sum();
    wins / (hits.len() * misses.len()) as f64
}

/// Standard deviation of the AUC of two samples of one distribution (Mann and Whitney).
fn spread(left: usize, right: usize) -> f64 {
    let (left, right) = (left as f64, right as f64);
    ((left + right + 1.0) / (12.0 * left * right)).sqrt()
}
