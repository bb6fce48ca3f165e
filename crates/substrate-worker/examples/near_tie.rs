//! Measures how far prefill and decode of the same positions round apart, for the near-tie rule.
//!
//! `cargo run -p substrate-worker --example near_tie -- MODEL [POSITIONS]`
//!
//! Prints the 99.9th percentile of |Δ(l₁ − l₂)|, where l₁ and l₂ are the logits of the two tokens
//! that decode puts first; PROTOCOL.md 3 takes it over at least 10,000 positions. Ends 1 if it is larger than the
//! constant in `src/near_tie.rs`.

use substrate_worker::engine::{Engine, LoadOptions};
use substrate_worker::ffi::{Interrupt, MAX_BATCH};
use substrate_worker::near_tie::{MEASURED_P999, gap_shifts, percentile};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().expect("usage: near_tie MODEL [POSITIONS]");
    let positions: usize = arguments
        .next()
        .map_or(10_240, |n| n.parse().expect("a number"));
    let options = LoadOptions {
        n_ctx: MAX_BATCH as u32,
        outputs: MAX_BATCH as u32,
        threads: 1,
        batch_threads: 1,
        pool: 1,
        flash_attention: true,
        ..LoadOptions::default()
    };
    let mut engine = Engine::load(&model, &options, Interrupt::default()).expect("the model loads");
    let mut shifts = Vec::new();
    while shifts.len() < positions {
        let start = shifts.len() as u32;
        shifts.extend(gap_shifts(&mut engine, start, MAX_BATCH - 1).expect("the engine runs"));
    }
    let count = shifts.len();
    let [median, p99, p999, max] =
        [500, 990, 999, 1000].map(|per_mille| percentile(&mut shifts, per_mille));
    println!(
        "{count} positions: median {median:.4} p99 {p99:.4} p99.9 {p999:.4} max {max:.4} logits"
    );
    println!("the constant in near_tie.rs is {MEASURED_P999}");
    if p999 > MEASURED_P999 {
        println!("this build rounds further apart: the constant must be measured again");
        std::process::exit(1);
    }
}
