//! QEMU's machine protocol, as much of it as a machine's life takes: one order at a time, one JSON object a line.
//!
//! Invariant: an answer is at most [`MAX_ANSWER`] bytes, and comes in time or is an error: whoever broke out of a guest may
//! answer in QEMU's place.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// The console's text is the longest answer, and JSON writes a byte of it in up to six.
const MAX_ANSWER: usize = 128 * 1024;

/// Events that may come before an answer; QEMU sends a handful in a machine's life.
const MAX_EVENTS: usize = 64;

/// How long QEMU may take for an order that does not wait for the guest.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to a QEMU that is starting or runs.
pub(super) struct Qmp {
    stream: UnixStream,
    met: bool,
}

impl Qmp {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, met: false }
    }

    /// Gives an order and returns what came back under `return`.
    pub fn order(&mut self, name: &str, arguments: &Value) -> io::Result<Value> {
        if !self.met {
            self.meet()?;
        }
        let order = json!({ "execute": name, "arguments": arguments });
        self.exchange(&order)
    }

    fn meet(&mut self) -> io::Result<()> {
        let greeting = self.object()?;
        if greeting.get("QMP").is_none() {
            return Err(bad("no greeting"));
        }
        self.met = true;
        self.exchange(&json!({ "execute": "qmp_capabilities" }))
            .map(drop)
    }

    fn exchange(&mut self, order: &Value) -> io::Result<Value> {
        self.stream.write_all(format!("{order}\n").as_bytes())?;
        for _ in 0..MAX_EVENTS {
            let mut answer = self.object()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                let why = error.get("desc").and_then(Value::as_str);
                return Err(io::Error::other(why.unwrap_or("an error").to_owned()));
            }
        }
        Err(bad("events without end"))
    }

    fn object(&mut self) -> io::Result<Value> {
        let until = Instant::now() + PATIENCE;
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut byte)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ if byte[0] == b'\n' => break,
                _ if line.len() == MAX_ANSWER => return Err(bad("an answer without end")),
                _ => line.push(byte[0]),
            }
        }
        serde_json::from_slice(&line).map_err(io::Error::from)
    }
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
