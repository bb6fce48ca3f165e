//! Which sequences run, in which lanes, and what each step of the engine feeds (continuous batching).
//!
//! A step is one decode call over rows of any number of sequences: the next token of every answer, and
//! pieces of the prompts that are being read ([`crate::plan`]). A sequence enters when a slot is free and
//! its prompt fits beside what runs; it leaves its cells behind as a prefix for its own requester.
//!
//! A kept prefix stays in the cells only until somebody comes who does not go on with it: for every token, attention
//! looks at every cell in use, whoever's it is. Then it lies apart, as a copy.
//!
//! When the cells run out, prefixes leave them first; then the sequence
//! that came last gives its cells up, waits again and reads everything anew (recomputation: vLLM, arXiv
//! 2309.06180, section 4.5). The first never does, so somebody always gets on.
//!
//! Where many long answers run at once, passing over the cells of others is what attention does most; then every lane gets
//! cells of its own, once and for good, if there is memory for that.
//!
//! An answer that runs alone guesses its next tokens ([`crate::lookup`]) and has them computed in the same step. Beside others a
//! row of a guess costs as much as one of theirs, and theirs is right.
//!
//! Answers stand still in every second step of a prompt that takes several, where steps are quick ([`Turns`]).
//!
//! An image is read in steps of its own, as its rows are no tokens; between two of them all others get a step.
//!
//! Invariant: a lane is free, or a running sequence's, or a kept prefix's; between two steps every
//! sequence holds exactly the cells of the tokens it has fed. A sequence without credit is not fed.
//! Absent by design: pipes, messages, clocks other than for timings.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use substrate_sandbox::wire::Finished;

use crate::ffi::{Context, EngineError, MAX_BATCH, Row, Size};
use crate::lookup;
use crate::plan::{self, Turns};
use crate::prefixes::{Prefixes, SHORTEST};
use crate::prompt::State;
use crate::sequence::{Finish, Sequence, Token};

/// Lanes beyond the slots: the one kept prefix that stays in the cells when a sequence enters.
pub const SPARE_LANES: u32 = 1;

/// Cells that must be free beyond a prompt for it to enter beside others: the answer's first sentences.
const HEADROOM: usize = 64;

/// Cells of others that attention may pass over for every token before lanes get cells of their own. Eight short answers of
/// some 80 tokens are over it, four are not: with those no difference was measured (docs/decisions/0018).
const OTHERS_CELLS: usize = 512;

/// What happened to a sequence in a step.
pub enum Event {
    /// So many tokens of prompt and resumed answer are in the cache.
    Prefilled {
        /// Which.
        seq: u64,
        /// Tokens.
        n: u32,
    },
    /// A token was made.
    Token {
        /// Which.
        seq: u64,
        /// The token.
        token: Token,
    },
    /// It ended.
    Finished(Finished),
    /// It could not go on.
    Failed {
        /// Which.
        seq: u64,
        /// Why.
        why: EngineError,
    },
}

struct Runner {
    sequence: Sequence,
    lane: u32,
}

/// Where the beginning of a sequence was found.
#[derive(Clone, Copy)]
enum Source {
    /// In a lane of the cells, be it of a kept prefix or of a sequence that runs.
    Lane(u32),
    /// Apart, in the copy of this entry.
    Copy(u64),
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Prompt tokens computed.
    pub prefilled: u64,
    /// Prompt tokens found in the cache.
    pub reused: u64,
    /// Times a sequence gave its cells up.
    pub preempted: u64,
}

/// The sequences that run or wait to, and the lanes of the context.
pub struct Scheduler {
    /// In the order of their arrival.
    running: Vec<Runner>,
    waiting: VecDeque<Sequence>,
    /// The lowest first, so that those in use follow each other.
    free: BinaryHeap<Reverse<u32>>,
    prefixes: Prefixes,
    slots: usize,
    /// Cells that all lanes share; `None`: each has those of a whole context to itself.
    cells: Option<usize>,
    /// The size of a context in which each lane has its own, if it may be had and was not tried yet.
    wider: Option<Size>,
    /// Whether this model's cells can be shared and cut; those of recurrent ones cannot.
    reuse: bool,
    counters: Counters,
    rows: Vec<Row>,
    /// Whether answers are guessed at.
    guesses: bool,
    /// Whether the last step read an image.
    saw: bool,
    turns: Turns,
}

