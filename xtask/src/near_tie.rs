//! Near-ties, PROTOCOL.md 3: where two greedy texts may differ, and whether a difference is one.

use std::path::Path;

use anyhow::Result;
use xtask::sh;

/// Positions the definition asks for.
const POSITIONS: &str = "10240";

/// Measures the gap of this build again. The gate's own short form is a test of the worker.
pub fn measure(model: &Path) -> Result<()> {
    sh::run(example("near_tie").arg(model).arg(POSITIONS))
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
