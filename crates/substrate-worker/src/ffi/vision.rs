//! The part of a model that sees: llama.cpp's `mtmd` over a projector file.
//!
//! [`Projector::read`] cuts a decoded image into the pieces that the projector wants, among the tokens of the text around
//! it. [`Picture::encode`] makes of a piece the rows that the model reads in the place of tokens.
//!
//! Invariant: a [`Picture`] keeps its [`Projector`] alive, and that its [`Model`].
//! Absent by design: decoding (`crate::sight`), sound and video, and the helpers of `mtmd`, which start other programs.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;
use zeroize::Zeroizing;

use super::device::{Device, Given, Threads};
use super::{Context, EngineError, LoadLog, MAX_BATCH, Model, guarded, on_log};

/// Colours of a point: red, green, blue.
const COLOURS: u64 = 3;

// SAFETY: the types are those of the bindings, which are made from mtmd.h; declared again because they may throw.
unsafe extern "C-unwind" {
    fn mtmd_init_from_file(
        path: *const std::ffi::c_char,
        model: *const sys::llama_model,
        params: sys::mtmd_context_params,
    ) -> *mut sys::mtmd_context;
    fn mtmd_bitmap_set_id(bitmap: *mut sys::mtmd_bitmap, id: *const std::ffi::c_char);
    fn mtmd_bitmap_init(width: u32, height: u32, points: *const u8) -> *mut sys::mtmd_bitmap;
    fn mtmd_input_chunks_init() -> *mut sys::mtmd_input_chunks;
    fn mtmd_tokenize_from_parts(
        context: *const sys::mtmd_context,
        chunks: *mut sys::mtmd_input_chunks,
        parts: *const *const sys::mtmd_input_part,
        count: usize,
        add_special: bool,
    ) -> i32;
    fn mtmd_input_chunk_copy(chunk: *const sys::mtmd_input_chunk) -> *mut sys::mtmd_input_chunk;
    fn mtmd_encode_chunk(
        context: *mut sys::mtmd_context,
        chunk: *const sys::mtmd_input_chunk,
    ) -> i32;
}

/// A loaded projector.
pub struct Projector {
    raw: NonNull<sys::mtmd_context>,
    backends: Given,
    model: Arc<Model>,
}

// SAFETY: reading is documented as thread-safe; all else is done with the context in hand, one call at a time.
unsafe impl Send for Projector {}
// SAFETY: as above.
unsafe impl Sync for Projector {}

impl Projector {
    /// Loads the projector at `path` for a model. It computes with the threads of a context, which holds it.
    ///
    /// # Errors
    /// [`EngineError::Projector`] with the engine's own words; also if it sees nothing, or needs what is not built here.
    pub(super) fn load(
        path: &str,
        model: &Arc<Model>,
        flash_attention: bool,
        threads: Threads,
    ) -> Result<Arc<Projector>, EngineError> {
        let refused = |why: &str| EngineError::Projector(why.to_owned());
        let path = CString::new(path).map_err(|_| refused("the path holds a NUL byte"))?;
        let mut device = Device::new(threads)?;
        let log = LoadLog::start();
        let raw = guarded("loading the projector", || {
            // SAFETY: the callback is 'static; `path` and the device outlive the call, and the model the projector, which
            // holds it; all else of the params is mtmd's own defaults. For what no backend of the device's does there is
            // one of mtmd's own, with one thread.
            unsafe {
                sys::mtmd_log_set(Some(on_log), std::ptr::null_mut());
                let mut params = sys::mtmd_context_params_default();
                params.use_gpu = true;
                params.device = device.raw();
                params.print_timings = false;
                params.n_threads = 1;
                if !flash_attention {
                    params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
                }
                mtmd_init_from_file(path.as_ptr(), model.raw.as_ptr(), params)
            }
        });
        let why = log.end();
        let raw = NonNull::new(raw?).ok_or_else(|| refused(&why))?;
        let projector = Projector {
            raw,
            backends: device.given(),
            model: model.clone(),
        };
        if projector.backends.iter().all(Option::is_none) {
            return Err(refused("it did not ask for a processor"));
        }
        // SAFETY: the projector is live.
        let (sees, in_two_dimensions) = unsafe {
            (
                sys::mtmd_support_vision(raw.as_ptr()),
                sys::mtmd_decode_use_mrope(raw.as_ptr()),
            )
        };
        if !sees {
            return Err(refused("it sees no images"));
        }
        if in_two_dimensions {
            return Err(refused(
                "this model wants positions of images in two dimensions (M-RoPE), which is not supported yet",
            ));
        }
        Ok(Arc::new(projector))
    }

    /// Encodes with this many of its pool's threads from now on. The caller has the context in hand.
    pub(super) fn set_threads(&self, threads: i32) {
        for backend in self.backends.iter().flatten() {
            // SAFETY: the backend lives as long as the projector.
            unsafe { sys::ggml_backend_cpu_set_n_threads(backend.as_ptr(), threads) }
        }
    }

