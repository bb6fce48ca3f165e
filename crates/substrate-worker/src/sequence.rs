//! One answer being made: its ids, its sampler, its text state, and what it wants fed next.
//!
//! Invariant: everything but the cells is a function of (prompt ids, answer ids, settings), so a
//! sequence rebuilt from ids made elsewhere goes on as the first one would have.
//! Absent by design: the context, its lanes and the other sequences, which are the scheduler's.

use std::sync::Arc;
use std::time::Duration;

use substrate_sandbox::wire::{Finished, INITIAL_GRANT, Input, Prepare, TokenLogprob};

use crate::emitter::Emitter;
use crate::ffi::{Context, Embedded, EngineError, Model};
use crate::grammar::Grammar;
use crate::logprobs;
use crate::lookup::Lookup;
use crate::prefixes::Partition;
use crate::prompt::{Ids, Reading, SEEN, SeenImage};
use crate::refusal::Refusal;
use crate::sampler::{Choice, Sampler, gap_to_wire};

/// Tokens read between two reports of progress.
const REPORT_EVERY: usize = 512;

/// Most tokens of an answer that are read again in one step. From 64 rows on, llama.cpp's attention on the CPU takes
/// another path, which rounds otherwise than the one that made them (docs/decisions/0012).
const READ_LIKE_WRITTEN: usize = 63;

/// How an answer ended; the codes of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Finish {
    /// The model ended it, or a stop string did.
    Stop = 1,
    /// `max_tokens` or the context was reached.
    Length = 2,
    /// The daemon cancelled it.
    Cancelled = 3,
}

/// A token of the answer.
pub struct Token {
    /// Its id; the id that ends a generation is one too, with no text.
    pub id: u32,
    /// Text that may be shown now.
    pub bytes: Vec<u8>,
    /// Log probabilities, if asked for.
    pub logprob: Option<TokenLogprob>,
    /// By how many logits it beat the second best.
    pub gap: f64,
}

/// One answer being made.
pub struct Sequence {
    seq: u64,
    model: Arc<Model>,
    prompt: Ids,
    images: Vec<SeenImage>,
    answer: Vec<u32>,
    resumed: usize,
    max_tokens: usize,
    seed: [u8; 32],
    sampler: Sampler,
    emitter: Emitter,
    grammar: Option<Grammar>,
    lookup: Lookup,
    /// Logits without what the grammar forbids.
    allowed: Vec<f32>,
    top_logprobs: Option<u32>,
    partition: Option<Partition>,
    /// Frames that may still be sent of it.
    credit: u32,
    paused: bool,
    /// Tokens read as of the last report.
    reported: usize,
    /// Most tokens of prompt and answer together.
    room: usize,
    /// Tokens of prompt and answer in the cache.
    fed: usize,
    reused: u32,
    prefilled: u32,
    end: Option<Finish>,
    min_gap: f64,
    prefill: Duration,
    decode: Duration,
}

impl Sequence {
    /// A sequence over `prompt`, rebuilt up to the resumed ids; prompt and answer fit `room` tokens.
    pub fn new(
        model: &Arc<Model>,
        prompt: Reading,
        input: &Input,
        grammar: Option<Grammar>,
        job: &Prepare,
        room: u32,
    ) -> Result<Sequence, Refusal> {
        for &id in &job.resume {
            model.known(id)?;
        }
        let mut sequence = Sequence {
            seq: job.seq,
            model: model.clone(),
            answer: Vec::new(),
            resumed: job.resume.len(),
            max_tokens: job.max_tokens as usize,
            seed: job.seed,
            sampler: Sampler::new(&job.sampler, &input.logit_bias, model.n_vocab())?,
            emitter: Emitter::new(&input.stop),
            grammar,
            lookup: Lookup::default(),
            allowed: Vec::new(),
            top_logprobs: job.sampler.top_logprobs,
            partition: job.reuse.then_some(job.partition),
            credit: INITIAL_GRANT,
            paused: false,
            reported: 0,
            room: room as usize,
            fed: 0,
            reused: 0,
            prefilled: 0,
            end: None,
            min_gap: f64::INFINITY,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
            prompt: prompt.ids,
            images: prompt.images,
        };
        sequence.rebuild(&job.resume)?;
        Ok(sequence)
    }

    /// Brings sampler and text to where they stood after `resume`; its text is already released.
    fn rebuild(&mut self, resume: &[u32]) -> Result<(), EngineError> {
        // Penalties are for what was written, not for what was seen.
        let written = self.prompt.expose().iter().filter(|id| **id & SEEN == 0);
        written.for_each(|id| self.sampler.accept(*id));
        let mut released = Vec::new();
        for &id in resume {
            self.append(id, &mut released)?;
        }
        if self.end.is_none() && self.answer.len() >= self.max_tokens {
            self.end = Some(Finish::Length);
        }
        Ok(())
    }

