//! `cargo xtask check`: everything that must hold before a change lands, each part with its time.

use std::time::Instant;

use anyhow::Result;
use clap::Args;

use crate::{clients, demo, edges, fuzz, tidy};
use xtask::{model, packages, sh, stage};

/// What to run.
#[derive(Args)]
pub struct Options {
    /// Leave out the parts that need minutes: fuzzing, client packages, the demo
    #[arg(long)]
    quick: bool,
}

/// Runs every part in order and stops at the first that fails.
pub fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    sh::step("system packages", packages::ensure_for_gate)?;
    sh::step("format", || {
        sh::run(sh::cargo().args(["fmt", "--all", "--check"]))
    })?;
    sh::step("crate edges", edges::check)?;
    sh::step("tidy", tidy::check)?;
    let model = sh::step("demo model", model::fetch)?;
    let model = publish_model(&model)?;
    let bin = sh::step("binaries and tests", stage::build_with_tests)?;
    sh::step("lints", lints)?;
    sh::step("tests", || tests(&bin, &model))?;
    sh::step("documentation tests", || {
        sh::run(with_parts(
            sh::cargo()
                .args(["test", "--quiet", "--doc"])
                .args(stage::ALL_BUT_WORKER),
            &bin,
            &model,
        ))
    })?;
    if !options.quick {
        sh::step("fuzzing, short form", || fuzz::run(fuzz::GATE_SECONDS))?;
        sh::step("client packages", || clients::run(&bin, &model))?;
        sh::step("demo", || demo::run_with(&bin, &model))?;
    }
    eprintln!("== all: ok, {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
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
    clippy(&WORKER)
}

fn tests(bin: &std::path::Path, model: &std::path::Path) -> Result<()> {
    let nextest = sh::on_path("cargo-nextest");
    let one = |selection: &[&str]| {
        let mut command = sh::cargo();
        if nextest {
            command
                .args(["nextest", "run", "--no-fail-fast"])
                .args(selection);
        } else {
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

/// Tells tests where the binaries and the model are.
pub fn with_parts<'c>(
    command: &'c mut std::process::Command,
    bin: &std::path::Path,
    model: &std::path::Path,
) -> &'c mut std::process::Command {
    command
        .env("SUBSTRATE_TEST_BIN", bin)
        .env("SUBSTRATE_TEST_MODEL", model)
}

/// Puts the model where an unprivileged user can read it.
pub fn publish_model(model: &std::path::Path) -> Result<std::path::PathBuf> {
    let to = stage::scratch("model")?.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    if std::fs::metadata(&to).is_ok_and(|meta| meta.len() == model::SIZE) {
        return Ok(to);
    }
    stage::place(model, &to)?;
    Ok(to)
}
