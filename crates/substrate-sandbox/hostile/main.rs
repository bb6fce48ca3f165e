//! A worker that is taken over: tests put it in the worker's place, behind the real wall, in front of the real daemon.
//!
//! It speaks the pipe's protocol. What it does wrong, and when, stands in the model it is given, which holds no weights:
//! `GGUF MODE SEED`. `list` names the modes. With the mode `honest` it answers as a worker does, `ok` and again `ok`, so that one
//! daemon can have good models beside hostile ones.
//!
//! Invariant: the same model and the same messages give the same misbehaviour. Absent by design: getting out of the wall, which
//! `attacker/` tries.

#![allow(unsafe_code)]

mod dice;
mod modes;
mod play;

use std::fs;
use std::io;

use substrate_sandbox::seal;
use substrate_sandbox::wire::{self, FromWorker};

use dice::Dice;
use modes::{Mode, When};
use play::Play;

fn main() -> io::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("--version") => {
            let version = env!("CARGO_PKG_VERSION");
            println!("substrate-worker {version} (llama.cpp hostile, cpu/x86-64)");
        }
        Some("list") => {
            for mode in modes::ALL {
                println!("{:?}\t{}", mode.when, mode.name);
            }
        }
        Some(_) => return Err(io::Error::other("usage: substrate-hostile-worker list")),
        None => behind_the_wall()?,
    }
    Ok(())
}

fn behind_the_wall() -> io::Result<()> {
    let pipe = seal::control()?;
    let (mode, dice) = wanted()?;
    let mut play = Play::new(pipe, mode, dice);
    if mode.when == When::Unsealed {
        play.on_unsealed();
    } else {
        let sealed = seal::stage_one().map_err(io::Error::other)?;
        play.send(&FromWorker::from(sealed));
    }
    while let Some(message) = wire::read(&mut play.pipe).map_err(io::Error::other)? {
        play.hear(&message);
        play.on(message);
    }
    if mode.name == "stay when the pipe closes" {
        play.be_silent();
    }
    // Dropping the pipe would close it, which stage two forbids.
    std::process::exit(0)
}

/// The mode and the seed that the model names.
fn wanted() -> io::Result<(&'static Mode, Dice)> {
    let model = fs::read_to_string(seal::MODEL_PATH)?;
    let words = model.trim().strip_prefix("GGUF ").unwrap_or_default();
    let (name, seed) = words.rsplit_once(' ').unwrap_or((words, "0"));
    let mode = modes::ALL.iter().find(|mode| mode.name == name);
    let mode = mode.ok_or_else(|| io::Error::other("the model names no mode"))?;
    Ok((mode, Dice::new(seed.parse().map_err(io::Error::other)?)))
}
