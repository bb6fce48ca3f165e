//! `cargo xtask prove`: the figures an issue asks for, at their full size. Hours are allowed; a proof that was
//! finished for this commit is not repeated unless asked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use xtask::node::Scratch;
use xtask::stream::{Answer, Chat};
use xtask::trio::{Holders, MODEL, Trio, id};
use xtask::{model, sh, stage};

use crate::check::{publish_model, with_parts};
use crate::{fuzz, near_tie};

/// A proof by name, and what it shows.
type Proof = (&'static str, &'static str, fn(&Path, &Path) -> Result<()>);

const PROOFS: [Proof; 4] = [
    (
        "failover",
        "50 answers whose node is killed (kill -9) in the middle: gaps, seams, near-ties",
        failover,
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
        "near-tie",
        "the near-tie gap over at least 10,000 positions of this build",
        |_, model| near_tie::measure(model),
    ),
];

/// Prompts whose answer is broken.
const BROKEN: usize = 50;
/// Pieces after which the node is killed; with the prompt this stays under 128 tokens.
const KILL_AFTER: usize = 30;
const TOKENS: u32 = 64;
/// The figure.
const LONGEST_GAP: Duration = Duration::from_secs(3);

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
    let model = publish_model(&model::fetch()?)?;
    let bin = match &options.bin {
        Some(bin) => bin.clone(),
        None => sh::step("binaries", stage::build)?,
    };
    for (name, _, prove) in chosen {
        let stamp = stamp(name)?;
        if stamp.exists() && !options.again {
            println!(
                "{name}: proved for this commit before ({})",
                stamp.display()
            );
            continue;
        }
        sh::step(name, || prove(&bin, &model))?;
        std::fs::write(stamp, "")?;
    }
    Ok(())
}

/// A file that stands for "proved for this commit".
fn stamp(name: &str) -> Result<PathBuf> {
    let commit = sh::output(sh::command("git").args(["rev-parse", "--short=12", "HEAD"]))?;
    let folder = stage::target_dir()?.join("prove").join(commit.trim());
    std::fs::create_dir_all(&folder)?;
    Ok(folder.join(name))
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

fn failover(bin: &Path, model: &Path) -> Result<()> {
    let scratch = Scratch::new("prove-failover")?;
    let mut trio = Trio::start(bin, scratch.path(), model, Holders::Guests)?;
    let (mut gaps, mut equal, mut seams) = (Vec::new(), 0, Vec::new());
    for number in 0..BROKEN {
        let prompt = format!("Tell me about the number {number} in a few sentences.");
        let unbroken = ask(&trio, &prompt, |_| Ok(()))?;
        let broken = broken(&mut trio, &prompt)?;
        gaps.push(broken.longest_gap());
        if broken.text == unbroken.text {
            equal += 1;
        } else {
            seams.push((prompt, unbroken.text, broken.text));
        }
    }
    gaps.sort_unstable();
    let longest = gaps.last().copied().context("no answers")?;
    println!(
        "{BROKEN} answers broken: gap p50 {:?}, longest {longest:?}; {equal} equal to the unbroken one",
        gaps[gaps.len() / 2]
    );
    near_tie::judge_seams(model, &seams)?;
    if longest >= LONGEST_GAP {
        bail!("the longest gap is {longest:?}");
    }
    if equal * 2 < BROKEN {
        bail!("only {equal} of {BROKEN} are equal");
    }
    Ok(())
}

fn broken(trio: &mut Trio, prompt: &str) -> Result<Answer> {
    let mut killed = None;
    let answer = {
        let trio: &Trio = trio;
        ask(trio, prompt, |answer| {
            if killed.is_some() || answer.times.len() < KILL_AFTER {
                return Ok(());
            }
            let jobs = trio.a.json(&["jobs"])?;
            let node = jobs["jobs"][0]["node"]
                .as_str()
                .context("no running job")?
                .to_owned();
            for guest in [&trio.b, &trio.c] {
                if id(guest)? == node {
                    let pid = guest.pid().context("it runs")?;
                    sh::run(sh::command("kill").args(["-KILL", &pid.to_string()]))?;
                }
            }
            killed = Some(node);
            Ok(())
        })?
    };
    let node = killed.context("the answer ended before its node could be killed")?;
    let guest = trio.guest_mut(&node)?;
    guest.kill()?;
    guest.start()?;
    trio.wait_until_seen()?;
    Ok(answer)
}

fn ask(trio: &Trio, prompt: &str, on_piece: impl FnMut(&Answer) -> Result<()>) -> Result<Answer> {
    let mut chat = Chat::new(trio.a.api, MODEL, prompt, TOKENS);
    chat.scope = Some("circle".to_owned());
    chat.run_with(on_piece)
}
