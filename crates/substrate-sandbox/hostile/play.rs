//! The part of a worker that is played well, and where each mode leaves it.

use std::fs::File;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use substrate_sandbox::seal;
use substrate_sandbox::wire::{
    self, Finished, FromWorker, Load, ModelFacts, Prepare, Shape, ToWorker,
};

use crate::dice::Dice;
use crate::modes::{Mode, When};

/// Context of every model here.
pub const CONTEXT: u32 = 2_048;

/// Tokens of every prompt.
pub const PROMPT: u32 = 5;

/// Tokens of an honest answer at most: within what is granted from the start.
const ANSWER: u32 = 8;

/// The receipt's codes.
pub const WHOLE: u8 = 1;
pub const CANCELLED: u8 = 3;

/// A sequence that was prepared and has not ended.
pub struct Open {
    pub seq: u64,
    pub most: u32,
    pub input: Vec<u8>,
}

pub struct Play {
    pub pipe: File,
    pub mode: &'static Mode,
    pub dice: Dice,
    pub open: Vec<Open>,
    /// Every message it was ever sent, each as a line of text.
    pub heard: Vec<String>,
}

impl Play {
    pub fn new(pipe: File, mode: &'static Mode, dice: Dice) -> Self {
        Self {
            pipe,
            mode,
            dice,
            open: Vec::new(),
            heard: Vec::new(),
        }
    }

    pub fn hear(&mut self, message: &ToWorker) {
        let text = match message {
            ToWorker::Prepare(job) => {
                let input = String::from_utf8_lossy(&job.input);
                format!("Prepare {} {}", job.seq, input.escape_debug())
            }
            other => format!("{other:?}"),
        };
        self.heard.push(text);
    }

    pub fn on(&mut self, message: ToWorker) {
        match message {
            ToWorker::Inspect => self.send(&FromWorker::Inspected(facts(0))),
            ToWorker::Load(load) => self.on_load(&load),
            ToWorker::Prepare(job) => self.on_prepare(job),
            ToWorker::Begin { seq } => self.on_begin(seq),
            ToWorker::Cancel { seq } => self.on_cancel(seq),
            ToWorker::Bench { seq, .. } => self.send(&FromWorker::Benched {
                seq,
                prefill: 1_000_000,
                decode: 100_000,
            }),
            ToWorker::Shutdown => std::process::exit(0),
            _ => {}
        }
    }

    /// Says that it is sealed, and is not.
    pub fn on_unsealed(&mut self) {
        self.say_sealed(1);
    }

    fn on_load(&mut self, load: &Load) {
        if self.mode.when == When::Unsealed {
            (self.mode.act)(self, 0);
            self.say_sealed(2);
        } else {
            match seal::stage_two() {
                Ok(sealed) => self.send(&FromWorker::from(sealed)),
                Err(_) => std::process::exit(2),
            }
            if self.mode.when == When::Load {
                (self.mode.act)(self, 0);
            }
        }
        let given = load.n_ctx.min(CONTEXT);
        self.send(&FromWorker::Loaded(facts(given)));
        if self.mode.when == When::Loaded {
            (self.mode.act)(self, 0);
        }
    }

    fn on_prepare(&mut self, job: Prepare) {
        let seq = job.seq;
        self.open.push(Open {
            seq,
            most: job.max_tokens,
            input: job.input,
        });
        if self.mode.when == When::Prepare {
            (self.mode.act)(self, seq);
        } else {
            self.send(&FromWorker::Prepared { seq, n_in: PROMPT });
        }
    }

    fn on_begin(&mut self, seq: u64) {
        if matches!(self.mode.when, When::Answer | When::Deaf) {
            (self.mode.act)(self, seq);
        } else {
            self.answer(seq, "ok ");
        }
    }

    fn on_cancel(&mut self, seq: u64) {
        if self.mode.when != When::Deaf && self.is_open(seq) {
            self.finish(seq, CANCELLED, 0);
        }
    }

    pub fn is_open(&self, seq: u64) -> bool {
        self.open.iter().any(|open| open.seq == seq)
    }

    /// As an honest worker answers.
    pub fn answer(&mut self, seq: u64, word: &str) {
        let open = self.open.iter().find(|open| open.seq == seq);
        let count = open.map_or(0, |open| open.most.min(ANSWER));
        for id in 0..count {
            self.token(seq, id, word.as_bytes());
        }
        self.finish(seq, WHOLE, count);
    }

    pub fn token(&mut self, seq: u64, id: u32, bytes: &[u8]) {
        self.send(&FromWorker::Tokens {
            seq,
            ids: vec![id],
            bytes: bytes.to_vec(),
            logprobs: Vec::new(),
        });
    }

    pub fn finish(&mut self, seq: u64, finish: u8, n_out: u32) {
        self.open.retain(|open| open.seq != seq);
        self.send(&FromWorker::Finished(ended(seq, finish, n_out)));
    }

    fn say_sealed(&mut self, stage: u8) {
        self.send(&FromWorker::Sealed {
            stage,
            landlock: 2,
            seccomp: true,
        });
    }

    pub fn send(&mut self, message: &FromWorker) {
        match wire::encode(message) {
            Ok(frame) => self.send_bytes(&frame),
            Err(_) => std::process::exit(3),
        }
    }

    /// A daemon that hung up has done what it can.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        if self.pipe.write_all(bytes).is_err() {
            std::process::exit(0);
        }
    }

    /// Neither speaks nor hears, nor leaves.
    pub fn be_silent(&mut self) -> ! {
        loop {
            self.wait(Duration::from_secs(1));
        }
    }

    /// Waits on a futex: the second seal forbids to sleep.
    pub fn wait(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while let left = until.saturating_duration_since(Instant::now())
            && !left.is_zero()
        {
            thread::park_timeout(left);
        }
    }
}

pub fn ended(seq: u64, finish: u8, n_out: u32) -> Finished {
    Finished {
        seq,
        finish,
        n_out,
        tail: Vec::new(),
        prefill_us: 10,
        decode_us: 10,
        min_gap: 0,
        reused: 0,
        prefilled: PROMPT,
    }
}

/// What an honest worker would say of a very small model.
pub fn facts(n_ctx: u32) -> ModelFacts {
    ModelFacts {
        arch: "llama".to_owned(),
        quant: "F16".to_owned(),
        name: "none".to_owned(),
        n_params: 1_000,
        n_ctx_train: CONTEXT,
        n_ctx,
        n_vocab: 256,
        template: None,
        licence: None,
        size: 1_000,
        backend: "cpu".to_owned(),
        build: "hostile".to_owned(),
        shape: Shape {
            layers: 1,
            embedding: 8,
            feed_forward: 8,
            heads: 1,
            key_length: 8,
            value_length: 8,
            keys: 8,
            values: 8,
            layer_bytes: vec![1_000],
            ..Shape::default()
        },
        is_adapter: false,
    }
}
