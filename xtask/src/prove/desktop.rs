//! On somebody's desktop: how fast an answer is written while other programs keep the processors busy, and what they and
//! whoever sits there notice of it.
//!
//! *Fair share*: each core's time divided evenly among the processes that want it. An engine that wants every core beside
//! one busy process on each has half of the machine, and half of its speed alone is its fair share of speed. Beside one
//! busy core of n it is 1 − 1/2n.
//!
//! Invariant: every load is started here and ended by its id; loads take turns within a round, so that a machine that
//! grows slower does so for all of them.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::node::{Node, Scratch};
use xtask::sh;
use xtask::stream::{Chat, quantile};
use xtask::trio::{MODEL, import};

use crate::machine::Machine;

/// Rounds of all loads.
const ROUNDS: usize = 5;
/// How long a load runs before it counts: the daemon looks each second, and gives a thread back after three calm looks.
const SETTLE: Duration = Duration::from_secs(4);
/// Tokens of each answer: two seconds at full speed.
const TOKENS: u32 = 128;
/// Raw text that goes on by itself.
const PROMPT: &str = "1, 2, 3, 4, 5, 6, 7, 8,";
/// Of its fair share, what an answer must keep beside a busy process on every core.
const GOAL: f64 = 0.8;
/// What the busy processes must keep of theirs.
const OTHERS_GOAL: f64 = 0.8;
/// How long a program that waits for a key stroke or a timer sleeps each time.
const NAP: Duration = Duration::from_millis(5);
/// How much later than without an answer it may wake, in the 99th of a hundred times: two frames of a screen.
const LATER: Duration = Duration::from_millis(33);
/// Ticks of processor time in a second, as Linux tells them to programs on every machine.
const TICKS: f64 = 100.0;

/// What else runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    Nothing,
    /// One busy process.
    OneCore,
    /// One program that keeps every core busy, such as a compiler.
    EveryCore,
    /// As many programs, each of which keeps one core busy and stays on it.
    ProgramEach,
}

const LOADS: [Load; 4] = [
    Load::Nothing,
    Load::OneCore,
    Load::EveryCore,
    Load::ProgramEach,
];

impl Load {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing else",
            Self::OneCore => "one busy core",
            Self::EveryCore => "one program, every core",
            Self::ProgramEach => "a program bound to each core",
        }
    }

    /// Busy processes on so many cores.
    fn processes(self, cores: usize) -> usize {
        match self {
            Self::Nothing => 0,
            Self::OneCore => 1,
            Self::EveryCore | Self::ProgramEach => cores,
        }
    }

    /// The engine's fair share of the machine.
    #[expect(clippy::cast_precision_loss, reason = "a number of cores")]
    fn fair(self, cores: usize) -> f64 {
        1.0 - self.processes(cores) as f64 / (2 * cores) as f64
    }

    fn start(self, cores: usize) -> Result<Vec<Busy>> {
        let count = self.processes(cores);
        match self {
            Self::ProgramEach => (0..count).map(|core| Busy::start(1, Some(core))).collect(),
            _ if count == 0 => Ok(Vec::new()),
            _ => Ok(vec![Busy::start(count, None)?]),
        }
    }
}

/// A program that does nothing, as fast as it can, in a session of its own as on a desktop.
struct Busy(Child);

impl Busy {
    fn start(processes: usize, core: Option<usize>) -> Result<Self> {
        let each = "while :; do :; done & ".repeat(processes);
        let mut command = match core {
            Some(core) => {
                let mut command = Command::new("taskset");
                command.args(["-c", &core.to_string(), "setsid"]);
                command
            }
            None => Command::new("setsid"),
        };
        command.args(["sh", "-c", &format!("{each} wait")]);
        // Started in our group, so `setsid` need not fork, and leads a group of its own under this very id.
        let child = command.stdin(Stdio::null()).spawn();
        child.map(Self).context("start a busy program")
    }

    /// Processor time of its processes so far.
    fn used(&self) -> f64 {
        let pid = self.0.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        let ticks = children.split_whitespace().filter_map(|child| {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
            let (_, fields) = stat.rsplit_once(')')?;
            fields.split_whitespace().nth(11)?.parse::<f64>().ok()
        });
        ticks.sum::<f64>() / TICKS
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        // What ended by itself needs no signal.
        let _ = sh::run(Command::new("kill").args(["-KILL", "--", &group]));
        let _ = self.0.wait();
    }
}

/// One answer beside one load.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    /// Tokens per second.
    decode: f64,
    /// Cores that the busy processes had meanwhile.
    others: f64,
    /// How much later than asked a sleeper woke, 99th percentile: beside the load alone, and beside the answer too.
    woke: [Duration; 2],
}

