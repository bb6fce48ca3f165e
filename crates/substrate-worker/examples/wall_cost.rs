//! What the wall costs a worker: time from its start to its first word, and tokens per second.
//!
//! `wall_cost BARE MODEL [STARTS] [PROCESSES]`: BARE is the static example `bare`, which is the worker, too. Walled and bare take
//! turns, and who begins changes each time, so that load falls on both alike. Two processes of one program differ by a percent or two for as
//! long as they live; so tokens are counted in many pairs of processes, and each pair gives one ratio.
//! Medians are printed, and the figures that have goals last: `added start: X ms`, and `throughput: X of bare, A to B`, the median of
//! the pairs with its 95 % interval (of order statistics: no distribution is assumed).

#[path = "../tests/support/mod.rs"]
mod support;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use substrate_sandbox::launch::{Wall, WallSpec, Worker, worker_sha256};
use substrate_sandbox::wire::{FromWorker, Load, ToWorker};
use support::{Client, greedy, half, job, user};

/// Who runs both when this runs as root.
const NOBODY: u32 = 65_534;

/// Pairs of starts: enough for a steady median.
const STARTS: usize = 100;

/// Pairs of processes; odd, so that one is the median.
const PROCESSES: usize = 31;

/// Answers of each process; odd, so that one is the median.
const ANSWERS: usize = 15;

/// Tokens of each answer, a third of a second of a small model: what slows a machine down lasts longer, and slows both.
const TOKENS: u32 = 32;

/// A program under measurement; it ends with its value.
enum Running {
    Walled(#[allow(dead_code, reason = "its drop ends it")] Worker),
    Bare(Child),
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Self::Bare(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Programs {
    spec: WallSpec,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bare, model, numbers @ ..] = arguments.as_slice() else {
        panic!("usage: wall_cost BARE MODEL [STARTS] [PROCESSES]");
    };
    let number = |at: usize, default| {
        numbers
            .get(at)
            .map_or(default, |n| n.parse().expect("a number"))
    };
    let digest = worker_sha256(bare.as_ref()).expect("the program reads");
    let programs = Programs {
        spec: WallSpec {
            become_uid: become_uid(),
            // As the daemon starts it.
            expected_worker_sha256: Some(digest),
            ..WallSpec::new(bare, model)
        },
    };
    starts(&programs, number(0, STARTS));
    answers(&programs, number(1, PROCESSES));
}

fn become_uid() -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let root = std::fs::metadata("/proc/self").map(|own| own.uid());
    (root.ok() == Some(0)).then_some(NOBODY)
}

impl Programs {
    /// Starts one and waits for its first word: the first seal is on, or would be.
    fn start(&self, walled: bool) -> (Running, Client, Duration) {
        let begun = Instant::now();
        let (running, mut client) = match walled {
            true => self.walled(),
            false => self.unwalled(),
        };
        let first = client.next();
        let took = begun.elapsed();
        assert!(
            matches!(first, FromWorker::Sealed { stage: 1, seccomp, .. } if seccomp == walled),
            "{first:?}"
        );
        (running, client, took)
    }

    fn walled(&self) -> (Running, Client) {
        let mut worker = Wall::spawn(self.spec.clone()).expect("the wall stands");
        let pipe = worker.take_pipe().expect("a pipe");
        (Running::Walled(worker), Client::over(pipe))
    }

    fn unwalled(&self) -> (Running, Client) {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let mut command = Command::new(&self.spec.worker);
        command
            .arg(&self.spec.model)
            .env_clear()
            .env("GGML_NO_BACKTRACE", "1")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(uid) = self.spec.become_uid {
            command.uid(uid).gid(uid);
        }
        let child = command.spawn().expect("it starts");
        (Running::Bare(child), Client::over(ours))
    }
}

fn starts(programs: &Programs, rounds: usize) {
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for walled in turns(round) {
            let (running, _client, took) = programs.start(walled);
            drop(running);
            times[usize::from(walled)].push(took.as_secs_f64() * 1e3);
        }
    }
    let [bare, walled] = times.map(|mut times| median(&mut times));
    println!("start to first word, median of {rounds}: bare {bare:.2} ms, walled {walled:.2} ms");
    println!("added start: {:.2} ms", walled - bare);
}