    /// The daemon's number for it.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Tokens of the prompt.
    pub fn n_in(&self) -> u32 {
        self.prompt.len() as u32
    }

    /// Ends it unstarted.
    pub fn into_cancelled(mut self) -> Finished {
        self.finished(Finish::Cancelled)
    }

    /// Whose cached prefixes it may use; none if it must be computed whole.
    pub fn partition(&self) -> Option<&Partition> {
        self.partition.as_ref()
    }

    /// How it ended, if it did.
    pub fn end(&self) -> Option<Finish> {
        self.end
    }

    /// Tokens of prompt and answer that are not in the cache yet; at least one until it ends.
    pub fn pending(&self) -> usize {
        self.len() - self.fed
    }

    /// How many of the pending tokens may share one step: the prompt's, apart from what was written after it, so that
    /// an answer read again is rounded as it was when it was made; and those before an image, which has a step of its own.
    pub fn readable(&self) -> usize {
        let to_image = self
            .images
            .iter()
            .find(|image| image.places().end > self.fed);
        let end = to_image.map_or(self.prompt.len(), |image| image.start);
        match self.prompt.len().saturating_sub(self.fed) {
            0 => self.pending().min(READ_LIKE_WRITTEN),
            _ => end.saturating_sub(self.fed),
        }
    }

    /// Whether the next to be fed is an image.
    pub fn is_at_image(&self) -> bool {
        let fed = self.fed;
        self.images
            .iter()
            .any(|image| image.places().contains(&fed))
    }

