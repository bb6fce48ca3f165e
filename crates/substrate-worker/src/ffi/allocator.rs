//! The system's allocator with a budget: the only thing that bounds what a template can build.
//!
//! Steps and output of a template are counted by its interpreter, but a string doubled thirty times
//! takes few steps and writes nothing. An allocator may neither fail softly nor unwind, so when the
//! budget is spent the program says why and leaves (the hook does not return).
//!
//! Invariant: without a running budget it is the system's allocator.
//! Absent by design: use outside the worker program; tests run on the plain allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::OnceLock;

/// What to do when a budget is spent.
type Hook = Box<dyn Fn() -> std::convert::Infallible + Send + Sync>;

static HOOK: OnceLock<Hook> = OnceLock::new();

thread_local! {
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The allocator for `#[global_allocator]`.
pub struct Budgeted;

// SAFETY: every call is passed on to the system's allocator unchanged; counting neither allocates
// nor unwinds, and the hook runs with the budget switched off.
unsafe impl GlobalAlloc for Budgeted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        spend(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        spend(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        spend(size.saturating_sub(layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Sets what happens when a budget is spent; the first call counts.
pub fn on_spent(hook: impl Fn() -> std::convert::Infallible + Send + Sync + 'static) {
    // A second hook would be a second program; ignoring it keeps the first one's promise.
    let _ = HOOK.set(Box::new(hook));
}

/// Runs `work`; it may allocate `bytes` in all, freed or not.
pub fn within<R>(bytes: usize, work: impl FnOnce() -> R) -> R {
    struct Off;
    impl Drop for Off {
        fn drop(&mut self) {
            LEFT.set(None);
        }
    }
    let _off = Off;
    LEFT.set(Some(bytes));
    work()
}

fn spend(bytes: usize) {
    let Some(left) = LEFT.get() else { return };
    match left.checked_sub(bytes) {
        Some(left) => LEFT.set(Some(left)),
        None => {
            LEFT.set(None);
            if let Some(hook) = HOOK.get() {
                hook();
            }
        }
    }
}
