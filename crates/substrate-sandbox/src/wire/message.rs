//! The closed sets of messages in each direction, in plain integers and bytes.
//!
//! Invariant: every message about a sequence carries its id, so that batching needs no new wire.
//! Invariant: `Debug` shows kinds, ids and sizes; text and token ids never reach a log through it.
//!
//! Absent by design: paths, descriptors and anything that names a file. The model is always
//! `/model.gguf` in the worker's own root, its projector `/mmproj.gguf` and its adapter `/adapter.gguf`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Frames of one sequence a worker may send before the first [`ToWorker::Grant`].
///
/// A third of a second of the fastest answers measured: enough that a grant on its way never stops the
/// sampler, little enough that an answer nobody reads stops soon and costs its reader little memory.
/// `Prepared`, `Finished` and `Failed` need no grant.
pub const INITIAL_GRANT: u32 = 32;

/// What the daemon asks of a worker.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Load `/model.gguf`; the second seal happens after this. Answered by [`FromWorker::Loaded`].
    Load(Load),
    /// Read the header of `/model.gguf` only, instead of loading. Answered by
    /// [`FromWorker::Inspected`].
    Inspect,
    /// Parse, render and tokenise a job. Answered by [`FromWorker::Prepared`].
    Prepare(Prepare),
    /// Start prefill of a prepared sequence.
    Begin {
        /// Sequence id.
        seq: u64,
    },
    /// Stop a sequence within a token. Answered by [`FromWorker::Finished`] with finish 3.
    Cancel {
        /// Sequence id.
        seq: u64,
    },
    /// Stop sampling until [`ToWorker::Resume`]: back pressure from a slow reader.
    Pause {
        /// Sequence id.
        seq: u64,
    },
    /// Go on after [`ToWorker::Pause`].
    Resume {
        /// Sequence id.
        seq: u64,
    },
    /// The daemon has taken this many more frames of a sequence: so many may follow.
    Grant {
        /// Sequence id.
        seq: u64,
        /// Frames.
        frames: u32,
    },
    /// Change the number of threads, live.
    Threads {
        /// Threads for decode.
        decode: u32,
        /// Threads for prefill.
        batch: u32,
    },
    /// Turn text into ids. Answered by [`FromWorker::Tokenized`].
    Tokenize {
        /// Sequence id.
        seq: u64,
        /// The text.
        text: String,
        /// Whether special tokens in the text count as such.
        special: bool,
    },
    /// Turn ids into bytes. Answered by [`FromWorker::Detokenized`].
    Detokenize {
        /// Sequence id.
        seq: u64,
        /// The ids.
        ids: Vec<u32>,
    },
    /// Render an input through the model's chat template. Answered by [`FromWorker::Rendered`].
    Render {
        /// Sequence id.
        seq: u64,
        /// Canonical bytes of an [`Input`](super::Input).
        input: Vec<u8>,
    },
    /// Measure throughput. Answered by [`FromWorker::Benched`].
    Bench {
        /// Sequence id.
        seq: u64,
        /// Tokens to prefill.
        prefill: u32,
        /// Tokens to decode.
        decode: u32,
    },
    /// Leave with exit code 0.
    Shutdown,
}

/// How to load the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Context of one sequence in tokens; 0 means the model's own.
    pub n_ctx: u32,
    /// Sequences that may run at once.
    pub slots: u32,
    /// Tokens the cache holds for all sequences together; 0 means those of one context.
    pub cells: u32,
    /// Threads for decode.
    pub threads: u32,
    /// Threads for prefill.
    pub batch_threads: u32,
    /// How the cache's numbers are kept.
    pub kv: KvType,
    /// Whether attention may be fused; a cache that is not [`KvType::F16`] needs it.
    pub flash_attention: bool,
    /// Whether `/mmproj.gguf` is there and to be loaded as well: the part that sees images.
    pub projector: bool,
    /// Whether each sequence may get cells of its own for a whole context once many run, instead of a part of `cells`, which
    /// then bounds the kept prefixes alone.
    pub apart: bool,
    /// Whether an answer that runs alone guesses its next tokens by prompt lookup.
    pub prompt_lookup: bool,
    /// Whether `/adapter.gguf` is there and to be laid over the weights.
    pub adapter: bool,
    /// Which layers a graphics processor holds; `None`: all are in memory.
    pub gpu: Option<OnGpu>,
}

