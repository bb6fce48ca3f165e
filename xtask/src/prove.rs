//! `cargo xtask prove`: the figures an issue asks for, at their full size. Hours are allowed; a proof that was
//! finished for this commit is not repeated unless asked.
//!
//! Invariant: a stamp stands for a commit and nothing else: with uncommitted changes every proof runs, and leaves none.

mod desktop;
mod failover;
mod hostile;
mod microvm;
mod policy;
mod walls;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use xtask::{model, packages, sh, size, stage};

use crate::check::with_parts;
use crate::{bench, clients, fuzz, near_tie};

/// A proof by name, and what it shows.
type Proof = (&'static str, &'static str, fn(&Path, &Path) -> Result<()>);

const PROOFS: [Proof; 21] = [
    (
        "failover",
        "50 answers whose node is killed (kill -9) in the middle, and 6 to long prompts: gaps, seams, near-ties",
        failover::prove,
    ),
    (
        "owner",
        "10 answers whose node its owner takes back in the middle: when it refuses, when its memory is free, the seams",
        |bin, model| end_to_end(bin, model, "owner::"),
    ),
    (
        "desktop",
        "an answer beside busy processes: its share of the machine, theirs, and how late a sleeper wakes",
        desktop::prove,
    ),
    (
        "hop",
        "what one hop on loopback adds: first token and every token, against their goals",
        hop,
    ),
    (
        "scope",
        "1,000 jobs of scope mine beside a faster stranger, and 10^5 in the simulator",
        |bin, model| {
            end_to_end(bin, model, "scope::")?;
            simulator(bin, model)
        },
    ),
    (
        "load",
        "1,000 jobs through a daemon without a model, 500 clients at once: memory, waits",
        |bin, model| end_to_end(bin, model, "load::"),
    ),
    (
        "fit",
        "memory reckoned from the header beside the worker's peak, in ten settings; what does not fit; models that take turns",
        |bin, model| end_to_end(bin, model, "fit::"),
    ),
    (
        "retention",
        "200 jobs with crashes: a marker is in no file, log or core of its provider",
        |bin, model| end_to_end(bin, model, "retention::"),
    ),
    (
        "hostile",
        "a worker that is taken over, in fifty seeded ways, for an hour (--minutes): the daemon lives, stays small and serves on",
        |bin, _| hostile::prove(bin, hostile::MINUTES),
    ),
    (
        "abandoned",
        "1,000 requests given up in every way: no job, descriptor, place or cell of theirs stays",
        |bin, model| end_to_end(bin, model, "abandoned::"),
    ),
    (
        "walls",
        "what the wall adds to a worker's start, and what it leaves of its tokens per second, against their goals",
        walls::prove,
    ),
    (
        "policy",
        "every system call that sealed workers make, beside the rules: what no work needs is not allowed",
        policy::prove,
    ),
    (
        "prefixes",
        "2,000 probes by the clock for what another has asked; the tenth turn of a conversation beside its first",
        |bin, model| end_to_end(bin, model, "probing::"),
    ),
    (
        "clients",
        "unmodified client packages, with and without a model at the node asked",
        clients::run,
    ),
    (
        "bound",
        "200 answers bound to JSON schemas, at 0.7 of plain speed or more, and 50 forced calls of tools",
        clients::prove_bound,
    ),
    (
        "parity",
        "templates, token ids and greedy answers against llama.cpp's own; text through tokens",
        parity,
    ),
    (
        "fuzz",
        "every decoder fuzzed for at least a minute",
        |_, _| fuzz::run(fuzz::PROVE_SECONDS_EACH * fuzz::targets()?.len() as u64),
    ),
    (
        "simulator",
        "the mesh simulated at 100 nodes over many seeds",
        simulator,
    ),
    (
        "microvm",
        "two builds of the guest image; boots of an emulated machine, and copies of a saved one, of ten each",
        microvm::prove,
    ),
    (
        "vulkan",
        "the worker built for Vulkan with this system's packages, and the devices it finds (many minutes of building)",
        |_, _| vulkan(),
    ),
    (
        "near-tie",
        "the near-tie gap over at least 10,000 positions of this build, not above its constant",
        |_, model| near_tie::measure(model),
    ),
];

/// Interleaved pairs of the hop's figures: enough for a spread below the goals on a machine that does other things.
const HOP_PAIRS: usize = 120;

/// Which figures.
#[derive(Args)]
pub struct Options {
    /// Name of the proof; all if left out
    name: Option<String>,
    /// Print the names
    #[arg(long)]
    list: bool,
    /// Use the programs staged before instead of building them
    #[arg(long, value_name = "FOLDER")]
    bin: Option<PathBuf>,
    /// Repeat what was proved for this commit
    #[arg(long)]
    again: bool,
    /// How long `hostile` goes on; less than an hour counts for no commit
    #[arg(long, requires = "name")]
    minutes: Option<u64>,
}

