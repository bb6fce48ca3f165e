//! A loaded model that turns texts into vectors: the texts of many requests in one decode call.
//!
//! A step takes a text from each request in turn until the batch is full, so that a request of thousands does not make
//! one of a single text wait. A text is read whole in one step: its tokens see each other.
//!
//! Invariant: a request's rows come in the order of its texts; a request without credit is not computed; a vector has
//! length 1 (L2). Every text was found to fit a batch before anything was computed.
//! Absent by design: pipes and messages (`crate::serve`); a cache, as nothing of a text outlives its step.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use substrate_sandbox::wire::{
    Failure, Finished, INITIAL_GRANT, Input, ModelFacts, Prepare, input,
};

use zeroize::Zeroizing;

use crate::engine::{LoadOptions, context_of, facts_of, rate};
use crate::ffi::{Context, EngineError, Interrupt, MAX_BATCH, Model, Pooling, Row, Size};
use crate::header::Header;
use crate::prompt::{Ids, wipe};
use crate::refusal::Refusal;
use crate::sequence::Finish;
use crate::wordpiece::normalised;

/// Most tokens of one text: it is read in one piece, and attention over it takes memory by the square.
const LONGEST_TEXT: u32 = 2048;

/// Most texts of one step: as many as a batch of short ones holds.
const LANES: u32 = 64;

/// Most components of a vector: as many as a token frame between nodes carries. The largest models known have as many.
const MAX_COMPONENTS: u32 = 4096;

/// What a step brought.
pub enum Event {
    /// A text's vector.
    Row {
        /// Which request.
        seq: u64,
        /// Which text.
        row: u32,
        /// f32, little-endian.
        bytes: Vec<u8>,
    },
    /// All rows of a request are made.
    Finished(Finished),
    /// A request could not go on.
    Failed {
        /// Which.
        seq: u64,
        /// Why.
        why: EngineError,
    },
}

/// Texts to embed, read and found to fit.
pub struct Request {
    seq: u64,
    texts: VecDeque<Ids>,
    n_in: u32,
    /// Rows made.
    done: u32,
    /// Tokens read.
    computed: u32,
    /// Rows that may still be sent.
    credit: u32,
    paused: bool,
    took: Duration,
}

impl Request {
    /// The daemon's number for it.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Tokens of all texts.
    pub fn n_in(&self) -> u32 {
        self.n_in
    }

    fn may_go_on(&self) -> bool {
        !self.paused && self.credit > 0
    }

    /// Its end, as told to the daemon.
    pub fn finished(&self, finish: Finish) -> Finished {
        Finished {
            seq: self.seq,
            finish: finish as u8,
            n_out: self.done,
            tail: Vec::new(),
            prefill_us: u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX),
            decode_us: 0,
            min_gap: 0,
            reused: 0,
            prefilled: self.computed,
        }
    }
}

/// A model with its context, and the requests that run.
pub struct Embedder {
    context: Context,
    facts: ModelFacts,
    /// Tokens of one step, and of one text.
    batch: u32,
    /// What the model wants after a text that is cut.
    ends: Vec<u32>,
    /// Whether its vocabulary is one of WordPieces.
    wordpiece: bool,
    running: VecDeque<Request>,
}

impl Embedder {
    /// An embedder over an opened model that pools its vectors.
    pub fn over(
        model: Arc<Model>,
        header: &Header,
        options: &LoadOptions,
        interrupt: Interrupt,
    ) -> Result<Embedder, Refusal> {
        let unsupported = |why: &str| Err(Refusal::new(Failure::Unsupported, why));
        if model.pooling() == Some(Pooling::Rank) {
            return unsupported("the model ranks pairs of texts, and makes no vectors of one");
        }
        let components = model.vector_length();
        if components == 0 || components > MAX_COMPONENTS {
            return unsupported("its vectors have too many components, or none");
        }
        let batch = context_of(options.n_ctx, model.n_ctx_train()).min(LONGEST_TEXT);
        let size = Size {
            // A model that reads like one that answers needs cells for what it reads.
            cells: batch.max(MAX_BATCH as u32),
            lanes: LANES,
            batch: batch.max(MAX_BATCH as u32),
            vectors: true,
            ..Size::default()
        };
        let pool = options.pool.max(options.threads).max(options.batch_threads);
        let mut context = Context::new(
            model.clone(),
            size,
            pool,
            options.flash_attention,
            interrupt,
        )?;
        context.set_threads(options.batch_threads, options.batch_threads);
        let mut embedder = Embedder {
            ends: ends_of(&model)?,
            wordpiece: model.wants_plain_text(),
            facts: facts_of(&model, header, batch),
            context,
            batch,
            running: VecDeque::new(),
        };
        embedder.read(&[Ids::new(vec![0])])?;
        Ok(embedder)
    }

    /// What the model file says about itself.
    pub fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    /// The vocabulary and weights.
    pub fn model(&self) -> &Arc<Model> {
        self.context.model()
    }

    /// Uses this many threads from the next step on.
    pub fn set_threads(&mut self, threads: u32) {
        self.context.set_threads(threads, threads);
    }

