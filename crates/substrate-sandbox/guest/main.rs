//! The first process of a guest: it makes the ground, waits for its seed, and starts the worker behind the process wall.
//!
//! So a worker in a microVM has both walls around it, made by the same code as on the host (`launch`), and what it can reach
//! after breaking out of the inner one is a guest without a network, whose disks are read-only.
//!
//! Invariant: nothing starts before the host has seeded the kernel's generator, after a boot and after each restore.
//! Invariant: this process parses lines of its host (`guest`) and nothing else; what the worker writes passes by unread.
//! Absent by design: a shell, a network, a log. What went wrong is said on the console and to the host.

#![allow(unsafe_code)]

mod disks;
mod ground;
mod ports;
mod work;

use std::{
    fs::File,
    io::{self, Write},
    sync::Arc,
};

use substrate_sandbox::guest::{FromGuest, SEED_BYTES, ToGuest, VERSION, read_line};

use ports::Line;
use work::Work;

fn main() {
    if let Err(error) = live() {
        say(&format!("{error}"));
    }
    ground::end();
}

fn live() -> io::Result<()> {
    ground::prepare()?;
    let (control, pipe) = ports::open()?;
    let line = Arc::new(Line::new(control.try_clone()?));
    let mut control = control;
    let mut work = Work::new(pipe, line.clone());
    line.say(&FromGuest::Ready { version: VERSION })?;
    let mut seeded = false;
    while let Some(told) = read_line(&mut control)? {
        match told {
            ToGuest::Seed(seed) => {
                stir(&seed)?;
                seeded = true;
                line.say(&FromGuest::Seeded)?;
            }
            ToGuest::Forget => {
                seeded = false;
                line.say(&FromGuest::Forgotten)?;
            }
            ToGuest::Start(_) | ToGuest::Breach(_) if !seeded => {
                line.say(&FromGuest::Failed("no seed has come".to_owned()))?;
            }
            ToGuest::Start(start) => work.start(start)?,
            ToGuest::Breach(start) => work.breach(start)?,
            ToGuest::Look => line.say(&FromGuest::Sealed(work.is_sealed()))?,
            ToGuest::Kill => work.kill()?,
        }
    }
    Ok(())
}

/// Mixes the seed into the kernel's generator, counts it as entropy, and has the generator begin anew from it
/// (`random(4)`: `RNDADDENTROPY`, `RNDRESEEDCRNG`).
fn stir(seed: &[u8; SEED_BYTES]) -> io::Result<()> {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    #[repr(C)]
    struct PoolInfo {
        bits: libc::c_int,
        bytes: libc::c_int,
        seed: [u8; SEED_BYTES],
    }
    let info = PoolInfo {
        bits: 8 * SEED_BYTES as libc::c_int,
        bytes: SEED_BYTES as libc::c_int,
        seed: *seed,
    };
    let random = File::options().write(true).open("/dev/random")?;
    let random = std::os::fd::AsRawFd::as_raw_fd(&random);
    // SAFETY: the kernel reads two integers and as many bytes as the second says, all of which are in `info`; the second call
    // has no argument.
    let done = unsafe {
        [
            libc::ioctl(random, RNDADDENTROPY as _, &raw const info),
            libc::ioctl(random, RNDRESEEDCRNG as _, 0),
        ]
    };
    match done {
        [0, 0] => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Onto the console, through the kernel's log.
fn say(what: &str) {
    if let Ok(mut log) = File::options().write(true).open("/dev/kmsg") {
        // There is nobody to tell that the console is gone.
        let _ = writeln!(log, "<3>substrate: {what}");
    }
}
