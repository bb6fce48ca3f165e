//! `cargo xtask bench engine`: our whole path against `llama-server` on the same model, flags and threads.
//!
//! Invariant: both sides are asked in turn within one run, the order changes with every pair, and a figure is
//! the median of the ratios of the pairs, with the half-width of its 95 % bootstrap interval.
//! Absent by design: absolute goals. The machine differs, the reference is beside us.

mod client;
mod loads;
mod reference;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use xtask::node::{Node, Scratch};
use xtask::trio::import;

use crate::bench::{half_width, median};
use client::Side;
use loads::{Target, p95};
use reference::{Server, Setup};

/// Threads of the engine on both sides.
const THREADS: u32 = 2;
/// Sequences either side may run at once.
const SLOTS: u32 = 16;
/// Context of each: the long prompt and an answer.
const CONTEXT: u32 = 2_304;
/// Pairs of the gate's form.
const SHORT_PAIRS: usize = 2;
/// A ratio under this is no noise.
const COLLAPSE: f64 = 0.8;
/// Half-width up to which a goal can be called met (DESIGN 13).
const WIDEST: f64 = 0.03;

/// One figure.
#[derive(Debug, Serialize)]
pub struct Cell {
    /// What.
    pub name: String,
    /// Median over the pairs of ours over the reference's; for a time that is added, milliseconds.
    pub ratio: f64,
    /// What it is held against.
    pub goal: f64,
    /// `met`, `missed`, or `unresolved` when the spread does not tell.
    pub met: &'static str,
    /// Half-width of the 95 % bootstrap interval.
    pub spread: f64,
    /// Medians of both sides, in the unit.
    pub ours: f64,
    /// The reference's.
    pub reference: f64,
    /// Unit of the two.
    pub unit: &'static str,
}

/// How a figure is held against its goal.
#[derive(Clone, Copy)]
enum Goal {
    /// The ratio is to be at least this.
    AtLeast(f64),
    /// The ratio is to be at most this.
    AtMost(f64),
    /// The difference is to be at most this.
    Adds(f64),
}

/// Both sides of the pairs of one figure.
struct Figure {
    name: String,
    unit: &'static str,
    goal: Goal,
    ours: Vec<f64>,
    reference: Vec<f64>,
}

impl Figure {
    fn new(name: impl Into<String>, unit: &'static str, goal: Goal) -> Self {
        Self {
            name: name.into(),
            unit,
            goal,
            ours: Vec::new(),
            reference: Vec::new(),
        }
    }

    fn push(&mut self, side: Side, value: f64) {
        match side {
            Side::Ours => self.ours.push(value),
            Side::Reference => self.reference.push(value),
        }
    }

    fn cell(&self) -> Cell {
        let pairs = self.ours.iter().zip(&self.reference);
        let each: Vec<f64> = match self.goal {
            Goal::Adds(_) => pairs.map(|(ours, reference)| ours - reference).collect(),
            _ => pairs.map(|(ours, reference)| ours / reference).collect(),
        };
        let (ratio, spread) = (median(&each), half_width(&each));
        let (goal, over, wide) = match self.goal {
            Goal::AtLeast(goal) => (goal, ratio >= goal, spread > WIDEST),
            Goal::AtMost(goal) => (goal, ratio <= goal, spread > WIDEST),
            Goal::Adds(goal) => (goal, ratio <= goal, spread > goal),
        };
        // Far from the goal, a wide interval decides too.
        let clear = (ratio - goal).abs() > spread;
        let met = match (over, !wide || clear) {
            (true, true) => "met",
            (false, true) => "missed",
            (_, false) => "unresolved",
        };
        Cell {
            name: self.name.clone(),
            ratio,
            goal,
            met,
            spread,
            ours: median(&self.ours),
            reference: median(&self.reference),
            unit: self.unit,
        }
    }
}

/// One load on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// One answer alone: tokens per second after the first.
    Decode,
    /// As [`Load::Decode`], of a node that guesses nothing: the engine's own speed.
    Unguessed,
    /// As [`Load::Decode`], of a text that was read before, which prompt lookup guesses.
    Copy,
    /// A prompt alone: tokens per second up to the first.
    Prefill,
    /// A short prompt alone: the way there and back.
    FirstToken,
    /// So many clients at once: tokens per second together.
    Clients(u64),
    /// A long prompt amid running answers: its time to the first token, and their gaps.
    Amid,
}

