//! A context: one cache for several lanes, its thread pool, and the interrupt that stops a decode.
//!
//! A lane is llama.cpp's sequence: its own positions, its own attention. Lanes share one pool of cells (`kv_unified`), so that
//! one may be long while others are short, and a prefix may belong to several without a copy; llama.cpp then skips the
//! cells of other lanes one by one. Or each has its own ([`Size::apart`]), which takes more memory and less time; of such
//! lanes it computes those together whose numbers follow each other and come in that order. [`Context::remake`] goes from the
//! one to the other.
//!
//! Images are encoded with the same threads, so the [`Projector`] is loaded through the context.
//!
//! Invariant: every thread is started when the context is made; `&mut self` keeps a context to one
//! call at a time; a lane is below the number of lanes asked for.
//! Absent by design: who may use which lane, and what is in it (`crate::scheduler`).

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;
use substrate_sandbox::wire::KvType;

use super::adapter::Adapter;
use super::device::Threads;
use super::{
    EngineError, MAX_BATCH, MAX_THREADS, Model, Projector, context_init, decode, guarded,
    logits_ith, state_get, state_set, state_size, vector_of,
};
use crate::prompt::State;

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

/// The size of a context.
#[derive(Debug, Clone, Copy, Default)]
pub struct Size {
    /// Cells of all lanes together; 0: as many as the model was trained for.
    pub cells: u32,
    /// Lanes.
    pub lanes: u32,
    /// Whether each lane has its part of the cells to itself.
    pub apart: bool,
    /// Rows of one decode that may have logits.
    pub outputs: u32,
    /// Tokens of one decode; 0: [`MAX_BATCH`].
    pub batch: u32,
    /// Whether a lane's text gives one vector, instead of logits for its rows.
    pub vectors: bool,
    /// How the numbers of the cells are kept.
    pub kv: KvType,
}

impl Size {
    fn lanes(&self) -> u32 {
        self.lanes.clamp(1, MAX_LANES)
    }

    fn batch(&self) -> u32 {
        match self.batch {
            0 => MAX_BATCH as u32,
            tokens => tokens,
        }
    }

    fn outputs(&self) -> u32 {
        // A vector is pooled from every row of its text.
        let outputs = match self.vectors {
            true => self.batch(),
            false => self.outputs,
        };
        outputs.max(self.lanes()).min(self.batch())
    }
}

/// ggml's number of a cache type.
fn ggml_type(kv: KvType) -> sys::ggml_type {
    match kv {
        KvType::F16 => sys::GGML_TYPE_F16,
        KvType::Q8_0 => sys::GGML_TYPE_Q8_0,
        KvType::Q4_0 => sys::GGML_TYPE_Q4_0,
    }
}

/// One token of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its id.
    pub id: u32,
    /// Its position in its lane.
    pub position: u32,
    /// Its lane.
    pub lane: u32,
    /// Whether its logits are wanted.
    pub logits: bool,
}

/// Rows of an image, which stand in the place of tokens.
#[derive(Clone, Copy)]
pub struct Embedded<'a> {
    /// The floats, row by row, each as wide as the model wants.
    pub floats: &'a [f32],
    /// The position of the first in its lane; the others follow.
    pub position: u32,
    /// Its lane.
    pub lane: u32,
    /// Whether a row sees only those before it; otherwise it sees all of this call.
    pub causal: bool,
    /// Whether the logits of the last row are wanted.
    pub logits: bool,
}

impl Embedded<'_> {
    /// How many rows there are.
    pub fn count(&self, context: &Context) -> usize {
        let width = context.model.input_width() as usize;
        self.floats.len().checked_div(width).unwrap_or(0)
    }
}

/// Lanes a context may have: llama.cpp's own limit, `LLAMA_MAX_SEQ`.
pub const MAX_LANES: u32 = 256;

/// A context with its own thread pool, started whole when it is made.
pub struct Context {
    raw: NonNull<sys::llama_context>,
    pool: NonNull<sys::ggml_threadpool>,
    pool_size: u32,
    model: Arc<Model>,
    interrupt: Interrupt,
    size: Size,
    flash_attention: bool,
    /// Threads for single tokens, and for more.
    threads: (u32, u32),
    lanes: u32,
    batch: usize,
    ids: Vec<i32>,
    positions: Vec<i32>,
    lane_ids: Vec<i32>,
    lane_counts: Vec<i32>,
    wanted: Vec<i8>,
    /// What sees images with this context's threads.
    projector: Option<Arc<Projector>>,
    /// What is laid over the model; freed after the context.
    adapter: Option<Adapter>,
}

