//! `cargo xtask check`: everything that must hold before a change lands, each part with its time.

use std::time::Instant;

use anyhow::Result;
use clap::Args;

use crate::{clients, demo, edges, fuzz, near_tie, tidy};
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
    sh::step("system packages", packages::ensure)?;
    sh::step("format", || {
        sh::run(sh::cargo().args(["fmt", "--all", "--check"]))
    })?;
    sh::step("crate edges", edges::check)?;
    sh::step("tidy", tidy::check)?;
    let model = sh::step("demo model", model::fetch)?;
    let model = publish_model(&model)?;
    let bin = sh::step("binaries", stage::build)?;
    sh::step("lints", lints)?;
    sh::step("tests", || tests(&bin, &model))?;
    sh::step("documentation tests", || {
        sh::run(with_parts(
            sh::cargo().args(["test", "--quiet", "--workspace", "--doc"]),
            &bin,
            &model,
        ))
    })?;
    if !options.quick {
        sh::step("near-ties against llama.cpp, short form", || {
            near_tie::short(&model)
        })?;
        sh::step("fuzzing, short form", || fuzz::run(fuzz::GATE_SECONDS))?;
        sh::step("client packages", || clients::run(&bin, &model))?;
        sh::step("demo", || demo::run_with(&bin, &model))?;
    }
    eprintln!("== all: ok, {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn lints() -> Result<()> {
    sh::run(sh::cargo().args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

fn tests(bin: &std::path::Path, model: &std::path::Path) -> Result<()> {
    let mut command = sh::cargo();
    if sh::on_path("cargo-nextest") {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        command.args([
            "test",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
            "--",
            "--test-threads=1",
        ]);
    }
    sh::run(with_parts(&mut command, bin, model))
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
