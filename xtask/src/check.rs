//! `cargo xtask check`: everything that must hold before a change lands, each part with its time.
//!
//! Invariant: two checks of one checkout never run at once, as they would put their programs into the same place.

use std::fmt::Write;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use crate::{apparmor, bench, clients, demo, dependencies, edges, engine, fuzz, image, tidy};
use xtask::{model, packages, sh, stage};

/// What to run.
#[derive(Args)]
pub struct Options {
    /// Leave out the parts that need minutes: fuzzing, client packages, the demo, the short benchmark
    #[arg(long)]
    quick: bool,
}

/// Runs every part in order and stops at the first that fails; either way the table of parts comes last.
pub fn run(options: &Options) -> Result<()> {
    let _alone = alone()?;
    let mut parts = Parts::default();
    let verdict = all(options, &mut parts);
    eprint!("{}", parts.table(verdict.is_ok()));
    verdict
}

fn all(options: &Options, parts: &mut Parts) -> Result<()> {
    parts.run("system packages", packages::ensure_for_gate)?;
    parts.run("format", format)?;
    parts.run("crate edges", edges::check)?;
    parts.run("dependencies", dependencies::check)?;
    parts.run("tidy", tidy::check)?;
    parts.run("AppArmor profiles", apparmor::check)?;
    let model = parts.run("models", || {
        model::publish_vectors()?;
        model::publish_drawn()?;
        model::publish(&model::fetch()?)
    })?;
    let bin = parts.run("binaries and tests", stage::build_with_tests)?;
    parts.run("guest images", || image::beside(&bin).map(drop))?;
    parts.run("lints", lints)?;
    parts.run("tests", || tests(&bin, &model))?;
    parts.run("documentation tests", || documentation(&bin, &model))?;
    if !options.quick {
        parts.run("fuzzing, short form", || fuzz::run(fuzz::GATE_SECONDS))?;
        parts.run("client packages", || clients::run(&bin, &model))?;
        parts.run("demo", || demo::run_with(&bin, &model))?;
        parts.run("one hop, short form", || bench::gate(&bin, &model))?;
        parts.run("engine beside llama.cpp's server, short form", || {
            engine::short(&bin, &model)
        })?;
    }
    Ok(())
}

/// What ran, for how long, in order.
#[derive(Default)]
struct Parts(Vec<(&'static str, Duration, bool)>);

impl Parts {
    fn run<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = sh::step(name, work);
        self.0.push((name, start.elapsed(), result.is_ok()));
        result
    }

    fn table(&self, passed: bool) -> String {
        let mut table = String::from("\n");
        let mut row = |name: &str, time: Duration, ok: bool| {
            let verdict = if ok { "ok" } else { "FAILED" };
            writeln!(table, "{name:<44}{:>8.1} s  {verdict}", time.as_secs_f64())
                .expect("a string takes everything");
        };
        for (name, time, ok) in &self.0 {
            row(name, *time, *ok);
        }
        row("all", self.0.iter().map(|(_, time, _)| *time).sum(), passed);
        table
    }
}

/// Waits for another check of this checkout to end. The lock goes with the process, however that ends.
fn alone() -> Result<File> {
    let path = stage::scratch("check")?.join("lock");
    let lock = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    if lock.try_lock().is_err() {
        eprintln!("== another check of this checkout runs; waiting for it");
        lock.lock()?;
    }
    Ok(lock)
}

fn format() -> Result<()> {
    sh::run(sh::cargo().args(["fmt", "--all", "--check"]))?;
    fuzz::format()
}

/// The worker apart from the rest in every step: see [`stage::ALL_BUT_WORKER`].
const WORKER: [&str; 2] = ["--package", "substrate-worker"];

fn lints() -> Result<()> {
    let clippy = |selection: &[&str]| {
        sh::run(
            sh::cargo()
                .args(["clippy", "--quiet", "--all-targets"])
                .args(selection)
                .args(["--", "-D", "warnings"]),
        )
    };
    clippy(&[&stage::ALL_BUT_WORKER[..], &stage::SIMULATOR].concat())?;
    clippy(&WORKER)?;
    fuzz::lint()
}

fn tests(bin: &Path, model: &Path) -> Result<()> {
    let nextest = sh::on_path("cargo-nextest");
    let one = |selection: &[&str]| {
        let mut command = sh::cargo();
        if nextest {
            command
                .args(["nextest", "run", "--no-fail-fast"])
                .args(selection);
        } else {
            // The examples that tests start were built with the programs: `cargo test` builds none of them when its
            // targets are named, and naming them would make tests of them.
            command
                .args(["test", "--lib", "--bins", "--tests", "--no-fail-fast"])
                .args(selection)
                .args(["--", "--test-threads=1"]);
        }
        sh::run(with_parts(&mut command, bin, model))
    };
    one(&[&stage::ALL_BUT_WORKER[..], &stage::SIMULATOR].concat())?;
    one(&WORKER)
}

fn documentation(bin: &Path, model: &Path) -> Result<()> {
    sh::run(with_parts(
        sh::cargo()
            .args(["test", "--quiet", "--doc"])
            .args(stage::ALL_BUT_WORKER)
            // The features of every other step: fewer would build the libraries anew.
            .args(stage::SIMULATOR),
        bin,
        model,
    ))
}

/// Tells tests where the binaries and the model are.
pub fn with_parts<'c>(command: &'c mut Command, bin: &Path, model: &Path) -> &'c mut Command {
    command
        .env("SUBSTRATE_TEST_BIN", bin)
        .env("SUBSTRATE_TEST_MODEL", model)
        .env("SUBSTRATE_TEST_VECTORS", model::vectors_beside(model))
        // Where they were built, they are not to be passed over.
        .envs(
            bin.join(image::ATTACKER.folder)
                .exists()
                .then_some(("SUBSTRATE_TEST_MICROVM", "1")),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_in_the_table_and_a_failed_one_is_told() {
        let parts = Parts(vec![
            ("format", Duration::from_millis(1_200), true),
            ("tests", Duration::from_secs(90), false),
        ]);
        assert_eq!(
            parts.table(false),
            "\nformat                                           1.2 s  ok\n\
             tests                                           90.0 s  FAILED\n\
             all                                             91.2 s  FAILED\n"
        );
    }
}
