//! A loaded model that answers many sequences at a time, step by step.
//!
//! A step is one decode call over all that run ([`crate::scheduler`]), so whoever drives the engine can
//! cancel, pause or give way between any two; an [`Interrupt`] stops even a running step.
//!
//! Invariant: the next token depends on the ids so far, the sampler and the seed only; resuming
//! after n ids continues as the unbroken answer would, up to near-ties (see [`crate::near_tie`]).
//! Absent by design: pipes and clocks other than for timings; any silent truncation.

use std::cell::OnceCell;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use substrate_sandbox::wire::{
    Failure, Finished, Input, KvType, Message, ModelFacts, OnGpu, Prepare, Shape, input,
};
use zeroize::Zeroizing;

use crate::conversation::{with_marks, with_tools_in_words};
use crate::ffi::{self, Context, EngineError, Interrupt, MAX_BATCH, MAX_LANES, Model, Size};
use crate::grammar::Grammars;
use crate::header;
use crate::lookup;
use crate::prompt::{Reading, wipe, wipe_message};
use crate::refusal::Refusal;
use crate::scheduler::{Event, SPARE_LANES, Scheduler};
use crate::sequence::Sequence;
use crate::sight;
use crate::template::{Template, TemplateError};

/// The revision of the engine that this program carries.
pub const ENGINE_REVISION: &str = "sys-0.1.161";

/// A backend's name with the processor it needs beside it.
macro_rules! on_processor {
    ($backend:literal) => {
        if cfg!(target_arch = "x86_64") {
            concat!($backend, "/x86-64-v3")
        } else {
            $backend
        }
    };
}
/// What computes, and the least processor it needs: ggml's default build uses AVX2, FMA and F16C.
pub const BACKEND: &str = if cfg!(feature = "cuda") {
    on_processor!("cuda")
} else if cfg!(feature = "vulkan") {
    on_processor!("vulkan")
} else if cfg!(feature = "metal") {
    on_processor!("metal")
} else if cfg!(feature = "rocm") {
    on_processor!("rocm")
} else {
    on_processor!("cpu")
};

// A job that asks for one class is answered by no other, and an engine of two backends would be of neither.
const _: () = assert!(
    cfg!(feature = "cuda") as u8
        + cfg!(feature = "vulkan") as u8
        + cfg!(feature = "metal") as u8
        + cfg!(feature = "rocm") as u8
        <= 1,
    "one of the features cuda, vulkan, metal and rocm at a time: a worker is of one class (docs/gpu.md)"
);

/// Context of a model that names none: llama.cpp's own default.
const DEFAULT_CONTEXT: u32 = 4096;

/// llama.cpp rounds the cells of a lane up to this.
const CELL_PADDING: u32 = 256;

/// Rounds of a measurement, and the time after which none is begun: a first prompt waits for it.
const BENCH_ROUNDS: u32 = 3;
const BENCH_TIME: Duration = Duration::from_secs(3);

/// Sequences that may run at once, whoever asks for more: the lanes of the context, less the spare one.
pub const MAX_SLOTS: u32 = MAX_LANES - SPARE_LANES;

/// How to load a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Context of one sequence; 0, or more than that, is as trained.
    pub n_ctx: u32,
    /// Sequences that may run at once.
    pub slots: u32,
    /// Cells of the cache, of all sequences together; never fewer than one context.
    pub cells: u32,
    /// Whether each sequence may get cells of its own for a whole context once many run; then `cells` bounds the kept prefixes
    /// alone.
    pub apart: bool,
    /// Rows of one decode that may have logits, if more than there are lanes: for measurements.
    pub outputs: u32,
    /// Whether an answer that runs alone guesses its next tokens: the same answer, sooner where it repeats what was read.
    pub prompt_lookup: bool,
    /// Threads for single tokens.
    pub threads: u32,
    /// Threads for prefill.
    pub batch_threads: u32,
    /// Threads in the pool: the most the two above can ever be raised to.
    pub pool: u32,
    /// Whether llama.cpp may fuse attention, as it does by default. Fused attention needs far less
    /// memory in long contexts; plain attention rounds alike in every build of the same source.
    pub flash_attention: bool,
    /// How the numbers of the cache are kept.
    pub kv: KvType,
    /// Which layers a graphics processor holds, if any.
    pub gpu: Option<OnGpu>,
    /// Path of the projector, if the model is to see images.
    pub projector: Option<String>,
    /// Path of a LoRA adapter to lay over the weights.
    pub adapter: Option<String>,
}

