//! Fuzzing every decoder of bytes from outside, on the stable compiler.
//!
//! The targets are a workspace of their own under `fuzz/`: their coverage flags must not touch the product's
//! build. libFuzzer comes from the crate `libfuzzer-sys`; the sanitizer-coverage flags are plain `-C` flags, so
//! neither cargo-fuzz nor a nightly compiler is needed.

use anyhow::{Context, Result, bail};

use xtask::{sh, stage};

/// Seconds for all targets together in the gate.
pub const GATE_SECONDS: u64 = 240;
/// Seconds for each target in `prove`.
pub const PROVE_SECONDS_EACH: u64 = 60;

/// Largest input offered, in bytes: over every decoder's own limit for one frame, so that "too long" is fuzzed too.
const MAX_INPUT: u64 = 80 * 1024;

const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Ccodegen-units=1 -Cdebug-assertions=on";

/// Runs every target for an equal share of `seconds`, from its committed corpus.
pub fn run(seconds: u64) -> Result<()> {
    let targets = targets()?;
    let share = seconds / targets.len() as u64;
    build()?;
    for target in &targets {
        one(target, share)?;
    }
    Ok(())
}

/// The targets, by the files in `fuzz/fuzz_targets`.
pub fn targets() -> Result<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_dir(sh::root().join("fuzz/fuzz_targets"))?
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    if names.is_empty() {
        bail!("no fuzz targets under fuzz/fuzz_targets");
    }
    Ok(names)
}

fn build() -> Result<()> {
    sh::run(
        sh::cargo()
            .args(["build", "--quiet", "--release", "--bins", "--manifest-path", "fuzz/Cargo.toml"])
            .env("RUSTFLAGS", COVERAGE)
            .env("CARGO_TARGET_DIR", target_dir()?),
    )
}

fn target_dir() -> Result<std::path::PathBuf> {
    Ok(stage::target_dir()?.join("fuzz"))
}

/// New findings go to a scratch corpus, so that a run never changes the checkout.
fn one(target: &str, seconds: u64) -> Result<()> {
    let found = stage::scratch("fuzz")?.join(target);
    std::fs::create_dir_all(&found)?;
    let artifacts = format!("-artifact_prefix={}/crash-", found.display());
    sh::run(
        sh::command(target_dir()?.join("release").join(target))
            .arg(&found)
            .arg(sh::root().join("fuzz/corpus").join(target))
            .args([&format!("-max_total_time={seconds}"), &format!("-max_len={MAX_INPUT}"), "-timeout=10", "-rss_limit_mb=2048", "-verbosity=0"])
            .arg(artifacts),
    )
    .with_context(|| format!("fuzz target {target}; the input that failed is under {}", found.display()))
}
