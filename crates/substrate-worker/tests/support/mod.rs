//! What the worker's tests share: the real model, an engine in-process, and a client of the pipe.
#![allow(dead_code, reason = "each test file uses its part")]

use std::os::unix::net::UnixStream;
use std::time::Duration;

use substrate_sandbox::wire::{
    self, Failure, Finished, FromWorker, Input, KvType, Load, Message, ModelFacts, Prepare,
    Sampler, ToWorker,
};
use substrate_worker::engine::{Engine, LoadOptions};
use substrate_worker::ffi::{Interrupt, MAX_BATCH};
use substrate_worker::scheduler::Event;
use substrate_worker::serve::{Place, serve};

/// No answer of the worker takes longer than this, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Path of the real model.
pub fn model() -> String {
    std::env::var("SUBSTRATE_TEST_MODEL")
        .expect("SUBSTRATE_TEST_MODEL must name SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// Path of a projector for it, of random weights: `tests/models/projector.py` makes it.
pub fn projector() -> String {
    beside("SmolLM2-135M-Instruct.projector.F32.gguf")
}

/// Path of an adapter for it, of random weights: `tests/models/adapter.py` makes it.
pub fn adapter() -> String {
    beside("SmolLM2-135M-Instruct.adapter.F32.gguf")
}

fn beside(name: &str) -> String {
    let path = std::path::PathBuf::from(model()).with_file_name(name);
    path.to_string_lossy().into_owned()
}

/// The real engine, unsealed.
pub fn engine(n_ctx: u32) -> Engine {
    engine_with(n_ctx, true)
}

/// As [`engine`], with or without fused attention.
pub fn engine_with(n_ctx: u32, flash_attention: bool) -> Engine {
    // One thread: the machine that runs the tests has other things to do, and two that wait for
    // each other are slower than one there.
    let options = LoadOptions {
        n_ctx,
        // A measurement of every position wants the logits of every row.
        outputs: MAX_BATCH as u32,
        pool: 2,
        flash_attention,
        ..LoadOptions::default()
    };
    Engine::load(&model(), &options, Interrupt::default()).expect("the test model loads")
}

/// Argmax, nothing else.
pub fn greedy() -> Sampler {
    Sampler {
        temperature: 0,
        top_k: 0,
        top_p: 1_000_000,
        min_p: 0,
        typical_p: 1_000_000,
        repeat_last_n: 0,
        repeat: 1_000_000,
        presence: 0,
        frequency: 0,
        n: 1,
        top_logprobs: None,
    }
}

/// A job over `input`.
pub fn job(seq: u64, input: &Input, sampler: Sampler, max_tokens: u32) -> Prepare {
    Prepare {
        seq,
        input: input.to_cbor_bytes().expect("a sound input"),
        sampler,
        seed: [3; 32],
        resume: Vec::new(),
        max_tokens,
        partition: [0; 32],
        reuse: false,
    }
}

/// A conversation of one user turn.
pub fn user(text: &str) -> Input {
    Input::chat(vec![Message::new("user", text)])
}

/// A whole answer.
#[derive(Default, Clone)]
pub struct Answer {
    pub ids: Vec<u32>,
    pub text: Vec<u8>,
    pub gaps: Vec<f64>,
    pub finish: u8,
    pub n_out: u32,
    pub min_gap: i32,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8(self.text.clone()).expect("released text is UTF-8")
    }
}

/// Runs a job on the engine.
pub fn run(engine: &mut Engine, job: &Prepare) -> Answer {
    let sequence = engine.prepare(job).expect("the job is sound");
    let mut answer = Answer::default();
    let ran = engine.run(sequence, |event| match event {
        Event::Prefilled { .. } | Event::Failed { .. } => {}
        Event::Token { token, .. } => {
            answer.ids.push(token.id);
            std::str::from_utf8(&token.bytes).expect("released text is UTF-8");
            answer.text.extend_from_slice(&token.bytes);
            answer.gaps.push(token.gap);
        }
        Event::Finished(finished) => {
            answer.text.extend_from_slice(&finished.tail);
            answer.finish = finished.finish;
            answer.n_out = finished.n_out;
            answer.min_gap = finished.min_gap;
        }
    });
    ran.expect("the engine runs");
    answer
}

/// One sequence at a time, the cache in halves.
pub fn half(n_ctx: u32) -> Load {
    Load {
        n_ctx,
        slots: 1,
        cells: 0,
        threads: 1,
        batch_threads: 1,
        kv: KvType::F16,
        flash_attention: true,
        gpu: None,
        projector: false,
        adapter: false,
        apart: false,
        prompt_lookup: false,
    }
}

/// The daemon's end of a worker's pipe.
pub struct Client(pub UnixStream);

impl Client {
    /// A worker in this process, unsealed, that has not loaded anything.
    pub fn start(model: &str) -> Client {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let model = model.to_owned();
        std::thread::spawn(move || {
            let from = theirs.try_clone().expect("a second handle");
            let seal = || {
                Ok(FromWorker::Sealed {
                    stage: 2,
                    landlock: 0,
                    seccomp: false,
                })
            };
            // An error is the client hanging up.
            let _ = serve(
                from,
                theirs,
                Place {
                    model,
                    projector: projector(),
                    adapter: adapter(),
                    pool: 2,
                    seal,
                },
            );
        });
        Client::over(ours)
    }

    /// A client over a pipe that exists.
    pub fn over(pipe: UnixStream) -> Client {
        pipe.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Client(pipe)
    }

    /// A worker that has loaded the real model.
    pub fn loaded(n_ctx: u32) -> Client {
        let mut client = Client::start(&model());
        client.load(n_ctx);
        client
    }

    /// Loads the model.
    pub fn load(&mut self, n_ctx: u32) -> ModelFacts {
        self.load_slots(n_ctx, 1, 0)
    }

    /// Loads the model for several sequences at once.
    pub fn load_slots(&mut self, n_ctx: u32, slots: u32, cells: u32) -> ModelFacts {
        self.load_as(Load {
            slots,
            cells,
            ..half(n_ctx)
        })
        .unwrap_or_else(|(why, detail)| panic!("not loaded: {why:?}: {detail}"))
    }

    /// Loads the model like this, or says why not.
    pub fn load_as(&mut self, load: Load) -> Result<ModelFacts, (Failure, String)> {
        self.send(ToWorker::Load(load));
        match self.next() {
            FromWorker::Sealed { stage: 2, .. } => {}
            FromWorker::Failed { why, detail, .. } => return Err((why, detail)),
            other => panic!("not sealed: {other:?}"),
        }
        match self.next() {
            FromWorker::Loaded(facts) => Ok(facts),
            other => panic!("not loaded: {other:?}"),
        }
    }

    pub fn send(&mut self, message: ToWorker) {
        wire::write(&mut self.0, &message).expect("the worker reads");
    }

    pub fn next(&mut self) -> FromWorker {
        wire::read(&mut self.0)
            .expect("a sound frame")
            .expect("the worker is alive")
    }

    /// Prepares a job and gives its prompt's length.
    pub fn prepare(&mut self, job: Prepare) -> u32 {
        self.send(ToWorker::Prepare(job));
        match self.next() {
            FromWorker::Prepared { n_in, .. } => n_in,
            other => panic!("not prepared: {other:?}"),
        }
    }

    /// Reads until the sequence ends.
    pub fn finish(&mut self, seq: u64) -> (Vec<u32>, Vec<u8>, Finished) {
        let (mut all, mut text) = (Vec::new(), Vec::new());
        loop {
            match self.next() {
                FromWorker::Tokens {
                    seq: of,
                    ids,
                    bytes,
                    ..
                } if of == seq => {
                    self.send(ToWorker::Grant { seq, frames: 1 });
                    all.extend(ids);
                    text.extend(bytes);
                }
                FromWorker::Finished(finished) if finished.seq == seq => {
                    text.extend_from_slice(&finished.tail);
                    return (all, text, finished);
                }
                FromWorker::Prefilled { .. } => {}
                other => panic!("unexpected: {other:?}"),
            }
        }
    }
}
