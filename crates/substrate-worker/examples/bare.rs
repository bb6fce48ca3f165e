//! The worker's program without its seals, to be started without a wall and measured beside the walled one (`wall_cost`).
//!
//! `bare MODEL`, with the pipe as standard input. It is linked like the worker (`-C target-feature=+crt-static`) and differs
//! from it in nothing else. Nothing starts it but the measurement: the worker itself cannot be told to stay unsealed.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use substrate_sandbox::wire::{self, FromWorker};
use substrate_worker::ffi::allocator::Budgeted;
use substrate_worker::serve::{Place, serve};

/// As the worker's.
#[global_allocator]
static ALLOCATOR: Budgeted = Budgeted;

fn main() -> io::Result<()> {
    let usage = || io::Error::other("usage: bare MODEL, with a socket as standard input");
    let model = std::env::args().nth(1).ok_or_else(usage)?;
    let pool = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let pipe = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut pipe: &'static File = Box::leak(Box::new(pipe));
    wire::write(&mut pipe, &unsealed(1)).map_err(io::Error::other)?;
    let place = Place {
        model,
        projector: String::new(),
        adapter: String::new(),
        pool,
        seal: || Ok(unsealed(2)),
    };
    serve(pipe, pipe, place)
}

/// What the other side waits for, with nothing claimed.
fn unsealed(stage: u8) -> FromWorker {
    FromWorker::Sealed {
        stage,
        landlock: 0,
        seccomp: false,
    }
}
