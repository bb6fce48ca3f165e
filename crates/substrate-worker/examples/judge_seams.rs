//! Judges pairs of greedy answers that differ: by PROTOCOL.md 3 their first difference must be a near-tie.
//!
//! `cargo run -p substrate-worker --example judge_seams -- MODEL PAIRS.json`, where PAIRS.json is a list of
//! [question, one answer, other answer]. Ends 1 if a difference is more than rounding explains.

use substrate_sandbox::wire::{Input, Message, Prepare, Sampler};
use substrate_worker::engine::{Engine, LoadOptions};
use substrate_worker::ffi::Interrupt;
use substrate_worker::near_tie::NEAR_TIE;
use substrate_worker::scheduler::Event;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let model = arguments
        .next()
        .expect("usage: judge_seams MODEL PAIRS.json");
    let pairs = arguments
        .next()
        .expect("usage: judge_seams MODEL PAIRS.json");
    let pairs = std::fs::read(pairs).expect("the pairs can be read");
    let pairs: Vec<(String, String, String)> =
        serde_json::from_slice(&pairs).expect("a list of three texts each");
    let options = LoadOptions {
        n_ctx: 2048,
        threads: 2,
        batch_threads: 2,
        pool: 2,
        flash_attention: true,
        ..LoadOptions::default()
    };
    let mut engine = Engine::load(&model, &options, Interrupt::default()).expect("the model loads");
    let mut real = 0;
    for (question, one, other) in &pairs {
        let (at, gap) = first_gap(&mut engine, question, one, other);
        let verdict = if gap <= NEAR_TIE {
            "near-tie"
        } else {
            "DIFFERENCE"
        };
        println!(
            "{verdict}: the answers part after {at} tokens, where the best two are {gap:.4} apart: {question}"
        );
        real += usize::from(gap > NEAR_TIE);
    }
    if real > 0 {
        println!(
            "{real} of {} differences are no near-ties (limit {NEAR_TIE})",
            pairs.len()
        );
        std::process::exit(1);
    }
}

/// Tokens the two answers share, and how far apart the model's best two are there.
fn first_gap(engine: &mut Engine, question: &str, one: &str, other: &str) -> (usize, f64) {
    let ids = |text: &str| {
        engine
            .model()
            .tokenize(text.as_bytes(), false, false)
            .expect("it tokenizes")
    };
    let (one, other) = (ids(one), ids(other));
    let shared = one
        .iter()
        .zip(&other)
        .take_while(|(left, right)| left == right)
        .count();
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
            top_logprobs: None,
        },
        seed: [0; 32],
        resume: one[..shared].to_vec(),
        max_tokens: u32::try_from(shared).expect("a short answer") + 1,
        partition: [0; 32],
        reuse: false,
    };
    let sequence = engine.prepare(&job).expect("a sound job");
    let mut gap = f64::INFINITY;
    let ran = engine.run(sequence, |event| {
        if let Event::Token { token, .. } = event {
            gap = token.gap;
        }
    });
    ran.expect("the engine runs");
    (shared, gap)
}
