//! Probes: real processes that the tests talk to line by line. Waiting is always for a line, never for a time.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, timeout_at};

/// Far beyond anything waited for on an idle machine; tests may run beside a build.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running probe. It is killed when dropped.
pub struct Probe {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    /// Lines that came while another was waited for.
    seen: Vec<String>,
    args: Vec<String>,
}

/// The example binary beside this test's own.
pub fn probe_path() -> PathBuf {
    let mut path = std::env::current_exe().expect("a test knows its own path");
    path.pop();
    path.pop();
    path.push("examples/mesh_probe");
    assert!(
        path.exists(),
        "{} is missing: build it with `cargo build --examples`",
        path.display()
    );
    path
}

impl Probe {
    /// Starts a probe with a key made from `seed`.
    pub fn start(seed: u8, args: &[&str]) -> Self {
        Self::start_in(&[], seed, args)
    }

    /// Starts a probe behind a command, such as one that enters a namespace.
    pub fn start_in(prefix: &[String], seed: u8, args: &[&str]) -> Self {
        let mut words: Vec<String> = prefix.to_vec();
        words.push(probe_path().display().to_string());
        words.extend(["--seed".into(), seed.to_string()]);
        words.extend(args.iter().map(ToString::to_string));
        Self::spawn(words)
    }

    fn spawn(args: Vec<String>) -> Self {
        let mut child = Command::new(&args[0])
            .args(&args[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the probe starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self {
            child,
            input,
            output,
            seen: Vec::new(),
            args,
        }
    }

    /// Ends the process without a goodbye.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("the probe can be killed");
    }

    /// Starts it again, with other arguments behind the old ones.
    pub fn restart(&self, more: &[&str]) -> Self {
        let mut args = self.args.clone();
        args.extend(more.iter().map(ToString::to_string));
        Self::spawn(args)
    }

    pub async fn send(&mut self, line: &str) {
        self.input
            .write_all(format!("{line}\n").as_bytes())
            .await
            .expect("the probe reads");
    }

    /// Sends a command and waits for the line that begins its answer.
    pub async fn ask(&mut self, line: &str, answer: &str) -> String {
        self.send(line).await;
        self.expect(answer).await
    }

    /// The first line not yet taken that begins with `start`; it is taken.
    pub async fn expect(&mut self, start: &str) -> String {
        match self.expect_within(start, PATIENCE).await {
            Some(line) => line,
            None => panic!("no line `{start}…` came; these did: {:#?}", self.seen),
        }
    }

    pub async fn expect_within(&mut self, start: &str, patience: Duration) -> Option<String> {
        if let Some(at) = self.seen.iter().position(|line| line.starts_with(start)) {
            return Some(self.seen.remove(at));
        }
        let deadline = Instant::now() + patience;
        loop {
            let line = timeout_at(deadline, self.output.next_line()).await.ok()?;
            let line = line.expect("the probe writes text")?;
            if line.starts_with(start) {
                return Some(line);
            }
            self.seen.push(line);
        }
    }

    /// Whether a line has come, as far as lines were read.
    pub fn has_seen(&self, start: &str) -> bool {
        self.seen.iter().any(|line| line.starts_with(start))
    }

    /// Where it listens first, its id included.
    pub async fn address(&mut self) -> String {
        rest(&self.expect("listening ").await, 1)
    }

    /// Where it listens on an interface of its own, its id included.
    pub async fn address_with(&mut self, part: &str) -> String {
        rest(&self.expect(&format!("listening {part}")).await, 1)
    }

    /// Waits until all lines up to now are read: the answer to a question comes after them.
    pub async fn drain(&mut self) -> String {
        self.ask("peers", "peers ").await
    }
}

/// The words of a line from the `n`th on.
pub fn rest(line: &str, n: usize) -> String {
    line.split(' ').skip(n).collect::<Vec<_>>().join(" ")
}

/// The id of the node made from a seed.
pub fn node(seed: u8) -> String {
    let key = substrate_record::SigningKey::from_bytes(&[seed; 32]);
    substrate_record::NodeId::from_bytes(key.verifying_key().to_bytes()).to_string()
}

pub const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
pub const TCP: &str = "/ip4/127.0.0.1/tcp/0";