/// Layers on a graphics processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnGpu {
    /// Which, in the engine's own order.
    pub device: u32,
    /// How many, from the last; more than the model has, all and its output too.
    pub layers: u32,
}

/// How the numbers of the key/value cache are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum KvType {
    /// Half-precision floats.
    #[default]
    F16,
    /// Blocks of 32 in 34 bytes.
    Q8_0,
    /// Blocks of 32 in 18 bytes.
    Q4_0,
}

impl KvType {
    /// Numbers of one block, and its bytes.
    pub const fn block(self) -> (u64, u64) {
        match self {
            Self::F16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
        }
    }

    /// Its name in settings, llama.cpp's and Ollama's own.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }
}

/// One sequence to be generated.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// Sequence id, chosen by the daemon.
    pub seq: u64,
    /// Canonical bytes of an [`Input`](super::Input); parsed only inside the wall.
    pub input: Vec<u8>,
    /// How to sample.
    pub sampler: Sampler,
    /// The seed of this choice (`seed_i`).
    pub seed: [u8; 32],
    /// Ids already generated elsewhere, to go on after.
    pub resume: Vec<u32>,
    /// At most this many ids in all, the resumed ones counted.
    pub max_tokens: u32,
    /// Whose cached prefixes it may use and whose its own become; nobody else's are ever looked at.
    pub partition: [u8; 32],
    /// Whether cached prefixes may be used at all. They round differently from a prompt read in
    /// one piece, so a job that must be repeatable to the letter does without.
    pub reuse: bool,
}

/// The sampler of a job manifest, field by field; fractions are millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sampler {
    /// Temperature × 10⁶; 0 is argmax.
    pub temperature: u64,
    /// Keep the k likeliest; 0 is off.
    pub top_k: u32,
    /// Nucleus × 10⁶; 1,000,000 is off.
    pub top_p: u64,
    /// Minimum relative probability × 10⁶; 0 is off.
    pub min_p: u64,
    /// Typical sampling × 10⁶; 1,000,000 is off.
    pub typical_p: u64,
    /// How many last tokens the penalties see; −1 is the whole context.
    pub repeat_last_n: i32,
    /// Repeat penalty × 10⁶; 1,000,000 is off.
    pub repeat: u64,
    /// Presence penalty × 10⁶.
    pub presence: i64,
    /// Frequency penalty × 10⁶.
    pub frequency: i64,
    /// Number of choices the job asked for.
    pub n: u32,
    /// How many alternatives to report with each token, if any are wanted.
    pub top_logprobs: Option<u32>,
}

/// What a worker tells the daemon.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorker {
    /// A seal is in place.
    Sealed {
        /// 1 before any untrusted byte, 2 after loading.
        stage: u8,
        /// 0 none, 1 partial, 2 full.
        landlock: u8,
        /// Whether the system call filter of this stage is on.
        seccomp: bool,
    },
    /// The model is loaded.
    Loaded(ModelFacts),
    /// The model's header was read.
    Inspected(ModelFacts),
    /// A sequence is ready to begin.
    Prepared {
        /// Sequence id.
        seq: u64,
        /// Tokens of the prompt.
        n_in: u32,
    },
    /// Prefill went on.
    Prefilled {
        /// Sequence id.
        seq: u64,
        /// Tokens prefilled so far.
        n: u32,
    },
    /// Tokens were sampled.
    Tokens {
        /// Sequence id.
        seq: u64,
        /// The ids, in order.
        ids: Vec<u32>,
        /// Text released now: whole UTF-8 only, so it may lag behind the ids.
        bytes: Vec<u8>,
        /// One entry per id if the sampler asked for them, else empty.
        logprobs: Vec<TokenLogprob>,
    },
    /// One text's vector. Rows come in the order of the texts; each counts as a token of the sequence.
    Row {
        /// Sequence id.
        seq: u64,
        /// Which text, from 0.
        row: u32,
        /// Its components: f32, little-endian, of length 1 together (L2).
        bytes: Vec<u8>,
    },
    /// A sequence ended.
    Finished(Finished),
    /// Answer to [`ToWorker::Tokenize`].
    Tokenized {
        /// Sequence id.
        seq: u64,
        /// The ids.
        ids: Vec<u32>,
    },
    /// Answer to [`ToWorker::Detokenize`].
    Detokenized {
        /// Sequence id.
        seq: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Answer to [`ToWorker::Render`].
    Rendered {
        /// Sequence id.
        seq: u64,
        /// The rendered prompt.
        text: String,
    },
    /// Answer to [`ToWorker::Bench`], in millitokens per second.
    Benched {
        /// Sequence id.
        seq: u64,
        /// Prefill rate.
        prefill: u64,
        /// Decode rate.
        decode: u64,
    },
    /// Something could not be done.
    Failed {
        /// The sequence it concerns, or none if it concerns the worker.
        seq: Option<u64>,
        /// The kind of failure.
        why: Failure,
        /// Prose for the owner; holds no prompt text.
        detail: String,
    },
}