impl Default for LoadOptions {
    /// One sequence, one thread.
    fn default() -> LoadOptions {
        LoadOptions {
            n_ctx: 0,
            slots: 1,
            cells: 0,
            apart: false,
            outputs: 0,
            prompt_lookup: false,
            threads: 1,
            batch_threads: 1,
            pool: 1,
            flash_attention: true,
            kv: KvType::F16,
            gpu: None,
            projector: None,
            adapter: None,
        }
    }
}

/// A loaded model, its context and its chat template.
pub struct Engine {
    context: Context,
    scheduler: Scheduler,
    template: Result<Template, TemplateError>,
    grammars: OnceCell<Grammars>,
    facts: ModelFacts,
}

impl Engine {
    /// Checks the header of the file at `path`, then loads it.
    pub fn load(
        path: &str,
        options: &LoadOptions,
        interrupt: Interrupt,
    ) -> Result<Engine, Refusal> {
        let (header, model) = open(path, options.gpu)?;
        Engine::over(model, &header, options, interrupt)
    }

    /// An engine over an opened model.
    pub fn over(
        model: Arc<Model>,
        header: &header::Header,
        options: &LoadOptions,
        interrupt: Interrupt,
    ) -> Result<Engine, Refusal> {
        check_cache(&header.shape, options)?;
        if !model.is_decoder_only() {
            let detail = format!("the architecture {} is not a plain decoder", header.arch);
            return Err(Refusal::new(Failure::Unsupported, detail));
        }
        let pool = options.pool.max(options.threads).max(options.batch_threads);
        let n_ctx = context_of(options.n_ctx, model.n_ctx_train());
        let slots = options.slots.clamp(1, MAX_SLOTS);
        let lanes = slots + SPARE_LANES;
        let cells = options.cells.max(n_ctx);
        let size = Size {
            cells,
            lanes,
            outputs: options.outputs.max(1 + lookup::MOST as u32),
            kv: options.kv,
            ..Size::default()
        };
        let wider = Size {
            cells: lanes.saturating_mul(n_ctx.next_multiple_of(CELL_PADDING)),
            apart: true,
            ..size
        };
        // Cells that are not plain are copied and shared otherwise.
        let may_widen = options.apart && slots > 1 && model.has_plain_cache();
        let mut context = Context::new(
            model.clone(),
            size,
            pool,
            options.flash_attention,
            interrupt,
        )?;
        context.set_threads(options.threads, options.batch_threads);
        if let Some(path) = &options.adapter {
            lay_over(&mut context, header, path)?;
        }
        warm_up(&mut context)?;
        if let Some(path) = &options.projector {
            sight::open(&mut context, path, options.flash_attention)?;
            context.set_threads(options.threads, options.batch_threads);
        }
        let template = compile_template(&model);
        let facts = facts_of(&model, header, n_ctx);
        let reuse = model.has_plain_cache();
        let wider = may_widen.then_some(wider);
        let scheduler = Scheduler::new(slots, lanes, context.cells(), wider, reuse);
        Ok(Engine {
            scheduler: match options.prompt_lookup {
                true => scheduler.that_guesses(),
                false => scheduler,
            },
            context,
            template,
            grammars: OnceCell::new(),
            facts,
        })
    }

    /// What the model file says about itself.
    pub fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    /// The vocabulary and weights.
    pub fn model(&self) -> &Arc<Model> {
        self.context.model()
    }