impl Scheduler {
    /// Nothing runs. The context has `slots` + [`SPARE_LANES`] lanes, or fewer, which share `cells`. In the size `wider`, if
    /// there is one, each has those of a whole context to itself.
    pub fn new(slots: u32, lanes: u32, cells: u32, wider: Option<Size>, reuse: bool) -> Scheduler {
        Scheduler {
            running: Vec::new(),
            waiting: VecDeque::new(),
            free: (0..lanes).map(Reverse).collect(),
            prefixes: Prefixes::new(cells as usize),
            slots: slots.clamp(1, lanes.saturating_sub(SPARE_LANES).max(1)) as usize,
            cells: Some(cells as usize),
            wider,
            reuse,
            counters: Counters::default(),
            rows: Vec::new(),
            guesses: false,
            saw: false,
            turns: Turns::default(),
        }
    }

    /// As [`Scheduler::new`], for a context in which a step may have logits for [`lookup::MOST`] guesses as well.
    pub fn that_guesses(mut self) -> Scheduler {
        // A wrong guess is cut out of the cells.
        self.guesses = self.reuse;
        self
    }

    /// Whether nothing runs or waits.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Whether a step would do anything now.
    pub fn can_step(&self) -> bool {
        self.running.iter().any(Runner::may_go_on) || self.next_fits()
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether `seq` runs or waits to.
    pub fn holds(&self, seq: u64) -> bool {
        self.index_of(seq).is_some() || self.waiting.iter().any(|waiting| waiting.seq() == seq)
    }

    /// Takes a sequence in; it runs from the first step on in which it has a slot and cells.
    pub fn submit(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// More frames of `seq` may be sent.
    pub fn grant(&mut self, seq: u64, frames: u32) {
        self.tell(seq, |sequence| sequence.grant(frames));
    }

    /// `seq` waits, or goes on.
    pub fn pause(&mut self, seq: u64, paused: bool) {
        self.tell(seq, |sequence| sequence.pause(paused));
    }

    fn tell(&mut self, seq: u64, what: impl Fn(&mut Sequence)) {
        let running = self.running.iter_mut().map(|runner| &mut runner.sequence);
        let mut all = running.chain(&mut self.waiting);
        if let Some(sequence) = all.find(|sequence| sequence.seq() == seq) {
            what(sequence);
        }
    }

    /// Ends `seq` now; what it has in the cache is kept.
    pub fn cancel(&mut self, context: &mut Context, seq: u64) -> Option<Finished> {
        if let Some(index) = self.index_of(seq) {
            let finished = self.running[index].sequence.finished(Finish::Cancelled);
            self.leave(context, index);
            return Some(finished);
        }
        let index = self
            .waiting
            .iter()
            .position(|waiting| waiting.seq() == seq)?;
        let mut sequence = self.waiting.remove(index)?;
        Some(sequence.finished(Finish::Cancelled))
    }

    fn index_of(&self, seq: u64) -> Option<usize> {
        self.running
            .iter()
            .position(|runner| runner.sequence.seq() == seq)
    }

    /// Sequences whose cancellation is worth stopping the next step for: one that runs alone, or whose
    /// prompt is most of what the step computes.
    pub fn worth_interrupting(&self) -> Vec<u64> {
        if let Some(index) = self.next_to_see() {
            return vec![self.running[index].sequence.seq()];
        }
        let shares = self.shares();
        let rows: usize = shares.iter().map(|(_, count)| count).sum();
        shares
            .into_iter()
            .filter(|(_, count)| count * 2 > rows)
            .map(|(index, _)| self.running[index].sequence.seq())
            .collect()
    }

    /// Gives slots and lanes to those who wait, in order, as long as they fit.
    pub fn admit(&mut self, context: &mut Context) {
        while self.next_fits() {
            if let Some(sequence) = self.waiting.pop_front() {
                self.enter(context, sequence);
            }
        }
    }

    /// Whether the first that waits may enter: a slot is free, and its tokens and the beginning of its
    /// answer fit beside those that run. Alone it always fits, and prefixes give way.
    fn next_fits(&self) -> bool {
        let Some(next) = self.waiting.front() else {
            return false;
        };
        let held = self.running.iter().map(|runner| &runner.sequence);
        let held = held.chain([next]).map(|sequence| sequence.len() + HEADROOM);
        let fits = |cells| held.sum::<usize>() <= cells;
        self.running.is_empty() || (self.running.len() < self.slots && self.cells.is_none_or(fits))
    }

    /// What its requester has kept of a sequence's tokens is used. All other prefixes leave the cells.
    fn enter(&mut self, context: &mut Context, mut sequence: Sequence) {
        let found = self.find_prefix(&sequence);
        self.clear_cells(context, found.map(|(source, _)| source));
        // There is one: at most `slots` − 1 sequences run, and one prefix was spared.
        let lane = self.free.pop().map_or(0, |Reverse(lane)| lane);
        let count = match found {
            Some((Source::Lane(from), count)) => match context.share(from, lane, count as u32) {
                true => count,
                false => 0,
            },
            Some((Source::Copy(entry), count)) => {
                let copy = self.prefixes.copy(entry);
                let back = copy.is_some_and(|copy| context.put_back(copy, lane));
                if back && context.cut(lane, count as u32) {
                    count
                } else {
                    context.cut(lane, 0);
                    0
                }
            }
            None => 0,
        };
        if count > 0 {
            sequence.reuse(count);
            self.counters.reused += count as u64;
        }
        self.running.push(Runner { sequence, lane });
    }

    /// The longest beginning of a sequence that its requester has: left by an answer that ended, or
    /// held by one that runs.
    fn find_prefix(&mut self, sequence: &Sequence) -> Option<(Source, usize)> {
        let partition = sequence.partition().filter(|_| self.reuse)?;
        let ids = sequence.ids();
        let kept = self.prefixes.longest(partition, ids.expose()).map(|found| {
            let lane = self.prefixes.lane(found.entry).map(Source::Lane);
            (lane.unwrap_or(Source::Copy(found.entry)), found.count)
        });
        let same = |runner: &&Runner| runner.sequence.partition() == Some(partition);
        let running = self.running.iter().filter(same).map(|runner| {
            let count = runner.sequence.common_with(ids.expose());
            (Source::Lane(runner.lane), count)
        });
        running
            .filter(|(_, count)| *count >= SHORTEST)
            .chain(kept)
            .map(|(source, count)| (source, sequence.without_part(count)))
            .max_by_key(|(_, count)| *count)
            .filter(|(_, count)| *count > 0)
    }

    /// Takes every prefix but the one in the lane `spared` out of the cells; copies stay. False if there was none.
    fn clear_cells(&mut self, context: &mut Context, spared: Option<Source>) -> bool {
        let spared = |lane| matches!(spared, Some(Source::Lane(spared)) if spared == lane);
        let lanes: Vec<(u64, u32)> = self.prefixes.lanes().collect();
        let going: Vec<(u64, u32)> = lanes
            .into_iter()
            .filter(|(_, lane)| !spared(*lane))
            .collect();
        for &(entry, lane) in &going {
            self.copy(context, entry, lane);
            self.prefixes.leave_cells(entry);
            self.release(context, lane);
        }
        !going.is_empty()
    }

    fn copy(&mut self, context: &mut Context, entry: u64, lane: u32) {
        if self.prefixes.copy(entry).is_none()
            && let Some(copy) = context.copy(lane)
        {
            self.prefixes.set_copy(entry, copy);
        }
    }

    /// Copies what lies in the cells only, so that the next answer need not wait for that. For when nothing runs.
    pub fn settle(&mut self, context: &mut Context) {
        let lanes: Vec<(u64, u32)> = self.prefixes.lanes().collect();
        for (entry, lane) in lanes {
            self.copy(context, entry, lane);
        }
    }

    /// Sequences that wait for a slot.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Runs one step. Tokens are in the order of the lanes.
    pub fn step(&mut self, context: &mut Context, events: &mut Vec<Event>) {
        self.admit(context);
        self.end_those_that_ended(context, events);
        if self.passed_over() > OTHERS_CELLS {
            self.spread(context);
        }
        if let Some(index) = self.next_to_see() {
            self.saw = true;
            self.see(context, index, events);
            return self.end_those_that_ended(context, events);
        }
        self.saw = false;
        let start = Instant::now();
        let mut guess = self.guess();
        let (shares, result) = loop {
            let shares = self.shares();
            if shares.is_empty() {
                return;
            }
            self.compose(&shares, &guess);
            match context.run(&self.rows) {
                Err(EngineError::Full) if !guess.is_empty() => guess.clear(),
                Err(EngineError::Full) if self.make_room(context) => {}
                result => break (shares, result),
            }
        };
        match result {
            Ok(()) => {
                let took = start.elapsed();
                let stood = self.stood_still(&shares);
                self.turns.stepped(self.rows.len(), took, stood);
                self.after(context, &shares, &guess, took, events);
            }
            Err(why) => self.undo(context, &shares, why, events),
        }
        self.end_those_that_ended(context, events);
    }

    /// Whether an answer had no part in a step, though it could go on.
    fn stood_still(&self, shares: &[(usize, usize)]) -> bool {
        let answers = (0..)
            .zip(&self.running)
            .filter(|(_, runner)| runner.may_go_on() && !runner.sequence.is_reading());
        let mut indices = answers.map(|(index, _): (usize, _)| index);
        indices.any(|index| shares.iter().all(|&(other, _)| other != index))
    }

    /// Cells that attention passes over for a token of the longest sequence.
    fn passed_over(&self) -> usize {
        let lengths = || self.running.iter().map(|runner| runner.sequence.fed());
        lengths().sum::<usize>() - lengths().max().unwrap_or(0)
    }

    /// Gives every lane cells of its own, if that may be and was not done yet. Whoever runs goes on with what it has, or reads
    /// it again.
    pub fn spread(&mut self, context: &mut Context) {
        let Some(size) = self.wider.take() else {
            return;
        };
        self.clear_cells(context, None);
        let held: Vec<Option<State>> = self
            .running
            .iter()
            .map(|runner| context.copy(runner.lane))
            .collect();
        let lanes = size.lanes;
        let wider = context.remake(size).is_ok();
        if wider {
            self.cells = None;
            self.prefixes
                .remake_copies(|copy| context.for_lanes_apart(copy, lanes));
        }
        for (runner, copy) in self.running.iter_mut().zip(held) {
            let copy = match wider {
                true => copy.and_then(|copy| context.for_lanes_apart(&copy, lanes)),
                false => copy,
            };
            let back = copy.is_some_and(|copy| context.put_back(&copy, runner.lane));
            let whole = runner.sequence.fed() == context.length_of(runner.lane) as usize;
            if !(back && whole) {
                context.cut(runner.lane, 0);
                runner.sequence.lose_cells();
            }
        }
    }

    /// Who feeds how many tokens in the next step, by index, in the order of the lanes.
    fn shares(&self) -> Vec<(usize, usize)> {
        let going = || {
            (0..)
                .zip(&self.running)
                .filter(|(_, runner)| runner.may_go_on())
        };
        let reading: Vec<usize> = going()
            .filter(|(_, runner)| runner.sequence.is_reading())
            .map(|(index, _)| index)
            .collect();
        let answering = going().filter(|(_, runner)| !runner.sequence.is_reading());
        let mut shares: Vec<(usize, usize)> = answering.map(|(index, _)| (index, 1)).collect();
        let left: Vec<usize> = reading
            .iter()
            .map(|&index| self.running[index].sequence.readable())
            .collect();
        if self.turns.stand_still(shares.len(), left.iter().sum()) {
            shares.clear();
        }
        let pieces = plan::shares(shares.len(), &left);
        shares.extend(
            reading
                .into_iter()
                .zip(pieces)
                .filter(|(_, count)| *count > 0),
        );
        // llama.cpp computes lanes with cells of their own together as long as the numbers follow each other.
        shares.sort_by_key(|&(index, _)| self.running[index].lane);
        shares
    }

    /// The first sequence whose next is an image, unless others have waited for one already.
    fn next_to_see(&self) -> Option<usize> {
        let sees = |runner: &Runner| runner.may_go_on() && runner.sequence.is_at_image();
        let next = self.running.iter().position(sees)?;
        (!self.saw || self.shares().is_empty()).then_some(next)
    }

    /// A step that reads rows of an image, of one sequence.
    fn see(&mut self, context: &mut Context, index: usize, events: &mut Vec<Event>) {
        let start = Instant::now();
        let (count, result) = loop {
            // Whoever came last gives its cells up for the others, and that may be this one.
            let Some(Runner { sequence, lane }) = self.running.get_mut(index) else {
                return;
            };
            let rows = match sequence.next_of_image(context, *lane, MAX_BATCH) {
                Ok(rows) => rows,
                Err(why) => break (0, Err(why)),
            };
            let count = rows.count(context);
            match context.run_embedded(rows) {
                Err(EngineError::Full) if self.make_room(context) => {}
                result => break (count, result),
            }
        };
        let shares = [(index, count)];
        // A step of an image leaves every answer out.
        self.turns.stepped(count, start.elapsed(), true);
        match result {
            Ok(()) => self.after(context, &shares, &[], start.elapsed(), events),
            Err(why) => self.undo(context, &shares, why, events),
        }
    }

    /// What might follow the next token of the one answer that runs; nothing if others do too.
    fn guess(&mut self) -> Vec<u32> {
        match self.running.as_mut_slice() {
            [runner] if self.guesses && !runner.sequence.is_reading() => {
                runner.sequence.guess(lookup::MOST)
            }
            _ => Vec::new(),
        }
    }

    /// The rows of a step: everybody's share, and the guess of the only one that runs.
    fn compose(&mut self, shares: &[(usize, usize)], guess: &[u32]) {
        self.rows.clear();
        for &(index, count) in shares {
            let runner = &self.running[index];
            let last = runner.sequence.fed() + count == runner.sequence.len();
            let rows = runner.sequence.next(count).map(|(id, position)| Row {
                id,
                position,
                lane: runner.lane,
                logits: false,
            });
            self.rows.extend(rows);
            if let Some(row) = self.rows.last_mut() {
                row.logits = last;
            }
        }
        if let Some(&last) = self.rows.last() {
            let guess = (1..).zip(guess).map(|(ahead, id)| Row {
                id: *id,
                position: last.position + ahead,
                ..last
            });
            self.rows.extend(guess);
        }
    }

    /// The rows are in the cache: progress is noted, and whoever has all tokens in draws the next.
    fn after(
        &mut self,
        context: &mut Context,
        shares: &[(usize, usize)],
        guess: &[u32],
        took: Duration,
        events: &mut Vec<Event>,
    ) {
        let mut row = 0;
        for &(index, count) in shares {
            row += count;
            let sequence = &mut self.running[index].sequence;
            let seq = sequence.seq();
            let was_reading = sequence.is_reading();
            sequence.fed_more(count, took);
            if was_reading {
                self.counters.prefilled += count as u64;
                let report = sequence.report();
                events.extend(report.map(|n| Event::Prefilled { seq, n }));
            }
            if sequence.pending() > 0 {
                continue;
            }
            let drawn = draw(context, sequence, row - 1, guess, events);
            if !guess.is_empty() {
                sequence.guessed(guess.len(), drawn.saturating_sub(1));
                context.cut(
                    self.running[index].lane,
                    self.running[index].sequence.fed() as u32,
                );
            }
        }
        self.drop_failed(context, events);
    }

    /// A step that failed: its rows are taken out again. An interrupt costs nobody more than the step;
    /// any other error ends the sequences that were in it.
    fn undo(
        &mut self,
        context: &mut Context,
        shares: &[(usize, usize)],
        why: EngineError,
        events: &mut Vec<Event>,
    ) {
        for &(index, _) in shares {
            let runner = &mut self.running[index];
            // The cells of a recurrent model cannot be taken back in part.
            if !context.cut(runner.lane, runner.sequence.fed() as u32) {
                context.cut(runner.lane, 0);
                runner.sequence.lose_cells();
            }
        }
        if why == EngineError::Aborted {
            return;
        }
        for &(index, _) in shares {
            let seq = self.running[index].sequence.seq();
            let why = why.clone();
            events.push(Event::Failed { seq, why });
        }
        self.drop_failed(context, events);
    }

    /// Frees cells for a step that did not fit; false if there are none to free.
    fn make_room(&mut self, context: &mut Context) -> bool {
        if self.clear_cells(context, None) {
            return true;
        }
        if self.running.len() < 2 {
            return false;
        }
        let Some(Runner { mut sequence, lane }) = self.running.pop() else {
            return false;
        };
        self.release(context, lane);
        sequence.lose_cells();
        self.counters.preempted += 1;
        self.waiting.push_front(sequence);
        true
    }

    fn end_those_that_ended(&mut self, context: &mut Context, events: &mut Vec<Event>) {
        let mut index = 0;
        while index < self.running.len() {
            match self.running[index].sequence.end() {
                Some(finish) => {
                    let finished = self.running[index].sequence.finished(finish);
                    events.push(Event::Finished(finished));
                    self.leave(context, index);
                }
                None => index += 1,
            }
        }
    }

    fn drop_failed(&mut self, context: &mut Context, events: &[Event]) {
        for event in events {
            if let Event::Failed { seq, .. } = event
                && let Some(index) = self.index_of(*seq)
            {
                let runner = self.running.remove(index);
                self.release(context, runner.lane);
            }
        }
    }

    /// Takes a sequence out; its cells become a prefix of its requester, if they are worth it.
    fn leave(&mut self, context: &mut Context, index: usize) {
        let runner = self.running.remove(index);
        let fed = runner.sequence.fed();
        let partition = runner.sequence.partition().copied();
        match partition.filter(|_| self.reuse && fed >= SHORTEST) {
            Some(partition) => {
                let mut ids = runner.sequence.ids();
                ids.truncate(fed);
                for lane in self.prefixes.keep(runner.lane, partition, ids) {
                    self.release(context, lane);
                }
            }
            None => self.release(context, runner.lane),
        }
    }

    fn release(&mut self, context: &mut Context, lane: u32) {
        context.cut(lane, 0);
        self.free.push(Reverse(lane));
    }

    /// Forgets every prefix.
    pub fn forget_prefixes(&mut self, context: &mut Context) {
        for lane in self.prefixes.clear() {
            self.release(context, lane);
        }
    }

    /// Lanes that are free, hold a prefix, or a running sequence: for the tests of leaks.
    pub fn lanes(&self) -> (usize, usize, usize) {
        (
            self.free.len(),
            self.prefixes.in_cells(),
            self.running.len(),
        )
    }
}

/// Draws the token that follows the one in row `row`, and goes on as long as it is what was guessed, for which the next rows
/// hold the logits. How many were drawn.
fn draw(
    context: &mut Context,
    sequence: &mut Sequence,
    row: usize,
    guess: &[u32],
    events: &mut Vec<Event>,
) -> usize {
    let seq = sequence.seq();
    for (drawn, row) in (row..).enumerate() {
        let token = context
            .logits_at(row as i32)
            .and_then(|logits| sequence.sample(logits));
        let token = match token {
            Ok(token) => token,
            Err(why) => {
                events.push(Event::Failed { seq, why });
                return drawn;
            }
        };
        let was_guessed = guess.get(drawn) == Some(&token.id);
        events.push(Event::Token { seq, token });
        if !was_guessed || !sequence.may_go_on() {
            return drawn + 1;
        }
    }
    0
}

impl Runner {
    fn may_go_on(&self) -> bool {
        self.sequence.may_go_on()
    }
}
