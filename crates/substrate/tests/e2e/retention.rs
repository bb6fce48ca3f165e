//! A provider keeps no prompt: after crashes and a kill -9, a marker is in none of its files and logs.
//!
//! The control looks the same way for the same marker in a file that does hold it, on the same disk, so that a search
//! that finds nothing means something; and for it in the requester's own request, so that the marker was really sent.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use xtask::node::{Node, Scratch, files_below};
use xtask::stream::complete;
use xtask::trio::{Holders, MODEL, Trio, test_bin, test_model};

const MARKER: &str = "zebra-quartz-vulcan-7731";
/// Jobs in all; a worker is killed in the middle of every fortieth.
const JOBS: usize = 200;
const CRASH_EVERY: usize = 40;

#[test]
fn a_marker_prompt_is_in_no_file_of_its_provider_after_crashes() -> Result<()> {
    let scratch = Scratch::new("retention")?;
    let mut trio = Trio::start_with(
        &test_bin(),
        scratch.path(),
        &test_model(),
        Holders::Guests,
        |node| node.with_env("SUBSTRATE_LOG", "trace,h2=info,libp2p=debug"),
    )?;
    let mut answered = 0;
    for job in 0..JOBS {
        let crash = job % CRASH_EVERY == CRASH_EVERY / 2;
        let asked = std::thread::spawn({
            let api = trio.a.api;
            move || {
                complete(
                    api,
                    MODEL,
                    &format!("{MARKER} number {job}"),
                    if crash { 48 } else { 1 },
                    "circle",
                )
            }
        });
        if crash {
            crash_a_worker(&[&trio.b, &trio.c])?;
        }
        answered += usize::from(asked.join().expect("the client does not panic").is_ok());
        if job == JOBS / 2 {
            trio.b.kill()?;
            trio.b.start()?;
            trio.wait_until_seen()?;
        }
    }
    assert_eq!(answered, JOBS, "every job was answered, crashes or not");
    for guest in [&trio.b, &trio.c] {
        assert_eq!(
            holding(&guest.home)?,
            Vec::<String>::new(),
            "node {}",
            guest.name
        );
        assert!(!holds(&guest.log_path())?, "the log of node {}", guest.name);
    }
    // The control: the same search finds the marker where it is.
    trio.b.write_file("control", &format!("prompt: {MARKER}"))?;
    assert_eq!(holding(&trio.b.home)?.len(), 1);
    Ok(())
}

/// Kills the first worker that is found busy.
fn crash_a_worker(nodes: &[&Node]) -> Result<()> {
    for _ in 0..200 {
        for node in nodes {
            let workers = node.json(&["ps"])?;
            let busy = workers["models"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|worker| worker["busy"].as_u64() > Some(0));
            if let Some(pid) = busy.and_then(|worker| worker["pid"].as_u64()) {
                Command::new("kill")
                    .args(["-SEGV", &pid.to_string()])
                    .status()
                    .context("kill")?;
                return Ok(());
            }
        }
    }
    anyhow::bail!("no worker was ever busy")
}

fn holding(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for file in files_below(folder)? {
        if holds(&file)? {
            found.push(file.display().to_string());
        }
    }
    Ok(found)
}

fn holds(file: &Path) -> Result<bool> {
    let bytes = std::fs::read(file)?;
    Ok(bytes
        .windows(MARKER.len())
        .any(|window| window == MARKER.as_bytes()))
}
