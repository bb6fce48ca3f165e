//! The one unsafe file: a thin safe wrapper over the llama.cpp calls that the worker makes.
//!
//! Invariants: a [`Context`] keeps its [`Model`] alive; every call that may throw runs under the
//! C++ `catch` of guard.cpp; a slice handed out borrows the context it came from.
//! Absent by design: sampling, templates and anything that decides; the llama.cpp log, which could
//! quote a prompt and is dropped except for the last error while a model loads.
#![allow(unsafe_code)]

pub mod allocator;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once};

use llama_cpp_sys_2 as sys;

/// Most tokens handed to one decode call, and llama.cpp's physical batch.
///
/// 512 is llama.cpp's own default: smaller loses prefill speed, larger grows the compute buffer.
pub const MAX_BATCH: usize = 512;

/// How long a kept load error may be.
const MAX_LOAD_ERROR: usize = 300;

/// Threads a pool may have: ggml's own limit is 512, and no CPU node gains past this.
const MAX_THREADS: u32 = 256;

/// Why a call into llama.cpp failed.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum EngineError {
    /// The model file was refused.
    #[error("the engine refused the model: {0}")]
    Model(String),
    /// Weights, cache or compute buffers did not fit.
    #[error("not enough memory for {0}")]
    Memory(&'static str),
    /// A text could not be tokenized.
    #[error("the text could not be tokenized")]
    Tokenize,
    /// A token id is not in the vocabulary.
    #[error("token {0} is not in the vocabulary")]
    UnknownToken(u32),
    /// The decode was interrupted on request.
    #[error("the decode was interrupted")]
    Aborted,
    /// There is no room left in the context.
    #[error("the context is full")]
    Full,
    /// llama.cpp returned an error code.
    #[error("the engine failed with code {0}")]
    Code(i32),
    /// llama.cpp threw a C++ exception.
    #[error("the engine threw an exception in {0}")]
    Threw(&'static str),
}

unsafe extern "C" {
    fn substrate_guard(
        call: unsafe extern "C-unwind" fn(*mut c_void),
        argument: *mut c_void,
    ) -> c_int;
}

// The calls that can throw, declared again with an ABI that allows unwinding: the bindings'
// plain "C" would make an exception undefined behaviour before it reaches guard.cpp.
unsafe extern "C-unwind" {
    #[link_name = "llama_model_load_from_file"]
    fn model_load(path: *const c_char, params: sys::llama_model_params) -> *mut sys::llama_model;
    #[link_name = "llama_init_from_model"]
    fn context_init(
        model: *mut sys::llama_model,
        params: sys::llama_context_params,
    ) -> *mut sys::llama_context;
    #[link_name = "llama_decode"]
    fn decode(context: *mut sys::llama_context, batch: sys::llama_batch) -> i32;
    #[link_name = "llama_get_logits_ith"]
    fn logits_ith(context: *mut sys::llama_context, index: i32) -> *mut f32;
    #[link_name = "llama_tokenize"]
    fn tokenize(
        vocab: *const sys::llama_vocab,
        text: *const c_char,
        length: i32,
        tokens: *mut sys::llama_token,
        room: i32,
        add_special: bool,
        parse_special: bool,
    ) -> i32;
    #[link_name = "llama_token_to_piece"]
    fn token_to_piece(
        vocab: *const sys::llama_vocab,
        token: sys::llama_token,
        buffer: *mut c_char,
        length: i32,
        lstrip: i32,
        special: bool,
    ) -> i32;
}

/// Runs `call`, turning a C++ exception into [`EngineError::Threw`].
fn guarded<R>(what: &'static str, call: impl FnOnce() -> R) -> Result<R, EngineError> {
    struct Slot<F, R> {
        call: Option<F>,
        result: Option<R>,
    }
    unsafe extern "C-unwind" fn run<F: FnOnce() -> R, R>(argument: *mut c_void) {
        // SAFETY: `argument` is the `slot` below, alive and borrowed by nobody else during the call.
        let slot = unsafe { &mut *argument.cast::<Slot<F, R>>() };
        if let Some(call) = slot.call.take() {
            slot.result = Some(call());
        }
    }
    fn runner<F: FnOnce() -> R, R>(_: &Slot<F, R>) -> unsafe extern "C-unwind" fn(*mut c_void) {
        run::<F, R>
    }
    let mut slot = Slot {
        call: Some(call),
        result: None,
    };
    let run = runner(&slot);
    // SAFETY: `run` was made for the type of `slot`, which outlives the call; guard.cpp calls it once.
    let code = unsafe { substrate_guard(run, (&raw mut slot).cast()) };
    slot.result
        .filter(|_| code == 0)
        .ok_or(EngineError::Threw(what))
}

static LOADING: AtomicBool = AtomicBool::new(false);
static LOAD_ERROR: Mutex<String> = Mutex::new(String::new());

unsafe extern "C" fn on_log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if level != sys::GGML_LOG_LEVEL_ERROR || !LOADING.load(Ordering::Relaxed) || text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives for the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    if let Ok(mut kept) = LOAD_ERROR.lock() {
        let room = MAX_LOAD_ERROR.saturating_sub(kept.len());
        kept.extend(text.trim().chars().filter(|c| !c.is_control()).take(room));
    }
}