    /// The context, for measurements.
    pub fn context(&mut self) -> &mut Context {
        &mut self.context
    }

    /// Uses this many threads from the next step on.
    pub fn set_threads(&mut self, decode: u32, batch: u32) {
        self.context.set_threads(decode, batch);
    }

    /// Renders an input as the model will read it.
    pub fn render(&self, input: &Input) -> Result<Vec<u8>, Refusal> {
        match &input.prompt {
            input::Prompt::Text { text, .. } => Ok(text.as_bytes().to_vec()),
            input::Prompt::Texts { .. } => Err(Refusal::new(
                Failure::Unsupported,
                "this model answers prompts, and makes no vectors of texts",
            )),
            input::Prompt::Chat(messages) => self.render_chat(messages, input),
        }
    }

    fn render_chat(&self, messages: &[Message], input: &Input) -> Result<Vec<u8>, Refusal> {
        let own = input.template.as_deref();
        let own = own.map(|source| compile(source, self.model()));
        let own = own.transpose()?;
        let template = match &own {
            Some(own) => own,
            None => self.template.as_ref().map_err(copy_error)?,
        };
        let rendered = match input.tools.as_deref() {
            Some(tools) if !template.takes_tools() => {
                let mut told = with_tools_in_words(messages, tools)?;
                let rendered = template.render(&told, None, input.thinking, true);
                told.iter_mut().for_each(wipe_message);
                rendered
            }
            tools => template.render(messages, tools, input.thinking, true),
        };
        let rendered = match own {
            Some(_) => rendered.map_err(TemplateError::without_words),
            None => rendered,
        }?;
        Ok(self.without_doubled_ends(&rendered).to_vec())
    }

    /// An input as it will be read: its tokens, and the images among them.
    pub fn read(&self, input: &Input) -> Result<Reading, Refusal> {
        match &input.prompt {
            input::Prompt::Chat(messages)
                if messages.iter().any(|said| !said.images.is_empty()) =>
            {
                self.read_images(input, messages)
            }
            _ => Ok(Reading::of(self.tokenize(input)?)),
        }
    }

    fn read_images(&self, input: &Input, messages: &[Message]) -> Result<Reading, Refusal> {
        let Some(projector) = self.context.projector() else {
            return Err(Refusal::new(
                Failure::Unsupported,
                "this model sees no images: it has no projector",
            ));
        };
        let images = sight::decode(messages)?;
        let (mut marked, mark) = with_marks(
            messages,
            &[input.tools.as_deref(), input.template.as_deref()],
        );
        let text = self.render_chat(&marked, input);
        marked.iter_mut().for_each(wipe_message);
        sight::read(projector, &Zeroizing::new(text?), &mark, &images)
    }

    /// Token ids of an input without images.
    pub fn tokenize(&self, input: &Input) -> Result<Vec<u32>, Refusal> {
        let special = match &input.prompt {
            input::Prompt::Text { special, .. } => *special,
            input::Prompt::Chat(_) | input::Prompt::Texts { .. } => true,
        };
        let text = Zeroizing::new(self.render(input)?);
        let mut ids = self.model().tokenize(&text, true, special)?;
        if ids.is_empty() {
            ids.extend(self.model().bos());
        }
        if ids.is_empty() {
            return Err(Refusal::new(Failure::BadInput, "the prompt is empty"));
        }
        Ok(ids)
    }

    /// Parses, renders and tokenizes a job; nothing is computed yet.
    pub fn prepare(&self, job: &Prepare) -> Result<Sequence, Refusal> {
        let mut input = Input::from_cbor_bytes(&job.input)?;
        let sequence = self.prepare_input(&input, job);
        wipe(&mut input);
        sequence
    }

