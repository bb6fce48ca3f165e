//! Near-ties, PROTOCOL.md 3: where two greedy texts may differ, and whether a difference is one.

use std::path::Path;

use anyhow::Result;
use xtask::sh;
use xtask::stream::Answer;

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

/// Judges greedy answers (question, unbroken, broken) that differ once more, by an engine that reads them anew: each must
/// part at a near-tie.
pub fn judge_seams(model: &Path, seams: &[(String, Answer, Answer)]) -> Result<()> {
    if seams.is_empty() {
        return Ok(());
    }
    let tokens = |answer: &Answer| -> Vec<Vec<u8>> {
        let tokens = answer.tokens.iter();
        tokens.map(|token| token.bytes.clone()).collect()
    };
    let pairs: Vec<_> = seams
        .iter()
        .map(|(question, unbroken, broken)| (question, tokens(unbroken), tokens(broken)))
        .collect();
    let file = xtask::stage::scratch("seams")?.join("pairs.json");
    std::fs::write(&file, serde_json::to_vec(&pairs)?)?;
    sh::run(example("judge_seams").arg(model).arg(file))
}