const LOADS: [Load; 9] = [
    Load::Decode,
    Load::Unguessed,
    Load::Copy,
    Load::Prefill,
    Load::FirstToken,
    Load::Clients(4),
    Load::Clients(8),
    Load::Clients(16),
    Load::Amid,
];

/// Loads of the first pair: those that find a node without its model.
const WARMING: usize = 2;

/// The gate's loads: a minute in all.
const SHORT_LOADS: [Load; 3] = [Load::Decode, Load::Prefill, Load::Clients(8)];

/// Measures against the pinned reference, built from source; that takes ten minutes the first time.
///
/// # Errors
/// It cannot be built, or either side failed.
pub fn run(bin: &Path, model: &Path, pairs: usize) -> Result<Vec<Cell>> {
    let program = reference::build()?;
    eprintln!("reference: llama-server {}", reference::revision(&program)?);
    let server = Server::start(&program, setup(model))?;
    measure(bin, model, &server, &LOADS, pairs)
}

/// The gate's form: two pairs against a prebuilt server. It fails on a collapse only, seen twice, as the machine has
/// other things to do and the other side was built with flags of its own.
///
/// # Errors
/// A ratio collapsed, or either side failed.
pub fn short(bin: &Path, model: &Path) -> Result<()> {
    let server = Server::start_prebuilt(setup(model))?;
    let collapsed = || -> Result<Vec<String>> {
        let cells = measure(bin, model, &server, &SHORT_LOADS, SHORT_PAIRS)?;
        table(&cells);
        let under = cells
            .into_iter()
            .filter(|cell| cell.unit == "tok/s" && cell.ratio + cell.spread < COLLAPSE);
        Ok(under.map(|cell| cell.name).collect())
    };
    if collapsed()?.is_empty() {
        return Ok(());
    }
    let again = collapsed()?;
    if !again.is_empty() {
        bail!("under {COLLAPSE} of the reference: {}", again.join(", "));
    }
    Ok(())
}

fn setup(model: &Path) -> Setup<'_> {
    Setup {
        model,
        slots: SLOTS,
        context: CONTEXT,
        threads: THREADS,
    }
}

fn measure(
    bin: &Path,
    model: &Path,
    server: &Server,
    loads: &[Load],
    pairs: usize,
) -> Result<Vec<Cell>> {
    if pairs < 2 {
        bail!("at least two pairs are needed");
    }
    let scratch = Scratch::new("bench-engine")?;
    let ours = node(bin, &scratch, "ours", model, true)?;
    let unguessed = match loads.contains(&Load::Unguessed) {
        true => Some(node(bin, &scratch, "unguessed", model, false)?),
        false => None,
    };
    let sides = |load: Load| {
        let plain = unguessed
            .as_ref()
            .filter(|_| load == Load::Unguessed)
            .unwrap_or(&ours);
        [(Side::Ours, plain.api), (Side::Reference, server.api)]
            .map(|(side, api)| Target { side, api })
    };
    let mut figures: Vec<Vec<Figure>> = loads.iter().map(|load| load.figures()).collect();
    for pair in 0..=pairs as u64 {
        // The first pair loads the model and warms both sides up with a load or two; it is not counted.
        let loads = if pair == 0 {
            &loads[..WARMING.min(loads.len())]
        } else {
            loads
        };
        for ((number, load), figures) in (pair * 10..).zip(loads).zip(&mut figures) {
            let mut order = sides(*load);
            if pair % 2 == 1 {
                order.reverse();
            }
            for target in order {
                let values = load.put_on(target, number);
                let values = values.with_context(|| format!("{load:?} of {:?}", target.side))?;
                if pair > 0 {
                    for (figure, value) in figures.iter_mut().zip(values) {
                        figure.push(target.side, value);
                    }
                }
            }
        }
        eprintln!("pair {pair} of {pairs}");
    }
    let mut cells: Vec<Cell> = figures.iter().flatten().map(Figure::cell).collect();
    cells.push(memory(&ours, server)?);
    Ok(cells)
}

