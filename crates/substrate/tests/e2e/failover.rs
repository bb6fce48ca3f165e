//! Failover in the middle of an answer, with real nodes: killed, silenced, and a worker that crashes; with a short prompt
//! and with a long one.
//!
//! Every broken answer is judged against an unbroken one of the same run, token by token: where they part, each went on
//! with what the other had as its second best, within the near-tie of PROTOCOL.md 3. `cargo xtask prove failover` does it
//! over 50 prompts.

use anyhow::{Context, Result};
use xtask::node::Scratch;
use xtask::seam::{Seam, judge};
use xtask::stream::{Answer, Chat};
use xtask::trio::{
    Holders, MODEL, Trio, answering, gap_limit_of_the_gate, long_prompt, signal, signal_worker,
    test_bin, test_model,
};

pub(super) const PROMPT: &str = "Write a story about a fox and a crow.";
/// Prompt and received tokens stay under 128, where the gap must be under three seconds.
const TOKENS: u32 = 72;
pub(super) const BREAK_AFTER: usize = 24;
/// Lines of the long prompt: some 700 tokens, past the 128 where prefill begins to count.
const LONG_LINES: usize = 40;

#[test]
fn an_answer_survives_the_death_the_silence_and_the_crash_of_its_node() -> Result<()> {
    let scratch = Scratch::new("failover")?;
    let mut trio = Trio::start(&test_bin(), scratch.path(), &test_model(), Holders::Guests)?;
    let unbroken = ask(&trio, PROMPT, |_| Ok(()))?;

    // A worker that crashes: its node gives the job back.
    let worker = ask_and_break(&trio, PROMPT, |trio, node| {
        signal_worker(trio.guest(node)?, "KILL")
    })?;
    goes_on(&worker, &unbroken)?;

    // Silence: the node stands still without closing anything.
    let mut silenced = None;
    let silent = ask_and_break(&trio, PROMPT, |trio, node| {
        let pid = trio.guest(node)?.pid().context("it runs")?;
        signal(pid, "STOP")?;
        silenced = Some(pid);
        Ok(())
    })?;
    signal(silenced.context("a node was silenced")?, "CONT")?;
    goes_on(&silent, &unbroken)?;
    trio.wait_until_seen()?;

    // Death, and again while a long prompt has to be read anew.
    let killed = dies(&mut trio, PROMPT, &unbroken)?;
    let story = trio.a.cli(&["receipts", "show", &killed.job])?;
    assert!(
        story.contains("accepted, then vanished"),
        "the first attempt is told: {story}"
    );
    let prompt = long_prompt(0, LONG_LINES);
    let unbroken = ask(&trio, &prompt, |_| Ok(()))?;
    assert!(unbroken.used("prompt_tokens")? > 600, "{}", unbroken.usage);
    dies(&mut trio, &prompt, &unbroken)?;
    Ok(())
}

/// Kills the answering node, looks at the answer, and starts the node again.
fn dies(trio: &mut Trio, prompt: &str, unbroken: &Answer) -> Result<Answer> {
    let mut dead = None;
    let killed = ask_and_break(trio, prompt, |trio, node| {
        dead = Some(node.to_owned());
        signal(trio.guest(node)?.pid().context("it runs")?, "KILL")
    })?;
    let died = dead.context("a node was killed")?;
    assert_ne!(killed.substrate["node"].as_str(), Some(died.as_str()));
    goes_on(&killed, unbroken)?;
    let guest = trio.guest_mut(&died)?;
    guest.kill()?;
    guest.start()?;
    trio.wait_until_seen()?;
    Ok(killed)
}

pub(super) fn ask(
    trio: &Trio,
    prompt: &str,
    on_piece: impl FnMut(&Answer) -> Result<()>,
) -> Result<Answer> {
    let chat = Chat::new(trio.a.api, MODEL, prompt, TOKENS);
    chat.in_scope("circle").with_two_best().run_with(on_piece)
}

/// Breaks the answering node once, after [`BREAK_AFTER`] pieces.
fn ask_and_break(
    trio: &Trio,
    prompt: &str,
    mut break_it: impl FnMut(&Trio, &str) -> Result<()>,
) -> Result<Answer> {
    let mut broken = false;
    ask(trio, prompt, |answer| {
        if broken || answer.times.len() < BREAK_AFTER {
            return Ok(());
        }
        broken = true;
        break_it(trio, &answering(&trio.a)?)
    })
}

pub(super) fn goes_on(broken: &Answer, unbroken: &Answer) -> Result<()> {
    let limit = gap_limit_of_the_gate(unbroken, BREAK_AFTER)?;
    println!(
        "{} prompt tokens: the longest silence was {:?} of {limit:?}",
        broken.used("prompt_tokens")?,
        broken.longest_gap()
    );
    assert!(
        broken.longest_gap() < limit,
        "the longest silence was {:?}, it may be {limit:?}",
        broken.longest_gap()
    );
    assert_eq!(
        broken.substrate["attempts"].as_u64(),
        Some(2),
        "{}",
        broken.substrate
    );
    let [seam] = broken.moved_after[..] else {
        anyhow::bail!("it moved after {:?} tokens", broken.moved_after);
    };
    assert!(
        seam >= BREAK_AFTER,
        "the seam lies after {seam} tokens, {BREAK_AFTER} were here"
    );
    let (broken_text, unbroken_text) = (&broken.text, &unbroken.text);
    match judge(unbroken, broken)? {
        Seam::Equal => {}
        // Before the seam both answers were decoded the same way: no rounding differs there.
        Seam::NearTie { after, gap } => {
            println!("they part at a near-tie of {gap:.4} after {after} tokens");
            assert!(
                after >= seam,
                "the seam lies after {seam} tokens, and they part after {after}"
            );
        }
        Seam::Apart { after, why } => {
            panic!(
                "the answers part after {after} tokens: {why}\n{broken_text}\n---\n{unbroken_text}"
            )
        }
    }
    Ok(())
}