    /// The next rows of the image that is to be fed, for this lane, at most `count`; encoded when they are first asked for.
    pub fn next_of_image(
        &mut self,
        context: &mut Context,
        lane: u32,
        count: usize,
    ) -> Result<Embedded<'_>, EngineError> {
        let (fed, length) = (self.fed, self.len());
        let image = self
            .images
            .iter_mut()
            .find(|image| image.places().contains(&fed));
        let image = image.ok_or(EngineError::Image)?;
        let count = count.min(image.places().end - fed);
        Ok(Embedded {
            position: fed as u32,
            lane,
            causal: image.is_causal(),
            logits: fed + count == length,
            floats: image.rows(context, fed, count)?,
        })
    }

    /// As many of its first `count` places as are no part of an image that begins before and ends after them.
    pub fn without_part(&self, count: usize) -> usize {
        let cut = |image: &&SeenImage| image.start < count && count < image.places().end;
        self.images
            .iter()
            .find(cut)
            .map_or(count, |image| image.start)
    }

    /// Tokens of prompt and answer in the cache.
    pub fn fed(&self) -> usize {
        self.fed
    }

    /// Tokens of prompt and answer.
    pub fn len(&self) -> usize {
        self.prompt.len() + self.answer.len()
    }

    /// Whether it has no token at all, which no sequence is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether tokens of the prompt, or of an answer made elsewhere, are still to be read.
    pub fn is_reading(&self) -> bool {
        self.pending() > 1 || self.fed < self.prompt.len() + self.resumed
    }

    /// Whether it may be fed now.
    pub fn may_go_on(&self) -> bool {
        !self.paused && self.credit > 0 && self.end.is_none()
    }

    /// So many more frames may be sent of it.
    pub fn grant(&mut self, frames: u32) {
        self.credit = self.credit.saturating_add(frames);
    }

    /// It waits, or goes on.
    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Tokens read, when it is time to tell. A report without credit is left out; the next one says more.
    pub fn report(&mut self) -> Option<u32> {
        let due = self.fed >= self.reported + REPORT_EVERY || self.pending() == 0;
        // One frame is left for the token that follows.
        if !due || self.credit < 2 {
            return None;
        }
        self.credit -= 1;
        self.reported = self.fed;
        Some(self.fed as u32)
    }

    /// Every token so far: prompt, then answer.
    pub fn ids(&self) -> Ids {
        let mut all = Vec::with_capacity(self.len());
        all.extend_from_slice(self.prompt.expose());
        all.extend_from_slice(&self.answer);
        Ids::new(all)
    }

    /// How many of its tokens in the cache `ids` begins with; the last of `ids` never counts, as its logits must be
    /// computed.
    pub fn common_with(&self, ids: &[u32]) -> usize {
        let wanted = &ids[..ids.len().saturating_sub(1)];
        let places = 0..self.fed;
        places
            .zip(wanted)
            .take_while(|(place, id)| self.id_at(*place) == **id)
            .count()
    }

    /// The next `count` tokens to be fed, with their positions.
    pub fn next(&self, count: usize) -> impl Iterator<Item = (u32, u32)> {
        let places = self.fed..self.len().min(self.fed + count);
        places.map(|place| (self.id_at(place), place as u32))
    }

    /// The first `count` tokens lie in its lane already.
    pub fn reuse(&mut self, count: usize) {
        self.fed = count;
        self.reused = count as u32;
    }

    /// What the tokens after the pending one might be, at most `most`: as many as may still be drawn and sent after its own.
    pub fn guess(&mut self, most: usize) -> Vec<u32> {
        let most = most
            .min(self.max_tokens.saturating_sub(self.answer.len() + 1))
            .min(self.room.saturating_sub(self.len() + 1))
            .min((self.credit as usize).saturating_sub(1));
        let mut lookup = std::mem::take(&mut self.lookup);
        let guess = lookup.guess(self.len(), |place| self.id_at(place), most);
        self.lookup = lookup;
        guess
    }

    /// The cells of the first `right` of `guessed` tokens hold what was drawn.
    pub fn guessed(&mut self, guessed: usize, right: usize) {
        self.lookup.learn(guessed, right);
        self.fed += right;
    }

    /// `count` more tokens were fed in a step that took `took`.
    pub fn fed_more(&mut self, count: usize, took: Duration) {
        if self.is_reading() {
            self.prefill += took;
            self.prefilled += count as u32;
        } else {
            self.decode += took;
        }
        self.fed += count;
    }

    /// Its cells were taken for others: everything is to be read again.
    pub fn lose_cells(&mut self) {
        self.fed = 0;
    }

    fn id_at(&self, place: usize) -> u32 {
        let prompt = self.prompt.expose();
        prompt
            .get(place)
            .copied()
            .unwrap_or_else(|| self.answer[place - prompt.len()])
    }

    /// Draws the next token from the logits of the last one fed.
    pub fn sample(&mut self, logits: &[f32]) -> Result<Token, EngineError> {
        let position = self.answer.len() as u64;
        let raw = logits;
        let logits = match &mut self.grammar {
            None => raw,
            Some(grammar) => {
                self.allowed.clear();
                self.allowed.extend_from_slice(raw);
                grammar.forbid(&mut self.allowed)?;
                &self.allowed
            }
        };
        // Logits that are not numbers: the weights are broken, whatever their digest.
        let choice = self.sampler.choose(logits, &self.seed, position);
        let Choice { id, gap } = choice.ok_or(EngineError::Code(-1))?;
        let logprob = match self.top_logprobs {
            None => None,
            Some(n) => Some(describe(&self.model, raw, id, n)?),
        };
        self.min_gap = self.min_gap.min(gap);
        let mut bytes = Vec::new();
        self.append(id, &mut bytes)?;
        self.credit = self.credit.saturating_sub(1);
        let full = self.len() >= self.room;
        if self.end.is_none() && (full || self.answer.len() >= self.max_tokens) {
            self.end = Some(Finish::Length);
        }
        Ok(Token {
            id,
            bytes,
            logprob,
            gap,
        })
    }

    /// Counts `id` as part of the answer and appends to `bytes` the text it releases.
    fn append(&mut self, id: u32, bytes: &mut Vec<u8>) -> Result<(), EngineError> {
        self.answer.push(id);
        self.sampler.accept(id);
        if self.model.is_eog(id) {
            self.end = Some(Finish::Stop);
            return Ok(());
        }
        if let Some(grammar) = &mut self.grammar {
            grammar.accept(id)?;
        }
        let mut piece = Vec::new();
        self.model.piece(id, false, &mut piece)?;
        self.emitter.push(&piece, bytes);
        if self.emitter.is_stopped() {
            self.end = Some(Finish::Stop);
        }
        Ok(())
    }

    /// What is told at its end.
    pub fn finished(&mut self, finish: Finish) -> Finished {
        let mut tail = Vec::new();
        self.emitter.finish(&mut tail);
        Finished {
            seq: self.seq,
            finish: finish as u8,
            n_out: (self.answer.len() - self.resumed) as u32,
            tail,
            prefill_us: micros(self.prefill),
            decode_us: micros(self.decode),
            min_gap: gap_to_wire(self.min_gap),
            reused: self.reused,
            prefilled: self.prefilled,
        }
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.answer);
    }
}

fn describe(model: &Model, logits: &[f32], id: u32, n: u32) -> Result<TokenLogprob, EngineError> {
    let found = logprobs::of(logits, id, n).ok_or(EngineError::Code(-1))?;
    let bytes_of = |id| {
        let mut bytes = Vec::new();
        model.piece(id, true, &mut bytes).map(|()| bytes)
    };
    let top = found
        .top
        .iter()
        .map(|&(id, logprob)| Ok((id, logprob, bytes_of(id)?)));
    Ok(TokenLogprob {
        id,
        logprob: found.chosen,
        top: top.collect::<Result<_, EngineError>>()?,
        bytes: bytes_of(id)?,
    })
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
