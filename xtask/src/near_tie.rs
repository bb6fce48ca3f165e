//! Near-ties, PROTOCOL.md 3: where two greedy texts may differ, and whether a difference is one.

use std::path::Path;

use anyhow::Result;
use xtask::sh;

/// Positions in the gate; the committed constant was measured over at least 10,000.
const SHORT: &str = "1000";
const LONG: &str = "10000";

/// Measures the gap again on fewer positions and compares it with the committed constant.
pub fn short(model: &Path) -> Result<()> {
    measure(model, SHORT)
}

/// Measures the gap over as many positions as the definition asks.
pub fn long(model: &Path) -> Result<()> {
    measure(model, LONG)
}

fn measure(model: &Path, positions: &str) -> Result<()> {
    sh::run(example("near_tie").arg(model).arg(positions))
}

fn example(name: &str) -> std::process::Command {
    let mut command = sh::cargo();
    command.args([
        "run",
        "--quiet",
        "--package",
        "substrate-worker",
        "--example",
        name,
        "--",
    ]);
    command
}

/// Judges pairs of greedy answers (question, unbroken, broken) that differ: each must part at a near-tie.
pub fn judge_seams(model: &Path, seams: &[(String, String, String)]) -> Result<()> {
    if seams.is_empty() {
        return Ok(());
    }
    let pairs = xtask::stage::scratch("seams")?.join("pairs.json");
    std::fs::write(&pairs, serde_json::to_vec(seams)?)?;
    sh::run(example("judge_seams").arg(model).arg(pairs))
}