/// A node with the model, under the settings of both sides.
fn node(bin: &Path, scratch: &Scratch, name: &str, model: &Path, guesses: bool) -> Result<Node> {
    let mut node = Node::create(bin, scratch.path(), name)?;
    node.write_config(&format!(
        "[models]\nthreads = {THREADS}\nparallel = {SLOTS}\ncontext = {CONTEXT}\nprompt_lookup = {guesses}\nkeep_alive = -1\n"
    ))?;
    node.start()?;
    import(&node, model, &[])?;
    Ok(node)
}

impl Load {
    /// The figures it gives.
    fn figures(self) -> Vec<Figure> {
        match self {
            Self::Decode => vec![Figure::new(
                "decode, one stream",
                "tok/s",
                Goal::AtLeast(0.98),
            )],
            Self::Unguessed => vec![Figure::new(
                "decode, one stream, without prompt lookup",
                "tok/s",
                Goal::AtLeast(0.98),
            )],
            Self::Copy => vec![Figure::new(
                "decode of what was read before, one stream",
                "tok/s",
                Goal::AtLeast(0.98),
            )],
            Self::Prefill => vec![Figure::new(
                "prefill, 900 tokens",
                "tok/s",
                Goal::AtLeast(0.98),
            )],
            Self::FirstToken => vec![Figure::new(
                "time to first token over HTTP, added",
                "ms",
                Goal::Adds(5.0),
            )],
            Self::Clients(clients) => vec![Figure::new(
                format!("throughput, {clients} clients"),
                "tok/s",
                Goal::AtLeast(1.0),
            )],
            Self::Amid => vec![
                Figure::new(
                    "time to first token of 2,000 tokens amid 8 answers",
                    "ms",
                    Goal::AtMost(1.0),
                ),
                Figure::new(
                    "p95 token gap of the 8 answers meanwhile",
                    "ms",
                    Goal::AtMost(0.8),
                ),
            ],
        }
    }

    /// Puts the load on one side; the values are those of [`Load::figures`].
    fn put_on(self, target: Target, number: u64) -> Result<Vec<f64>> {
        Ok(match self {
            Self::Decode | Self::Unguessed => vec![target.decode(number)?],
            Self::Copy => vec![target.copy(number)?],
            Self::Prefill => vec![target.prefill(number)?],
            Self::FirstToken => vec![target.first_token(number)?],
            Self::Clients(clients) => vec![target.throughput(number, clients)?],
            Self::Amid => {
                let (first, gaps) = target.amid(number)?;
                vec![ms(first), p95(&gaps)?]
            }
        })
    }
}

/// Peak resident memory of our worker over the reference's.
fn memory(node: &Node, server: &Server) -> Result<Cell> {
    let workers = node.json(&["ps"])?;
    let worker = workers["models"][0]["pid"].as_u64().context("no worker")?;
    let ours = peak_mib(u32::try_from(worker)?)?;
    let reference = peak_mib(server.pid())?;
    let mut figure = Figure::new("peak memory of the engine", "MiB", Goal::AtMost(1.1));
    figure.ours = vec![ours];
    figure.reference = vec![reference];
    Ok(figure.cell())
}

fn peak_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib: f64 = line
        .and_then(|line| line.split_whitespace().nth(1))
        .context("no VmHWM")?
        .parse()?;
    Ok(kib / 1024.0)
}

/// Prints the table.
pub fn table(cells: &[Cell]) {
    println!(
        "{:<52} {:>9} {:>9} {:<6} {:>7} {:>8} {:>6}",
        "", "ours", "reference", "", "ratio", "±95 %", "goal"
    );
    for cell in cells {
        println!(
            "{:<52} {:>9.1} {:>9.1} {:<6} {:>7.3} {:>8.3} {:>6.2}  {}",
            cell.name,
            cell.ours,
            cell.reference,
            cell.unit,
            cell.ratio,
            cell.spread,
            cell.goal,
            cell.met
        );
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
