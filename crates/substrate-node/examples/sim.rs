//! Prints the simulator's figures: `cargo run -p substrate-node --features sim --example sim -- [seeds] [first seed]`.
#![allow(clippy::disallowed_methods, reason = "a program, which has arguments")]

use std::process::ExitCode;

use substrate_node::sim::{Plan, run};

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map(|word| word.parse::<u64>());
    let (Ok(seeds), Ok(first)) = (
        numbers.next().unwrap_or(Ok(10)),
        numbers.next().unwrap_or(Ok(1)),
    ) else {
        eprintln!("usage: sim [seeds] [first seed]");
        return ExitCode::from(2);
    };
    let storms = (first..first + seeds).map(|seed| ("storm", Plan::storm(seed)));
    let plans = storms.chain([("mine", Plan::mine(first))]);
    for (name, plan) in plans {
        match run(&plan) {
            Ok(figures) => println!("{name} seed {}: {figures:?}", plan.seed),
            Err(broken) => {
                println!("{name} {broken}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
