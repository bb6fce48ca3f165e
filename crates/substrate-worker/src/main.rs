//! The program inside the wall: seals itself, then serves one model over descriptor 4.
//!
//! Invariant: nothing untrusted is read before the first seal, no prompt before the second.
//! Absent by design: arguments (but `--version` and `--devices`), configuration, logs. A panic says where, not what.

use std::fs::File;
use std::process::exit;

use substrate_sandbox::seal;
use substrate_sandbox::wire::{self, Failure, FromWorker};
use substrate_worker::engine;
use substrate_worker::ffi;
use substrate_worker::ffi::allocator::{self, Budgeted};
use substrate_worker::serve::{Place, last_words, serve};

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
    exit(live(pipe, pool));
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

fn live(mut pipe: &'static File, pool: u32) -> i32 {
    match seal::stage_one() {
        Ok(sealed) => {
            if wire::write(&mut pipe, &FromWorker::from(sealed)).is_err() {
                return 1;
            }
        }
        Err(error) => {
            let detail = error.to_string();
            let failed = FromWorker::Failed {
                seq: None,
                why: Failure::Internal,
                detail,
            };
            // The daemon sees the exit code if it does not see this.
            let _ = wire::write(&mut pipe, &failed);
            return 2;
        }
    }
    let seal = || {
        seal::stage_two()
            .map(FromWorker::from)
            .map_err(|error| error.to_string())
    };
    let place = Place {
        model: seal::MODEL_PATH.into(),
        projector: seal::PROJECTOR_PATH.into(),
        adapter: seal::ADAPTER_PATH.into(),
        pool,
        seal,
    };
    match serve(pipe, pipe, place) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}
