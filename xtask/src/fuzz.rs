//! Fuzzing every decoder of bytes from outside, on the stable compiler.
//!
//! The targets are a workspace of their own under `fuzz/`, whose README says what each one reads and how coverage
//! comes from plain `-C` flags: neither cargo-fuzz nor a nightly compiler is needed.
//!
//! Invariant: a run changes nothing in the checkout. The build goes to `<target dir>/fuzz`, new inputs and
//! reproducers to a scratch folder.
//! Absent by design: a choice of targets. Every file in `fuzz/targets` runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};

use xtask::{sh, stage};

/// The targets' workspace.
const MANIFEST: &str = "fuzz/Cargo.toml";

/// Seconds for all targets together in the gate; half as many on the clock, as two run at a time.
pub const GATE_SECONDS: u64 = 240;

/// Seconds for each target in `prove`.
pub const PROVE_SECONDS_EACH: u64 = 60;

/// Targets that run side by side: one for each core of the smallest machine that runs the gate.
const LANES: usize = 2;

/// Largest input offered, in bytes: over every decoder's own limit for one frame, so that "too long" is fuzzed too.
const MAX_INPUT: u64 = 80 * 1024;

/// Memory a target may take, in MiB. Each starts at 30; no decoder has business with ten times that.
const MAX_MEMORY: u64 = 512;

/// Seconds one input may take. A thousand times what the slowest decoder needs, as the machine may be busy.
const MAX_SECONDS: u64 = 10;

/// Lines of a failed target's output that are shown: the panic and where it came from.
const LINES: usize = 16;

/// Characters of such a line: a frame that was read wrong is printed whole, and the reproducer holds it anyway.
const WIDTH: usize = 200;

/// Runs every target for an equal share of `seconds`, from its committed corpus.
///
/// # Errors
/// A target found something; the error names the input that does it again.
pub fn run(seconds: u64) -> Result<()> {
    let targets = targets()?;
    let share = (seconds / targets.len() as u64).max(1);
    build()?;
    let lab = Lab {
        programs: target_dir()?.join("debug"),
        scratch: stage::scratch("fuzz")?,
    };
    let next = AtomicUsize::new(0);
    let lane = || -> Vec<String> {
        std::iter::from_fn(|| targets.get(next.fetch_add(1, Ordering::Relaxed)))
            .filter_map(|target| lab.fuzz(target, share).err())
            .map(|error| format!("{error:#}"))
            .collect()
    };
    let findings: Vec<String> = thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(lane)).collect();
        lanes
            .into_iter()
            .flat_map(|lane| lane.join().expect("a lane does not panic"))
            .collect()
    });
    if !findings.is_empty() {
        bail!(
            "{} of {} fuzz targets failed\n{}",
            findings.len(),
            targets.len(),
            findings.join("\n")
        );
    }
    Ok(())
}

/// The targets, by the files in `fuzz/targets`.
pub fn targets() -> Result<Vec<String>> {
    let folder = sh::root().join("fuzz/targets");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .with_context(|| format!("read {}", folder.display()))?
        .filter_map(|entry| {
            Some(
                entry
                    .ok()?
                    .path()
                    .file_stem()?
                    .to_string_lossy()
                    .into_owned(),
            )
        })
        .collect();
    names.sort();
    if names.is_empty() {
        bail!("no fuzz targets under {}", folder.display());
    }
    Ok(names)
}

/// Whether the targets are formatted; the decoders' own files belong to their crates and are formatted alike.
///
/// # Errors
/// They are not.
pub fn format() -> Result<()> {
    sh::run(sh::cargo().args(["fmt", "--check", "--manifest-path", MANIFEST]))
}

/// The targets' lints: the main workspace's are not theirs. Without tests, as the decoders' own run where they belong.
///
/// # Errors
/// A lint, or they do not compile.
pub fn lint() -> Result<()> {
    sh::run(cargo("clippy")?.args(["--", "-D", "warnings"]))
}

/// All targets in one build.
fn build() -> Result<()> {
    sh::run(&mut cargo("build")?)
}

/// Cargo on the library and all targets; `rustc.sh` puts the coverage into our decoders only.
fn cargo(task: &str) -> Result<Command> {
    let mut command = sh::cargo();
    command
        .args([task, "--quiet", "--locked", "--lib", "--bins"])
        .args(["--manifest-path", MANIFEST])
        .env("RUSTC_WRAPPER", sh::root().join("fuzz/rustc.sh"))
        .env("CARGO_TARGET_DIR", target_dir()?);
    Ok(command)
}