/// Runs the proofs asked for.
pub fn run(options: &Options) -> Result<()> {
    if options.list {
        for (name, what, _) in PROOFS {
            println!("{name:<12} {what}");
        }
        return Ok(());
    }
    let chosen: Vec<&Proof> = PROOFS
        .iter()
        .filter(|(name, ..)| options.name.as_deref().is_none_or(|wanted| wanted == *name))
        .collect();
    if chosen.is_empty() {
        bail!("no such proof; `cargo xtask prove --list` names them");
    }
    model::publish_vectors()?;
    let model = model::publish(&model::fetch()?)?;
    let bin = match &options.bin {
        Some(bin) => bin.clone(),
        None => sh::step("binaries", stage::build)?,
    };
    let commit = clean_commit()?;
    if commit.is_none() {
        println!("there are uncommitted changes: every proof runs, and none counts for a commit");
    }
    for (name, _, prove) in chosen {
        let stamp = commit.as_deref().map(|commit| stamp(commit, name));
        let stamp = stamp.transpose()?;
        if let Some(stamp) = stamp
            .as_ref()
            .filter(|stamp| stamp.exists() && !options.again)
        {
            println!(
                "{name}: proved for this commit before ({})",
                stamp.display()
            );
            continue;
        }
        if let (&"hostile", Some(minutes)) = (name, options.minutes) {
            sh::step(name, || hostile::prove(&bin, minutes))?;
            if minutes < hostile::MINUTES {
                continue;
            }
        } else {
            sh::step(name, || prove(&bin, &model))?;
        }
        // A change made while the proof ran may or may not have been part of it.
        if let Some(stamp) = stamp.filter(|_| clean_commit().is_ok_and(|now| now == commit)) {
            std::fs::write(stamp, "")?;
        }
    }
    Ok(())
}

/// The commit of the checkout, if it holds nothing else.
fn clean_commit() -> Result<Option<String>> {
    let changes = sh::output(sh::command("git").args(["status", "--porcelain"]))?;
    if !changes.trim().is_empty() {
        return Ok(None);
    }
    let commit = sh::output(sh::command("git").args(["rev-parse", "--short=12", "HEAD"]))?;
    Ok(Some(commit.trim().to_owned()))
}

/// A file that stands for "proved for this commit".
fn stamp(commit: &str, name: &str) -> Result<PathBuf> {
    let folder = stage::target_dir()?.join("prove").join(commit);
    std::fs::create_dir_all(&folder)?;
    Ok(folder.join(name))
}

fn hop(bin: &Path, model: &Path) -> Result<()> {
    let cells = bench::hop(bin, model, HOP_PAIRS)?;
    bench::table(&cells);
    let short: Vec<_> = cells.iter().filter(|cell| cell.met != "met").collect();
    if let Some(cell) = short.first() {
        bail!("{}: {}", cell.name, cell.met);
    }
    Ok(())
}

/// One end-to-end test at its full size, with what it prints.
fn end_to_end(bin: &Path, model: &Path, name: &str) -> Result<()> {
    sh::run(with_parts(
        sh::cargo()
            .env(size::FULL, "1")
            .args(["test", "--quiet", "--test", "e2e"])
            // The selection of the gate: another one would build libp2p once more.
            .args(stage::ALL_BUT_WORKER)
            .args(stage::SIMULATOR)
            .args(["--", "--test-threads=1", "--nocapture", name]),
        bin,
        model,
    ))
}

/// What declares the extensions that a worker for Vulkan is compiled with.
const VULKAN_HEADERS: &str = "/usr/include/vulkan/vulkan_core.h";

/// An extension that the linked llama.cpp (ggml-vulkan.cpp) uses without asking whether it is declared; Debian 12 has no such headers.
const LAYER_SETTINGS: &str = "VK_EXT_layer_settings";

/// In a folder of its own: the worker of every other step stays as it is.
fn vulkan() -> Result<()> {
    packages::ensure_for_vulkan()?;
    // Told in a second instead of after all shaders, some seven minutes of two cores.
    let headers = std::fs::read_to_string(VULKAN_HEADERS)?;
    if !headers.contains(LAYER_SETTINGS) {
        bail!(
            "the Vulkan headers of this system do not know {LAYER_SETTINGS}, which llama.cpp needs: {VULKAN_HEADERS} is too old \
             (docs/gpu.md)"
        );
    }
    let folder = stage::target_dir()?.join("vulkan");
    let start = Instant::now();
    sh::run(
        sh::cargo()
            .args(["build", "--quiet", "--package", "substrate-worker"])
            .args(["--bin", "substrate-worker", "--features", "vulkan"])
            .arg("--target-dir")
            .arg(&folder),
    )?;
    let worker = folder.join("debug/substrate-worker");
    println!("built in {} s", start.elapsed().as_secs());
    for question in ["--version", "--devices"] {
        print!("{}", sh::output(sh::command(&worker).arg(question))?);
    }
    Ok(())
}

fn parity(bin: &Path, model: &Path) -> Result<()> {
    sh::run(with_parts(
        sh::cargo().args([
            "test",
            "--quiet",
            "--package",
            "substrate-worker",
            "--test",
            "parity",
            "--",
            "--test-threads=1",
            "--nocapture",
        ]),
        bin,
        model,
    ))
}

fn simulator(bin: &Path, model: &Path) -> Result<()> {
    sh::run(with_parts(
        sh::cargo().args([
            "run",
            "--quiet",
            "--package",
            "substrate-node",
            "--features",
            "sim",
            "--example",
            "sim",
        ]),
        bin,
        model,
    ))
}
