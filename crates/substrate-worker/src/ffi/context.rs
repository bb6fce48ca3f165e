//! A context: the cache of one sequence, its thread pool, and the interrupt that stops a decode.
//!
//! Invariant: every thread is started when the context is made; `&mut self` keeps a context to one
//! call at a time.
//! Absent by design: batches of several sequences.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

use super::{
    EngineError, MAX_BATCH, MAX_THREADS, Model, context_init, decode, guarded, logits_ith,
};

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

/// # Safety
/// `data` is the flag of the context's [`Interrupt`], which lives as long as the context.
unsafe extern "C" fn on_abort_poll(data: *mut c_void) -> bool {
    // SAFETY: the caller's promise: llama.cpp hands back what the context was made with.
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
        Ok(unsafe { std::slice::from_raw_parts(logits, self.model.n_vocab() as usize) })
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
