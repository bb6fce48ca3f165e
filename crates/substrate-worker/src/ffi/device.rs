//! The processor as a device of ggml's, with the context's own threads: what encodes images is given this one.
//!
//! `mtmd` has no place for a thread pool: left alone it makes one for each image, and behind the second seal no thread can
//! start. But it takes a device, and asks it once for a backend. This device is a copy of ggml's own for the processor, but
//! that the backends it gives use the context's pool and interrupt.
//!
//! Invariant: the layout of a device is private to ggml, so the copy is used only if it answers as the original does through
//! the public calls; the version of ggml is pinned besides.
//! Absent by design: any other change. Memory, operations and weights are the original's.

use std::ffi::{c_char, c_void};
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::EngineError;

/// Functions of a device (ggml-backend-impl.h: `ggml_backend_device_i`), and which of them these are.
const FUNCTIONS: usize = 15;
const GET_TYPE: usize = 3;
const INIT_BACKEND: usize = 5;
const GET_BUFFER_TYPE: usize = 6;

/// Backends that a device gives at most: a projector may see, hear and speak.
pub const MOST: usize = 3;

/// As `ggml_backend_device` is laid out: its functions, its registry, its own data.
#[repr(C)]
#[derive(Clone, Copy)]
struct Layout {
    functions: [*const c_void; FUNCTIONS],
    registry: sys::ggml_backend_reg_t,
    data: *mut c_void,
}

/// The threads of the backends that a device gives, and what stops them.
#[derive(Clone, Copy)]
pub struct Threads {
    /// The context's pool, which outlives them.
    pub pool: NonNull<sys::ggml_threadpool>,
    /// Asked between two operations.
    pub abort: sys::ggml_abort_callback,
    /// What it is asked with.
    pub abort_data: *mut c_void,
}

/// Backends that belong to whoever asked for them.
pub type Given = [Option<NonNull<sys::ggml_backend>>; MOST];

/// A processor with threads of ours. It is asked for backends while something is loaded.
#[repr(C)]
pub struct Device {
    layout: Layout,
    threads: Threads,
    given: Given,
}

/// Two of a device's functions (ggml-backend-impl.h).
type Kind = unsafe extern "C" fn(sys::ggml_backend_dev_t) -> sys::ggml_backend_dev_type;
type Memory = unsafe extern "C" fn(sys::ggml_backend_dev_t) -> sys::ggml_backend_buffer_type_t;

// SAFETY: as ggml declares it.
unsafe extern "C-unwind" {
    fn ggml_backend_cpu_init() -> sys::ggml_backend_t;
}

impl Device {
    /// A copy of ggml's own device for the processor, with these threads.
    ///
    /// # Errors
    /// ggml is laid out otherwise than this file was written for.
    pub fn new(threads: Threads) -> Result<Device, EngineError> {
        // SAFETY: the device is ggml's own and lives for ever; these are its public calls.
        let (original, registry, kind, memory) = unsafe {
            let original = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU);
            if original.is_null() {
                return Err(EngineError::Code(-1));
            }
            (
                original,
                sys::ggml_backend_dev_backend_reg(original),
                sys::ggml_backend_dev_type(original),
                sys::ggml_backend_dev_buffer_type(original),
            )
        };
        // SAFETY: a device is no smaller (ggml-backend-impl.h of the pinned version); the check below would tell.
        let mut layout = unsafe { original.cast::<Layout>().read() };
        // SAFETY: in the pinned layout these are functions of a device, and both have no other argument.
        let answers = unsafe {
            let get_type = layout.functions[GET_TYPE];
            let get_memory = layout.functions[GET_BUFFER_TYPE];
            layout.registry == registry
                && !get_type.is_null()
                && !get_memory.is_null()
                && std::mem::transmute::<*const c_void, Kind>(get_type)(original) == kind
                && std::mem::transmute::<*const c_void, Memory>(get_memory)(original) == memory
        };
        if !answers {
            let why = "this build of ggml is not the one that the worker was written for";
            return Err(EngineError::Projector(why.to_owned()));
        }
        layout.functions[INIT_BACKEND] = give as *const c_void;
        Ok(Device {
            layout,
            threads,
            given: [None; MOST],
        })
    }

    /// This device, to be handed to ggml while it is borrowed.
    pub fn raw(&mut self) -> sys::ggml_backend_dev_t {
        (&raw mut *self).cast()
    }

    /// The backends that were given out.
    pub fn given(&self) -> Given {
        self.given
    }
}

/// # Safety
/// `device` is a [`Device`] that nobody else uses during the call: what [`Device::raw`] handed out.
unsafe extern "C-unwind" fn give(
    device: sys::ggml_backend_dev_t,
    _: *const c_char,
) -> sys::ggml_backend_t {
    // SAFETY: the caller's promise; the backend is live, and so are the pool and the flag, which outlive it.
    unsafe {
        let device = &mut *device.cast::<Device>();
        let Some(place) = device.given.iter_mut().find(|given| given.is_none()) else {
            return std::ptr::null_mut();
        };
        let backend = ggml_backend_cpu_init();
        if !backend.is_null() {
            let Threads {
                pool,
                abort,
                abort_data,
            } = device.threads;
            sys::ggml_backend_cpu_set_threadpool(backend, pool.as_ptr());
            sys::ggml_backend_cpu_set_abort_callback(backend, abort, abort_data);
            *place = NonNull::new(backend);
        }
        backend
    }
}
