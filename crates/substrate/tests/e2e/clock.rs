//! A clock two days off changes nothing but what is shown: at a provider that is ahead, at a requester that is behind, and
//! at a guest whose invite has run out by the guest's own clock.

use anyhow::{Context, Result};
use xtask::node::Scratch;
use xtask::packages::libfaketime;
use xtask::trio::{Holders, MODEL, Trio, id, test_bin, test_model};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// The invites of a [`Trio`] hold a day by the inviter's clock; to a guest this far ahead they ran out three days ago.
const ASKER: (&str, i64) = ("-2d", -2);
const AHEAD: (&str, i64) = ("+2d", 2);
/// How far what is shown may be from the truth: the seconds a start takes.
const NEAR_MS: i64 = 60_000;

#[test]
fn jobs_run_and_the_skew_is_shown_with_clocks_two_days_off() -> Result<()> {
    let faketime = libfaketime().context("libfaketime is missing: apt-get install faketime")?;
    let faketime = faketime.to_str().context("a path in UTF-8")?;
    let scratch = Scratch::new("clock")?;
    // The founder, who also asks, is two days behind; one guest is two days ahead, the other right.
    let trio = Trio::start_with(
        &test_bin(),
        scratch.path(),
        &test_model(),
        Holders::Guests,
        |node| match node.name.as_str() {
            "a" => node.with_clock(faketime, ASKER.0),
            "b" => node.with_clock(faketime, AHEAD.0),
            _ => node,
        },
    )?;
    for (guest, days) in [(&trio.b, AHEAD.1 - ASKER.1), (&trio.c, -ASKER.1)] {
        let (peers, key) = (trio.a.json(&["peers"])?, id(guest)?);
        let peers = peers["peers"].as_array().context("no list of peers")?;
        let peer = peers.iter().find(|peer| peer["node"] == key);
        let skew = peer.and_then(|peer| peer["skew_ms"].as_i64());
        let skew = skew.with_context(|| format!("no skew of node {}", guest.name))?;
        assert!(
            (skew - days * DAY_MS).abs() < NEAR_MS,
            "node {} is {days} days ahead and a skew of {skew} ms is shown",
            guest.name
        );
    }
    for guest in [&trio.b, &trio.c] {
        let key = id(guest)?;
        let asked = ["run", MODEL, "hi", "--scope", "circle", "--node", &key];
        trio.a
            .cli(&[&asked[..], &["--max-tokens", "1"]].concat())
            .with_context(|| format!("node {} answers", guest.name))?;
    }
    Ok(())
}