    /// Tokens of texts and images in the order they come. A text's special tokens count as such, and what the model wants
    /// at the ends is added.
    pub fn read(self: &Arc<Self>, parts: &[Part<'_>]) -> Result<Vec<Piece>, EngineError> {
        let texts: Vec<Option<sys::mtmd_input_text>> = parts.iter().map(Part::text).collect();
        let wanted: Vec<sys::mtmd_input_part> = parts
            .iter()
            .zip(&texts)
            .map(|(part, text)| sys::mtmd_input_part {
                text: text.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
                bitmap: part.bitmap(),
            })
            .collect();
        let pointers: Vec<*const sys::mtmd_input_part> =
            wanted.iter().map(std::ptr::from_ref).collect();
        let chunks = Chunks::new()?;
        let code = guarded("reading images", || {
            // SAFETY: the projector and the chunks are live; each part has a text or a bitmap, and all outlive the call.
            unsafe {
                mtmd_tokenize_from_parts(
                    self.raw.as_ptr(),
                    chunks.0.as_ptr(),
                    pointers.as_ptr(),
                    pointers.len(),
                    true,
                )
            }
        })?;
        if code != 0 {
            return Err(EngineError::Image);
        }
        chunks.iter().map(|chunk| self.piece(chunk)).collect()
    }

    fn piece(self: &Arc<Self>, chunk: *const sys::mtmd_input_chunk) -> Result<Piece, EngineError> {
        // SAFETY: the chunk is live: its list is.
        let kind = unsafe { sys::mtmd_input_chunk_get_type(chunk) };
        match kind {
            sys::MTMD_INPUT_CHUNK_TYPE_TEXT => {
                let mut count = 0;
                // SAFETY: as above; mtmd answers with so many ids, which live as long as the chunk.
                let ids = unsafe {
                    let ids = sys::mtmd_input_chunk_get_tokens_text(chunk, &raw mut count);
                    if ids.is_null() {
                        &[]
                    } else {
                        std::slice::from_raw_parts(ids, count)
                    }
                };
                let ids = ids.iter().map(|&id| self.known(id));
                Ok(Piece::Text(ids.collect::<Result<_, _>>()?))
            }
            sys::MTMD_INPUT_CHUNK_TYPE_IMAGE => {
                // SAFETY: as above; the id is a text or null, and the copy is ours.
                let (raw, rows, causal, image) = unsafe {
                    let rows = sys::mtmd_input_chunk_get_n_tokens(chunk);
                    let whole = sys::mtmd_decode_use_non_causal(self.raw.as_ptr(), chunk);
                    let id = sys::mtmd_input_chunk_get_id(chunk);
                    let image = if id.is_null() {
                        None
                    } else {
                        CStr::from_ptr(id)
                            .to_str()
                            .ok()
                            .and_then(|id| id.parse().ok())
                    };
                    let raw = guarded("keeping an image", || mtmd_input_chunk_copy(chunk))?;
                    (raw, rows, !whole, image)
                };
                let raw = NonNull::new(raw).ok_or(EngineError::Memory("an image"))?;
                let picture = Picture {
                    raw,
                    rows,
                    causal,
                    image: image.unwrap_or_default(),
                    projector: self.clone(),
                };
                // Rows that see those that follow them must be computed in one step.
                if image.is_none() || rows == 0 || (!causal && rows > MAX_BATCH) {
                    return Err(EngineError::Image);
                }
                Ok(Piece::Image(picture))
            }
            _ => Err(EngineError::Image),
        }
    }

    /// What stands around images is looked up by name in the vocabulary, which may not have it.
    fn known(&self, id: i32) -> Result<u32, EngineError> {
        let id = u32::try_from(id).map_err(|_| EngineError::Image)?;
        self.model.known(id).map(|()| id)
    }
}

impl Drop for Projector {
    fn drop(&mut self) {
        // SAFETY: no picture is alive: each holds an `Arc` of this projector.
        unsafe { sys::mtmd_free(self.raw.as_ptr()) }
    }
}

/// What is read.
pub enum Part<'a> {
    /// Text.
    Text(&'a [u8]),
    /// An image.
    Image(&'a Bitmap),
}

impl Part<'_> {
    fn text(&self) -> Option<sys::mtmd_input_text> {
        match self {
            Part::Text(text) => Some(sys::mtmd_input_text {
                text: text.as_ptr().cast(),
                text_len: text.len(),
                add_special: true,
                parse_special: true,
            }),
            Part::Image(_) => None,
        }
    }

    fn bitmap(&self) -> *const sys::mtmd_bitmap {
        match self {
            Part::Text(_) => std::ptr::null(),
            Part::Image(bitmap) => bitmap.0.as_ptr(),
        }
    }
}

/// What was read.
pub enum Piece {
    /// Tokens.
    Text(Vec<u32>),
    /// An image, or a part of one.
    Image(Picture),
}

/// A decoded image.
pub struct Bitmap(NonNull<sys::mtmd_bitmap>);

impl Bitmap {
    /// The image of this number, of three bytes (red, green, blue) for every point, row by row.
    ///
    /// # Errors
    /// [`EngineError::Image`] if the points are not as many.
    pub fn new(
        width: u32,
        height: u32,
        points: &[u8],
        number: usize,
    ) -> Result<Bitmap, EngineError> {
        if u64::from(width) * u64::from(height) * COLOURS != points.len() as u64 {
            return Err(EngineError::Image);
        }
        let bitmap = guarded("an image", || {
            // SAFETY: there are three bytes for every point, and mtmd copies them.
            unsafe { mtmd_bitmap_init(width, height, points.as_ptr()) }
        })?;
        let bitmap = NonNull::new(bitmap).map(Bitmap);
        let bitmap = bitmap.ok_or(EngineError::Memory("an image"))?;
        let id = CString::new(number.to_string()).map_err(|_| EngineError::Image)?;
        guarded("an image", || {
            // SAFETY: the bitmap is live, and mtmd copies the text.
            unsafe { mtmd_bitmap_set_id(bitmap.0.as_ptr(), id.as_ptr()) }
        })?;
        Ok(bitmap)
    }
}

impl Drop for Bitmap {
    fn drop(&mut self) {
        // SAFETY: it was made by mtmd and is used by nobody else.
        unsafe { sys::mtmd_bitmap_free(self.0.as_ptr()) }
    }
}

/// An image cut for the projector, to be encoded.
pub struct Picture {
    raw: NonNull<sys::mtmd_input_chunk>,
    rows: usize,
    causal: bool,
    image: usize,
    projector: Arc<Projector>,
}

// SAFETY: it is only read.
unsafe impl Send for Picture {}

impl Picture {
    /// Rows that the model reads in the place of tokens.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of the image it is, or is a part of.
    pub fn image(&self) -> usize {
        self.image
    }

