//! A LoRA adapter laid over a model (arXiv 2106.09685): a small file that changes what the weights say.
//!
//! Invariant: an adapter keeps its [`Model`] alive, and the context that uses it keeps the adapter.
//! Absent by design: several at once, scales, and adapters that wait for a word (aLoRA), which this one would always apply.

use std::ffi::{CString, c_char};
use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::{EngineError, LoadLog, Model, guarded};

// SAFETY: the types are those of the bindings, which are made from llama.h; declared again because they may throw.
unsafe extern "C-unwind" {
    fn llama_adapter_lora_init(
        model: *mut sys::llama_model,
        path: *const c_char,
    ) -> *mut sys::llama_adapter_lora;
    fn llama_set_adapters_lora(
        context: *mut sys::llama_context,
        adapters: *mut *mut sys::llama_adapter_lora,
        count: usize,
        scales: *mut f32,
    ) -> i32;
}

/// A loaded adapter.
pub struct Adapter {
    raw: NonNull<sys::llama_adapter_lora>,
    _model: Arc<Model>,
}

// SAFETY: it is only read once it is loaded.
unsafe impl Send for Adapter {}

impl Adapter {
    /// Loads the adapter at `path` for a model.
    ///
    /// # Errors
    /// [`EngineError::Adapter`] with the engine's own words.
    pub(super) fn load(path: &str, model: &Arc<Model>) -> Result<Adapter, EngineError> {
        let refused = |why: &str| EngineError::Adapter(why.to_owned());
        let path = CString::new(path).map_err(|_| refused("the path holds a NUL byte"))?;
        let log = LoadLog::start();
        let raw = guarded("loading the adapter", || {
            // SAFETY: the model is live, and the path outlives the call.
            unsafe { llama_adapter_lora_init(model.raw.as_ptr(), path.as_ptr()) }
        });
        let why = log.end();
        let raw = NonNull::new(raw?).ok_or_else(|| refused(&why))?;
        let adapter = Adapter {
            raw,
            _model: model.clone(),
        };
        // SAFETY: the adapter is live.
        let waits = unsafe { sys::llama_adapter_get_alora_n_invocation_tokens(raw.as_ptr()) };
        if waits > 0 {
            return Err(refused("it waits for words before it applies (aLoRA)"));
        }
        Ok(adapter)
    }

    /// Uses the adapter, and no other, for all that `context` computes from now on.
    ///
    /// # Safety
    /// The context is live and of the adapter's model, and is freed before the adapter.
    pub(super) unsafe fn apply(
        &self,
        context: NonNull<sys::llama_context>,
    ) -> Result<(), EngineError> {
        let mut adapters = [self.raw.as_ptr()];
        let mut scales = [1.0];
        let code = guarded("laying the adapter over the model", || {
            // SAFETY: both lists have one element and outlive the call; the rest is the caller's promise.
            unsafe {
                llama_set_adapters_lora(
                    context.as_ptr(),
                    adapters.as_mut_ptr(),
                    1,
                    scales.as_mut_ptr(),
                )
            }
        })?;
        match code {
            0 => Ok(()),
            code => Err(EngineError::Code(code)),
        }
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // SAFETY: whoever used it is gone (`apply`), and its model is not.
        unsafe { sys::llama_adapter_lora_free(self.raw.as_ptr()) }
    }
}