    fn prepare_input(&self, input: &Input, job: &Prepare) -> Result<Sequence, Refusal> {
        let grammar = match &input.schema {
            Some(schema) => Some(self.grammars()?.schema(schema)?),
            None => None,
        };
        let prompt = self.read(input)?;
        // One place must stay for the first token of the answer.
        let used = (prompt.ids.len() + job.resume.len()).saturating_add(1);
        let (used, limit) = (u32::try_from(used).unwrap_or(u32::MAX), self.facts.n_ctx);
        if used > limit {
            let detail = format!("the prompt needs {used} of {limit} tokens");
            return Err(Refusal::new(
                Failure::ContextOverflow { used, limit },
                detail,
            ));
        }
        Sequence::new(self.model(), prompt, input, grammar, job, limit)
    }

    /// The vocabulary as grammars see it, read when the first schema comes.
    fn grammars(&self) -> Result<&Grammars, Refusal> {
        if self.grammars.get().is_none() {
            // One thread drives an engine, so nobody has set it meanwhile.
            let _ = self.grammars.set(Grammars::over(self.model())?);
        }
        let grammars = self.grammars.get();
        grammars.ok_or_else(|| Refusal::new(Failure::Internal, "no vocabulary"))
    }

    /// What runs and what waits.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Takes a sequence in.
    pub fn submit(&mut self, sequence: Sequence) {
        self.scheduler.submit(sequence);
    }

    /// More frames of `seq` may be sent.
    pub fn grant(&mut self, seq: u64, frames: u32) {
        self.scheduler.grant(seq, frames);
    }

    /// `seq` waits, or goes on.
    pub fn pause(&mut self, seq: u64, paused: bool) {
        self.scheduler.pause(seq, paused);
    }

    /// Ends `seq`, if it runs or waits.
    pub fn cancel(&mut self, seq: u64) -> Option<Finished> {
        self.scheduler.cancel(&mut self.context, seq)
    }

    /// Lets in who fits, and names those whose cancellation should stop the step that follows.
    pub fn admit(&mut self) -> Vec<u64> {
        self.scheduler.admit(&mut self.context);
        self.scheduler.worth_interrupting()
    }

    /// Gives every sequence cells of its own now, if it may get them at all; otherwise that waits until many run.
    pub fn spread(&mut self) {
        self.scheduler.spread(&mut self.context);
    }

    /// Does what was put off while answers ran; for when nothing does.
    pub fn settle(&mut self) {
        self.scheduler.settle(&mut self.context);
    }

    /// One step of everything that runs.
    pub fn step(&mut self, events: &mut Vec<Event>) {
        self.scheduler.step(&mut self.context, events);
    }

    /// Runs a whole sequence, handing each event to `each`.
    ///
    /// # Errors
    /// The engine's, which ended the sequence.
    pub fn run(
        &mut self,
        mut sequence: Sequence,
        mut each: impl FnMut(&Event),
    ) -> Result<(), EngineError> {
        sequence.grant(u32::MAX);
        self.submit(sequence);
        let mut events = Vec::new();
        while !self.scheduler.is_idle() {
            self.step(&mut events);
            for event in events.drain(..) {
                if let Event::Failed { why, .. } = event {
                    return Err(why);
                }
                each(&event);
            }
        }
        Ok(())
    }

    /// Measures prefill and decode over made-up tokens, in millitokens per second: the best of some rounds, as what
    /// else the machine does only ever slows one.
    pub fn bench(&mut self, prefill: u32, decode: u32) -> Result<(u64, u64), EngineError> {
        let room = self.facts.n_ctx.saturating_sub(1);
        let prefill = prefill.clamp(1, room);
        let decode = decode.min(room - prefill);
        self.scheduler.forget_prefixes(&mut self.context);
        let start = Instant::now();
        let mut best = (0, 0);
        for _ in 0..BENCH_ROUNDS {
            let rates = self.bench_once(prefill, decode)?;
            best = (best.0.max(rates.0), best.1.max(rates.1));
            if start.elapsed() >= BENCH_TIME {
                break;
            }
        }
        Ok(best)
    }

