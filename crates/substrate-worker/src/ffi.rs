//! The one unsafe module: a thin safe wrapper over the llama.cpp calls that the worker makes.
//!
//! Invariants: a [`Context`] keeps its [`Model`] alive; every call that may throw runs under the
//! C++ `catch` of guard.cpp; a slice handed out borrows the context it came from.
//! Absent by design: sampling, templates and anything that decides; the llama.cpp log, which could
//! quote a prompt and is dropped except for the last error while a model loads.
#![allow(unsafe_code)]

mod adapter;
pub mod allocator;
mod context;
mod device;
mod devices;
mod model;
mod vision;

pub use context::{Context, Embedded, Interrupt, MAX_LANES, Row, Size};
pub use devices::{Device, devices};
pub use model::{Model, Pooling};
pub use vision::{Bitmap, Part, Picture, Piece, Projector, Rows};

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once};

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
    /// The projector file was refused.
    #[error("the engine refused the projector: {0}")]
    Projector(String),
    /// The adapter file was refused.
    #[error("the engine refused the adapter: {0}")]
    Adapter(String),
    /// An image could not be decoded or encoded.
    #[error(
        "an image could not be read: it is broken, or of a kind or size that this model does not take"
    )]
    Image,
    /// Weights, cache or compute buffers did not fit.
    #[error("not enough memory for {0}")]
    Memory(&'static str),
    /// A text could not be tokenized.
    #[error("the text could not be tokenized")]
    Tokenize,
    /// A token id is not in the vocabulary.
    #[error("token {0} is not in the vocabulary")]
    UnknownToken(u32),
    /// There is no such graphics processor.
    #[error("the engine knows no graphics processor {0}")]
    NoDevice(u32),
    /// The decode was interrupted on request.
    #[error("the decode was interrupted")]
    Aborted,
    /// There is no room left in the context.
    #[error("the context is full")]
    Full,
    /// The grammar of the answer could not be followed.
    #[error(transparent)]
    Grammar(#[from] crate::grammar::Spent),
    /// llama.cpp returned an error code.
    #[error("the engine failed with code {0}")]
    Code(i32),
    /// llama.cpp threw a C++ exception.
    #[error("the engine threw an exception in {0}")]
    Threw(&'static str),
}

// SAFETY: as guard.cpp declares it.
unsafe extern "C" {
    fn substrate_guard(
        call: unsafe extern "C-unwind" fn(*mut c_void),
        argument: *mut c_void,
    ) -> c_int;
}

// The calls that can throw, declared again with an ABI that allows unwinding: the bindings'
// plain "C" would make an exception undefined behaviour before it reaches guard.cpp.
// SAFETY: the types are those of the bindings, which are made from llama.h.
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
    #[link_name = "llama_get_embeddings_seq"]
    fn vector_of(context: *mut sys::llama_context, lane: sys::llama_seq_id) -> *mut f32;
    #[link_name = "llama_state_seq_get_size"]
    fn state_size(context: *mut sys::llama_context, lane: sys::llama_seq_id) -> usize;
    #[link_name = "llama_state_seq_get_data"]
    fn state_get(
        context: *mut sys::llama_context,
        to: *mut u8,
        room: usize,
        lane: sys::llama_seq_id,
    ) -> usize;
    #[link_name = "llama_state_seq_set_data"]
    fn state_set(
        context: *mut sys::llama_context,
        from: *const u8,
        size: usize,
        lane: sys::llama_seq_id,
    ) -> usize;
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
    /// # Safety
    /// `argument` is a `Slot<F, R>` that nobody else uses during the call.
    unsafe extern "C-unwind" fn run<F: FnOnce() -> R, R>(argument: *mut c_void) {
        // SAFETY: the caller's promise; the one caller is guard.cpp, with the `slot` below.
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

/// What the engine says of errors while it loads, from [`LoadLog::start`] to [`LoadLog::end`].
struct LoadLog(());

impl LoadLog {
    fn start() -> LoadLog {
        if let Ok(mut kept) = LOAD_ERROR.lock() {
            kept.clear();
        }
        LOADING.store(true, Ordering::Relaxed);
        LoadLog(())
    }

    fn end(self) -> String {
        LOADING.store(false, Ordering::Relaxed);
        let kept = LOAD_ERROR.lock().map(|kept| kept.clone());
        kept.unwrap_or_default()
    }
}

/// # Safety
/// `text` is null or a NUL-terminated string that lives for the call: llama.cpp's promise to its log callback.
unsafe extern "C" fn on_log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if level != sys::GGML_LOG_LEVEL_ERROR || !LOADING.load(Ordering::Relaxed) || text.is_null() {
        return;
    }
    // SAFETY: not null, and then the caller's promise.
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
