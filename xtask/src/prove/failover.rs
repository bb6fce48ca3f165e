//! Answers whose node is killed in the middle: how long the client waits, and whether it reads the same answer.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use xtask::node::Scratch;
use xtask::seam::{Seam, judge};
use xtask::stream::{Answer, Chat};
use xtask::trio::{Holders, MODEL, Trio, answering, gap_limit, long_prompt, signal};

use crate::near_tie;

/// Short prompts whose answer is broken.
const BROKEN: usize = 50;
/// Long ones, which take seconds to be read anew.
const LONG: usize = 6;
/// Lines of a long prompt: some 700 tokens.
const LINES: usize = 40;
/// Pieces after which the node is killed; with a short prompt this stays under 128 tokens.
const KILL_AFTER: usize = 30;
const TOKENS: u32 = 64;
/// Pieces an answer must have after those, so that its node can be found and killed before its end.
const TO_SPARE: usize = 12;

/// What was seen over many answers.
#[derive(Default)]
struct Seen {
    /// Each longest silence, and what it may be.
    gaps: Vec<(Duration, Duration)>,
    equal: usize,
    seams: Vec<(String, Answer, Answer)>,
    apart: Vec<String>,
}

/// Breaks every answer once, and fails if one gap is too long or one seam is no near-tie.
pub fn prove(bin: &Path, model: &Path) -> Result<()> {
    let scratch = Scratch::new("prove-failover")?;
    let mut trio = Trio::start(bin, scratch.path(), model, Holders::Guests)?;
    let (mut short, mut long) = (Seen::default(), Seen::default());
    let number = |number| format!("Tell me about the number {number} in a few sentences.");
    short.fill(&mut trio, BROKEN, number)?;
    long.fill(&mut trio, LONG, |number| long_prompt(number, LINES))?;
    let [short_gap, long_gap] = [short.tell("short")?, long.tell("long")?];
    let seams = [short.seams, long.seams].concat();
    near_tie::judge_seams(model, &seams)?;
    let apart = [short.apart, long.apart].concat();
    if !apart.is_empty() {
        bail!(
            "{} seams are no near-ties:\n{}",
            apart.len(),
            apart.join("\n")
        );
    }
    if let Some(gap) = short_gap.or(long_gap) {
        bail!("{gap}");
    }
    let (equal, all) = (short.equal + long.equal, BROKEN + LONG);
    if equal * 2 < all {
        bail!("only {equal} of {all} are equal");
    }
    Ok(())
}

impl Seen {
    /// Breaks so many answers. A prompt whose answer is over before it can be broken makes way for the next.
    fn fill(
        &mut self,
        trio: &mut Trio,
        wanted: usize,
        prompt: impl Fn(usize) -> String,
    ) -> Result<()> {
        for number in 0..wanted * 4 {
            if self.gaps.len() == wanted {
                break;
            }
            let prompt = prompt(number);
            let unbroken = ask(trio, &prompt, |_| Ok(()))?;
            if unbroken.times.len() > KILL_AFTER + TO_SPARE {
                self.take(trio, prompt, unbroken)?;
            } else {
                println!("left out, its answer is too short: {prompt:.60}");
            }
        }
        let filled = self.gaps.len();
        ensure!(
            filled == wanted,
            "only {filled} of {wanted} answers were long enough"
        );
        Ok(())
    }

    fn take(&mut self, trio: &mut Trio, prompt: String, unbroken: Answer) -> Result<()> {
        let broken = broken(trio, &prompt)?;
        let limit = gap_limit(&unbroken, KILL_AFTER)?;
        println!(
            "a gap of {:?} of {limit:?}: {prompt:.60}",
            broken.longest_gap()
        );
        self.gaps.push((broken.longest_gap(), limit));
        match judge(&unbroken, &broken)? {
            Seam::Equal => self.equal += 1,
            Seam::NearTie { .. } => self.seams.push((prompt, unbroken, broken)),
            Seam::Apart { after, why } => {
                self.apart.push(format!("{prompt}: after {after}: {why}"))
            }
        }
        Ok(())
    }

    /// Prints the figures; what is wrong with a gap, if anything.
    fn tell(&mut self, kind: &str) -> Result<Option<String>> {
        self.gaps.sort_unstable();
        let (longest, limit) = self.gaps.last().copied().context("no answers")?;
        println!(
            "{} answers to {kind} prompts broken: gap p50 {:?}, longest {longest:?} of {limit:?}; {} equal to the unbroken one, {} parted at a near-tie",
            self.gaps.len(),
            self.gaps[self.gaps.len() / 2].0,
            self.equal,
            self.seams.len(),
        );
        let wide = self.gaps.iter().find(|(gap, limit)| gap >= limit);
        Ok(wide.map(|(gap, limit)| format!("a gap of {gap:?}, where {limit:?} are allowed")))
    }
}

fn broken(trio: &mut Trio, prompt: &str) -> Result<Answer> {
    let mut killed = None;
    let answer = {
        let trio: &Trio = trio;
        ask(trio, prompt, |answer| {
            if killed.is_some() || answer.times.len() < KILL_AFTER {
                return Ok(());
            }
            let node = answering(&trio.a)?;
            signal(trio.guest(&node)?.pid().context("it runs")?, "KILL")?;
            killed = Some(node);
            Ok(())
        })?
    };
    let node = killed.context("the answer ended before its node could be killed")?;
    let guest = trio.guest_mut(&node)?;
    guest.kill()?;
    guest.start()?;
    trio.wait_until_seen()?;
    Ok(answer)
}

fn ask(trio: &Trio, prompt: &str, on_piece: impl FnMut(&Answer) -> Result<()>) -> Result<Answer> {
    Chat::new(trio.a.api, MODEL, prompt, TOKENS)
        .in_scope("circle")
        .with_two_best()
        .run_with(on_piece)
}