/// What a model file says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Architecture, such as `llama`.
    pub arch: String,
    /// Quantisation, such as `Q4_1`.
    pub quant: String,
    /// The file's own name for the model.
    pub name: String,
    /// Parameters.
    pub n_params: u64,
    /// Context the model was trained for.
    pub n_ctx_train: u32,
    /// Context as loaded; 0 when only inspected.
    pub n_ctx: u32,
    /// Size of the vocabulary.
    pub n_vocab: u32,
    /// The chat template, if the file carries one.
    pub template: Option<String>,
    /// The licence the file names, if any.
    pub licence: Option<String>,
    /// Bytes of weights.
    pub size: u64,
    /// What computes, such as `CPU`.
    pub backend: String,
    /// Engine revision.
    pub build: String,
    /// What its memory is reckoned from.
    pub shape: Shape,
    /// Whether the file is a LoRA adapter for a model of this architecture, and none itself.
    pub is_adapter: bool,
}

/// The dimensions of a model that say how much memory it needs. What the file does not say is 0; a worker can
/// lie about any of them, so whoever reckons with them saturates.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Shape {
    /// Layers.
    pub layers: u32,
    /// Width of what goes from layer to layer.
    pub embedding: u32,
    /// Width inside the feed-forward part of a layer, of all experts that compute a token.
    pub feed_forward: u32,
    /// Heads of attention, in the layer that has most.
    pub heads: u32,
    /// Width of one key.
    pub key_length: u32,
    /// Width of one value.
    pub value_length: u32,
    /// Numbers of the keys of one token, all layers together.
    pub keys: u64,
    /// Numbers of the values of one token, all layers together.
    pub values: u64,
    /// Tokens of the sliding window; 0 if there is none.
    pub window: u32,
    /// Bytes of state that a sequence has whatever its length, as recurrent layers do.
    pub state: u64,
    /// Bytes of tensors, layer by layer.
    pub layer_bytes: Vec<u64>,
    /// Bytes of the tensors that belong to no layer.
    pub rest_bytes: u64,
    /// Bytes of tensors that the engine copies into another order when it loads them.
    pub repacked: u64,
}

/// The log probability of one sampled token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The sampled id.
    pub id: u32,
    /// Natural log probability × 2¹⁶.
    pub logprob: i32,
    /// The likeliest alternatives: id, log probability × 2¹⁶, bytes.
    pub top: Vec<(u32, i32, Vec<u8>)>,
    /// The sampled token's own bytes.
    pub bytes: Vec<u8>,
}

/// How a sequence ended.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Sequence id.
    pub seq: u64,
    /// The receipt's finish code: 1 stop, 2 length, 3 cancelled, 4 failed.
    pub finish: u8,
    /// Ids generated, without the resumed ones.
    pub n_out: u32,
    /// Text held back for UTF-8 or a stop string that did not come.
    pub tail: Vec<u8>,
    /// Time spent in prefill.
    pub prefill_us: u64,
    /// Time spent in decode.
    pub decode_us: u64,
    /// Smallest gap between the two best logits over the sequence, × 2¹⁶.
    pub min_gap: i32,
    /// Tokens that were in the cache already and not computed again.
    pub reused: u32,
    /// Tokens of prompt and resumed answer that were computed.
    pub prefilled: u32,
}

/// Why a worker could not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The model file is damaged or lies about itself.
    BadModel,
    /// Memory ran out.
    OutOfMemory,
    /// The prompt does not fit.
    ContextOverflow {
        /// Tokens needed.
        used: u32,
        /// Tokens there are.
        limit: u32,
    },
    /// The input is not a canonical, bounded `Input`.
    BadInput,
    /// The chat template failed.
    BadTemplate,
    /// The model or option is known but not supported here.
    Unsupported,
    /// A fault of the worker itself.
    Internal,
}

