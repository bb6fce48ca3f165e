//! A clock two days off changes nothing but what is shown.

use anyhow::{Context, Result};
use xtask::node::Scratch;
use xtask::packages::libfaketime;
use xtask::stream::complete;
use xtask::trio::{Holders, MODEL, Trio, test_bin, test_model};

const TWO_DAYS_MS: i64 = 2 * 24 * 60 * 60 * 1000;

#[test]
fn jobs_run_and_the_skew_is_shown_with_a_clock_two_days_off() -> Result<()> {
    let faketime = libfaketime().context("libfaketime is missing: apt-get install faketime")?;
    let faketime = faketime.to_str().context("a path in UTF-8")?;
    let scratch = Scratch::new("clock")?;
    let trio = Trio::start_with(
        &test_bin(),
        scratch.path(),
        &test_model(),
        Holders::Guests,
        |node| match node.name.as_str() {
            "b" | "c" => node
                .with_env("LD_PRELOAD", faketime)
                .with_env("FAKETIME", "+2d")
                .with_env("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            _ => node,
        },
    )?;
    let done = complete(trio.a.api, MODEL, "a", 1, "circle")?;
    assert_eq!(done.route, "direct");
    let peers = trio.a.json(&["peers"])?;
    let peers = peers["peers"].as_array().context("no list of peers")?;
    for peer in peers {
        let skew = peer["skew_ms"].as_i64().context("no skew")?;
        assert!(
            (skew - TWO_DAYS_MS).abs() < 60_000,
            "a skew of {skew} ms is shown"
        );
    }
    Ok(())
}