    fn bench_once(&mut self, prefill: u32, decode: u32) -> Result<(u64, u64), EngineError> {
        let n_vocab = self.facts.n_vocab;
        // A stride that is prime visits the vocabulary evenly and the same way on every machine.
        let ids: Vec<u32> = (0..prefill)
            .map(|i| i.wrapping_mul(7919) % n_vocab)
            .collect();
        self.context.forget();
        let start = Instant::now();
        for chunk in ids.chunks(MAX_BATCH) {
            self.context.decode(chunk)?;
        }
        let prefilled = start.elapsed();
        let start = Instant::now();
        for i in 0..decode {
            self.context.decode(&[i.wrapping_mul(104_729) % n_vocab])?;
        }
        let decoded = start.elapsed();
        self.context.forget();
        Ok((rate(prefill, prefilled), rate(decode, decoded)))
    }

    /// Tokenizing adds the ends that the template has already written: write them once.
    fn without_doubled_ends<'a>(&self, mut text: &'a [u8]) -> &'a [u8] {
        let model = self.model();
        let bos = special_text(model, model.bos().filter(|_| model.adds_bos()));
        if !bos.is_empty() {
            text = text.strip_prefix(bos.as_bytes()).unwrap_or(text);
        }
        let eos = special_text(model, model.eos().filter(|_| model.adds_eos()));
        if !eos.is_empty() {
            text = text.strip_suffix(eos.as_bytes()).unwrap_or(text);
        }
        text
    }
}

/// Checks the header of the file at `path`, then loads its weights.
pub fn open(path: &str, gpu: Option<OnGpu>) -> Result<(header::Header, Arc<Model>), Refusal> {
    require_processor()?;
    let (header, _) = read_header(path)?;
    Ok((header, Model::load_on(path, gpu)?))
}

/// Reads the header of the model at `path` only.
pub fn inspect(path: &str) -> Result<ModelFacts, Refusal> {
    let (header, size) = read_header(path)?;
    let file_type = header
        .file_type
        .map_or_else(|| "unknown".into(), ffi::quant_name);
    Ok(ModelFacts {
        quant: file_type,
        name: header.name.unwrap_or_else(|| header.arch.clone()),
        arch: header.arch,
        shape: on_the_wire(header.shape),
        n_params: header.n_params,
        n_ctx_train: header.n_ctx_train,
        n_ctx: 0,
        n_vocab: header.n_vocab,
        template: header.template,
        licence: header.licence,
        size,
        backend: BACKEND.into(),
        build: build(),
        is_adapter: header.is_adapter,
    })
}

/// The engine's own name for this build.
pub fn build() -> String {
    format!("{}+{ENGINE_REVISION}", ffi::version())
}

pub(crate) fn read_header(path: &str) -> Result<(header::Header, u64), Refusal> {
    let refuse = |error: std::io::Error| {
        Refusal::new(
            Failure::BadModel,
            format!("the model cannot be read: {}", error.kind()),
        )
    };
    let mut file = File::open(path).map_err(refuse)?;
    let header = header::read(&mut file, ffi::tensor_type)?;
    let size = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map_err(refuse)?;
    Ok((header, size))
}

/// The context of one sequence: what was asked for, but no more than the model was trained for.
pub(crate) fn context_of(asked: u32, trained: u32) -> u32 {
    match (asked, trained) {
        (0, 0) => DEFAULT_CONTEXT,
        (0, trained) => trained,
        (asked, 0) => asked,
        (asked, trained) => asked.min(trained),
    }
}

pub(crate) fn facts_of(model: &Model, header: &header::Header, n_ctx: u32) -> ModelFacts {
    ModelFacts {
        arch: header.arch.clone(),
        quant: model.quant(),
        name: header.name.clone().unwrap_or_else(|| header.arch.clone()),
        n_params: model.n_params(),
        n_ctx_train: model.n_ctx_train(),
        n_ctx,
        n_vocab: model.n_vocab(),
        template: header.template.clone(),
        licence: header.licence.clone(),
        size: model.tensor_bytes(),
        backend: BACKEND.into(),
        build: build(),
        shape: on_the_wire(header.shape.clone()),
        is_adapter: header.is_adapter,
    }
}