    /// Parses and tokenizes a job; nothing is computed yet.
    pub fn prepare(&self, job: &Prepare) -> Result<Request, Refusal> {
        let mut input = Input::from_cbor_bytes(&job.input)?;
        let request = self.prepare_input(&input, job);
        wipe(&mut input);
        request
    }

    fn prepare_input(&self, input: &Input, job: &Prepare) -> Result<Request, Refusal> {
        let input::Prompt::Texts { texts, truncate } = &input.prompt else {
            let detail = "this model makes vectors of texts, and answers no prompts";
            return Err(Refusal::new(Failure::Unsupported, detail));
        };
        if !job.resume.is_empty() {
            let detail = "rows made elsewhere are not gone on from: their texts are left out";
            return Err(Refusal::new(Failure::BadInput, detail));
        }
        let texts = texts
            .iter()
            .map(|text| self.tokenize(text, *truncate))
            .collect::<Result<VecDeque<Ids>, Refusal>>()?;
        let tokens = texts.iter().map(Ids::len).sum::<usize>();
        Ok(Request {
            seq: job.seq,
            n_in: u32::try_from(tokens).unwrap_or(u32::MAX),
            texts,
            done: 0,
            computed: 0,
            credit: INITIAL_GRANT,
            paused: false,
            took: Duration::ZERO,
        })
    }

    /// The ids of a text. One that is too long is refused, or cut before what the model wants at its end.
    fn tokenize(&self, text: &str, truncate: bool) -> Result<Ids, Refusal> {
        let normalised = self.wordpiece.then(|| Zeroizing::new(normalised(text)));
        let text = normalised.as_ref().map_or(text, |text| text.as_str());
        // Names of special tokens count: who wrote the text gets its vector, and nobody else.
        let mut ids = self.model().tokenize(text.as_bytes(), true, true)?;
        if ids.is_empty() {
            return Err(Refusal::new(Failure::BadInput, "a text is empty"));
        }
        let limit = self.batch as usize;
        if ids.len() > limit {
            if !truncate {
                let used = u32::try_from(ids.len()).unwrap_or(u32::MAX);
                let detail = format!("a text has {used} tokens, and {limit} are read at most");
                let limit = self.batch;
                return Err(Refusal::new(
                    Failure::ContextOverflow { used, limit },
                    detail,
                ));
            }
            let mut rest = Ids::new(ids.split_off(limit.saturating_sub(self.ends.len())));
            rest.truncate(0);
            ids.extend(&self.ends);
        }
        Ok(Ids::new(ids))
    }

    /// Takes a request in.
    pub fn submit(&mut self, request: Request) {
        self.running.push_back(request);
    }

    /// Whether `seq` runs.
    pub fn holds(&self, seq: u64) -> bool {
        self.running.iter().any(|request| request.seq == seq)
    }

    /// Whether nothing runs.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// Whether a step would do anything now.
    pub fn can_step(&self) -> bool {
        self.running.iter().any(Request::may_go_on)
    }

    /// More rows of `seq` may be sent.
    pub fn grant(&mut self, seq: u64, rows: u32) {
        self.tell(seq, |request| {
            request.credit = request.credit.saturating_add(rows);
        });
    }

    /// `seq` waits, or goes on.
    pub fn pause(&mut self, seq: u64, paused: bool) {
        self.tell(seq, |request| request.paused = paused);
    }

    fn tell(&mut self, seq: u64, what: impl Fn(&mut Request)) {
        let mut all = self.running.iter_mut();
        if let Some(request) = all.find(|request| request.seq == seq) {
            what(request);
        }
    }

    /// Ends `seq`, if it runs.
    pub fn cancel(&mut self, seq: u64) -> Option<Finished> {
        let at = self.running.iter().position(|request| request.seq == seq)?;
        let request = self.running.remove(at)?;
        Some(request.finished(Finish::Cancelled))
    }

    /// The request whose cancellation should stop the next step: one that runs alone.
    pub fn worth_interrupting(&self) -> Vec<u64> {
        let mut going = self.running.iter().filter(|request| request.may_go_on());
        match (going.next(), going.next()) {
            (Some(alone), None) => vec![alone.seq],
            _ => Vec::new(),
        }
    }

    /// Reads one batch of texts, and tells their vectors.
    pub fn step(&mut self, events: &mut Vec<Event>) {
        let shares = self.shares();
        if shares.is_empty() {
            return;
        }
        let texts: Vec<Ids> = shares
            .iter()
            .filter_map(|&at| self.running[at].texts.pop_front())
            .collect();
        let start = Instant::now();
        let result = self.read(&texts);
        let took = start.elapsed();
        match result {
            Ok(vectors) => self.after(&shares, &texts, vectors, took, events),
            Err(why) => self.undo(&shares, texts, why, events),
        }
        // Whoever was first is last in the next step.
        self.running.rotate_left(1.min(self.running.len()));
    }

