//! Judges pairs of greedy answers that differ: by PROTOCOL.md 3 their first difference must be a near-tie.
//!
//! `cargo run -p substrate-worker --example judge_seams -- MODEL PAIRS.json`, where PAIRS.json is a list of
//! [question, tokens of one answer, tokens of the other], a token as the list of its bytes. Ends 1 if a difference is more
//! than rounding explains.
//!
//! The answers' common tokens are read anew; where they part, each must have gone on with one of the tokens this engine
//! finds best there, and a close one. A repeated or a missing word fails by the first of these.

use std::collections::BTreeMap;

use substrate_sandbox::wire::{Input, Message, Prepare, Sampler};
use substrate_worker::engine::{Engine, LoadOptions};
use substrate_worker::ffi::Interrupt;
use substrate_worker::near_tie::NEAR_TIE;
use substrate_worker::scheduler::Event;

/// A question and the tokens of its two answers.
type Pair = (String, Vec<Vec<u8>>, Vec<Vec<u8>>);

/// Best tokens looked at: three close ones are seen now and then.
const BEST: u32 = 5;

/// Log-probabilities on the pipe are in 1/65,536.
const FIXED_POINT: f64 = 65_536.0;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let model = arguments
        .next()
        .expect("usage: judge_seams MODEL PAIRS.json");
    let pairs = arguments
        .next()
        .expect("usage: judge_seams MODEL PAIRS.json");
    let pairs = std::fs::read(pairs).expect("the pairs can be read");
    let pairs: Vec<Pair> =
        serde_json::from_slice(&pairs).expect("a list of a text and two lists of tokens each");
    let options = LoadOptions {
        n_ctx: 2048,
        threads: 2,
        batch_threads: 2,
        pool: 2,
        flash_attention: true,
        ..LoadOptions::default()
    };
    let mut engine = Engine::load(&model, &options, Interrupt::default()).expect("the model loads");
    let known = vocabulary(&engine);
    let ids = |tokens: &[Vec<u8>]| -> Vec<u32> {
        let id = |bytes: &Vec<u8>| *known.get(bytes).expect("a token of this model");
        tokens.iter().map(id).collect()
    };
    let mut real = 0;
    for (question, one, other) in &pairs {
        let (at, judged) = judge(&mut engine, question, &ids(one), &ids(other));
        let verdict = match judged {
            Ok(gap) => format!("near-tie of {gap:.4}"),
            Err(why) => {
                real += 1;
                format!("DIFFERENCE: {why}")
            }
        };
        let question: String = question.chars().take(60).collect();
        println!("after {at} tokens, {verdict}: {question}");
    }
    if real > 0 {
        println!(
            "{real} of {} differences are no near-ties (limit {NEAR_TIE})",
            pairs.len()
        );
        std::process::exit(1);
    }
}

/// Every token by its bytes, as log-probabilities tell them.
fn vocabulary(engine: &Engine) -> BTreeMap<Vec<u8>, u32> {
    let model = engine.model();
    let piece = |id| {
        let mut bytes = Vec::new();
        model.piece(id, true, &mut bytes).expect("a known id");
        (bytes, id)
    };
    (0..engine.facts().n_vocab).rev().map(piece).collect()
}

/// Tokens the two answers share, and how close the two best are there, if those are what the answers went on with.
fn judge(
    engine: &mut Engine,
    question: &str,
    one: &[u32],
    other: &[u32],
) -> (usize, Result<f64, String>) {
    let shared = one
        .iter()
        .zip(other)
        .take_while(|(left, right)| left == right)
        .count();
    let Some(best) = next(engine, question, &one[..shared]) else {
        return (shared, Err("the engine ends there".to_owned()));
    };
    // An answer that came without the token that ends it ended there.
    let behind = |id: Option<&u32>| {
        let is_it = |at: u32| id.map_or_else(|| engine.model().is_eog(at), |id| *id == at);
        best.iter().find(|(id, _)| is_it(*id)).map(|(_, gap)| *gap)
    };
    let judged = match (behind(one.get(shared)), behind(other.get(shared))) {
        (Some(one), Some(other)) if one.max(other) <= NEAR_TIE => Ok(one.max(other)),
        (Some(one), Some(other)) => {
            Err(format!("they lie {one:.4} and {other:.4} behind the best"))
        }
        _ => Err(format!(
            "{:?} and {:?} are not among the best, which are {best:?}",
            one.get(shared),
            other.get(shared)
        )),
    };
    (shared, judged)
}

/// The best tokens after `answer`, each with how many logits it lies behind the first.
fn next(engine: &mut Engine, question: &str, answer: &[u32]) -> Option<Vec<(u32, f64)>> {
    let job = Prepare {
        seq: 1,
        input: Input::chat(vec![Message::new("user", question)])
            .to_cbor_bytes()
            .expect("a small input"),
        sampler: Sampler {
            temperature: 0,
            top_k: 0,
            top_p: 1_000_000,
            min_p: 0,
            typical_p: 1_000_000,
            repeat_last_n: 64,
            repeat: 1_000_000,
            presence: 0,
            frequency: 0,
            n: 1,
            top_logprobs: Some(BEST),
        },
        seed: [0; 32],
        resume: answer.to_vec(),
        max_tokens: u32::try_from(answer.len()).expect("a short answer") + 1,
        partition: [0; 32],
        reuse: false,
    };
    let sequence = engine.prepare(&job).expect("a sound job");
    let mut best = None;
    let ran = engine.run(sequence, |event| {
        if let Event::Token { token, .. } = event {
            let told = token.logprob.iter().flat_map(|told| &told.top);
            let told: Vec<(u32, i32)> = told.map(|(id, logprob, _)| (*id, *logprob)).collect();
            let first = told.first().map_or(0, |(_, logprob)| *logprob);
            let behind = |logprob: i32| f64::from(first - logprob) / FIXED_POINT;
            best = Some(
                told.into_iter()
                    .map(|(id, logprob)| (id, behind(logprob)))
                    .collect(),
            );
        }
    });
    ran.expect("the engine runs");
    best
}