fn answers(programs: &Programs, processes: usize) {
    let (mut rates, mut ratios) = ([Vec::new(), Vec::new()], Vec::new());
    for pair in 0..processes {
        let of_pair = in_one_pair(programs, pair);
        let mut of_answers: Vec<f64> = of_pair.iter().map(|[bare, walled]| walled / bare).collect();
        ratios.push(median(&mut of_answers));
        for [bare, walled] in of_pair {
            rates[0].push(bare);
            rates[1].push(walled);
        }
    }
    let [bare, walled] = rates.map(|mut rates| median(&mut rates));
    println!(
        "answers of {TOKENS} tokens, {ANSWERS} of each of {processes} pairs of processes, medians: bare {bare:.1} tok/s, walled {walled:.1} tok/s"
    );
    let middle = median(&mut ratios);
    let (low, high) = interval(ratios.len());
    println!(
        "throughput: {middle:.4} of bare, {:.4} to {:.4}",
        ratios[low], ratios[high]
    );
}

/// Tokens per second, bare and walled, of answers that two processes give in turns.
fn in_one_pair(programs: &Programs, pair: usize) -> Vec<[f64; 2]> {
    let mut both = [None, None];
    for walled in turns(pair) {
        let (running, mut client, _) = programs.start(walled);
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let load = Load {
            threads,
            batch_threads: threads,
            ..half(1024)
        };
        let loaded = client.load_as(load);
        loaded.unwrap_or_else(|(why, detail)| panic!("not loaded: {why:?}: {detail}"));
        both[usize::from(walled)] = Some((running, client));
    }
    let mut both = both.map(|one| one.expect("both took their turn"));
    let answers = 0..ANSWERS;
    answers
        .map(|round| {
            let mut pair = [(0.0, Vec::new()), (0.0, Vec::new())];
            for walled in turns(round) {
                let at = usize::from(walled);
                pair[at] = answer(&mut both[at].1, round as u64 + 1);
            }
            assert_eq!(pair[0].1, pair[1].1, "the two answers differ");
            pair.map(|(rate, _)| rate)
        })
        .collect()
}

/// The places, in sorted order, between which the median of so many draws lies in at least 95 of 100 cases: those beyond which lie
/// less than 2.5 % of a binomial distribution of one half.
fn interval(draws: usize) -> (usize, usize) {
    let mut chance = 0.5_f64.powi(draws as i32);
    let mut beyond = 0.0;
    let mut low = 0;
    for place in 0..draws / 2 {
        beyond += chance;
        if beyond >= 0.025 {
            break;
        }
        low = place;
        chance *= (draws - place) as f64 / (place + 1) as f64;
    }
    (low, draws - 1 - low)
}

/// Tokens per second after the first, and the ids.
fn answer(client: &mut Client, seq: u64) -> (f64, Vec<u32>) {
    client.prepare(job(seq, &user("Tell a long story."), greedy(), TOKENS));
    client.send(ToWorker::Begin { seq });
    let mut ids = Vec::new();
    let mut first = None;
    loop {
        match client.next() {
            FromWorker::Tokens { ids: more, .. } => {
                client.send(ToWorker::Grant { seq, frames: 1 });
                first.get_or_insert_with(|| (Instant::now(), more.len()));
                ids.extend(more);
            }
            FromWorker::Finished(_) => break,
            FromWorker::Prefilled { .. } => {}
            other => panic!("unexpected: {other:?}"),
        }
    }
    let (since, held) = first.expect("a token");
    (
        (ids.len() - held) as f64 / since.elapsed().as_secs_f64(),
        ids,
    )
}

/// Who is measured first takes turns.
fn turns(round: usize) -> [bool; 2] {
    match round.is_multiple_of(2) {
        true => [false, true],
        false => [true, false],
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
