//! The worker's one loop: messages in, steps of the running sequence, answers out.
//!
//! Order of life: sealed once → Load (or Inspect) → sealed again → prompts. The reader thread
//! starts before the second seal, because no thread can start after it.
//!
//! Invariant: one sequence runs at a time, others wait prepared; between two steps every signal is
//! obeyed; writing blocks, so a slow reader slows sampling and nothing piles up.
//! Absent by design: timers, retries, logs.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use substrate_sandbox::wire::{self, Failure, FromWorker, Input, Load, Prepare, ToWorker};

use crate::engine::{Engine, LoadOptions, inspect};
use crate::ffi::{EngineError, Interrupt};
use crate::inbox::{Inbox, Work};
use crate::prompt::wipe;
use crate::refusal::Refusal;
use crate::sequence::{Sequence, Step, Token};

/// Sequences that may wait prepared: each holds its prompt's ids.
const MAX_PREPARED: usize = 64;

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
    let mut out = Out(to);
    let Some(engine) = load(&inbox, interrupt, &mut out, place)? else {
        return Ok(());
    };
    Worker {
        out,
        inbox,
        engine,
        prepared: BTreeMap::new(),
        ready: VecDeque::new(),
        running: None,
    }
    .run()
}

/// Answers Inspect until a Load succeeds; `None` when the daemon leaves or loading failed.
fn load<S>(
    inbox: &Inbox,
    interrupt: Interrupt,
    out: &mut Out<impl Write>,
    place: Place<S>,
) -> io::Result<Option<Engine>>
where
    S: FnOnce() -> Result<FromWorker, String>,
{
    let wanted = loop {
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
        threads,
        batch_threads,
    } = wanted;
    let options = LoadOptions {
        n_ctx,
        threads,
        batch_threads,
        pool: place.pool,
        flash_attention: true,
    };
    let engine = match Engine::load(&place.model, &options, interrupt) {
        Ok(engine) => engine,
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
    out.send(&FromWorker::Loaded(engine.facts().clone()))?;
    Ok(Some(engine))
}

struct Worker<W> {
    out: Out<W>,
    inbox: Arc<Inbox>,
    engine: Engine,
    prepared: BTreeMap<u64, Sequence>,
    ready: VecDeque<u64>,
    running: Option<Sequence>,
}

impl<W: Write> Worker<W> {
    fn run(mut self) -> io::Result<()> {
        let mut idle = true;
        loop {
            let work = if idle {
                Some(self.inbox.wait())
            } else {
                self.inbox.poll()
            };
            match work {
                Some(Work::Leave) => return Ok(()),
                Some(Work::Message(message)) => self.on_message(message)?,
                Some(Work::Refused(seq)) => {
                    let refusal = Refusal::new(Failure::OutOfMemory, "too many messages wait");
                    self.out.refuse(Some(seq), refusal)?;
                }
                None => {}
            }
            self.start_next();
            idle = !self.step()?;
        }
    }

    fn on_message(&mut self, message: ToWorker) -> io::Result<()> {
        match message {
            ToWorker::Prepare(job) => self.on_prepare(job),
            ToWorker::Begin { seq } => {
                if self.prepared.contains_key(&seq) && !self.ready.contains(&seq) {
                    self.ready.push_back(seq);
                }
                Ok(())
            }
            ToWorker::Cancel { seq } => self.on_cancel(seq),
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
            ToWorker::Pause { .. }
            | ToWorker::Resume { .. }
            | ToWorker::Threads { .. }
            | ToWorker::Shutdown => Ok(()),
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
        let running = self
            .running
            .as_ref()
            .is_some_and(|running| running.seq() == job.seq);
        if running || self.prepared.contains_key(&job.seq) {
            return Err(Refusal::new(Failure::BadInput, "the sequence id is in use"));
        }
        if self.prepared.len() >= MAX_PREPARED {
            return Err(Refusal::new(
                Failure::OutOfMemory,
                "too many sequences wait",
            ));
        }
        self.engine.prepare(job)
    }

    /// A running sequence has been interrupted already; an unknown one has ended.
    fn on_cancel(&mut self, seq: u64) -> io::Result<()> {
        self.ready.retain(|ready| *ready != seq);
        match self.prepared.remove(&seq) {
            Some(sequence) => self
                .out
                .send(&FromWorker::Finished(sequence.into_cancelled())),
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
        if self.running.is_some() {
            let refusal = Refusal::new(Failure::Unsupported, "a sequence is running");
            return self.out.refuse(Some(seq), refusal);
        }
        self.apply_threads(self.inbox.threads());
        match self.engine.bench(prefill, decode) {
            Ok((prefill, decode)) => self.out.send(&FromWorker::Benched {
                seq,
                prefill,
                decode,
            }),
            Err(error) => self.out.refuse(Some(seq), error.into()),
        }
    }

    fn start_next(&mut self) {
        if self.running.is_some() {
            return;
        }
        let next = self
            .ready
            .pop_front()
            .and_then(|seq| self.prepared.remove(&seq));
        if let Some(sequence) = next {
            self.engine.begin();
            self.inbox.set_running(Some(sequence.seq()));
            self.running = Some(sequence);
        }
    }

    /// One step of the running sequence; false if there is nothing to do until a message comes.
    fn step(&mut self) -> io::Result<bool> {
        let Some(sequence) = &mut self.running else {
            return Ok(false);
        };
        let signals = self.inbox.signals(sequence.seq());
        if signals.leaving {
            return Ok(false);
        }
        if signals.cancelled {
            sequence.cancel();
        } else if signals.paused {
            self.apply_threads(signals.threads);
            return Ok(false);
        }
        self.apply_threads(signals.threads);
        let Some(sequence) = &mut self.running else {
            return Ok(false);
        };
        let seq = sequence.seq();
        match self.engine.step(sequence) {
            Ok(Step::Prefilled(n)) => self.out.send(&FromWorker::Prefilled { seq, n })?,
            Ok(Step::Token(token)) => self.out.send(&tokens(seq, token))?,
            Ok(Step::Finished(finished)) => {
                self.stop_running();
                self.out.send(&FromWorker::Finished(finished))?;
            }
            Err(EngineError::Aborted) if self.inbox.signals(seq).cancelled => {}
            Err(error) => {
                self.stop_running();
                self.out.refuse(Some(seq), error.into())?;
            }
        }
        Ok(self.running.is_some() || !self.ready.is_empty())
    }

    fn stop_running(&mut self) {
        self.running = None;
        self.inbox.set_running(None);
        self.engine.begin();
    }

    fn apply_threads(&mut self, threads: Option<(u32, u32)>) {
        if let Some((decode, batch)) = threads {
            self.engine.set_threads(decode, batch);
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

/// The way to the daemon.
struct Out<W>(W);

impl<W: Write> Out<W> {
    fn send(&mut self, message: &FromWorker) -> io::Result<()> {
        wire::write(&mut self.0, message)
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