    /// Whether a row sees only those before it, as a token does.
    pub fn is_causal(&self) -> bool {
        self.causal
    }

    /// Computes its rows, with the threads of the context that holds its projector.
    ///
    /// # Errors
    /// [`EngineError::Aborted`] if the context's interrupt was raised.
    pub fn encode(&self, context: &mut Context) -> Result<Rows, EngineError> {
        let raw = self.projector.raw.as_ptr();
        let code = guarded("encoding an image", || {
            // SAFETY: both are live; whoever has the context in hand is the only one to use its threads and its projector.
            unsafe { mtmd_encode_chunk(raw, self.raw.as_ptr()) }
        })?;
        if code != 0 && context.interrupt().is_set() {
            return Err(EngineError::Aborted);
        }
        // SAFETY: the projector is live.
        let rows = unsafe { sys::mtmd_get_output_embd(raw) };
        if code != 0 || rows.is_null() {
            return Err(EngineError::Image);
        }
        let width = self.projector.model.input_width() as usize;
        // SAFETY: mtmd keeps so many floats there (mtmd.h) until the next call, which needs the context.
        let floats = unsafe { std::slice::from_raw_parts(rows, self.rows * width) };
        Ok(Rows {
            floats: Zeroizing::new(floats.to_vec()),
            width,
        })
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        // SAFETY: the copy is ours alone.
        unsafe { sys::mtmd_input_chunk_free(self.raw.as_ptr()) }
    }
}

/// An encoded image: rows that stand in the place of tokens, overwritten when dropped.
pub struct Rows {
    floats: Zeroizing<Vec<f32>>,
    width: usize,
}

impl Rows {
    /// Rows.
    pub fn len(&self) -> usize {
        self.floats.len() / self.width.max(1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.floats.is_empty()
    }

    /// `count` rows from `first` on, or as many as there are.
    pub fn from(&self, first: usize, count: usize) -> &[f32] {
        let end = self.len().min(first.saturating_add(count));
        &self.floats[first.min(end) * self.width..end * self.width]
    }
}

/// What mtmd answers with.
struct Chunks(NonNull<sys::mtmd_input_chunks>);

impl Chunks {
    fn new() -> Result<Chunks, EngineError> {
        // SAFETY: it has no arguments.
        let raw = guarded("reading images", || unsafe { mtmd_input_chunks_init() })?;
        NonNull::new(raw)
            .map(Chunks)
            .ok_or(EngineError::Memory("images"))
    }

    fn iter(&self) -> impl Iterator<Item = *const sys::mtmd_input_chunk> {
        // SAFETY: the list is live; an index is below its length.
        unsafe {
            let count = sys::mtmd_input_chunks_size(self.0.as_ptr());
            (0..count).map(|index| sys::mtmd_input_chunks_get(self.0.as_ptr(), index))
        }
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        // SAFETY: the list is ours alone.
        unsafe { sys::mtmd_input_chunks_free(self.0.as_ptr()) }
    }
}
