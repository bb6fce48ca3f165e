//! One worker process behind its wall, as the rest of the daemon sees it: prepare, begin, read, cancel.
//!
//! Invariant: what a worker says is believed only about the sequence it was asked about; any frame that
//! breaks the pipe's protocol, and any end of the pipe, fails every sequence at once and kills the process.
//! Absent by design: prompt text. Inputs pass through as bytes that are parsed only inside the wall.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use substrate_sandbox::launch::Worker;
use substrate_sandbox::wire::{self, Failure, FromWorker, ModelFacts, Prepare, ToWorker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use zeroize::Zeroize;

use super::context::blocking;

mod claims;
mod readers;

use readers::{Readers, SEQUENCE_DEPTH, is_granted, is_last};

/// Takes bytes of the pipe apart.
type Decoder = wire::Decoder<FromWorker>;

/// Frames taken before as many are granted again: few messages, and the sampler never waits for one.
const GRANT_EVERY: u32 = wire::INITIAL_GRANT / 2;

/// Messages that may wait to be written to a worker.
const OUTBOX_DEPTH: usize = 64;

/// How long a worker may take to tokenize a prompt of the largest allowed size.
const PREPARE_DEADLINE: Duration = Duration::from_secs(60);

/// How long a worker may leave a message in the pipe. A thread of an honest one reads at all times, whatever it computes; on a
/// machine with far too much to do that thread waits some seconds for its turn.
const TELL_DEADLINE: Duration = Duration::from_secs(30);

/// How often it is looked whether a worker owes an answer.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Times a worker says that it is sealed.
const SEALS: u32 = 2;

/// Read buffer of the pipe.
const READ_BYTES: usize = 64 * 1024;

/// Why a worker did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WorkError {
    /// The worker's own refusal.
    #[error("{detail}")]
    Failed {
        /// Its class.
        why: Failure,
        /// The worker's words, cut short. They may hold what it was asked, whatever it should say: nothing logs them.
        detail: String,
    },
    /// The process is gone or broke the pipe's protocol.
    #[error("the worker process ended: {how}")]
    Crashed {
        /// Exit status or protocol fault.
        how: String,
    },
    /// No answer in time.
    #[error("the worker did not {what} within {seconds} s")]
    Silent {
        /// What it was asked to do.
        what: &'static str,
        /// The limit.
        seconds: u64,
    },
}

type Routes = Arc<Mutex<Readers>>;

/// A handle to one loaded worker. Clones share the process; the last one dropped ends it.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    facts: ModelFacts,
    pid: u32,
    outbox: mpsc::Sender<ToWorker>,
    routes: Routes,
    gone: watch::Receiver<Option<String>>,
    /// Its end was ordered here.
    killed: AtomicBool,
    _process: Arc<Process>,
}

/// The process itself: killed and reaped when nobody needs it.
struct Process(Mutex<Worker>);

impl Engine {
    /// Takes a started worker through loading; both seals are down when this returns.
    ///
    /// # Errors
    /// The worker's refusal of the model, its death, or silence.
    pub async fn load(
        worker: Worker,
        load: ToWorker,
        deadline: Duration,
    ) -> Result<Self, WorkError> {
        let (pipe, process, pid) = adopt(worker)?;
        let (mut read, mut write) = pipe.into_split();
        let mut decoder = Decoder::new();
        send(&mut write, &load).await?;
        let facts = timeout(deadline, await_loaded(&mut read, &mut decoder, &process))
            .await
            .map_err(|_| silent("load the model", deadline))??;
        process.require_seals().await?;
        Ok(Self::run(read, write, decoder, process, pid, facts))
    }

