//! A loaded model and its vocabulary.
//!
//! Invariant: an id is checked against the vocabulary before llama.cpp sees it.
//! Absent by design: tensors; whoever computes needs a [`Context`](super::Context).

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;
use substrate_sandbox::wire::OnGpu;

use super::{
    EngineError, LoadLog, devices, guarded, model_load, quant_name, start_backend, token_to_piece,
    tokenize,
};

/// Whether llama.cpp leaves accents out of a text for a WordPiece vocabulary.
const STRIP_ACCENTS: &str = "tokenizer.ggml.normalizer.strip_accents";

/// Header values that loading goes by instead of the file's: llama.cpp takes vowels that have room of their own for
/// accents (Devanagari's, for one), and does not take Hangul apart. `crate::wordpiece` does both as BERT's own tokenizer.
fn without_stripping() -> [sys::llama_model_kv_override; 2] {
    let named = |name: &str| {
        let mut key = [0; 128];
        for (at, byte) in key.iter_mut().zip(name.bytes()) {
            *at = byte as std::ffi::c_char;
        }
        sys::llama_model_kv_override {
            tag: sys::LLAMA_KV_OVERRIDE_TYPE_BOOL,
            key,
            __bindgen_anon_1: sys::llama_model_kv_override__bindgen_ty_1 { val_bool: false },
        }
    };
    [named(STRIP_ACCENTS), named("")]
}

/// How the vectors of a text's tokens become the text's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// The first one.
    First,
    /// The last one.
    Last,
    /// A score of a pair of texts, and no vector of one.
    Rank,
}

impl Pooling {
    /// `pooling_type` of a GGUF header, which is llama.cpp's own number; `None` if nothing is pooled.
    fn of(number: &str) -> Option<Pooling> {
        match number.parse() {
            Ok(sys::LLAMA_POOLING_TYPE_MEAN) => Some(Pooling::Mean),
            Ok(sys::LLAMA_POOLING_TYPE_CLS) => Some(Pooling::First),
            Ok(sys::LLAMA_POOLING_TYPE_LAST) => Some(Pooling::Last),
            Ok(sys::LLAMA_POOLING_TYPE_RANK) => Some(Pooling::Rank),
            _ => None,
        }
    }

    pub(super) fn code(self) -> sys::llama_pooling_type {
        match self {
            Pooling::Mean => sys::LLAMA_POOLING_TYPE_MEAN,
            Pooling::First => sys::LLAMA_POOLING_TYPE_CLS,
            Pooling::Last => sys::LLAMA_POOLING_TYPE_LAST,
            Pooling::Rank => sys::LLAMA_POOLING_TYPE_RANK,
        }
    }
}

/// A loaded model: weights, vocabulary and header facts.
pub struct Model {
    pub(super) raw: NonNull<sys::llama_model>,
    vocab: *const sys::llama_vocab,
    n_vocab: u32,
}

// SAFETY: after loading, every call made here only reads the model; llama.cpp's vocabulary calls
// are documented as thread-safe.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    /// Loads the model at `path` into memory.
    pub fn load(path: &str) -> Result<Arc<Model>, EngineError> {
        Model::load_on(path, None)
    }

    /// Loads the model at `path`, layers of it onto a graphics processor.
    pub fn load_on(path: &str, gpu: Option<OnGpu>) -> Result<Arc<Model>, EngineError> {
        start_backend();
        let layers = gpu.map_or(0, |gpu| i32::try_from(gpu.layers).unwrap_or(i32::MAX));
        // No device but the one asked for; for none of them, llama.cpp's list is empty.
        let device = gpu.map(|gpu| devices::handle(gpu.device)).transpose()?;
        let mut devices = [device.unwrap_or(std::ptr::null_mut()), std::ptr::null_mut()];
        let refused = |why: &str| EngineError::Model(why.to_owned());
        let path = CString::new(path).map_err(|_| refused("the path holds a NUL byte"))?;
        let log = LoadLog::start();
        let overrides = without_stripping();
        let raw = guarded("loading", || {
            // SAFETY: `path` is NUL-terminated and outlives the call, as do the overrides, whose last has no key, and the
            // devices, whose last is null; all else of the params is llama.cpp's own defaults.
            unsafe {
                let mut params = sys::llama_model_default_params();
                params.n_gpu_layers = layers;
                params.split_mode = sys::LLAMA_SPLIT_MODE_NONE;
                params.devices = devices.as_mut_ptr();
                params.kv_overrides = overrides.as_ptr();
                model_load(path.as_ptr(), params)
            }
        });
        let why = log.end();
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

    /// How this model makes one vector of a text; `None` if it was made to answer. A model whose tokens see those that
    /// follow cannot answer: if it does not say how its vectors are pooled, the mean is taken.
    pub fn pooling(&self) -> Option<Pooling> {
        let arch = self.meta("general.architecture")?;
        let of_arch = |key: &str| self.meta(&format!("{arch}.{key}"));
        let named = of_arch("pooling_type").and_then(|number| Pooling::of(&number));
        let sees_ahead = of_arch("attention.causal").is_some_and(|causal| causal == "false");
        named.or(sees_ahead.then(Pooling::default))
    }

    /// Whether texts are to be made plain (`crate::wordpiece`) before they are tokenized: for a WordPiece vocabulary that
    /// was trained without accents.
    pub fn wants_plain_text(&self) -> bool {
        let says = |key: &str| self.meta(key).map(|value| value == "true");
        let stripped = says(STRIP_ACCENTS).or_else(|| says("tokenizer.ggml.normalizer.lowercase"));
        self.meta("tokenizer.ggml.model").as_deref() == Some("bert") && stripped.unwrap_or(true)
    }

    /// Components of a vector.
    pub fn vector_length(&self) -> u32 {
        // SAFETY: the model is live.
        unsafe { sys::llama_model_n_embd_out(self.raw.as_ptr()).max(0) as u32 }
    }

    /// Floats of a row that stands in the place of a token.
    pub fn input_width(&self) -> u32 {
        // SAFETY: the model is live.
        unsafe { sys::llama_model_n_embd_inp(self.raw.as_ptr()).max(0) as u32 }
    }

    /// Whether the cells of a lane can be cut and shared at any position; a recurrent state cannot.
    pub fn has_plain_cache(&self) -> bool {
        // SAFETY: the model is live.
        unsafe {
            !sys::llama_model_is_recurrent(self.raw.as_ptr())
                && !sys::llama_model_is_hybrid(self.raw.as_ptr())
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
