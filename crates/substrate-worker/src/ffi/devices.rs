//! The graphics processors that this build can compute on, in the engine's own order.
//!
//! Invariant: an index is a place in that order and means the same device as long as the process lives.
//! Absent by design: choosing one (the daemon reckons what fits), and the processor itself, which is always there.

use std::ffi::{CStr, c_char};

use llama_cpp_sys_2 as sys;

use super::{EngineError, start_backend};

/// A graphics processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The engine's name for it, such as `Vulkan0`.
    pub name: String,
    /// Its maker's.
    pub description: String,
    /// It shares the machine's memory.
    pub integrated: bool,
    /// Bytes it has.
    pub total: u64,
    /// Bytes of them that are free now.
    pub free: u64,
}

/// Every one of them; none in a build for the processor alone.
pub fn devices() -> Vec<Device> {
    let describe = |device| {
        let (mut free, mut total) = (0, 0);
        // SAFETY: `device` is one of the engine's, which live as long as the process; its texts are NUL-terminated and
        // live as long, and the two numbers are written on this stack.
        unsafe {
            sys::ggml_backend_dev_memory(device, &raw mut free, &raw mut total);
            Device {
                name: text(sys::ggml_backend_dev_name(device)),
                description: text(sys::ggml_backend_dev_description(device)),
                integrated: sys::ggml_backend_dev_type(device)
                    == sys::GGML_BACKEND_DEVICE_TYPE_IGPU,
                total: total as u64,
                free: free as u64,
            }
        }
    };
    handles().map(describe).collect()
}

/// The device at a place of that order.
pub(super) fn handle(index: u32) -> Result<sys::ggml_backend_dev_t, EngineError> {
    let mut handles = handles();
    handles
        .nth(index as usize)
        .ok_or(EngineError::NoDevice(index))
}

fn handles() -> impl Iterator<Item = sys::ggml_backend_dev_t> {
    start_backend();
    // SAFETY: the engine's list is whole once its backend has started.
    let count = unsafe { sys::ggml_backend_dev_count() };
    // SAFETY: every index is below the count.
    let all = (0..count).map(|index| unsafe { sys::ggml_backend_dev_get(index) });
    all.filter(|&device| {
        // SAFETY: the engine's own device.
        let kind = unsafe { sys::ggml_backend_dev_type(device) };
        kind == sys::GGML_BACKEND_DEVICE_TYPE_GPU || kind == sys::GGML_BACKEND_DEVICE_TYPE_IGPU
    })
}

/// # Safety
/// `text` is null or a NUL-terminated string that lives for the call.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and then the caller's promise.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_graphics_processors_knows_none() {
        if crate::engine::BACKEND.starts_with("cpu") {
            assert_eq!(devices(), []);
            assert_eq!(handle(0), Err(EngineError::NoDevice(0)));
        }
        assert_eq!(handle(u32::MAX), Err(EngineError::NoDevice(u32::MAX)));
    }
}