    fn run(
        read: OwnedReadHalf,
        write: OwnedWriteHalf,
        decoder: Decoder,
        process: Arc<Process>,
        pid: u32,
        facts: ModelFacts,
    ) -> Self {
        let routes = Routes::default();
        let (outbox, inbox) = mpsc::channel(OUTBOX_DEPTH);
        let (tell_gone, gone) = watch::channel(None);
        tokio::spawn(write_all(write, inbox));
        tokio::spawn(read_all(
            read,
            decoder,
            routes.clone(),
            process.clone(),
            tell_gone,
        ));
        let shared = Shared {
            facts,
            pid,
            outbox,
            routes,
            gone,
            killed: AtomicBool::new(false),
            _process: process,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// What the model file said of itself, parsed inside the wall.
    pub fn facts(&self) -> &ModelFacts {
        &self.shared.facts
    }

    /// The worker's process id on this host.
    pub fn pid(&self) -> u32 {
        self.shared.pid
    }

    /// Whether the process still answers.
    pub fn is_alive(&self) -> bool {
        !self.shared.killed.load(Ordering::Acquire) && self.shared.gone.borrow().is_none()
    }

    /// Ends the process now, whatever it does. Its sequences fail.
    pub fn kill(&self) {
        self.shared.killed.store(true, Ordering::Release);
        self.shared._process.kill();
    }

    /// Completes when the process is gone, with how it ended.
    pub async fn gone(&self) -> String {
        let mut gone = self.shared.gone.clone();
        match gone.wait_for(Option::is_some).await {
            Ok(how) => how.clone().unwrap_or_default(),
            Err(_) => "its reader ended".to_owned(),
        }
    }

    /// Hands an input in; answers with the number of prompt tokens and the sequence, not yet begun.
    ///
    /// # Errors
    /// The worker's refusal (context overflow, bad template…), its death, or silence.
    pub async fn prepare(
        &self,
        make: impl FnOnce(u64) -> Prepare,
    ) -> Result<(u32, Sequence), WorkError> {
        let mut sequence = self.open();
        let seq = sequence.seq;
        self.tell(ToWorker::Prepare(make(seq))).await?;
        let first = timeout(PREPARE_DEADLINE, sequence.next())
            .await
            .map_err(|_| silent("read the prompt", PREPARE_DEADLINE))??;
        match first {
            FromWorker::Prepared { n_in, .. } => Ok((n_in, sequence)),
            FromWorker::Failed { why, detail, .. } => Err(failed(why, &detail)),
            _ => Err(self.condemn("an answer to Prepare that is none")),
        }
    }

    /// Changes the number of threads, from the next token on. A worker too busy to be told is told a second later.
    pub fn use_threads(&self, threads: u32) {
        let _ = self.shared.outbox.try_send(ToWorker::Threads {
            decode: threads,
            batch: threads,
        });
    }

    /// Measures (prefill, decode) in millitokens per second with a fixed load.
    ///
    /// # Errors
    /// As [`Engine::prepare`].
    pub async fn bench(
        &self,
        prefill: u32,
        decode: u32,
        deadline: Duration,
    ) -> Result<(u64, u64), WorkError> {
        let mut sequence = self.open();
        self.tell(ToWorker::Bench {
            seq: sequence.seq,
            prefill,
            decode,
        })
        .await?;
        let answer = timeout(deadline, sequence.next())
            .await
            .map_err(|_| silent("measure itself", deadline))??;
        match answer {
            FromWorker::Benched {
                prefill, decode, ..
            } => Ok((claims::rate(prefill), claims::rate(decode))),
            FromWorker::Failed { why, .. } => Err(failed(why, "the engine could not be measured")),
            _ => Err(self.condemn("an answer to Bench that is none")),
        }
    }

    fn open(&self) -> Sequence {
        let (sender, frames) = mpsc::channel(SEQUENCE_DEPTH);
        let seq = lock(&self.shared.routes).open(sender);
        Sequence {
            seq,
            frames,
            engine: self.clone(),
            taken: 0,
            ended: false,
        }
    }

    async fn tell(&self, message: ToWorker) -> Result<(), WorkError> {
        match timeout(TELL_DEADLINE, self.shared.outbox.send(message)).await {
            Ok(sent) => sent.map_err(|_| self.crashed()),
            Err(_) => Err(self.condemn("it does not read its pipe")),
        }
    }

    fn crashed(&self) -> WorkError {
        let how = self
            .shared
            .gone
            .borrow()
            .clone()
            .unwrap_or_else(|| "its pipe closed".to_owned());
        WorkError::Crashed { how }
    }

    /// Kills a worker that did what no honest one does. All its sequences fail.
    pub fn condemn(&self, how: &str) -> WorkError {
        tracing::warn!(pid = self.pid(), %how, "worker killed");
        self.kill();
        WorkError::Crashed {
            how: how.to_owned(),
        }
    }
}

impl Drop for Shared {
    /// A worker that is in order leaves when its pipe closes. Nobody waits to see whether this one is.
    fn drop(&mut self) {
        self._process.kill();
    }
}

/// One prompt inside a worker. Dropping it before its end cancels it within a token.
pub struct Sequence {
    seq: u64,
    frames: mpsc::Receiver<FromWorker>,
    engine: Engine,
    /// Frames taken since the last grant.
    taken: u32,
    ended: bool,
}

impl Sequence {
    /// Starts prefill.
    ///
    /// # Errors
    /// The worker's death.
    pub async fn begin(&self) -> Result<(), WorkError> {
        self.engine.tell(ToWorker::Begin { seq: self.seq }).await
    }

    /// Stops sampling at the next token; `Finished` still follows.
    ///
    /// # Errors
    /// The worker's death.
    pub async fn cancel(&self) -> Result<(), WorkError> {
        self.engine.tell(ToWorker::Cancel { seq: self.seq }).await
    }

    /// Stops sampling until [`Sequence::resume`].
    ///
    /// # Errors
    /// The worker's death.
    pub async fn pause(&self) -> Result<(), WorkError> {
        self.engine.tell(ToWorker::Pause { seq: self.seq }).await
    }

    /// Goes on after [`Sequence::pause`].
    ///
    /// # Errors
    /// The worker's death.
    pub async fn resume(&self) -> Result<(), WorkError> {
        self.engine.tell(ToWorker::Resume { seq: self.seq }).await
    }

    /// The next frame of this sequence. Safe to drop and call again.
    ///
    /// # Errors
    /// The worker's death.
    pub async fn next(&mut self) -> Result<FromWorker, WorkError> {
        if self.taken >= GRANT_EVERY {
            let (seq, frames) = (self.seq, self.taken);
            self.engine.tell(ToWorker::Grant { seq, frames }).await?;
            self.taken = 0;
        }
        let Some(frame) = self.frames.recv().await else {
            self.ended = true;
            return Err(WorkError::Crashed {
                how: self.engine.gone().await,
            });
        };
        self.ended |= is_last(&frame);
        self.taken += u32::from(is_granted(&frame));
        Ok(frame)
    }

    /// Kills the worker: what it said about this sequence, no honest one says.
    pub fn condemn(&self, how: &str) -> WorkError {
        self.engine.condemn(how)
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        let open = lock(&self.engine.shared.routes).give_up(self.seq, Instant::now());
        if self.ended || !open {
            return;
        }
        let engine = self.engine.clone();
        let seq = self.seq;
        if let Err(mpsc::error::TrySendError::Full(cancel)) =
            engine.shared.outbox.try_send(ToWorker::Cancel { seq })
        {
            tokio::spawn(async move { engine.tell(cancel).await });
        }
    }
}

impl Process {
    fn kill(&self) {
        // A process that is gone already needs no killing.
        let _ = lock(&self.0).kill();
    }

    /// Its seals, by the kernel's word and not by its own. Where the system hides processes from their users (`hidepid`), there is
    /// no word to be had, and the worker's must do.
    async fn require_seals(self: &Arc<Self>) -> Result<(), WorkError> {
        let process = self.clone();
        // A worker's own machine takes its time to answer.
        let seen = blocking(move || lock(&process.0).is_sealed()).await;
        match seen {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.kill();
                Err(WorkError::Crashed {
                    how: "it says it is sealed, and the kernel says it is not".to_owned(),
                })
            }
            Err(error) => {
                tracing::warn!(%error, "a worker's seals cannot be seen from outside");
                Ok(())
            }
        }
    }

    /// How the process ended; it is killed first, so this returns at once.
    fn end(&self) -> String {
        let mut worker = lock(&self.0);
        // A process that is gone already needs no killing.
        let _ = worker.kill();
        worker
            .wait()
            .map_or_else(|error| error.to_string(), |exit| format!("{exit:?}"))
    }
}

fn adopt(mut worker: Worker) -> Result<(UnixStream, Arc<Process>, u32), WorkError> {
    let crashed = |error: std::io::Error| WorkError::Crashed {
        how: error.to_string(),
    };
    let pid = worker.pid();
    let pipe = worker.take_pipe().ok_or_else(|| WorkError::Crashed {
        how: "its pipe was taken".to_owned(),
    })?;
    pipe.set_nonblocking(true).map_err(crashed)?;
    let pipe = UnixStream::from_std(pipe).map_err(crashed)?;
    Ok((pipe, Arc::new(Process(Mutex::new(worker))), pid))
}

async fn await_loaded(
    read: &mut OwnedReadHalf,
    decoder: &mut Decoder,
    process: &Process,
) -> Result<ModelFacts, WorkError> {
    let mut seals = 0;
    loop {
        match next_frame(read, decoder).await {
            Ok(FromWorker::Sealed {
                stage,
                landlock,
                seccomp,
            }) if seals < SEALS => {
                seals += 1;
                tracing::debug!(stage, landlock, seccomp, "worker sealed");
            }
            Ok(FromWorker::Loaded(facts)) => return Ok(claims::facts(facts)),
            Ok(FromWorker::Failed { why, detail, .. }) => return Err(failed(why, &detail)),
            Ok(_) => {
                return Err(WorkError::Crashed {
                    how: "a frame out of turn".to_owned(),
                });
            }
            Err(how) => {
                return Err(WorkError::Crashed {
                    how: format!("{how}; {}", process.end()),
                });
            }
        }
    }
}

/// A pipe that is read until a moment, however its bytes come.
struct Hurried {
    pipe: std::os::unix::net::UnixStream,
    until: Instant,
}

impl std::io::Read for Hurried {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        self.pipe.set_read_timeout(Some(left))?;
        self.pipe.read(buffer)
    }
}

