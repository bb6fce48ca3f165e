//! A worker that tries to get out.
//!
//! Behind the wall it reads one line from the pipe, `STAGE COMMAND`, seals itself as far as told
//! (0 not at all, 1, 2), does the command and answers one line. Outside, `wall-attacker bare
//! COMMAND` does the same with standard output: the control run.
//!
//! Invariant: it is linked statically, as the worker is. Absent by design: cleverness. Each attack
//! is one system call that a taken-over worker would want.

#![allow(unsafe_code)]

mod attacks;
mod honest;

use std::{
    fs::File,
    io::{self, Read, Write},
    thread,
};

use substrate_sandbox::seal;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, bare, command] = arguments.as_slice()
        && bare == "bare"
    {
        let answer = perform(command);
        return writeln!(io::stdout(), "{answer}");
    }
    let mut pipe = seal::control()?;
    let order = read_line(&mut pipe)?;
    let (stage, command) = order.split_once(' ').unwrap_or(("0", &order));
    if command == "start a thread early" {
        thread::spawn(thread::park);
    }
    if stage != "0" {
        seal::stage_one().map_err(io::Error::other)?;
    }
    let ready = honest::prepare(command);
    if stage == "2" {
        seal::stage_two().map_err(io::Error::other)?;
    }
    let answer = match ready {
        Some(finish) => finish(&mut pipe),
        None => perform(command),
    };
    pipe.write_all(format!("{answer}\n").as_bytes())?;
    // Dropping the pipe would close it, which stage two forbids.
    std::process::exit(0)
}

fn perform(command: &str) -> String {
    let Some(attack) = attacks::ATTACKS
        .iter()
        .find(|attack| attack.name == command)
    else {
        return format!("unknown command {command}");
    };
    match (attack.run)() {
        -1 => format!("denied {}", io::Error::last_os_error()),
        _ => "allowed".to_owned(),
    }
}

/// Reads byte by byte: nothing else may be buffered away from the commands that follow.
fn read_line(pipe: &mut File) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while pipe.read(&mut byte)? == 1 && byte != *b"\n" {
        line.extend(byte);
    }
    String::from_utf8(line).map_err(io::Error::other)
}
