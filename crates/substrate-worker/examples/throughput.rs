//! Prefill and decode of the engine, in-process and unsealed, beside the bare decode loop.
//!
//! `cargo run -p substrate-worker --example throughput -- MODEL [THREADS] [ROUNDS]`

use std::time::Instant;

use substrate_sandbox::wire::{Input, Prepare, Sampler};
use substrate_worker::engine::{Engine, LoadOptions};
use substrate_worker::ffi::Interrupt;
use substrate_worker::sequence::Step;

/// Tokens per measured answer.
const TOKENS: u32 = 128;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let model = arguments
        .next()
        .expect("usage: throughput MODEL [THREADS] [ROUNDS]");
    let mut number = |default| {
        arguments
            .next()
            .map_or(default, |n| n.parse().expect("a number"))
    };
    let (threads, rounds): (u32, u32) = (number(2), number(3));
    let options = LoadOptions {
        n_ctx: 2048,
        threads,
        batch_threads: threads,
        pool: threads,
    };
    let mut engine = Engine::load(&model, &options, Interrupt::default()).expect("the model loads");
    let argmax = Sampler {
        temperature: 0,
        top_k: 0,
        top_p: 1_000_000,
        min_p: 0,
        typical_p: 1_000_000,
        repeat_last_n: 0,
        repeat: 1_000_000,
        presence: 0,
        frequency: 0,
        n: 1,
        top_logprobs: None,
    };
    let open = Sampler {
        temperature: 800_000,
        ..argmax
    };
    let usual = Sampler {
        top_k: 40,
        top_p: 900_000,
        repeat_last_n: 64,
        repeat: 1_100_000,
        ..open
    };
    for round in 0..rounds {
        let (prefill, decode) = engine.bench(512, TOKENS).expect("the engine runs");
        let [prefill, decode] = [prefill, decode].map(|rate| rate as f64 / 1000.0);
        let rates = [argmax, open, usual].map(|sampler| rate(&mut engine, sampler));
        println!("round {round}: prefill {prefill:.1}, bare decode {decode:.1} tok/s");
        for (name, rate) in ["argmax", "open", "usual"].iter().zip(rates) {
            println!(
                "  answer, {name}: {rate:.1} tok/s, {:.3} of bare decode",
                rate / decode
            );
        }
    }
}

fn rate(engine: &mut Engine, sampler: Sampler) -> f64 {
    let job = Prepare {
        seq: 1,
        input: Input::text("Once upon a time", false)
            .to_cbor_bytes()
            .expect("sound"),
        sampler,
        seed: [1; 32],
        resume: Vec::new(),
        max_tokens: TOKENS,
    };
    let mut sequence = engine.prepare(&job).expect("sound");
    let (mut start, mut count) = (Instant::now(), 0);
    let ran = engine.run(&mut sequence, |step| match step {
        Step::Token(_) if count == 0 => (start, count) = (Instant::now(), 1),
        Step::Token(_) => count += 1,
        _ => {}
    });
    ran.expect("the engine runs");
    f64::from(count - 1) / start.elapsed().as_secs_f64()
}
