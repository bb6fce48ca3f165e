//! The program inside the wall: seals itself, then serves one model over descriptor 4.
//!
//! Invariant: nothing untrusted is read before the first seal, no prompt before the second.
//! Absent by design: arguments (but `--version` and `--devices`), configuration, logs. A panic says where, not what.

use std::fs::File;
use std::process::exit;

use substrate_sandbox::seal;
use substrate_sandbox::wire;
use substrate_worker::ffi::allocator::{self, Budgeted};
use substrate_worker::serve::last_words;
use substrate_worker::{engine, ffi, walled};

/// Bounds what a chat template can build.
#[global_allocator]
static ALLOCATOR: Budgeted = Budgeted;

fn main() {
    if std::env::args().nth(1).as_deref() == Some("--version") {
        let (version, build) = (env!("CARGO_PKG_VERSION"), engine::build());
        println!(
            "substrate-worker {version} (llama.cpp {build}, {})",
            engine::BACKEND
        );
        return;
    }
    if std::env::args().nth(1).as_deref() == Some("--devices") {
        println!("{}", devices());
        return;
    }
    std::panic::set_hook(Box::new(|panic| match panic.location() {
        Some(place) => eprintln!("panic at {place}"),
        None => eprintln!("panic"),
    }));
    // Counted now: after the seal the worker cannot ask.
    let pool = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let Ok(pipe) = seal::control() else {
        eprintln!("substrate-worker is started by the daemon: descriptor 4 is not open");
        exit(2);
    };
    // Never closed: after the second seal `close` is a crime.
    let pipe: &'static File = Box::leak(Box::new(pipe));
    allocator::on_spent(move || {
        let mut pipe = pipe;
        let _ = wire::write(&mut pipe, &last_words());
        exit(3)
    });
    exit(walled::run(pipe, pool));
}

/// What the daemon reckons with, as JSON: the owner's own question, before there is a model or a wall.
fn devices() -> serde_json::Value {
    let devices = ffi::devices().into_iter().map(|device| {
        serde_json::json!({
            "name": device.name,
            "description": device.description,
            "integrated": device.integrated,
            "total": device.total,
            "free": device.free,
        })
    });
    devices.collect()
}
