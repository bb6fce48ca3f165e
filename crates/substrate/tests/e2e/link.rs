//! What can happen between two nodes that are both well: the connection breaks and can be made again, the cable is cut,
//! the provider refuses after it offered.
//!
//! The nodes speak TCP only and have moved from where they met, so that the asking node's one connection to each guest
//! leads through a proxy of its own, until it breaks.

use std::time::Duration;

use anyhow::{Context, Result};
use xtask::node::{Node, Scratch};
use xtask::proxy::Proxy;
use xtask::seam::{Seam, judge};
use xtask::stream::{Answer, Chat, complete};
use xtask::trio::{
    Holders, MODEL, Trio, answering, gap_limit_of_the_gate, id, test_bin, test_model,
};

const PROMPT: &str = "Write a story about a fox and a crow.";
const TOKENS: u32 = 72;
const BREAK_AFTER: usize = 24;
/// A connection that can be made again within this is resumed at the same provider (PROTOCOL.md 5).
const RESUME_WINDOW: Duration = Duration::from_millis(1_800);
/// Jobs in which the refusing guest is asked at least once: each time the router draws among two equal nodes, the first
/// of which it is.
const TRIES: usize = 20;

#[test]
fn a_connection_that_breaks_and_can_be_made_again_costs_no_second_attempt() -> Result<()> {
    let scratch = Scratch::new("broken-link")?;
    let (trio, links) = linked_trio(&scratch)?;
    let unbroken = ask(&trio, |_| Ok(()))?;
    let resumed = ask_and_break(&trio, |node| {
        let dropped = links.to(&trio, node)?.drop_connections();
        anyhow::ensure!(dropped > 0, "nothing led through the link");
        Ok(())
    })?;
    // The same node goes on, and nothing is computed twice: no rounding can differ.
    let facts = &resumed.substrate;
    assert_eq!(facts["attempts"].as_u64(), Some(1), "{facts}");
    assert_eq!(resumed.moved_after, [0; 0], "it never left its node");
    assert_eq!(resumed.text, unbroken.text);
    println!("resumed after a silence of {:?}", resumed.longest_gap());
    assert!(resumed.longest_gap() < RESUME_WINDOW);
    Ok(())
}

#[test]
fn a_cut_cable_and_a_refusal_lose_no_answer() -> Result<()> {
    let scratch = Scratch::new("cut-link")?;
    let (trio, links) = linked_trio(&scratch)?;
    let unbroken = ask(&trio, |_| Ok(()))?;
    // Nothing arrives and nothing closes, and both nodes go on living.
    let cut = ask_and_break(&trio, |node| {
        links.to(&trio, node)?.freeze(true);
        Ok(())
    })?;
    goes_on_elsewhere(&cut, &unbroken)?;
    links.mend();
    trio.wait_until_seen()?;
    refusals_are_taken_by_another(&trio)
}

/// What every node of these tests is told: nobody finds another by calling out on the local network.
const SETTINGS: &str = "[mesh]\nmdns = false\n\n[lending]\nwhen = \"always\"\n";

/// The asking node's way to each guest.
struct Links {
    b: Proxy,
    c: Proxy,
}

fn linked_trio(scratch: &Scratch) -> Result<(Trio, Links)> {
    let (bin, model) = (test_bin(), test_model());
    let tcp = Node::with_tcp_only;
    let mut trio = Trio::start_with(&bin, scratch.path(), &model, Holders::Guests, tcp)?;
    for node in [&mut trio.a, &mut trio.b, &mut trio.c] {
        node.stop()?;
        node.move_mesh()?;
        node.write_config(SETTINGS)?;
    }
    let links = Links {
        b: Proxy::start(trio.b.mesh)?,
        c: Proxy::start(trio.c.mesh)?,
    };
    let address = |proxy: &Proxy| format!("/ip4/127.0.0.1/tcp/{}", proxy.port());
    let (b, c) = (address(&links.b), address(&links.c));
    trio.a.set_serve_args(&["--peer", &b, "--peer", &c]);
    for node in [&mut trio.b, &mut trio.c, &mut trio.a] {
        node.start()?;
    }
    trio.wait_until_seen()?;
    Ok((trio, links))
}