/// Prints the table and fails where a goal is missed.
pub fn prove(bin: &Path, model: &Path) -> Result<()> {
    let scratch = Scratch::new("prove-desktop")?;
    let cores = thread::available_parallelism()?.get();
    let node = start(bin, &scratch, model, "free", "")?;
    // As the engine would be without a look at what else runs.
    let all = format!("[models]\nthreads = {cores}\n");
    let stubborn = start(bin, &scratch, model, "all", &all)?;
    let (mut seen, mut without) = (LOADS.map(|_| Vec::new()), Vec::new());
    for _ in 0..ROUNDS {
        for (load, samples) in LOADS.into_iter().zip(&mut seen) {
            samples.push(sample(&node, load, cores)?);
        }
        without.push(sample(&stubborn, Load::EveryCore, cores)?);
    }
    println!("{}", Machine::here());
    println!(
        "{:<36}{:>8}{:>16}{:>10}{:>10}{:>10}{:>22}",
        "beside", "tok/s", "(least-most)", "of alone", "of fair", "others'", "wakes late by, p99"
    );
    let alone = median(&seen[0], |sample| sample.decode);
    let mut short = Vec::new();
    for (load, samples) in LOADS.into_iter().zip(&seen) {
        short.extend(row(load, load.name(), samples, alone, cores));
    }
    row(
        Load::EveryCore,
        "the same, as many threads as cores",
        &without,
        alone,
        cores,
    );
    ensure!(short.is_empty(), "{}", short.join("; "));
    Ok(())
}

fn start(bin: &Path, scratch: &Scratch, model: &Path, name: &str, settings: &str) -> Result<Node> {
    let mut node = Node::create(bin, scratch.path(), name)?;
    node.write_config(settings)?;
    node.start()?;
    import(&node, model, &[])?;
    ask(&node)?;
    Ok(node)
}

fn sample(node: &Node, load: Load, cores: usize) -> Result<Sample> {
    let busy = load.start(cores)?;
    thread::sleep(SETTLE);
    let (before, _) = napping(|| {
        thread::sleep(SETTLE / 5);
        Ok(())
    })?;
    let used = |busy: &[Busy]| busy.iter().map(Busy::used).sum::<f64>();
    let (began, spent) = (Instant::now(), used(&busy));
    let (during, decode) = napping(|| ask(node))?;
    let others = (used(&busy) - spent) / began.elapsed().as_secs_f64();
    Ok(Sample {
        decode,
        others,
        woke: [before, during],
    })
}

/// Tokens per second of an answer after its first token.
fn ask(node: &Node) -> Result<f64> {
    let answer = Chat::new(node.api, MODEL, PROMPT, TOKENS)
        .raw()
        .in_scope("mine")
        .run()?;
    let each = answer.per_token().context("an answer of one token")?;
    Ok(each.as_secs_f64().recip())
}

/// How late a sleeper wakes while something is done, 99th percentile.
fn napping<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            let mut late = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                thread::sleep(NAP);
                late.push(start.elapsed().saturating_sub(NAP));
            }
            late
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        let late = sleeper.join().expect("a sleeper does not panic");
        Ok((quantile(&late, 0.99)?, done?))
    })
}

/// Prints one row; what is short of its goal.
fn row(load: Load, name: &str, samples: &[Sample], alone: f64, cores: usize) -> Vec<String> {
    let decode = median(samples, |sample| sample.decode);
    let of_fair = decode / alone / load.fair(cores);
    let rates = samples.iter().map(|sample| sample.decode);
    let (least, most) = (
        rates.clone().fold(f64::INFINITY, f64::min),
        rates.fold(0.0, f64::max),
    );
    // Each busy process would have half of its core.
    #[expect(clippy::cast_precision_loss, reason = "a number of cores")]
    let theirs = load.processes(cores) as f64 / 2.0;
    let others = median(samples, |sample| sample.others) / theirs.max(f64::MIN_POSITIVE);
    let [before, during] = [0, 1].map(|when| median(samples, |s| s.woke[when].as_secs_f64()));
    let others_told = if theirs > 0.0 {
        format!("{others:.2}")
    } else {
        "-".to_owned()
    };
    println!(
        "{name:<36}{decode:>8.1}{:>16}{:>10.2}{of_fair:>10.2}{others_told:>10}{:>22}",
        format!("({least:.1}-{most:.1})"),
        decode / alone,
        format!("{:.1} -> {:.1} ms", before * 1e3, during * 1e3),
    );
    let mut short = Vec::new();
    // Beside a program bound to each core one thread has half of one core, and more threads wait for each other.
    if load == Load::EveryCore && of_fair < GOAL {
        short.push(format!(
            "{name}: {of_fair:.2} of the fair share, {GOAL} wanted"
        ));
    }
    if theirs > 0.0 && others < OTHERS_GOAL {
        short.push(format!(
            "{}: others keep {others:.2} of theirs",
            load.name()
        ));
    }
    if during - before > LATER.as_secs_f64() {
        short.push(format!(
            "{}: a sleeper wakes {:.1} ms later",
            load.name(),
            (during - before) * 1e3
        ));
    }
    short
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