fn on_the_wire(shape: header::shape::Shape) -> Shape {
    Shape {
        layers: shape.layers,
        embedding: shape.embedding,
        feed_forward: shape.feed_forward,
        heads: shape.heads,
        key_length: shape.key_length,
        value_length: shape.value_length,
        keys: shape.keys,
        values: shape.values,
        window: shape.window,
        state: shape.state,
        layer_bytes: shape.layer_bytes,
        rest_bytes: shape.rest_bytes,
        repacked: shape.repacked,
    }
}

/// llama.cpp says of a cache it cannot make no more than that there is none, as if memory had run out.
fn check_cache(shape: &header::shape::Shape, options: &LoadOptions) -> Result<(), Refusal> {
    let name = options.kv.name();
    let refused = |detail: String| Err(Refusal::new(Failure::Unsupported, detail));
    if options.kv == KvType::F16 {
        return Ok(());
    }
    if !options.flash_attention {
        return refused(format!(
            "a cache of {name} needs flash attention, which is off"
        ));
    }
    let (block, _) = options.kv.block();
    let even = |length: u32| u64::from(length).is_multiple_of(block);
    if !even(shape.key_length) || !even(shape.value_length) {
        let widths = (shape.key_length, shape.value_length);
        return refused(format!(
            "a cache of {name} holds blocks of {block}, and the keys and values of this model are {} and {} wide; use f16",
            widths.0, widths.1
        ));
    }
    Ok(())
}

/// Starts every thread of the pool and touches every weight, before the second seal.
fn warm_up(context: &mut Context) -> Result<(), Refusal> {
    let model = context.model();
    let id = model.bos().or(model.eos()).unwrap_or(0);
    context.decode(&[id])?;
    context.forget();
    Ok(())
}

fn compile_template(model: &Model) -> Result<Template, TemplateError> {
    let source = model.chat_template().ok_or(TemplateError::None)?;
    compile(&source, model)
}

/// Checks the header of the adapter at `path`, then lays it over the model.
fn lay_over(context: &mut Context, model: &header::Header, path: &str) -> Result<(), Refusal> {
    let refuse = |why: String| Refusal::new(Failure::BadModel, why);
    let (header, _) = read_header(path)?;
    if !header.is_adapter {
        return Err(refuse("the adapter's file is none".to_owned()));
    }
    if header.arch != model.arch {
        return Err(refuse(format!(
            "the adapter is for models of architecture {}, and this one is of {}",
            header.arch, model.arch
        )));
    }
    Ok(context.lay_over(path)?)
}

/// Compiles a template for a model's special tokens.
fn compile(source: &str, model: &Model) -> Result<Template, TemplateError> {
    let (bos, eos) = (
        special_text(model, model.bos()),
        special_text(model, model.eos()),
    );
    Template::compile(source, &bos, &eos)
}

fn special_text(model: &Model, id: Option<u32>) -> String {
    let mut bytes = Vec::new();
    if let Some(id) = id
        && model.piece(id, true, &mut bytes).is_err()
    {
        bytes.clear();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn copy_error(error: &TemplateError) -> Refusal {
    Refusal::new(Failure::BadTemplate, error.to_string())
}

pub(crate) fn rate(tokens: u32, time: Duration) -> u64 {
    let nanoseconds = time.as_nanos().max(1);
    u64::try_from(u128::from(tokens) * 1_000_000_000_000 / nanoseconds).unwrap_or(u64::MAX)
}

/// Refuses a processor without the instructions ggml was compiled for: it would die of SIGILL.
fn require_processor() -> Result<(), Refusal> {
    #[cfg(target_arch = "x86_64")]
    if !(std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("f16c")
        && std::arch::is_x86_feature_detected!("bmi2"))
    {
        let detail = "this build needs a processor of level x86-64-v3 (AVX2, FMA, F16C, BMI2)";
        return Err(Refusal::new(Failure::Unsupported, detail));
    }
    Ok(())
}