impl Links {
    fn to(&self, trio: &Trio, node: &str) -> Result<&Proxy> {
        Ok(match trio.guest(node)?.name.as_str() {
            "b" => &self.b,
            _ => &self.c,
        })
    }

    fn mend(&self) {
        self.b.freeze(false);
        self.c.freeze(false);
    }
}

fn goes_on_elsewhere(cut: &Answer, unbroken: &Answer) -> Result<()> {
    let limit = gap_limit_of_the_gate(unbroken, BREAK_AFTER)?;
    println!("cut off: a silence of {:?} of {limit:?}", cut.longest_gap());
    assert!(cut.longest_gap() < limit, "{:?}", cut.longest_gap());
    let facts = &cut.substrate;
    assert_eq!(facts["attempts"].as_u64(), Some(2), "{facts}");
    let judged = judge(unbroken, cut)?;
    assert!(
        !matches!(judged, Seam::Apart { .. }),
        "{judged:?}\n{}\n---\n{}",
        cut.text,
        unbroken.text
    );
    Ok(())
}

/// A guest that offers and then refuses, first because its owner refuses the asker, which no Capability tells, then
/// because its owner stopped lending a moment ago.
fn refusals_are_taken_by_another(trio: &Trio) -> Result<()> {
    // The one that the router likes best now.
    let first = complete(trio.a.api, MODEL, "a", 1, "circle")?.node;
    let refusing = trio.guest(&first)?;
    let denied = id(&trio.a)?;
    refusing.write_config(&format!(
        "{SETTINGS}\n[lending.requesters]\ndeny = [\"{denied}\"]\n"
    ))?;
    refusing.cli(&["node", "lend", "always"])?;
    let mut refused = None;
    for _ in 0..TRIES {
        let answer = ask_short(trio)?;
        let facts = &answer.substrate;
        assert_ne!(facts["node"].as_str(), Some(first.as_str()), "{facts}");
        if facts["attempts"].as_u64() > Some(1) {
            refused = Some(answer.job);
            break;
        }
    }
    let refused = refused.context("the refusing node was never asked")?;
    let story = trio.a.cli(&["receipts", "show", &refused])?;
    assert!(
        story.contains("never accepted") && story.contains("both halves"),
        "the refusal and the answer are told: {story}"
    );

    refusing.write_config(SETTINGS)?;
    refusing.cli(&["node", "lend", "always"])?;
    trio.wait_until_seen()?;
    refusing.cli(&["node", "lend", "off"])?;
    for _ in 0..TRIES / 4 {
        let answer = ask_short(trio)?;
        let facts = &answer.substrate;
        assert_ne!(facts["node"].as_str(), Some(first.as_str()), "{facts}");
    }
    Ok(())
}

fn ask_short(trio: &Trio) -> Result<Answer> {
    Chat::new(trio.a.api, MODEL, "Say hello.", 1)
        .in_scope("circle")
        .run()
}

fn ask(trio: &Trio, on_piece: impl FnMut(&Answer) -> Result<()>) -> Result<Answer> {
    Chat::new(trio.a.api, MODEL, PROMPT, TOKENS)
        .in_scope("circle")
        .with_two_best()
        .run_with(on_piece)
}

/// Does something to the link of the answering node once, after [`BREAK_AFTER`] pieces.
fn ask_and_break(trio: &Trio, break_it: impl Fn(&str) -> Result<()>) -> Result<Answer> {
    let mut broken = false;
    ask(trio, |answer| {
        if broken || answer.times.len() < BREAK_AFTER {
            return Ok(());
        }
        broken = true;
        break_it(&answering(&trio.a)?)
    })
}
