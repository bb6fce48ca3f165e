//! The worker's one loop: messages in, steps of the running sequence, answers out.
//!
//! Order of life: sealed once → Load (or Inspect) → sealed again → prompts. The reader thread
//! starts before the second seal, because no thread can start after it.
//!
//! Invariant: between two steps every message that has come is obeyed; a sequence whose reader is slow
//! stops when its credit is spent and holds up nobody else; writing blocks, so nothing piles up.
//! Absent by design: timers, retries, logs, and who is computed when (`crate::scheduler`).

mod embed;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use substrate_sandbox::wire::{
    self, Failure, FromWorker, Input, Load, ModelFacts, Prepare, ToWorker,
};

use crate::embedder::Embedder;
use crate::engine::{Engine, LoadOptions, inspect, open};
use crate::ffi::Interrupt;
use crate::inbox::{Inbox, Work};
use crate::prompt::wipe;
use crate::refusal::Refusal;
use crate::scheduler::Event;
use crate::sequence::{Sequence, Token};

/// Sequences that may wait, prepared or begun: each holds its prompt's ids. More than the daemon ever has slots.
const MAX_WAITING: usize = 256;

/// Bytes of frames collected before they are written: the tokens of one step of many sequences.
const WRITE_AT: usize = 64 * 1024;

/// The sequence whose template is being rendered, plus one; 0 is none.
static RENDERING: AtomicU64 = AtomicU64::new(0);

/// What to tell the daemon when a template has spent its memory: the program's last words.
pub fn last_words() -> FromWorker {
    let detail = "the chat template takes too much memory".into();
    let seq = RENDERING.load(Ordering::Relaxed).checked_sub(1);
    FromWorker::Failed {
        seq,
        why: Failure::BadTemplate,
        detail,
    }
}

/// Where the worker runs.
pub struct Place<S> {
    /// Path of the model.
    pub model: String,
    /// Path of its projector, if it has one.
    pub projector: String,
    /// Path of its adapter, if it has one.
    pub adapter: String,
    /// Threads the pool may have: the processor's, as counted before the first seal.
    pub pool: u32,
    /// Applies the second seal; the answer is passed on to the daemon.
    pub seal: S,
}