/// Has a fresh worker read a model file's header, behind the same wall. Blocks.
///
/// # Errors
/// As [`Engine::load`].
pub fn inspect(mut worker: Worker, deadline: Duration) -> Result<ModelFacts, WorkError> {
    let crashed = |error: &dyn std::fmt::Display| WorkError::Crashed {
        how: error.to_string(),
    };
    let mut pipe = worker
        .take_pipe()
        .ok_or_else(|| crashed(&"its pipe was taken"))?;
    wire::write(&mut pipe, &ToWorker::Inspect).map_err(|error| crashed(&error))?;
    let mut pipe = Hurried {
        pipe,
        until: Instant::now() + deadline,
    };
    let mut seals = 0;
    loop {
        match wire::read(&mut pipe).map_err(|error| crashed(&error))? {
            Some(FromWorker::Sealed { .. }) if seals < SEALS => seals += 1,
            Some(FromWorker::Inspected(facts)) => return Ok(claims::facts(facts)),
            Some(FromWorker::Failed { why, detail, .. }) => return Err(failed(why, &detail)),
            Some(_) => return Err(crashed(&"a frame out of turn")),
            None => return Err(crashed(&"its pipe closed")),
        }
    }
}

async fn send(write: &mut OwnedWriteHalf, message: &ToWorker) -> Result<(), WorkError> {
    let crashed = |error: std::io::Error| WorkError::Crashed {
        how: error.to_string(),
    };
    let mut bytes = wire::encode(message).map_err(|error| WorkError::Crashed {
        how: error.to_string(),
    })?;
    let written = write.write_all(&bytes).await.map_err(crashed);
    bytes.zeroize();
    written
}

