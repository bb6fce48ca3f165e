//! Decode of whole answers, in-process and unsealed, beside llama.cpp's bare decode of the same ids.
//!
//! `cargo run -p substrate-worker --example throughput -- MODEL [THREADS] [ROUNDS] [plain|fused] [DEVICE LAYERS]`
//!
//! Each round runs an answer and then feeds its ids to `llama_decode` alone; the ratio of the two
//! is what sampling, text and bookkeeping cost. The rounds are interleaved; the median is printed.

use std::time::Instant;

use substrate_sandbox::wire::{Input, OnGpu, Prepare, Sampler};
use substrate_worker::engine::{Engine, LoadOptions};
use substrate_worker::ffi::Interrupt;
use substrate_worker::near_tie::percentile;
use substrate_worker::scheduler::Event;

/// Tokens per measured answer.
const TOKENS: u32 = 128;
/// What is continued.
const PROMPT: &str = "Once upon a time";

fn main() {
    let mut arguments = std::env::args().skip(1);
    let model = arguments
        .next()
        .expect("usage: throughput MODEL [THREADS] [ROUNDS] [plain|fused] [DEVICE LAYERS]");
    let mut number = |default| {
        arguments
            .next()
            .map_or(default, |n| n.parse().expect("a number"))
    };
    let (threads, rounds): (u32, u32) = (number(2), number(5));
    let flash_attention = arguments.next().is_none_or(|kind| kind != "plain");
    let mut place = arguments.map(|n| n.parse().expect("a number"));
    let gpu = place.next().map(|device| OnGpu {
        device,
        layers: place.next().unwrap_or(u32::MAX),
    });
    let options = LoadOptions {
        n_ctx: 2048,
        threads,
        batch_threads: threads,
        pool: threads,
        flash_attention,
        gpu,
        ..LoadOptions::default()
    };
    let mut engine = Engine::load(&model, &options, Interrupt::default()).expect("the model loads");
    let (prefill, decode) = engine.bench(512, TOKENS).expect("the engine runs");
    println!(
        "prefill 512: {:.1} tok/s, decode after it: {:.1} tok/s",
        prefill as f64 / 1e3,
        decode as f64 / 1e3
    );
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
    let nucleus = Sampler {
        top_p: 950_000,
        top_logprobs: Some(5),
        ..open
    };
    for (name, sampler) in [
        ("argmax", argmax),
        ("open", open),
        ("usual", usual),
        ("nucleus, logprobs", nucleus),
    ] {
        let (mut answers, mut ratios) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let (ids, answer) = answer(&mut engine, sampler);
            let bare = bare(&mut engine, &ids);
            answers.push(answer);
            ratios.push(answer / bare);
        }
        let [rate, ratio] = [&mut answers, &mut ratios].map(|values| percentile(values, 500));
        let cost = sampler_cost(&mut engine, sampler);
        println!(
            "{name}: {rate:.1} tok/s, {ratio:.3} of bare decode, sampler {cost:.3} ms per token"
        );
    }
}

/// Ids and tokens per second of an answer, from its second token on.
fn answer(engine: &mut Engine, sampler: Sampler) -> (Vec<u32>, f64) {
    let job = Prepare {
        seq: 1,
        input: Input::text(PROMPT, false).to_cbor_bytes().expect("sound"),
        sampler,
        seed: [1; 32],
        resume: Vec::new(),
        max_tokens: TOKENS,
        partition: [0; 32],
        reuse: false,
    };
    let sequence = engine.prepare(&job).expect("sound");
    let (mut start, mut ids) = (Instant::now(), Vec::new());
    let ran = engine.run(sequence, |event| {
        if let Event::Token { token, .. } = event {
            if ids.is_empty() {
                start = Instant::now();
            }
            ids.push(token.id);
        }
    });
    ran.expect("the engine runs");
    let rate = (ids.len() - 1) as f64 / start.elapsed().as_secs_f64();
    (ids, rate)
}

/// Milliseconds that choosing a token takes, without the model. The least of many batches: what
/// else the machine does is not the sampler's cost.
fn sampler_cost(engine: &mut Engine, settings: Sampler) -> f64 {
    const BATCH: u64 = 20;
    let n_vocab = engine.facts().n_vocab;
    let logits = engine
        .context()
        .logits()
        .expect("logits of the last decode")
        .to_vec();
    let mut sampler =
        substrate_worker::sampler::Sampler::new(&settings, &[], n_vocab).expect("sound");
    let batches = (0..20).map(|batch| {
        let start = Instant::now();
        for position in 0..BATCH {
            let choice = sampler
                .choose(&logits, &[1; 32], batch * BATCH + position)
                .expect("finite");
            if let Some(n) = settings.top_logprobs {
                substrate_worker::logprobs::of(&logits, choice.id, n).expect("finite");
            }
        }
        start.elapsed().as_secs_f64() * 1e3 / BATCH as f64
    });
    batches.fold(f64::INFINITY, f64::min)
}

/// Tokens per second of decoding the same ids and doing nothing else.
fn bare(engine: &mut Engine, ids: &[u32]) -> f64 {
    let prompt = engine
        .model()
        .tokenize(PROMPT.as_bytes(), true, false)
        .expect("it tokenizes");
    let context = engine.context();
    context.forget();
    context.decode(&prompt).expect("it decodes");
    let start = Instant::now();
    for &id in &ids[..ids.len() - 1] {
        context.decode(&[id]).expect("it decodes");
    }
    // The decode is done when its logits can be read.
    context.logits().expect("logits");
    (ids.len() - 1) as f64 / start.elapsed().as_secs_f64()
}
