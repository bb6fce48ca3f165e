//! A worker that tries to get out: the wall's suite, and the tests', run it in a worker's place.
//!
//! Behind the wall it reads one line from the pipe, `STAGE COMMAND`, seals itself as far as told
//! (0 not at all, 1, 2), does the command and answers one line. Outside, `substrate-wall-attacker bare COMMAND` does
//! the same with standard output, and `root COMMAND` as root in namespaces of its own: the controls. `list` names the
//! attacks.
//!
//! Invariant: it is linked statically, as the worker is. Absent by design: cleverness. Each attack
//! is one system call that a taken-over worker would want, or the two or three that lead to it.

#![allow(unsafe_code)]

mod attacks;
mod honest;

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::AsRawFd,
    os::unix::net::UnixStream,
    thread,
};

use substrate_sandbox::seal;

/// Seconds a control may take. An attack is a few calls; one that blocks must not block the suite.
const PATIENCE: u32 = 10;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => behind_the_wall(),
        ["list"] => list(),
        ["bare", command] => control(command),
        ["root", command] => {
            become_root()?;
            control(command)
        }
        _ => Err(io::Error::other(
            "usage: substrate-wall-attacker list | bare COMMAND | root COMMAND",
        )),
    }
}

fn behind_the_wall() -> io::Result<()> {
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

/// One line for each attack: what it is after, what it does outside, its name.
fn list() -> io::Result<()> {
    let mut out = io::stdout().lock();
    for attack in attacks::all() {
        writeln!(
            out,
            "{:?}\t{:?}\t{}",
            attack.kind, attack.outside, attack.name
        )?;
    }
    Ok(())
}

/// The attack without a wall, within [`PATIENCE`], with a socket where a worker has its pipe. New privileges are given up, as
/// filters of one's own need that; no attack is for them.
fn control(command: &str) -> io::Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    // SAFETY: alarm and prctl take numbers; dup2 puts a copy where the pair's second descriptor is, if this process was started
    // with three, or where nothing is.
    unsafe {
        libc::alarm(PATIENCE);
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        if theirs.as_raw_fd() != seal::CONTROL && libc::dup2(theirs.as_raw_fd(), seal::CONTROL) < 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    let answer = perform(command);
    drop(ours);
    writeln!(io::stdout(), "{answer}")?;
    // Whatever stands at the pipe's number now is not closed twice.
    std::process::exit(0)
}

/// Root in a user, mount, network, name and ipc namespace of its own, as any user may be.
fn become_root() -> io::Result<()> {
    // SAFETY: the calls have no arguments, or plain ones, and touch no memory of this process.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let own = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC;
    // SAFETY: as above; this process has one thread.
    if unsafe { libc::unshare(own) } < 0 {
        return Err(io::Error::last_os_error());
    }
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

fn perform(command: &str) -> String {
    let Some(attack) = attacks::all().find(|attack| attack.name == command) else {
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