async fn write_all(mut write: OwnedWriteHalf, mut inbox: mpsc::Receiver<ToWorker>) {
    while let Some(mut message) = inbox.recv().await {
        let sent = send(&mut write, &message).await;
        if let ToWorker::Prepare(job) = &mut message {
            job.input.zeroize();
            job.resume.zeroize();
        }
        if sent.is_err() {
            return;
        }
    }
}

/// Routes frames until the pipe ends. No sequence waits for another's reader: a worker that sends more than it was
/// granted breaks the protocol, and is killed.
async fn read_all(
    mut read: OwnedReadHalf,
    mut decoder: Decoder,
    routes: Routes,
    process: Arc<Process>,
    tell_gone: watch::Sender<Option<String>>,
) {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let why = loop {
        tokio::select! {
            frame = next_frame(&mut read, &mut decoder) => {
                if let Err(why) = frame.and_then(|frame| lock(&routes).route(frame)) {
                    break why;
                }
            }
            _ = look.tick() => {
                if lock(&routes).is_overdue(Instant::now()) {
                    break "it does not answer".to_owned();
                }
            }
        }
    };
    let how = format!("{why}; {}", process.end());
    tracing::info!(%how, "worker gone");
    tell_gone.send_replace(Some(how));
    lock(&routes).close();
}

/// The next frame. Safe to drop and call again.
async fn next_frame(read: &mut OwnedReadHalf, decoder: &mut Decoder) -> Result<FromWorker, String> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        if let Some(frame) = decoder.pop().map_err(|error| error.to_string())? {
            return Ok(frame);
        }
        match read.read(&mut buffer).await {
            Ok(0) => return Err("its pipe closed".to_owned()),
            Ok(n) => decoder.push(&buffer[..n]),
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn failed(why: Failure, detail: &str) -> WorkError {
    let detail = claims::reason(detail);
    WorkError::Failed { why, detail }
}

fn silent(what: &'static str, limit: Duration) -> WorkError {
    WorkError::Silent {
        what,
        seconds: limit.as_secs(),
    }
}

/// Nothing panics while holding these locks, so a poisoned one still guards whole state.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