    /// Whose next texts the step reads, one place per text: a text of each in turn, until no more fit.
    fn shares(&self) -> Vec<usize> {
        let mut shares = Vec::new();
        let mut taken = vec![0; self.running.len()];
        let mut left = self.batch as usize;
        loop {
            let before = shares.len();
            for (at, request) in self.running.iter().enumerate() {
                let next = request.texts.get(taken[at]);
                let granted = !request.paused && taken[at] < request.credit as usize;
                if let Some(text) = next.filter(|text| granted && text.len() <= left)
                    && shares.len() < LANES as usize
                {
                    left -= text.len();
                    taken[at] += 1;
                    shares.push(at);
                }
            }
            if shares.len() == before {
                return shares;
            }
        }
    }

    /// One vector for each text; each has a lane of its own.
    fn read(&mut self, texts: &[Ids]) -> Result<Vec<Vec<u8>>, EngineError> {
        let rows: Vec<Row> = (0..)
            .zip(texts)
            .flat_map(|(lane, text)| {
                let ids = (0..).zip(text.expose());
                ids.map(move |(position, &id)| Row {
                    id,
                    position,
                    lane,
                    logits: true,
                })
            })
            .collect();
        self.context.forget();
        self.context.run(&rows)?;
        let lanes = 0..u32::try_from(texts.len()).unwrap_or(u32::MAX);
        let vectors = lanes.map(|lane| self.context.vector(lane).map(of_length_one));
        let vectors = vectors.collect();
        self.context.forget();
        vectors
    }

    fn after(
        &mut self,
        shares: &[usize],
        texts: &[Ids],
        vectors: Vec<Vec<u8>>,
        took: Duration,
        events: &mut Vec<Event>,
    ) {
        for ((&at, text), bytes) in shares.iter().zip(texts).zip(vectors) {
            let request = &mut self.running[at];
            let (seq, row) = (request.seq, request.done);
            request.done += 1;
            request.credit = request.credit.saturating_sub(1);
            request.computed = request
                .computed
                .saturating_add(u32::try_from(text.len()).unwrap_or(u32::MAX));
            events.push(Event::Row { seq, row, bytes });
        }
        let mut seen: Vec<usize> = shares.to_vec();
        seen.sort_unstable();
        seen.dedup();
        for &at in &seen {
            self.running[at].took += took;
        }
        for at in seen.into_iter().rev() {
            if self.running[at].texts.is_empty()
                && let Some(request) = self.running.remove(at)
            {
                events.push(Event::Finished(request.finished(Finish::Stop)));
            }
        }
    }

    /// A step that failed. An interrupt costs nobody more than the step; any other error ends the requests in it.
    fn undo(
        &mut self,
        shares: &[usize],
        texts: Vec<Ids>,
        why: EngineError,
        events: &mut Vec<Event>,
    ) {
        if why == EngineError::Aborted {
            for (&at, text) in shares.iter().zip(texts).rev() {
                self.running[at].texts.push_front(text);
            }
            return;
        }
        let mut seen: Vec<usize> = shares.to_vec();
        seen.sort_unstable();
        seen.dedup();
        for at in seen.into_iter().rev() {
            if let Some(request) = self.running.remove(at) {
                let (seq, why) = (request.seq, why.clone());
                events.push(Event::Failed { seq, why });
            }
        }
    }

    /// Measures how fast a made-up text is read, in millitokens per second.
    pub fn bench(&mut self, tokens: u32) -> Result<u64, EngineError> {
        let tokens = tokens.clamp(1, self.batch);
        let n_vocab = self.facts.n_vocab;
        // As the engine's: a stride that is prime visits the vocabulary evenly.
        let ids = (0..tokens).map(|i| i.wrapping_mul(7919) % n_vocab);
        let text = Ids::new(ids.collect());
        let start = Instant::now();
        self.read(std::slice::from_ref(&text))?;
        Ok(rate(tokens, start.elapsed()))
    }
}

/// What the model adds after a text: what it makes of none, without what it begins with.
fn ends_of(model: &Model) -> Result<Vec<u32>, EngineError> {
    let mut around = model.tokenize(b"", true, false)?;
    if around.first().copied() == model.bos() && !around.is_empty() {
        around.remove(0);
    }
    Ok(around)
}

/// The vector divided by its length, as bytes.
#[expect(
    clippy::cast_possible_truncation,
    reason = "components are computed in f32; their sum of squares is not to lose what they have"
)]
fn of_length_one(vector: &[f32]) -> Vec<u8> {
    let squares: f64 = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let length = if squares > 0.0 { squares.sqrt() } else { 1.0 };
    vector
        .iter()
        .flat_map(|&x| ((f64::from(x) / length) as f32).to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_gets_length_one_and_none_stays_none() {
        let floats = |bytes: Vec<u8>| -> Vec<f32> {
            let four = bytes.chunks_exact(4);
            four.map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
                .collect()
        };
        assert_eq!(floats(of_length_one(&[3.0, -4.0])), [0.6, -0.8]);
        assert_eq!(floats(of_length_one(&[0.0, 0.0])), [0.0, 0.0]);
    }
}
