//! The figures of the microVM wall: two builds of an image, boots, copies of a saved machine.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use xtask::{packages, sh, stage};

use crate::image;

/// Boots, and copies, of which the median counts.
const ROUNDS: usize = 10;

/// Seconds that an emulated machine may take from its start to its first answer, before a model is loaded.
const MOST_BOOT: f64 = 6.0;

/// Seconds that a copy of a saved one may take.
const MOST_RESTORE: f64 = 0.5;

/// What `microvm_times` prints.
#[derive(Deserialize)]
struct Times {
    boots: Vec<f64>,
    saving: f64,
    saved_bytes: u64,
    restores: Vec<f64>,
}

/// Builds, boots, saves, copies; prints, and fails on a goal that is missed.
pub fn prove(bin: &Path, _: &Path) -> Result<()> {
    packages::ensure_for_gate()?;
    two_builds(bin)?;
    let times = times(bin)?;
    let (boot, restore) = (median(&times.boots), median(&times.restores));
    println!(
        "emulated, of {ROUNDS}: boot to the first answer median {boot:.2} s ({}), of {MOST_BOOT} s",
        spread(&times.boots)
    );
    println!(
        "saved in {:.2} s as {} MB; copy to the first answer median {restore:.3} s ({}), of {MOST_RESTORE} s",
        times.saving,
        times.saved_bytes / 1_000_000,
        spread(&times.restores)
    );
    ensure!(boot <= MOST_BOOT, "booting takes {boot:.2} s");
    ensure!(restore <= MOST_RESTORE, "a copy takes {restore:.3} s");
    Ok(())
}

/// Twice, with everything of the guest's compiled into an empty folder. The kernel is the same unpacked package.
fn two_builds(bin: &Path) -> Result<()> {
    let mut names = Vec::new();
    for round in ["a", "b"] {
        let folder = stage::scratch("two-builds")?.join(round);
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        let guest = stage::guest_in(&folder.join("target"), image::WORKER.guest)?;
        names.push(image::build_with(
            &guest,
            bin,
            &image::WORKER,
            &folder.join("image"),
        )?);
    }
    let [first, second] = [&names[0], &names[1]].map(hex::encode);
    println!("two builds of the guest image: {first} and {second}");
    ensure!(first == second, "two builds of the image differ");
    Ok(())
}

fn times(bin: &Path) -> Result<Times> {
    image::beside(bin)?;
    sh::run(sh::cargo().args([
        "build",
        "--quiet",
        "--package",
        "substrate-sandbox",
        "--features",
        "launch",
        "--example",
        "microvm_times",
    ]))?;
    let built = stage::target_dir()?.join("debug/examples/microvm_times");
    let folder = stage::scratch("microvm-times")?;
    let program = folder.join("microvm_times");
    stage::place(&built, &program)?;
    let scratch = folder.join("ground");
    if scratch.exists() {
        std::fs::remove_dir_all(&scratch)?;
    }
    std::fs::create_dir(&scratch)?;
    let mut command = match packages::is_root() {
        true => {
            let nobody = stage::UNPRIVILEGED.to_string();
            sh::run(sh::command("chown").arg(&nobody).arg(&scratch))?;
            let mut command = sh::command("setpriv");
            command.args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"]);
            command.arg(&program);
            command
        }
        false => sh::command(&program),
    };
    command.arg(bin.join(image::ATTACKER.folder)).arg(&scratch);
    command.args([&ROUNDS.to_string(), "emulation"]);
    let printed = sh::output(command.stdin(Stdio::null()).current_dir("/"))?;
    serde_json::from_str(&printed).with_context(|| format!("it printed {printed}"))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{least:.2} to {most:.2}")
}
