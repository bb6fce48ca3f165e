//! One answer being made: its ids, its sampler, its text state, and what the next step is.
//!
//! Invariant: everything but the context is a function of (prompt ids, answer ids, settings), so a
//! sequence rebuilt from ids made elsewhere goes on as the first one would have.
//! Absent by design: the context itself, which belongs to the engine.

use std::sync::Arc;
use std::time::Instant;

use substrate_sandbox::wire::{Finished, Input, Prepare, TokenLogprob};

use crate::emitter::Emitter;
use crate::ffi::{Context, EngineError, MAX_BATCH, Model};
use crate::logprobs;
use crate::prompt::Ids;
use crate::refusal::Refusal;
use crate::sampler::{Choice, Sampler, gap_to_wire};

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

/// What one step did.
pub enum Step {
    /// This many tokens of prompt and resumed answer are in the context.
    Prefilled(u32),
    /// A token was made.
    Token(Token),
    /// There is nothing more to do.
    Finished(Finished),
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
    answer: Vec<u32>,
    resumed: usize,
    max_tokens: usize,
    seed: [u8; 32],
    sampler: Sampler,
    emitter: Emitter,
    top_logprobs: Option<u32>,
    /// Tokens of prompt and answer in the context.
    fed: usize,
    end: Option<Finish>,
    min_gap: f64,
    prefill_us: u64,
    decode_us: u64,
}

impl Sequence {
    /// A sequence over `prompt`, rebuilt up to the resumed ids.
    pub fn new(
        model: &Arc<Model>,
        prompt: Ids,
        input: &Input,
        job: &Prepare,
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
            top_logprobs: job.sampler.top_logprobs,
            fed: 0,
            end: None,
            min_gap: f64::INFINITY,
            prefill_us: 0,
            decode_us: 0,
            prompt,
        };
        sequence.rebuild(&job.resume)?;
        Ok(sequence)
    }

    /// Brings sampler and text to where they stood after `resume`; its text is already released.
    fn rebuild(&mut self, resume: &[u32]) -> Result<(), EngineError> {
        for &id in self.prompt.expose() {
            self.sampler.accept(id);
        }
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

    /// Ends it at the next step.
    pub fn cancel(&mut self) {
        self.end = Some(Finish::Cancelled);
    }

    /// Ends it unstarted.
    pub fn into_cancelled(mut self) -> Finished {
        self.finished(Finish::Cancelled)
    }

    /// The next step, on a context that holds exactly the tokens fed so far.
    pub fn step(&mut self, context: &mut Context) -> Result<Step, EngineError> {
        if let Some(finish) = self.end {
            return Ok(Step::Finished(self.finished(finish)));
        }
        let start = Instant::now();
        let prefix = self.prompt.len() + self.resumed;
        if self.fed < prefix {
            self.prefill(context, prefix)?;
            self.prefill_us += elapsed_us(start);
            return Ok(Step::Prefilled(self.fed as u32));
        }
        self.feed_last(context)?;
        let token = self.sample(context)?;
        self.decode_us += elapsed_us(start);
        Ok(Step::Token(token))
    }

    fn prefill(&mut self, context: &mut Context, prefix: usize) -> Result<(), EngineError> {
        let end = prefix.min(self.fed + MAX_BATCH);
        let chunk: Vec<u32> = (self.fed..end).map(|place| self.id_at(place)).collect();
        context.decode(&chunk)?;
        self.fed = end;
        Ok(())
    }

    fn id_at(&self, place: usize) -> u32 {
        let prompt = self.prompt.expose();
        prompt
            .get(place)
            .copied()
            .unwrap_or_else(|| self.answer[place - prompt.len()])
    }

    /// Feeds the last token of the answer, if it is not in the context yet.
    fn feed_last(&mut self, context: &mut Context) -> Result<(), EngineError> {
        let all = self.prompt.len() + self.answer.len();
        if self.fed < all {
            debug_assert_eq!(self.fed + 1, all);
            let last = self.id_at(self.fed);
            context.decode(&[last])?;
            self.fed += 1;
        }
        Ok(())
    }

    fn sample(&mut self, context: &mut Context) -> Result<Token, EngineError> {
        let room = context.n_ctx() as usize;
        let logits = context.logits()?;
        let position = self.answer.len() as u64;
        // Logits that are not numbers: the weights are broken, whatever their digest.
        let choice = self.sampler.choose(logits, &self.seed, position);
        let Choice { id, gap } = choice.ok_or(EngineError::Code(-1))?;
        let logprob = match self.top_logprobs {
            None => None,
            Some(n) => Some(self.describe(logits, id, n)?),
        };
        self.min_gap = self.min_gap.min(gap);
        let mut bytes = Vec::new();
        self.append(id, &mut bytes)?;
        let full = self.prompt.len() + self.answer.len() >= room;
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
        let mut piece = Vec::new();
        self.model.piece(id, false, &mut piece)?;
        self.emitter.push(&piece, bytes);
        if self.emitter.is_stopped() {
            self.end = Some(Finish::Stop);
        }
        Ok(())
    }

    fn describe(&self, logits: &[f32], id: u32, n: u32) -> Result<TokenLogprob, EngineError> {
        let found = logprobs::of(logits, id, n).ok_or(EngineError::Code(-1))?;
        let bytes_of = |id| {
            let mut bytes = Vec::new();
            self.model.piece(id, true, &mut bytes).map(|()| bytes)
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

    fn finished(&mut self, finish: Finish) -> Finished {
        let mut tail = Vec::new();
        self.emitter.finish(&mut tail);
        Finished {
            seq: self.seq,
            finish: finish as u8,
            n_out: (self.answer.len() - self.resumed) as u32,
            tail,
            prefill_us: self.prefill_us,
            decode_us: self.decode_us,
            min_gap: gap_to_wire(self.min_gap),
        }
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.answer);
    }
}

fn elapsed_us(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}