// SAFETY: a context may move between threads; `&mut self` on every call keeps it to one at a time.
unsafe impl Send for Context {}

impl Context {
    /// Makes a context of this size over a pool of `pool_size` threads.
    /// `flash_attention` leaves the choice to llama.cpp; without it the plain kernels are used.
    pub fn new(
        model: Arc<Model>,
        size: Size,
        pool_size: u32,
        flash_attention: bool,
        interrupt: Interrupt,
    ) -> Result<Context, EngineError> {
        let pool_size = pool_size.clamp(1, MAX_THREADS);
        let raw = open(&model, &size, pool_size, flash_attention, &interrupt)?;
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
            size,
            flash_attention,
            threads: (pool_size, pool_size),
            lanes: size.lanes(),
            batch: size.batch() as usize,
            ids: Vec::new(),
            positions: Vec::new(),
            lane_ids: Vec::new(),
            lane_counts: Vec::new(),
            wanted: Vec::new(),
            projector: None,
            adapter: None,
        })
    }

    /// Makes the cells anew in another size: with the same model, adapter, threads and interrupt. Every lane is empty then.
    ///
    /// # Errors
    /// There is no memory for that size; the cells are as many as before, and empty. If there is none for those either, which
    /// were given back a moment ago, the program ends.
    pub fn remake(&mut self, size: Size) -> Result<(), EngineError> {
        // Both at a time would be the most memory the engine ever takes.
        // SAFETY: the context is live, and another takes its place before anybody uses it; where none can be made, the program
        // ends without dropping this.
        unsafe {
            sys::llama_detach_threadpool(self.raw.as_ptr());
            sys::llama_free(self.raw.as_ptr());
        }
        let made = self.open_again(&size);
        self.raw = match &made {
            Ok(raw) => *raw,
            Err(_) => match self.open_again(&self.size) {
                Ok(raw) => raw,
                // A worker without cells can do nothing but end; whoever asked goes on elsewhere.
                Err(_) => std::process::abort(),
            },
        };
        // SAFETY: both live; the pool is freed only after the context (see Drop).
        unsafe {
            sys::llama_attach_threadpool(self.raw.as_ptr(), self.pool.as_ptr(), self.pool.as_ptr());
        }
        let (decode, batch) = self.threads;
        self.set_threads(decode, batch);
        made?;
        self.lanes = size.lanes();
        self.batch = size.batch() as usize;
        self.size = size;
        Ok(())
    }

    /// A context like this one, of this size and without a pool.
    fn open_again(&self, size: &Size) -> Result<NonNull<sys::llama_context>, EngineError> {
        let (threads, fused) = (self.pool_size, self.flash_attention);
        let raw = open(&self.model, size, threads, fused, &self.interrupt)?;
        let Some(adapter) = &self.adapter else {
            return Ok(raw);
        };
        // SAFETY: the context is live and of the adapter's model; whoever takes it frees it before the adapter, as `drop` does.
        let laid = unsafe { adapter.apply(raw) };
        if laid.is_err() {
            // SAFETY: the context was just made and is used by nobody.
            unsafe { sys::llama_free(raw.as_ptr()) };
        }
        laid.map(|()| raw)
    }

    /// Loads the projector at `path`: from then on the model sees images.
    ///
    /// # Errors
    /// As [`EngineError::Projector`] says.
    pub fn load_projector(&mut self, path: &str, flash_attention: bool) -> Result<(), EngineError> {
        let threads = Threads {
            pool: self.pool,
            abort: Some(on_abort_poll),
            abort_data: Arc::as_ptr(&self.interrupt.0).cast_mut().cast(),
        };
        let projector = Projector::load(path, &self.model, flash_attention, threads)?;
        projector.set_threads(self.pool_size as i32);
        self.projector = Some(projector);
        Ok(())
    }

    /// Lays the LoRA adapter at `path` over the model: from then on all is computed with it.
    ///
    /// # Errors
    /// As [`EngineError::Adapter`] says.
    pub fn lay_over(&mut self, path: &str) -> Result<(), EngineError> {
        let adapter = Adapter::load(path, &self.model)?;
        // SAFETY: the context is live and of this model, and `drop` frees it before the fields go.
        unsafe { adapter.apply(self.raw)? };
        self.adapter = Some(adapter);
        Ok(())
    }

    /// What sees images, if anything does.
    pub fn projector(&self) -> Option<&Arc<Projector>> {
        self.projector.as_ref()
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The interrupt that stops a decode.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Tokens the context can hold, of all lanes together.
    pub fn cells(&self) -> u32 {
        // SAFETY: the context is live.
        unsafe { sys::llama_n_ctx(self.raw.as_ptr()) }
    }

    /// Uses this many of the pool's threads from the next decode on.
    pub fn set_threads(&mut self, decode: u32, batch: u32) {
        self.threads = (decode, batch);
        let within = |n: u32| n.clamp(1, self.pool_size) as i32;
        // SAFETY: the context is live; the counts are within the pool.
        unsafe { sys::llama_set_n_threads(self.raw.as_ptr(), within(decode), within(batch)) }
        if let Some(projector) = &self.projector {
            projector.set_threads(within(batch));
        }
    }

    /// Appends `ids` to lane 0; logits of the last one are then in [`Context::logits`].
    pub fn decode(&mut self, ids: &[u32]) -> Result<(), EngineError> {
        self.decode_rows(ids, false)
    }

    /// As [`Context::decode`], but keeps the logits of every position when `all` is set.
    pub fn decode_rows(&mut self, ids: &[u32], all: bool) -> Result<(), EngineError> {
        let start = self.length_of(0);
        let last = ids.len().saturating_sub(1);
        let rows = ids.iter().zip(0..).map(|(&id, index)| Row {
            id,
            position: start + index,
            lane: 0,
            logits: all || index as usize == last,
        });
        let rows: Vec<Row> = rows.collect();
        self.run(&rows)
    }

    /// Decodes one batch of rows of any lanes; the rows of a lane stand in the order of their positions.
    ///
    /// # Errors
    /// [`EngineError::Full`] leaves the cache as it was. After any other error the lanes of the batch may
    /// hold some of its rows: [`Context::cut`] them back.
    pub fn run(&mut self, rows: &[Row]) -> Result<(), EngineError> {
        self.fill(rows)?;
        self.run_filled(None)
    }

    /// As [`Context::run`], with rows of an image.
    pub fn run_embedded(&mut self, rows: Embedded<'_>) -> Result<(), EngineError> {
        let width = self.model.input_width() as usize;
        let count = rows.count(self);
        // The id is not looked at where there are floats.
        let filled: Vec<Row> = (0..count)
            .map(|index| Row {
                id: 0,
                position: rows.position + index as u32,
                lane: rows.lane,
                logits: rows.logits && index + 1 == count,
            })
            .collect();
        self.fill(&filled)?;
        let raw = self.raw.as_ptr();
        // SAFETY: the context is live.
        let see_all = |see_all: bool| unsafe { sys::llama_set_causal_attn(raw, !see_all) };
        if !rows.causal {
            see_all(true);
        }
        let done = self.run_filled(Some(&rows.floats[..count * width]));
        if !rows.causal {
            see_all(false);
        }
        done
    }

    /// Decodes what [`Context::fill`] has put together; `floats` are as wide as the model wants, one row for each.
    fn run_filled(&mut self, floats: Option<&[f32]>) -> Result<(), EngineError> {
        let mut lanes: Vec<*mut i32> = self.lane_ids.iter_mut().map(|id| &raw mut *id).collect();
        let token = match floats {
            Some(_) => std::ptr::null_mut(),
            None => self.ids.as_mut_ptr(),
        };
        let batch = sys::llama_batch {
            n_tokens: self.ids.len() as i32,
            token,
            embd: floats.map_or(std::ptr::null_mut(), |floats| floats.as_ptr().cast_mut()),
            pos: self.positions.as_mut_ptr(),
            n_seq_id: self.lane_counts.as_mut_ptr(),
            seq_id: lanes.as_mut_ptr(),
            logits: self.wanted.as_mut_ptr(),
        };
        let raw = self.raw.as_ptr();
        let code = guarded("decode", || {
            // SAFETY: the context is live; every array of the batch is as long as it says and outlives the call, ids are of
            // the vocabulary and lanes of the context (see `fill`); llama.cpp only reads the floats.
            unsafe { decode(raw, batch) }
        })?;
        match code {
            0 => Ok(()),
            1 => Err(EngineError::Full),
            2 => Err(EngineError::Aborted),
            code => Err(EngineError::Code(code)),
        }
    }

    fn fill(&mut self, rows: &[Row]) -> Result<(), EngineError> {
        if rows.is_empty() || rows.len() > self.batch {
            return Err(EngineError::Code(-1));
        }
        self.ids.clear();
        self.positions.clear();
        self.lane_ids.clear();
        self.wanted.clear();
        for row in rows {
            self.model.known(row.id)?;
            if row.lane >= self.lanes {
                return Err(EngineError::Code(-1));
            }
            self.ids.push(row.id as i32);
            self.positions.push(row.position as i32);
            self.lane_ids.push(row.lane as i32);
            self.wanted.push(i8::from(row.logits));
        }
        self.lane_counts.clear();
        self.lane_counts.resize(rows.len(), 1);
        Ok(())
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

    /// The vector of the text that the last decode read in `lane`, in a context that makes vectors.
    pub fn vector(&mut self, lane: u32) -> Result<&[f32], EngineError> {
        debug_assert!(lane < self.lanes);
        let raw = self.raw.as_ptr();
        // SAFETY: the context is live; llama.cpp answers null for a lane that the last decode did not read.
        let vector = guarded("vectors", || unsafe { vector_of(raw, lane as i32) })?;
        if vector.is_null() {
            return Err(EngineError::Code(-1));
        }
        // SAFETY: llama.cpp keeps as many floats there until the next decode, which needs `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts(vector, self.model.vector_length() as usize) })
    }

    /// Forgets every lane. The cells are overwritten by the next; zeroing them would touch,
    /// and so commit, the memory of the whole context.
    pub fn forget(&mut self) {
        // SAFETY: the context is live.
        unsafe { sys::llama_memory_clear(self.memory(), false) }
    }

    /// Removes the positions of `lane` from `start` on; false if this model's memory cannot.
    pub fn cut(&mut self, lane: u32, start: u32) -> bool {
        debug_assert!(lane < self.lanes);
        // SAFETY: the context is live and has the lane.
        unsafe { sys::llama_memory_seq_rm(self.memory(), lane as i32, start as i32, -1) }
    }

    /// Makes the first `count` positions of lane `from` those of the empty lane `to` as well; false if there is no memory for
    /// it, and then that lane is empty still.
    pub fn share(&mut self, from: u32, to: u32, count: u32) -> bool {
        debug_assert!(from < self.lanes && to < self.lanes);
        if self.size.apart {
            // llama.cpp would copy all cells of the lane, used or not.
            let copy = self.copy(from);
            return copy.is_some_and(|copy| self.put_back(&copy, to) && self.cut(to, count));
        }
        // SAFETY: the context is live and has both lanes.
        unsafe {
            sys::llama_memory_seq_cp(self.memory(), from as i32, to as i32, 0, count as i32);
        }
        true
    }

    /// A copy of the cells of `lane`; `None` if there is none to be had.
    pub fn copy(&mut self, lane: u32) -> Option<State> {
        debug_assert!(lane < self.lanes);
        let (raw, lane) = (self.raw.as_ptr(), lane as i32);
        // SAFETY: the context is live and has the lane.
        let size = guarded("copying cells", || unsafe { state_size(raw, lane) }).ok()?;
        let mut bytes: Vec<u8> = Vec::new();
        bytes.try_reserve_exact(size).ok()?;
        // SAFETY: as above, and the vector has room for `size` bytes.
        let written = guarded("copying cells", || unsafe {
            state_get(raw, bytes.as_mut_ptr(), size, lane)
        });
        let written = written
            .ok()
            .filter(|&written| written > 0 && written <= size)?;
        // SAFETY: llama.cpp has written so many bytes from the start on.
        unsafe { bytes.set_len(written) };
        Some(State::new(bytes))
    }

    /// A copy that was made of lanes that share their cells, for those that have their own: [`Context::put_back`] takes one
    /// of the kind that the context has. `None` if this model's copies cannot be told apart so.
    pub fn for_lanes_apart(&self, copy: &State, lanes: u32) -> Option<State> {
        // A model with a sliding window has two caches, one behind the other in a copy.
        // SAFETY: the model is live.
        let one_cache = unsafe { sys::llama_model_n_swa(self.model.raw.as_ptr()) } == 0;
        one_cache.then(|| spread(copy.expose(), lanes)).flatten()
    }

    /// Puts a copy into the empty lane `lane`; false if it did not fit, and then the lane is empty still.
    pub fn put_back(&mut self, copy: &State, lane: u32) -> bool {
        debug_assert!(lane < self.lanes);
        let (raw, bytes) = (self.raw.as_ptr(), copy.expose());
        let read = guarded("putting cells back", || {
            // SAFETY: the context is live and has the lane; the bytes outlive the call, and `copy` made them of a
            // context of the same model and parameters: a copy never leaves its engine.
            unsafe { state_set(raw, bytes.as_ptr(), bytes.len(), lane as i32) }
        });
        let whole = read.is_ok_and(|read| read > 0);
        if !whole {
            self.cut(lane, 0);
        }
        whole
    }

    /// Positions in `lane`, counted from its start.
    pub fn length_of(&self, lane: u32) -> u32 {
        debug_assert!(lane < self.lanes);
        // SAFETY: the context is live and has the lane; an empty lane is told as −1.
        let last = unsafe { sys::llama_memory_seq_pos_max(self.memory(), lane as i32) };
        u32::try_from(last + 1).unwrap_or(0)
    }

    fn memory(&self) -> sys::llama_memory_t {
        // SAFETY: the context is live.
        unsafe { sys::llama_get_memory(self.raw.as_ptr()) }
    }
}

/// Opens a context of this size, without a pool.
fn open(
    model: &Model,
    size: &Size,
    threads: u32,
    flash_attention: bool,
    interrupt: &Interrupt,
) -> Result<NonNull<sys::llama_context>, EngineError> {
    let raw = guarded("making a context", || {
        // SAFETY: the model is live; the interrupt's flag outlives the context, which holds it.
        unsafe {
            let mut params = sys::llama_context_default_params();
            params.n_ctx = size.cells;
            params.n_batch = size.batch();
            params.n_ubatch = size.batch();
            params.n_seq_max = size.lanes();
            params.kv_unified = !size.apart;
            params.n_outputs_max = size.outputs();
            if size.vectors {
                params.embeddings = true;
                params.pooling_type = model.pooling().unwrap_or_default().code();
            }
            params.n_threads = threads as i32;
            params.n_threads_batch = threads as i32;
            params.type_k = ggml_type(size.kv);
            params.type_v = ggml_type(size.kv);
            params.no_perf = true;
            if !flash_attention {
                params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
            }
            params.abort_callback = Some(on_abort_poll);
            params.abort_callback_data = Arc::as_ptr(&interrupt.0).cast_mut().cast();
            context_init(model.raw.as_ptr(), params)
        }
    })?;
    NonNull::new(raw).ok_or(EngineError::Memory("the context"))
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

/// Bytes before the caches in a copy: llama.cpp's mark, and the number of the lane.
const COPY_HEAD: usize = 8;

/// Rewrites a copy of one lane of a cache of one stream as one of a cache with a stream for each of `lanes`: llama.cpp writes
/// the number of streams, then each stream's cells, of which all but the lane's are none (`llama_kv_cache::state_write`).
fn spread(copy: &[u8], lanes: u32) -> Option<State> {
    let (head, rest) = copy.split_at_checked(COPY_HEAD)?;
    let (streams, cells) = rest.split_at_checked(size_of::<u32>())?;
    if streams != 1_u32.to_ne_bytes() {
        return None;
    }
    let others = lanes.saturating_sub(1) as usize * size_of::<u32>();
    // Never grown, so that no half of it is left behind in memory.
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(copy.len() + others).ok()?;
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(&lanes.to_ne_bytes());
    bytes.extend_from_slice(cells);
    bytes.resize(copy.len() + others, 0);
    Some(State::new(bytes))
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
