//! What the process wall costs: the start of a worker, and its tokens per second, beside the same program without a wall.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xtask::{sh, stage};

/// The longest a wall may add to a start, median.
const MOST_ADDED_MS: f64 = 5.0;

/// Of its tokens per second without a wall, what a worker keeps at least.
const LEAST_KEPT: f64 = 0.99;

/// Measures both and holds them to their goals.
pub fn prove(bin: &Path, model: &Path) -> Result<()> {
    // Layer by layer, with the attacker in the worker's place; for whoever wants to know where the time goes.
    sh::run(
        sh::cargo()
            .args(["run", "--quiet", "--package", "substrate-sandbox"])
            .args(["--example", "spawn_cost", "--"])
            .args([&bin.join("substrate-wall-attacker"), model]),
    )?;
    let bare = bare()?;
    let told = sh::output(
        sh::cargo()
            .args(["run", "--quiet", "--package", "substrate-worker"])
            .args(["--example", "wall_cost", "--"])
            .args([&bare, model]),
    )?;
    print!("{told}");
    let added = figure(&told, "added start: ")?;
    let kept = figure(&told, "throughput: ")?;
    println!("goals: at most {MOST_ADDED_MS} ms added, at least {LEAST_KEPT} kept");
    match added <= MOST_ADDED_MS && kept >= LEAST_KEPT {
        true => Ok(()),
        false => bail!("the wall costs more than it may"),
    }
}

/// The worker's program, which can also be started without its seals, linked as the worker is, where an unprivileged user can run it.
fn bare() -> Result<PathBuf> {
    sh::run(
        sh::cargo()
            .args(["rustc", "--quiet", "--package", "substrate-worker"])
            .args(["--example", "bare"])
            .args(["--", "-C", "target-feature=+crt-static"]),
    )?;
    let to = stage::scratch("bare")?.join("bare");
    stage::place(&stage::target_dir()?.join("debug/examples/bare"), &to)?;
    Ok(to)
}

/// The number after these words.
fn figure(told: &str, words: &str) -> Result<f64> {
    let line = told.lines().find_map(|line| line.strip_prefix(words));
    let number = line.and_then(|line| line.split(' ').next()?.parse().ok());
    number.with_context(|| format!("the measurement does not tell its {words:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_by_their_words() {
        let told =
            "something\nadded start: 2.31 ms\nthroughput: 0.9985 of bare, 0.9951 to 1.0012\n";
        assert_eq!(figure(told, "added start: ").unwrap(), 2.31);
        assert_eq!(figure(told, "throughput: ").unwrap(), 0.9985);
        assert!(figure(told, "restore: ").is_err());
    }
}
