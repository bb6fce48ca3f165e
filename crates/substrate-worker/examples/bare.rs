//! One program for both sides of a comparison (`wall_cost`): what a wall costs is the difference between it and itself.
//!
//! `bare MODEL`, with the pipe as standard input: the worker without its seals, to be started without a wall. `bare` without a word,
//! as the wall starts a worker: the worker. Two programs would differ in where their linker puts what is hot, too.
//! It is linked like the worker (`-C target-feature=+crt-static`). Nothing starts it but the measurement: the worker itself cannot be told to stay unsealed.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::exit;

use substrate_sandbox::seal;
use substrate_sandbox::wire::{self, FromWorker};
use substrate_worker::ffi::allocator::Budgeted;
use substrate_worker::serve::{Place, serve};
use substrate_worker::walled;

/// As the worker's.
#[global_allocator]
static ALLOCATOR: Budgeted = Budgeted;

fn main() -> io::Result<()> {
    let pool = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let Some(model) = std::env::args().nth(1) else {
        exit(walled::run(Box::leak(Box::new(seal::control()?)), pool));
    };
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
