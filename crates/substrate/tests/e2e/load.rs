//! Many clients and many jobs: everyone is answered or told, nobody starves, and the daemon's memory stays flat.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use xtask::node::Scratch;
use xtask::size;
use xtask::stream::{complete, quantile};
use xtask::trio::{Holders, MODEL, Trio, test_bin, test_model};

/// Jobs through a daemon that holds no model, in the gate and in `prove`.
const JOBS: (usize, usize) = (150, 1000);
/// The figure for its resident memory.
const LIMIT: u64 = 80 * 1024 * 1024;
/// By then every pool, cache and table has its working size.
const EARLY: (usize, usize) = (75, 400);
/// Growth from then to the end that still counts as flat: what an allocator keeps.
const FLAT: u64 = 6 * 1024 * 1024;
/// Clients at once.
const CLIENTS: usize = 500;
/// What 500 connections and their jobs may take at once, and an allocator may keep of it.
const STORM: u64 = 64 * 1024 * 1024;
/// Storms at most until one leaves no more than those before: arenas fill up over the first ones, as threads are woken in
/// another order each time. What leaks grows with every storm.
const STORMS: u32 = 5;
/// Growth by a storm that still is none: 16 KiB for each client.
const SLACK: u64 = 8 * 1024 * 1024;
/// The longest wait against the median one. Served in the order they came, 500 equal jobs at once wait evenly from one
/// to 500 turns: the last waits twice as long as the one in the middle. The rest is for the order of arrival.
const STARVING: f64 = 2.5;

#[test]
fn a_daemon_without_a_model_stays_small_and_flat_and_five_hundred_clients_are_answered()
-> Result<()> {
    let scratch = Scratch::new("load")?;
    let trio = Trio::start(&test_bin(), scratch.path(), &test_model(), Holders::Guests)?;
    let api = trio.a.api;
    let mut early = 0;
    let (jobs, early_at) = (size::of(JOBS.0, JOBS.1), size::of(EARLY.0, EARLY.1));
    for job in 0..jobs {
        complete(api, MODEL, "a", 1, "circle").with_context(|| format!("job {job}"))?;
        if job == early_at {
            early = trio.a.resident_bytes()?;
        }
    }
    let late = trio.a.resident_bytes()?;
    println!(
        "resident: {} KiB after {} jobs, {} KiB after {jobs}",
        early / 1024,
        early_at,
        late / 1024
    );
    assert!(late < LIMIT, "{late} bytes resident");
    assert!(late < early + FLAT, "grew from {early} to {late} bytes");

    let mut most: Option<u64> = None;
    for number in 1..=STORMS {
        storm(&trio, number)?;
        let after = trio.a.resident_bytes()?;
        println!("resident after storm {number}: {} KiB", after / 1024);
        assert!(
            after < LIMIT + STORM,
            "500 connections are bounded: {after} bytes"
        );
        if most.is_some_and(|most| after < most + SLACK) {
            return Ok(());
        }
        most = most.max(Some(after));
    }
    panic!("it grew with each of {STORMS} storms");
}

/// All clients at once, and calm afterwards.
fn storm(trio: &Trio, number: u32) -> Result<()> {
    let api = trio.a.api;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            std::thread::spawn(move || {
                let start = Instant::now();
                complete(api, MODEL, "a", 1, "circle").map(|_| start.elapsed())
            })
        })
        .collect();
    let (mut waits, mut told) = (Vec::new(), 0);
    for client in clients {
        match client.join().expect("no client panics") {
            Ok(wait) => waits.push(wait),
            // A full list is told with 429 and a time to come back; nothing else counts as an answer.
            Err(error) if error.to_string().starts_with("429") => told += 1,
            Err(error) => return Err(error.context("a client got neither an answer nor its place")),
        }
    }
    let (median, longest) = (quantile(&waits, 0.5)?, quantile(&waits, 1.0)?);
    println!(
        "storm {number}: {} of {CLIENTS} answered, {told} told to come back; waits: median {median:?}, longest {longest:?}",
        waits.len()
    );
    assert_eq!(told, 0, "the list holds 1,024: all of {CLIENTS} fit");
    assert!(
        longest.as_secs_f64() < median.as_secs_f64() * STARVING,
        "somebody starved: {longest:?} against a median of {median:?}"
    );
    trio.a
        .wait_for("a calm after the storm", Duration::from_secs(30), |a| {
            Ok(a.json(&["jobs"])?["jobs"]
                .as_array()
                .is_some_and(Vec::is_empty))
        })
}
