//! What every command has at hand: the home, the choice of JSON, and the two outputs.
//!
//! Invariant: a failed write is an error like any other, so that a closed pipe ends the program quietly.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::home::Home;

use super::story::Story;

/// One run of the program.
pub struct Session {
    home: Option<PathBuf>,
    /// Answer in JSON.
    pub json: bool,
}

impl Session {
    /// A session with the home that was named, if one was.
    pub fn new(home: Option<PathBuf>, json: bool) -> Self {
        Self { home, json }
    }

    /// The home; not touched yet.
    pub fn home(&self) -> anyhow::Result<Home> {
        let no_home = |error| {
            Story::new("there is no usable home folder")
                .because(error)
                .hint("set SUBSTRATE_HOME, or pass --home, to an absolute path of a folder of your own")
        };
        match &self.home {
            None => Ok(Home::find().map_err(no_home)?),
            Some(root) => {
                let root = std::path::absolute(root)
                    .map_err(|error| Story::usage("--home is not a path").because(error))?;
                Ok(Home::at(root))
            }
        }
    }

    /// The home with its folders made.
    pub fn prepared_home(&self) -> anyhow::Result<Home> {
        let home = self.home()?;
        home.prepare().map_err(|error| {
            Story::new("the home folder cannot be used")
                .because(error)
                .hint("`--home DIR` or SUBSTRATE_HOME names another one")
        })?;
        Ok(home)
    }

    /// The folder given by `--home`, for a daemon that is started on it.
    pub fn named_home(&self) -> Option<&PathBuf> {
        self.home.as_ref()
    }

    /// Writes a line of data.
    pub fn line(&self, line: impl fmt::Display) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{line}")
    }

    /// Writes data as it is, and shows it at once.
    pub fn text(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Writes raw data.
    pub fn bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    /// Writes one JSON value on one line, and shows it at once.
    pub fn json_line(&self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_string(value)?;
        line.push('\n');
        self.text(&line)
    }

    /// Writes JSON for people and programs.
    pub fn json(&self, value: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        self.text(&text)
    }
}

/// Tells something that is not data. Without a stderr there is nobody to tell.
pub fn note(line: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Tells a part of a line that is not data.
pub fn aside(text: &str) {
    let _ = write!(io::stderr().lock(), "{text}");
}

/// Whether somebody reads stderr as it comes.
pub fn watched() -> bool {
    io::stderr().is_terminal()
}

/// Resolves at Ctrl-C or a request to end.
pub async fn interrupted() {
    tokio::select! {
        () = signalled(SignalKind::interrupt()) => {}
        () = terminated() => {}
    }
}

/// Resolves at a request to end.
pub async fn terminated() {
    signalled(SignalKind::terminate()).await;
}

async fn signalled(kind: SignalKind) {
    match signal(kind) {
        Ok(mut signal) => _ = signal.recv().await,
        // Without a handler the system's own ending still works.
        Err(_) => std::future::pending().await,
    }
}