/// Serves until the daemon hangs up or says to leave.
///
/// # Errors
/// The pipe failed.
pub fn serve<S>(from: impl Read + Send + 'static, to: impl Write, place: Place<S>) -> io::Result<()>
where
    S: FnOnce() -> Result<FromWorker, String>,
{
    let interrupt = Interrupt::default();
    let inbox = Arc::new(Inbox::new(interrupt.clone()));
    let filled = inbox.clone();
    std::thread::Builder::new()
        .name("reader".into())
        .spawn(move || filled.fill_from(from))?;
    let mut out = Out::new(to);
    let loaded = load(&inbox, interrupt, &mut out, place);
    out.flush()?;
    match loaded? {
        None => Ok(()),
        Some(Loaded::Answers(engine)) => Worker {
            out,
            inbox,
            engine: *engine,
            prepared: BTreeMap::new(),
            events: Vec::new(),
        }
        .run(),
        Some(Loaded::Embeds(embedder)) => embed::Worker {
            out,
            inbox,
            embedder: *embedder,
            prepared: BTreeMap::new(),
        }
        .run(),
    }
}

/// What a model is for.
enum Loaded {
    Answers(Box<Engine>),
    Embeds(Box<Embedder>),
}

impl Loaded {
    /// Loads the model at `path` for what it was made for.
    fn from(path: &str, options: &LoadOptions, interrupt: Interrupt) -> Result<Loaded, Refusal> {
        let (header, model) = open(path, options.gpu)?;
        if model.pooling().is_some() && (options.projector.is_some() || options.adapter.is_some()) {
            let detail =
                "this model makes vectors of texts, and takes neither projector nor adapter";
            return Err(Refusal::new(Failure::Unsupported, detail));
        }
        if model.pooling().is_some() {
            let embedder = Embedder::over(model, &header, options, interrupt)?;
            Ok(Loaded::Embeds(Box::new(embedder)))
        } else {
            let engine = Engine::over(model, &header, options, interrupt)?;
            Ok(Loaded::Answers(Box::new(engine)))
        }
    }

    fn facts(&self) -> &ModelFacts {
        match self {
            Loaded::Answers(engine) => engine.facts(),
            Loaded::Embeds(embedder) => embedder.facts(),
        }
    }
}

/// Answers Inspect until a Load succeeds; `None` when the daemon leaves or loading failed.
fn load<S>(
    inbox: &Inbox,
    interrupt: Interrupt,
    out: &mut Out<impl Write>,
    place: Place<S>,
) -> io::Result<Option<Loaded>>
where
    S: FnOnce() -> Result<FromWorker, String>,
{
    let wanted = loop {
        out.flush()?;
        match inbox.wait() {
            Work::Message(ToWorker::Inspect) => match inspect(&place.model) {
                Ok(facts) => out.send(&FromWorker::Inspected(facts))?,
                Err(refusal) => out.refuse(None, refusal)?,
            },
            Work::Message(ToWorker::Load(wanted)) => break wanted,
            Work::Message(ToWorker::Threads { .. }) => {}
            Work::Leave => return Ok(None),
            Work::Message(_) | Work::Refused(_) => {
                out.refuse(None, Refusal::new(Failure::BadInput, "no model is loaded"))?;
            }
        }
    };
    let Load {
        n_ctx,
        slots,
        cells,
        threads,
        batch_threads,
        kv,
        flash_attention,
        gpu,
        projector,
        adapter,
        apart,
        prompt_lookup,
    } = wanted;
    let options = LoadOptions {
        n_ctx,
        slots,
        cells,
        threads,
        batch_threads,
        pool: place.pool,
        kv,
        flash_attention,
        gpu,
        projector: projector.then_some(place.projector),
        adapter: adapter.then_some(place.adapter),
        apart,
        prompt_lookup,
        ..LoadOptions::default()
    };
    let loaded = match Loaded::from(&place.model, &options, interrupt) {
        Ok(loaded) => loaded,
        Err(refusal) => {
            out.refuse(None, refusal)?;
            return Ok(None);
        }
    };
    match (place.seal)() {
        Ok(sealed) => out.send(&sealed)?,
        Err(why) => {
            out.refuse(None, Refusal::new(Failure::Internal, why))?;
            return Ok(None);
        }
    }
    out.send(&FromWorker::Loaded(loaded.facts().clone()))?;
    Ok(Some(loaded))
}

struct Worker<W> {
    out: Out<W>,
    inbox: Arc<Inbox>,
    engine: Engine,
    prepared: BTreeMap<u64, Sequence>,
    events: Vec<Event>,
}

impl<W: Write> Worker<W> {
    fn run(mut self) -> io::Result<()> {
        loop {
            if !self.engine.scheduler().can_step() {
                self.out.flush()?;
                if self.engine.scheduler().is_idle() {
                    self.engine.settle();
                }
                let work = self.inbox.wait();
                if !self.obey(work)? {
                    return Ok(());
                }
            }
            if !self.obey_all()? {
                return Ok(());
            }
            self.step()?;
        }
    }

    /// Obeys what has come, but reads at most one prompt: tokenizing a long one takes as long as a token.
    fn obey_all(&mut self) -> io::Result<bool> {
        while let Some(work) = self.inbox.poll() {
            let was_prompt = matches!(work, Work::Message(ToWorker::Prepare(_)));
            if !self.obey(work)? {
                return Ok(false);
            }
            if was_prompt {
                break;
            }
        }
        Ok(true)
    }

    /// False when the daemon leaves.
    fn obey(&mut self, work: Work) -> io::Result<bool> {
        match work {
            Work::Leave => return Ok(false),
            Work::Message(message) => self.on_message(message)?,
            Work::Refused(seq) => {
                let refusal = Refusal::new(Failure::OutOfMemory, "too many messages wait");
                self.out.refuse(Some(seq), refusal)?;
            }
        }
        Ok(true)
    }

    /// One step of everything that runs, and its tokens out in one piece.
    fn step(&mut self) -> io::Result<()> {
        if let Some((decode, batch)) = self.inbox.threads() {
            self.engine.set_threads(decode, batch);
        }
        self.inbox.set_interruptible(self.engine.admit());
        let mut events = std::mem::take(&mut self.events);
        self.engine.step(&mut events);
        self.inbox.set_interruptible(Vec::new());
        for event in events.drain(..) {
            match event {
                Event::Prefilled { seq, n } => self.out.send(&FromWorker::Prefilled { seq, n })?,
                Event::Token { seq, token } => self.out.send(&tokens(seq, token))?,
                Event::Finished(finished) => self.out.send(&FromWorker::Finished(finished))?,
                Event::Failed { seq, why } => self.out.refuse(Some(seq), why.into())?,
            }
        }
        self.events = events;
        self.out.flush()
    }

    fn on_message(&mut self, message: ToWorker) -> io::Result<()> {
        match message {
            ToWorker::Prepare(job) => self.on_prepare(job),
            ToWorker::Begin { seq } => {
                if let Some(sequence) = self.prepared.remove(&seq) {
                    self.engine.submit(sequence);
                }
                Ok(())
            }
            ToWorker::Cancel { seq } => self.on_cancel(seq),
            ToWorker::Grant { seq, frames } => {
                self.engine.grant(seq, frames);
                Ok(())
            }
            ToWorker::Pause { seq } => {
                self.engine.pause(seq, true);
                Ok(())
            }
            ToWorker::Resume { seq } => {
                self.engine.pause(seq, false);
                Ok(())
            }
            ToWorker::Tokenize { seq, text, special } => self.on_tokenize(seq, text, special),
            ToWorker::Detokenize { seq, ids } => self.on_detokenize(seq, &ids),
            ToWorker::Render { seq, input } => self.on_render(seq, input),
            ToWorker::Bench {
                seq,
                prefill,
                decode,
            } => self.on_bench(seq, prefill, decode),
            ToWorker::Load(_) | ToWorker::Inspect => {
                let refusal = Refusal::new(Failure::BadInput, "a model is already loaded");
                self.out.refuse(None, refusal)
            }
            // The inbox has taken note of these before their turn; Shutdown never gets here.
            ToWorker::Threads { .. } | ToWorker::Shutdown => Ok(()),
        }
    }

    fn on_prepare(&mut self, mut job: Prepare) -> io::Result<()> {
        let seq = job.seq;
        RENDERING.store(seq.wrapping_add(1), Ordering::Relaxed);
        let prepared = self.prepare(&job);
        zeroize::Zeroize::zeroize(&mut job.input);
        zeroize::Zeroize::zeroize(&mut job.resume);
        match prepared {
            Ok(sequence) => {
                let n_in = sequence.n_in();
                self.prepared.insert(seq, sequence);
                self.out.send(&FromWorker::Prepared { seq, n_in })
            }
            Err(refusal) => self.out.refuse(Some(seq), refusal),
        }
    }

    fn prepare(&self, job: &Prepare) -> Result<Sequence, Refusal> {
        if self.engine.scheduler().holds(job.seq) || self.prepared.contains_key(&job.seq) {
            return Err(Refusal::new(Failure::BadInput, "the sequence id is in use"));
        }
        if self.prepared.len() + self.engine.scheduler().waiting() >= MAX_WAITING {
            return Err(Refusal::new(
                Failure::OutOfMemory,
                "too many sequences wait",
            ));
        }
        self.engine.prepare(job)
    }

    /// An unknown sequence has ended already.
    fn on_cancel(&mut self, seq: u64) -> io::Result<()> {
        let finished = match self.prepared.remove(&seq) {
            Some(sequence) => Some(sequence.into_cancelled()),
            None => self.engine.cancel(seq),
        };
        match finished {
            Some(finished) => self.out.send(&FromWorker::Finished(finished)),
            None => Ok(()),
        }
    }

    fn on_tokenize(&mut self, seq: u64, mut text: String, special: bool) -> io::Result<()> {
        let ids = self
            .engine
            .model()
            .tokenize(text.as_bytes(), false, special);
        zeroize::Zeroize::zeroize(&mut text);
        match ids {
            Ok(ids) => self
                .out
                .send_or_refuse(seq, &FromWorker::Tokenized { seq, ids }),
            Err(error) => self.out.refuse(Some(seq), error.into()),
        }
    }

    fn on_detokenize(&mut self, seq: u64, ids: &[u32]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for &id in ids {
            if let Err(error) = self.engine.model().piece(id, true, &mut bytes) {
                return self.out.refuse(Some(seq), error.into());
            }
        }
        self.out
            .send_or_refuse(seq, &FromWorker::Detokenized { seq, bytes })
    }

    fn on_render(&mut self, seq: u64, mut input: Vec<u8>) -> io::Result<()> {
        RENDERING.store(seq.wrapping_add(1), Ordering::Relaxed);
        let rendered = Input::from_cbor_bytes(&input)
            .map_err(Refusal::from)
            .and_then(|mut parsed| {
                let rendered = self.engine.render(&parsed);
                wipe(&mut parsed);
                rendered
            });
        zeroize::Zeroize::zeroize(&mut input);
        match rendered {
            Ok(text) => {
                let text = String::from_utf8_lossy(&text).into_owned();
                self.out
                    .send_or_refuse(seq, &FromWorker::Rendered { seq, text })
            }
            Err(refusal) => self.out.refuse(Some(seq), refusal),
        }
    }

    fn on_bench(&mut self, seq: u64, prefill: u32, decode: u32) -> io::Result<()> {
        if !self.engine.scheduler().is_idle() {
            let refusal = Refusal::new(Failure::Unsupported, "a sequence is running");
            return self.out.refuse(Some(seq), refusal);
        }
        if let Some((decode, batch)) = self.inbox.threads() {
            self.engine.set_threads(decode, batch);
        }
        match self.engine.bench(prefill, decode) {
            Ok((prefill, decode)) => self.out.send(&FromWorker::Benched {
                seq,
                prefill,
                decode,
            }),
            Err(error) => self.out.refuse(Some(seq), error.into()),
        }
    }
}

fn tokens(seq: u64, token: Token) -> FromWorker {
    let logprobs = token.logprob.into_iter().collect();
    FromWorker::Tokens {
        seq,
        ids: vec![token.id],
        bytes: token.bytes,
        logprobs,
    }
}

/// The way to the daemon. Frames are collected and written together.
struct Out<W> {
    to: W,
    waiting: Vec<u8>,
}

impl<W: Write> Out<W> {
    fn new(to: W) -> Self {
        Self {
            to,
            waiting: Vec::new(),
        }
    }

    fn send(&mut self, message: &FromWorker) -> io::Result<()> {
        wire::write(&mut self.waiting, message)?;
        if self.waiting.len() >= WRITE_AT {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes what was collected, and overwrites it: it is text.
    fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let written = self.to.write_all(&self.waiting);
        zeroize::Zeroize::zeroize(&mut self.waiting);
        written
    }

    /// As [`Out::send`], for answers whose size the daemon's question decides.
    fn send_or_refuse(&mut self, seq: u64, message: &FromWorker) -> io::Result<()> {
        match self.send(message) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let refusal = Refusal::new(Failure::Unsupported, "the answer is over a frame");
                self.refuse(Some(seq), refusal)
            }
            sent => sent,
        }
    }

    fn refuse(&mut self, seq: Option<u64>, refusal: Refusal) -> io::Result<()> {
        let Refusal { why, detail } = refusal;
        self.send(&FromWorker::Failed { seq, why, detail })
    }
}