fn start_backend() {
    static ONCE: Once = Once::new();
    // SAFETY: both calls are made once, before any other call into llama.cpp; the callback is 'static.
    ONCE.call_once(|| unsafe {
        sys::llama_log_set(Some(on_log), std::ptr::null_mut());
        sys::llama_backend_init();
    });
}

/// A loaded model: weights, vocabulary and header facts.
pub struct Model {
    raw: NonNull<sys::llama_model>,
    vocab: *const sys::llama_vocab,
    n_vocab: u32,
}

// SAFETY: after loading, every call made here only reads the model; llama.cpp's vocabulary calls
// are documented as thread-safe.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    /// Loads the model at `path`.
    pub fn load(path: &str) -> Result<Arc<Model>, EngineError> {
        start_backend();
        let refused = |why: &str| EngineError::Model(why.to_owned());
        let path = CString::new(path).map_err(|_| refused("the path holds a NUL byte"))?;
        if let Ok(mut kept) = LOAD_ERROR.lock() {
            kept.clear();
        }
        LOADING.store(true, Ordering::Relaxed);
        let raw = guarded("loading", || {
            // SAFETY: `path` is NUL-terminated and outlives the call; params are llama.cpp's own defaults.
            unsafe {
                let mut params = sys::llama_model_default_params();
                params.n_gpu_layers = 0;
                model_load(path.as_ptr(), params)
            }
        });
        LOADING.store(false, Ordering::Relaxed);
        let why = LOAD_ERROR
            .lock()
            .map(|kept| kept.clone())
            .unwrap_or_default();
        let raw = NonNull::new(raw?).ok_or_else(|| load_error(&why))?;
        // SAFETY: `raw` is a live model.
        let (vocab, n_vocab) = unsafe {
            let vocab = sys::llama_model_get_vocab(raw.as_ptr());
            (vocab, sys::llama_vocab_n_tokens(vocab).max(0) as u32)
        };
        let model = Model {
            raw,
            vocab,
            n_vocab,
        };
        if n_vocab == 0 {
            return Err(refused("it has no vocabulary"));
        }
        Ok(Arc::new(model))
    }

    /// A header value as text, `None` if absent.
    pub fn meta(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        let mut buffer = vec![0u8; 256];
        loop {
            // SAFETY: the buffer's true size is passed; llama.cpp writes at most that and a NUL within it.
            let length = unsafe {
                sys::llama_model_meta_val_str(
                    self.raw.as_ptr(),
                    key.as_ptr(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                )
            };
            let length = usize::try_from(length).ok()?;
            if length < buffer.len() {
                buffer.truncate(length);
                return Some(String::from_utf8_lossy(&buffer).into_owned());
            }
            buffer.resize(length + 1, 0);
        }
    }

    /// Number of parameters.
    pub fn n_params(&self) -> u64 {
        // SAFETY: the model is live.
        unsafe { sys::llama_model_n_params(self.raw.as_ptr()) }
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        // SAFETY: the model is live.
        unsafe { sys::llama_model_size(self.raw.as_ptr()) }
    }

    /// The context length the model was trained with.
    pub fn n_ctx_train(&self) -> u32 {
        // SAFETY: the model is live.
        unsafe { sys::llama_model_n_ctx_train(self.raw.as_ptr()).max(0) as u32 }
    }

    /// Number of tokens in the vocabulary.
    pub fn n_vocab(&self) -> u32 {
        self.n_vocab
    }

    /// Whether this is a plain decoder, the one kind the worker serves.
    pub fn is_decoder_only(&self) -> bool {
        // SAFETY: the model is live.
        unsafe {
            sys::llama_model_has_decoder(self.raw.as_ptr())
                && !sys::llama_model_has_encoder(self.raw.as_ptr())
                && !sys::llama_model_is_diffusion(self.raw.as_ptr())
        }
    }

    /// The name of the quantisation, such as `Q4_1`.
    pub fn quant(&self) -> String {
        // SAFETY: the model is live.
        quant_name(unsafe { sys::llama_model_ftype(self.raw.as_ptr()) })
    }

    /// The chat template of the file.
    pub fn chat_template(&self) -> Option<String> {
        self.meta("tokenizer.chat_template")
    }

    /// Token ids of `text`. `add_special` adds what the model wants at the ends; `parse_special`
    /// reads control tokens written in the text.
    pub fn tokenize(
        &self,
        text: &[u8],
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, EngineError> {
        let length = i32::try_from(text.len()).map_err(|_| EngineError::Tokenize)?;
        let mut ids = vec![0i32; text.len() + 8];
        let room = i32::try_from(ids.len()).map_err(|_| EngineError::Tokenize)?;
        let written = guarded("tokenize", || {
            // SAFETY: pointer and length describe `text`, pointer and room describe `ids`.
            unsafe {
                tokenize(
                    self.vocab,
                    text.as_ptr().cast(),
                    length,
                    ids.as_mut_ptr(),
                    room,
                    add_special,
                    parse_special,
                )
            }
        })?;
        let written = usize::try_from(written).map_err(|_| EngineError::Tokenize)?;
        ids.truncate(written);
        ids.into_iter()
            .map(|id| u32::try_from(id).map_err(|_| EngineError::Tokenize))
            .collect()
    }

    /// Appends the bytes of `id` to `out`. With `special` false, control tokens have none.
    pub fn piece(&self, id: u32, special: bool, out: &mut Vec<u8>) -> Result<(), EngineError> {
        self.known(id)?;
        let mut buffer = [0u8; 128];
        let needed = self.piece_into(id, special, &mut buffer)?;
        if let Ok(length) = usize::try_from(needed) {
            out.extend_from_slice(&buffer[..length.min(buffer.len())]);
            return Ok(());
        }
        let mut buffer = vec![0u8; needed.unsigned_abs() as usize];
        let length = self.piece_into(id, special, &mut buffer)?;
        let length = usize::try_from(length).map_err(|_| EngineError::UnknownToken(id))?;
        out.extend_from_slice(&buffer[..length.min(buffer.len())]);
        Ok(())
    }

    fn piece_into(&self, id: u32, special: bool, buffer: &mut [u8]) -> Result<i32, EngineError> {
        guarded("detokenize", || {
            // SAFETY: `id` was checked against the vocabulary; pointer and length describe `buffer`.
            unsafe {
                token_to_piece(
                    self.vocab,
                    id as i32,
                    buffer.as_mut_ptr().cast(),
                    buffer.len() as i32,
                    0,
                    special,
                )
            }
        })
    }

    /// Refuses an id outside the vocabulary: llama.cpp would read past its tables.
    pub fn known(&self, id: u32) -> Result<(), EngineError> {
        if id < self.n_vocab {
            Ok(())
        } else {
            Err(EngineError::UnknownToken(id))
        }
    }

    /// Whether `id` ends a generation.
    pub fn is_eog(&self, id: u32) -> bool {
        // SAFETY: the id is in the vocabulary.
        id < self.n_vocab && unsafe { sys::llama_vocab_is_eog(self.vocab, id as i32) }
    }

    /// The token that begins a text, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        // SAFETY: the vocabulary is live.
        u32::try_from(unsafe { sys::llama_vocab_bos(self.vocab) }).ok()
    }

    /// The token that ends a text, if the model has one.
    pub fn eos(&self) -> Option<u32> {
        // SAFETY: the vocabulary is live.
        u32::try_from(unsafe { sys::llama_vocab_eos(self.vocab) }).ok()
    }

    /// Whether tokenizing adds the begin token.
    pub fn adds_bos(&self) -> bool {
        // SAFETY: the vocabulary is live.
        unsafe { sys::llama_vocab_get_add_bos(self.vocab) }
    }

    /// Whether tokenizing adds the end token.
    pub fn adds_eos(&self) -> bool {
        // SAFETY: the vocabulary is live.
        unsafe { sys::llama_vocab_get_add_eos(self.vocab) }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: no context is alive: each holds an `Arc` of this model.
        unsafe { sys::llama_model_free(self.raw.as_ptr()) }
    }
}

