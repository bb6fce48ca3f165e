//! A worker that is taken over, for an hour: seeded modes against one daemon, which must bear all of them.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::hostile::{Came, GOOD, Hostile, Mode, SILENT, modes};
use xtask::node::Scratch;

/// How long, unless it is said.
pub const MINUTES: u64 = 60;

/// Models of one round, each of a mode and a seed of its own.
const MODELS: usize = 12;

/// Jobs at once.
const CLIENTS: usize = 6;

/// Every so many jobs, one with a worker of its own.
const ISOLATED_EVERY: usize = 3;

/// Between two lines of progress.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Modes that chance makes different each time; they are half of all models.
const DRAWN: [&str; 3] = ["chaos", "noise in the answer", "noise at the load"];

/// Longer than a worker may be silent about a job that was given up, which a round without deaf ones does not wait for.
const DEAF: Duration = Duration::from_secs(150);

/// What was seen so far.
#[derive(Default)]
struct Seen {
    rounds: u64,
    jobs: usize,
    answers: usize,
    most_bytes: u64,
    most_descriptors: usize,
}

/// Loops until the time is over. The seed of each model is its round's and its place; the same seed gives the same bytes.
pub fn prove(bin: &Path, minutes: u64) -> Result<()> {
    let scratch = Scratch::new("prove-hostile")?;
    let hostile = Hostile::start(bin, &scratch)?;
    let modes = modes(bin)?;
    // Its jobs take half a minute or two: one of each kind is enough.
    let drawn = |mode: &Mode| mode.name != GOOD && mode.name != SILENT;
    let modes: Vec<Mode> = modes.into_iter().filter(drawn).collect();
    ensure!(modes.len() >= MODELS, "{} modes", modes.len());
    silent_workers_end(&hostile)?;
    silent_answers_end(&hostile)?;
    let (begun, mut told) = (Instant::now(), Instant::now());
    let mut seen = Seen::default();
    while begun.elapsed() < Duration::from_secs(minutes * 60) {
        let first = 1 + seen.rounds * MODELS as u64;
        round(&hostile, &modes, first, &mut seen)
            .with_context(|| format!("round {}, seeds from {first} on", seen.rounds))?;
        seen.rounds += 1;
        if told.elapsed() >= TOLD_EVERY {
            told = Instant::now();
            seen.tell(begun.elapsed(), first);
        }
    }
    seen.tell(begun.elapsed(), seen.rounds * MODELS as u64);
    Ok(())
}

/// A worker that answers neither its job nor its Cancel is killed without anybody asking for it again.
fn silent_workers_end(hostile: &Hostile) -> Result<()> {
    let name = hostile.add("never begin nor end", 0)?;
    let came = hostile.ask(&name, "silence", &[])?;
    ensure!(matches!(came, Came::Error(_)), "{came:?}");
    let is_it = |loaded: &String| loaded.starts_with(&name);
    let loaded = |hostile: &Hostile| anyhow::Ok(hostile.loaded()?.iter().any(is_it));
    ensure!(loaded(hostile)?, "it is loaded until it has had its time");
    let gone = |_: &_| Ok(!loaded(hostile)?);
    hostile
        .node
        .wait_for("the end of a silent worker", DEAF, gone)?;
    println!("a worker that answers no Cancel is gone");
    hostile.remove(&name)
}

/// An answer whose worker falls silent ends with the lease of its work at the latest, whether the worker is its own or others' too.
fn silent_answers_end(hostile: &Hostile) -> Result<()> {
    let name = hostile.add(SILENT, 0)?;
    let ask = |more: &'static [&'static str]| {
        let came = hostile.ask(&name, "half", more)?;
        ensure!(matches!(came, Came::Error(_)), "{came:?}");
        Ok(())
    };
    std::thread::scope(|scope| {
        let both = [&[] as &[&str], &["--isolated"]].map(|more| scope.spawn(move || ask(more)));
        both.into_iter()
            .map(|one| one.join().expect("no panic"))
            .collect::<Result<Vec<()>>>()
    })?;
    println!("an answer that falls silent ends");
    hostile.remove(&name)
}

fn round(hostile: &Hostile, modes: &[Mode], first: u64, seen: &mut Seen) -> Result<()> {
    let drawn = |place: u64| {
        let seed = first + place;
        let mode = match place % 2 {
            0 => DRAWN[(seed / 2) as usize % DRAWN.len()],
            _ => modes[(seed / 2) as usize % modes.len()].name.as_str(),
        };
        (mode, seed)
    };
    let models = (0..MODELS as u64).map(drawn);
    let added = models.map(|(mode, seed)| Ok((mode.to_owned(), hostile.add(mode, seed)?)));
    let added: Vec<(String, String)> = added.collect::<Result<_>>()?;
    let queue = Mutex::new(added.iter().enumerate().collect::<Vec<_>>());
    let answers = Mutex::new(0);
    let client = || -> Result<()> {
        loop {
            let Some((place, (mode, name))) = queue.lock().expect("no panic").pop() else {
                return Ok(());
            };
            let more: &[&str] = match place % ISOLATED_EVERY {
                0 => &["--isolated"],
                _ => &[],
            };
            let came = hostile.ask(name, mode, more)?;
            *answers.lock().expect("no panic") += usize::from(matches!(came, Came::Answer(_)));
        }
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        let ended = clients.into_iter().map(|one| one.join().expect("no panic"));
        ended.collect::<Result<Vec<()>>>()
    })?;
    hostile.bears_it()?;
    for (_, name) in &added {
        hostile.remove(name)?;
    }
    hostile.leaves_nothing()?;
    hostile.good_answers()?;
    let (bytes, descriptors) = hostile.size()?;
    seen.jobs += added.len();
    seen.answers += answers.into_inner().expect("no panic");
    seen.most_bytes = seen.most_bytes.max(bytes);
    seen.most_descriptors = seen.most_descriptors.max(descriptors);
    Ok(())
}

impl Seen {
    fn tell(&self, after: Duration, seed: u64) {
        println!(
            "{:>5} s: {} rounds, {} jobs, {} of them answered, seeds to {seed}; the daemon: {} KiB and {} descriptors at most",
            after.as_secs(),
            self.rounds,
            self.jobs,
            self.answers,
            self.most_bytes >> 10,
            self.most_descriptors,
        );
    }
}