fn target_dir() -> Result<PathBuf> {
    Ok(stage::target_dir()?.join("fuzz"))
}

/// Where the programs are, and where they may write.
struct Lab {
    programs: PathBuf,
    scratch: PathBuf,
}

impl Lab {
    /// Runs one target. What earlier runs found is read again, and what this one finds is kept.
    fn fuzz(&self, target: &str, seconds: u64) -> Result<()> {
        let program = self.programs.join(target);
        let found = self.scratch.join(target);
        std::fs::create_dir_all(&found).with_context(|| format!("create {}", found.display()))?;
        let output = sh::command(&program)
            .arg(&found)
            .arg(sh::root().join("fuzz/corpus").join(target))
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={MAX_INPUT}"))
            .arg(format!("-rss_limit_mb={MAX_MEMORY}"))
            .arg(format!("-timeout={MAX_SECONDS}"))
            .arg(format!(
                "-artifact_prefix={}/{target}-",
                self.scratch.display()
            ))
            .args(["-verbosity=0", "-print_final_stats=1"])
            .output()
            .with_context(|| format!("start {}", program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!(
                "{target} ended with {}\n{}{}",
                output.status,
                story(&said),
                again(&program, &said)
            );
        }
        let runs = figure(&said, "number_of_executed_units")
            .context("the target gave no count of its runs")?;
        let rate = figure(&said, "average_exec_per_sec").unwrap_or(runs);
        eprintln!("fuzz {target}: {runs} runs in {seconds} s, {rate}/s, nothing found");
        Ok(())
    }
}

/// The command that shows a finding again.
fn again(program: &Path, said: &str) -> String {
    match said
        .lines()
        .find_map(|line| line.split("Test unit written to ").nth(1))
    {
        Some(input) => format!("again: {} {input}", program.display()),
        None => "it left no input behind".to_owned(),
    }
}

/// One of libFuzzer's closing figures.
fn figure(said: &str, name: &str) -> Option<u64> {
    let prefix = format!("stat::{name}:");
    said.lines()
        .find_map(|line| line.strip_prefix(&prefix))?
        .trim()
        .parse()
        .ok()
}

/// What went wrong, in the target's words: from the panic on, or else (time, memory) the last lines.
fn story(said: &str) -> String {
    let lines: Vec<&str> = said.lines().collect();
    let panic = lines.iter().position(|line| line.contains(" panicked at "));
    let start = panic.unwrap_or(lines.len().saturating_sub(LINES));
    let told = lines[start..].iter().take(LINES);
    told.map(|line| format!("    {}\n", line.chars().take(WIDTH).collect::<String>()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: &str = "thread panicked at 'x'\n\
        artifact_prefix='/tmp/f/a-'; Test unit written to /tmp/f/a-crash-01\n\
        stat::number_of_executed_units: 12345\n";

    #[test]
    fn a_finding_is_told_with_the_command_that_shows_it() {
        assert_eq!(
            again(Path::new("/t/a"), FAILED),
            "again: /t/a /tmp/f/a-crash-01"
        );
        assert_eq!(again(Path::new("/t/a"), ""), "it left no input behind");
    }

    #[test]
    fn a_panic_is_told_from_its_first_line_and_cut_to_size() {
        let said = format!(
            "INFO: x\nthread 'a' panicked at b.rs:1:\n{}\n",
            "7".repeat(900)
        );
        let told = story(&said);
        assert!(told.starts_with("    thread 'a' panicked at b.rs:1:\n    777"));
        assert!(told.len() < 300);
        assert_eq!(story("out of memory"), "    out of memory\n");
    }

    #[test]
    fn figures_are_found_by_name() {
        assert_eq!(figure(FAILED, "number_of_executed_units"), Some(12345));
        assert_eq!(figure(FAILED, "average_exec_per_sec"), None);
    }

    #[test]
    fn every_target_is_a_binary_and_has_a_corpus() {
        let manifest = std::fs::read_to_string(sh::root().join("fuzz/Cargo.toml")).unwrap();
        for target in targets().unwrap() {
            assert!(
                manifest.contains(&format!("path = \"targets/{target}.rs\"")),
                "{target}"
            );
            let corpus = sh::root().join("fuzz/corpus").join(&target);
            assert!(
                std::fs::read_dir(corpus).is_ok_and(|mut inputs| inputs.next().is_some()),
                "{target}"
            );
        }
    }
}