fn load_error(why: &str) -> EngineError {
    let lower = why.to_lowercase();
    if lower.contains("alloc") || lower.contains("memory") || lower.contains("mmap failed") {
        return EngineError::Memory("the weights");
    }
    EngineError::Model(if why.is_empty() {
        "no reason given".into()
    } else {
        why.into()
    })
}

/// An interrupt that another thread may raise: the running decode stops between two graph nodes.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Raises or lowers it.
    pub fn set(&self, raised: bool) {
        self.0.store(raised, Ordering::Release);
    }

    /// Whether it is raised.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

unsafe extern "C" fn on_abort_poll(data: *mut c_void) -> bool {
    // SAFETY: `data` is the AtomicBool of the context's interrupt, kept alive by the context.
    unsafe { &*data.cast::<AtomicBool>() }.load(Ordering::Relaxed)
}

/// A context of one sequence with its own thread pool, started whole when it is made.
pub struct Context {
    raw: NonNull<sys::llama_context>,
    pool: NonNull<sys::ggml_threadpool>,
    pool_size: u32,
    model: Arc<Model>,
    interrupt: Interrupt,
    ids: Vec<i32>,
    wanted: Vec<i8>,
}

// SAFETY: a context may move between threads; `&mut self` on every call keeps it to one at a time.
unsafe impl Send for Context {}

