//! Many clients and many jobs: everyone is answered or told, and the daemon's memory stays flat.

use std::time::Duration;

use anyhow::{Context, Result};
use xtask::node::Scratch;
use xtask::stream::complete;
use xtask::trio::{Holders, MODEL, Trio, test_bin, test_model};

/// Jobs through a daemon that holds no model.
const JOBS: usize = 1000;
/// The figure for its resident memory.
const LIMIT: u64 = 80 * 1024 * 1024;
/// By then every pool, cache and table has its working size.
const EARLY: usize = 400;
/// Growth from then to the end that still counts as flat: what an allocator keeps.
const FLAT: u64 = 6 * 1024 * 1024;
/// Clients at once.
const CLIENTS: usize = 500;

#[test]
fn a_daemon_without_a_model_stays_small_and_flat_and_five_hundred_clients_are_answered()
-> Result<()> {
    let scratch = Scratch::new("load")?;
    let trio = Trio::start(&test_bin(), scratch.path(), &test_model(), Holders::Guests)?;
    let api = trio.a.api;
    let mut early = 0;
    for job in 0..JOBS {
        complete(api, MODEL, "a", 1, "circle").with_context(|| format!("job {job}"))?;
        if job == EARLY {
            early = trio.a.resident_bytes()?;
        }
    }
    let late = trio.a.resident_bytes()?;
    println!(
        "resident: {} KiB after {} jobs, {} KiB after {JOBS}",
        early / 1024,
        EARLY,
        late / 1024
    );
    assert!(late < LIMIT, "{late} bytes resident");
    assert!(late < early + FLAT, "grew from {early} to {late} bytes");

    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| std::thread::spawn(move || complete(api, MODEL, "a", 1, "circle")))
        .collect();
    let mut told = 0;
    for client in clients {
        match client.join().expect("no client panics") {
            Ok(_) => {}
            // A full list is told with 429 and a time to come back; nothing else counts as an answer.
            Err(error) if error.to_string().starts_with("429") => told += 1,
            Err(error) => return Err(error.context("a client got neither an answer nor its place")),
        }
    }
    println!(
        "{} of {CLIENTS} answered, {told} told to come back",
        CLIENTS - told
    );
    assert_eq!(told, 0, "the list holds 1,024: all of {CLIENTS} fit");
    trio.a
        .wait_for("a calm after the storm", Duration::from_secs(30), |a| {
            Ok(a.json(&["jobs"])?["jobs"]
                .as_array()
                .is_some_and(Vec::is_empty))
        })?;
    let after = trio.a.resident_bytes()?;
    println!("resident after the storm: {} KiB", after / 1024);
    assert!(
        after < LIMIT + 64 * 1024 * 1024,
        "500 connections are bounded: {after} bytes"
    );
    Ok(())
}