impl fmt::Debug for ToWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(load) => f.debug_tuple("Load").field(load).finish(),
            Self::Inspect => f.write_str("Inspect"),
            Self::Prepare(prepare) => prepare.fmt(f),
            Self::Begin { seq } => write!(f, "Begin {{ seq: {seq} }}"),
            Self::Cancel { seq } => write!(f, "Cancel {{ seq: {seq} }}"),
            Self::Pause { seq } => write!(f, "Pause {{ seq: {seq} }}"),
            Self::Resume { seq } => write!(f, "Resume {{ seq: {seq} }}"),
            Self::Grant { seq, frames } => sized(f, "Grant", *seq, "frames", *frames as usize),
            Self::Threads { decode, batch } => {
                write!(f, "Threads {{ decode: {decode}, batch: {batch} }}")
            }
            Self::Tokenize { seq, text, .. } => sized(f, "Tokenize", *seq, "text", text.len()),
            Self::Detokenize { seq, ids } => sized(f, "Detokenize", *seq, "ids", ids.len()),
            Self::Render { seq, input } => sized(f, "Render", *seq, "input", input.len()),
            Self::Bench {
                seq,
                prefill,
                decode,
            } => {
                write!(
                    f,
                    "Bench {{ seq: {seq}, prefill: {prefill}, decode: {decode} }}"
                )
            }
            Self::Shutdown => f.write_str("Shutdown"),
        }
    }
}

impl fmt::Debug for Prepare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepare")
            .field("seq", &self.seq)
            .field("input", &self.input.len())
            .field("resume", &self.resume.len())
            .field("max_tokens", &self.max_tokens)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for FromWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sealed {
                stage,
                landlock,
                seccomp,
            } => write!(
                f,
                "Sealed {{ stage: {stage}, landlock: {landlock}, seccomp: {seccomp} }}"
            ),
            Self::Loaded(facts) => write!(f, "Loaded({} {})", facts.arch, facts.quant),
            Self::Inspected(facts) => write!(f, "Inspected({} {})", facts.arch, facts.quant),
            Self::Prepared { seq, n_in } => sized(f, "Prepared", *seq, "n_in", *n_in as usize),
            Self::Prefilled { seq, n } => sized(f, "Prefilled", *seq, "n", *n as usize),
            Self::Tokens { seq, ids, .. } => sized(f, "Tokens", *seq, "ids", ids.len()),
            Self::Row { seq, bytes, .. } => sized(f, "Row", *seq, "bytes", bytes.len()),
            Self::Finished(finished) => finished.fmt(f),
            Self::Tokenized { seq, ids } => sized(f, "Tokenized", *seq, "ids", ids.len()),
            Self::Detokenized { seq, bytes } => sized(f, "Detokenized", *seq, "bytes", bytes.len()),
            Self::Rendered { seq, text } => sized(f, "Rendered", *seq, "text", text.len()),
            Self::Benched {
                seq,
                prefill,
                decode,
            } => {
                write!(
                    f,
                    "Benched {{ seq: {seq}, prefill: {prefill}, decode: {decode} }}"
                )
            }
            Self::Failed { seq, why, detail } => {
                write!(
                    f,
                    "Failed {{ seq: {seq:?}, why: {why:?}, detail: {detail:?} }}"
                )
            }
        }
    }
}

impl fmt::Debug for TokenLogprob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenLogprob {{ top: {} }}", self.top.len())
    }
}

impl fmt::Debug for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finished")
            .field("seq", &self.seq)
            .field("finish", &self.finish)
            .field("n_out", &self.n_out)
            .field("prefill_us", &self.prefill_us)
            .field("decode_us", &self.decode_us)
            .field("min_gap", &self.min_gap)
            .field("reused", &self.reused)
            .field("prefilled", &self.prefilled)
            .finish_non_exhaustive()
    }
}

/// Writes a message that carries content as its kind, its sequence and a size.
fn sized(f: &mut fmt::Formatter<'_>, kind: &str, seq: u64, what: &str, size: usize) -> fmt::Result {
    write!(f, "{kind} {{ seq: {seq}, {what}: {size} }}")
}