impl Context {
    /// Makes a context of `n_ctx` tokens (0: as trained) over a pool of `pool_size` threads.
    /// `flash_attention` leaves the choice to llama.cpp; without it the plain kernels are used.
    pub fn new(
        model: Arc<Model>,
        n_ctx: u32,
        pool_size: u32,
        flash_attention: bool,
        interrupt: Interrupt,
    ) -> Result<Context, EngineError> {
        let pool_size = pool_size.clamp(1, MAX_THREADS);
        let raw = guarded("making a context", || {
            // SAFETY: the model is live; the interrupt's flag outlives the context, which holds it.
            unsafe {
                let mut params = sys::llama_context_default_params();
                params.n_ctx = n_ctx;
                params.n_batch = MAX_BATCH as u32;
                params.n_ubatch = MAX_BATCH as u32;
                params.n_seq_max = 1;
                params.n_threads = pool_size as i32;
                params.n_threads_batch = pool_size as i32;
                params.no_perf = true;
                if !flash_attention {
                    params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
                }
                params.abort_callback = Some(on_abort_poll);
                params.abort_callback_data = Arc::as_ptr(&interrupt.0).cast_mut().cast();
                context_init(model.raw.as_ptr(), params)
            }
        })?;
        let raw = NonNull::new(raw).ok_or(EngineError::Memory("the context"))?;
        let pool = match start_pool(pool_size) {
            Some(pool) => pool,
            None => {
                // SAFETY: the context was just made and is used by nobody.
                unsafe { sys::llama_free(raw.as_ptr()) };
                return Err(EngineError::Memory("the thread pool"));
            }
        };
        // SAFETY: both live; the pool is freed only after the context (see Drop).
        unsafe { sys::llama_attach_threadpool(raw.as_ptr(), pool.as_ptr(), pool.as_ptr()) };
        Ok(Context {
            raw,
            pool,
            pool_size,
            model,
            interrupt,
            ids: Vec::new(),
            wanted: Vec::new(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The interrupt that stops a decode.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Tokens the context can hold.
    pub fn n_ctx(&self) -> u32 {
        // SAFETY: the context is live.
        unsafe { sys::llama_n_ctx(self.raw.as_ptr()) }
    }

    /// Uses this many of the pool's threads from the next decode on.
    pub fn set_threads(&mut self, decode: u32, batch: u32) {
        let within = |n: u32| n.clamp(1, self.pool_size) as i32;
        // SAFETY: the context is live; the counts are within the pool.
        unsafe { sys::llama_set_n_threads(self.raw.as_ptr(), within(decode), within(batch)) }
    }

    /// Appends `ids` to the sequence; logits of the last one are then in [`Context::logits`].
    pub fn decode(&mut self, ids: &[u32]) -> Result<(), EngineError> {
        self.decode_rows(ids, false)
    }

    /// As [`Context::decode`], but keeps the logits of every position when `all` is set.
    pub fn decode_rows(&mut self, ids: &[u32], all: bool) -> Result<(), EngineError> {
        debug_assert!(!ids.is_empty() && ids.len() <= MAX_BATCH);
        self.ids.clear();
        for &id in ids {
            self.model.known(id)?;
            self.ids.push(id as i32);
        }
        self.wanted.clear();
        self.wanted.resize(ids.len(), 1);
        let (raw, tokens) = (self.raw.as_ptr(), self.ids.as_mut_ptr());
        let (wanted, count) = (self.wanted.as_mut_ptr(), self.ids.len() as i32);
        let code = guarded("decode", || {
            // SAFETY: the batch borrows `self.ids` and `self.wanted`, both `count` long and alive.
            unsafe {
                let mut batch = sys::llama_batch_get_one(tokens, count);
                if all {
                    batch.logits = wanted;
                }
                decode(raw, batch)
            }
        })?;
        match code {
            0 => Ok(()),
            1 => Err(EngineError::Full),
            2 => Err(EngineError::Aborted),
            code => Err(EngineError::Code(code)),
        }
    }

    /// Logits of the last decoded position.
    pub fn logits(&mut self) -> Result<&[f32], EngineError> {
        self.logits_at(-1)
    }

    /// Logits of row `row` of the last decode (negative: from the end).
    pub fn logits_at(&mut self, row: i32) -> Result<&[f32], EngineError> {
        let raw = self.raw.as_ptr();
        // SAFETY: the context is live; llama.cpp answers null for a row it does not have.
        let logits = guarded("logits", || unsafe { logits_ith(raw, row) })?;
        if logits.is_null() {
            return Err(EngineError::Code(-1));
        }
        // SAFETY: llama.cpp keeps `n_vocab` floats there until the next decode, which needs `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts(logits, self.model.n_vocab as usize) })
    }

    /// Forgets the sequence. Its cells are overwritten by the next one; zeroing them would touch,
    /// and so commit, the memory of the whole context.
    pub fn forget(&mut self) {
        // SAFETY: the context is live.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.raw.as_ptr()), false) }
    }

    /// Removes the positions from `start` on; false if this model's memory cannot.
    pub fn forget_from(&mut self, start: u32) -> bool {
        // SAFETY: the context is live; sequence 0 is the only one.
        unsafe {
            sys::llama_memory_seq_rm(
                sys::llama_get_memory(self.raw.as_ptr()),
                0,
                start as i32,
                -1,
            )
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context goes first, then the pool it was attached to; neither is used again.
        unsafe {
            sys::llama_detach_threadpool(self.raw.as_ptr());
            sys::llama_free(self.raw.as_ptr());
            sys::ggml_threadpool_free(self.pool.as_ptr());
        }
    }
}

fn start_pool(size: u32) -> Option<NonNull<sys::ggml_threadpool>> {
    // SAFETY: params are ggml's own defaults. poll = 0: a thread left out of a graph sleeps
    // instead of spinning, so that lowering the thread count really frees a core.
    unsafe {
        let mut params = sys::ggml_threadpool_params_default(size as c_int);
        params.poll = 0;
        NonNull::new(sys::ggml_threadpool_new(&raw mut params))
    }
}

/// Elements and bytes of one block of tensor type `id`, `None` for a type this build cannot read.
pub fn tensor_type(id: u32) -> Option<(u64, u64)> {
    if id >= sys::GGML_TYPE_COUNT {
        return None;
    }
    // SAFETY: the id is within ggml's table of types.
    let (block, bytes) = unsafe { (sys::ggml_blck_size(id), sys::ggml_type_size(id)) };
    let block = u64::try_from(block).ok()?;
    (block > 0 && bytes > 0).then_some((block, bytes as u64))
}

/// The name of a `general.file_type` number.
pub fn quant_name(file_type: u32) -> String {
    // SAFETY: llama.cpp answers any number with a static string.
    let name = unsafe { sys::llama_ftype_name(file_type as sys::llama_ftype) };
    if name.is_null() {
        return "unknown".into();
    }
    // SAFETY: as above: static and NUL-terminated.
    short_quant_name(&unsafe { CStr::from_ptr(name) }.to_string_lossy())
}

/// `Q4_K - Medium` is `Q4_K_M` to everybody else; `all F32` is `F32`.
fn short_quant_name(name: &str) -> String {
    let name = name
        .trim_start_matches("(guessed) ")
        .trim_start_matches("all ");
    let (base, size) = name.split_once(" - ").unwrap_or((name, ""));
    let base = base.split([' ', ',']).next().unwrap_or(base);
    match size.split(' ').next() {
        Some("Small") => format!("{base}_S"),
        Some("Medium") => format!("{base}_M"),
        Some("Large") => format!("{base}_L"),
        _ => base.to_owned(),
    }
}

/// The version llama.cpp was built as.
pub fn version() -> String {
    // SAFETY: a static NUL-terminated string.
    unsafe { CStr::from_ptr(sys::llama_version()) }
        .to_string_lossy()
        .into_owned()
}
