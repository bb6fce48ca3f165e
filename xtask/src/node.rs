//! A real node: `substrate serve` in a home of its own, asked by the real command line and over real HTTP.

use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::packages::is_root;
use crate::sh;
use crate::stage::UNPRIVILEGED;

/// How long a daemon may take to answer after its start: keys, store, mesh and a cold disk.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// How often a condition with a deadline is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A node in a folder of its own.
pub struct Node {
    /// For messages.
    pub name: String,
    /// Its SUBSTRATE_HOME.
    pub home: PathBuf,
    /// Its HTTP listener.
    pub api: SocketAddr,
    /// Its mesh port, udp and tcp.
    pub mesh: u16,
    bin: PathBuf,
    serve_args: Vec<String>,
    env: Vec<(String, String)>,
    /// Words before the program's own, and who they are run by.
    prefix: Vec<String>,
    prefix_drops_root: bool,
    tcp_only: bool,
    daemon: Option<Child>,
}

impl Node {
    /// A home under `folder`, nothing started. `bin` holds the staged programs.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn create(bin: &Path, folder: &Path, name: &str) -> Result<Self> {
        let home = folder.join(name);
        std::fs::create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
        std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o700))?;
        if is_root() {
            chown(&home, Some(UNPRIVILEGED), Some(UNPRIVILEGED))?;
        }
        Ok(Self {
            name: name.to_owned(),
            home,
            api: free_port()?,
            mesh: free_port()?.port(),
            bin: bin.to_path_buf(),
            serve_args: Vec::new(),
            env: Vec::new(),
            prefix: Vec::new(),
            prefix_drops_root: false,
            tcp_only: false,
            daemon: None,
        })
    }

    /// Further arguments of `serve`.
    #[must_use]
    pub fn with_serve_args(mut self, args: &[&str]) -> Self {
        self.serve_args = args.iter().map(ToString::to_string).collect();
        self
    }

    /// Further arguments of `serve` from the next start on.
    pub fn set_serve_args(&mut self, args: &[&str]) {
        self.serve_args = args.iter().map(ToString::to_string).collect();
    }

    /// A variable of the daemon's environment.
    #[must_use]
    pub fn with_env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// With a wall clock moved by libfaketime (`+2d`), and the monotonic clock as it is.
    #[must_use]
    pub fn with_clock(self, faketime: &str, offset: &str) -> Self {
        self.with_env("LD_PRELOAD", faketime)
            .with_env("FAKETIME", offset)
            .with_env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }

    /// Words that come before the program's own in every command of this node, such as `taskset -c 0`.
    #[must_use]
    pub fn with_prefix(mut self, words: &[&str]) -> Self {
        self.prefix = words.iter().map(ToString::to_string).collect();
        self
    }

    /// As [`Node::with_prefix`], for a prefix that needs root where there is root and gives it up itself.
    #[must_use]
    pub fn with_root_prefix(mut self, words: &[&str]) -> Self {
        self.prefix_drops_root = true;
        self.with_prefix(words)
    }

    /// No QUIC: every connection can then be led through a proxy and cut.
    #[must_use]
    pub fn with_tcp_only(mut self) -> Self {
        self.tcp_only = true;
        self
    }

    /// From its next start on, the node's mesh listens on another port: nobody finds it where it was.
    ///
    /// # Errors
    /// No port is free.
    pub fn move_mesh(&mut self) -> Result<()> {
        self.mesh = free_port()?.port();
        Ok(())
    }

    /// Writes the settings file, which the unprivileged user owns.
    ///
    /// # Errors
    /// The disk's.
    pub fn write_config(&self, text: &str) -> Result<()> {
        self.write_file("config.toml", text)
    }

    /// Writes a file into the home.
    ///
    /// # Errors
    /// The disk's.
    pub fn write_file(&self, name: &str, text: &str) -> Result<()> {
        let path = self.home.join(name);
        File::create(&path)?.write_all(text.as_bytes())?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        if is_root() {
            chown(&path, Some(UNPRIVILEGED), Some(UNPRIVILEGED))?;
        }
        Ok(())
    }

    /// Starts the daemon and waits until it answers over HTTP. The log of an earlier start is kept: what a daemon
    /// wrote before it was killed is searched too.
    ///
    /// # Errors
    /// It ended, or did not answer in time; the end of its log is in the message.
    pub fn start(&mut self) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let mut command = self.command();
        command.arg("serve").args(["--api", &self.api.to_string()]);
        if !self.tcp_only {
            let quic = format!("/ip4/127.0.0.1/udp/{}/quic-v1", self.mesh);
            command.args(["--listen", &quic]);
        }
        command
            .args(["--listen", &format!("/ip4/127.0.0.1/tcp/{}", self.mesh)])
            .args(&self.serve_args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.daemon = Some(
            command
                .spawn()
                .with_context(|| format!("start node {}", self.name))?,
        );
        self.wait_until_up()
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        let url = format!("http://{}/healthz", self.api);
        while Instant::now() < deadline {
            if ureq::get(&url).call().is_ok() {
                return Ok(());
            }
            let ended = self
                .daemon
                .as_mut()
                .and_then(|daemon| daemon.try_wait().ok().flatten());
            if let Some(status) = ended {
                bail!(
                    "node {} ended with {status}:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            std::thread::sleep(POLL);
        }
        bail!(
            "node {} did not answer within {START_DEADLINE:?}:\n{}",
            self.name,
            self.log_tail()
        )
    }

    /// The daemon's process id.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// Ends the daemon at once, as a power cut would (SIGKILL).
    ///
    /// # Errors
    /// The system's.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
            daemon.wait()?;
        }
        Ok(())
    }

    /// Ends the daemon as a failed assertion in it would (SIGABRT), and tells how it ended.
    ///
    /// # Errors
    /// It does not run, or the system's.
    pub fn abort(&mut self) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("the daemon does not run")?;
        sh::run(Command::new("kill").args(["-ABRT", &daemon.id().to_string()]))?;
        Ok(daemon.wait()?)
    }

    /// Asks the daemon to stop and waits for its end.
    ///
    /// # Errors
    /// It did not stop by itself.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        self.cli(&["stop", "--daemon"])?;
        let deadline = Instant::now() + START_DEADLINE;
        while Instant::now() < deadline {
            if let Some(status) = daemon.try_wait()? {
                if status.success() {
                    return Ok(());
                }
                bail!(
                    "node {} stopped with {status}:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            std::thread::sleep(POLL);
        }
        daemon.kill()?;
        daemon.wait()?;
        bail!("node {} did not stop within {START_DEADLINE:?}", self.name)
    }

    /// The command line in this node's home, as its unprivileged user.
    pub fn command(&self) -> Command {
        let program = self.bin.join("substrate");
        let mut command = match self.prefix.split_first() {
            None => Command::new(program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        command
            .env_clear()
            .env("SUBSTRATE_HOME", &self.home)
            .env("PATH", "/usr/bin:/bin")
            .current_dir(&self.home);
        for (key, value) in &self.env {
            command.env(key, value);
        }
        for key in ["SUBSTRATE_LOG", "RUST_BACKTRACE"] {
            if let Some(value) = std::env::var_os(key) {
                command.env(key, value);
            }
        }
        if is_root() && !self.prefix_drops_root {
            command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
        }
        command
    }

    /// Runs one command to its end and returns its stdout.
    ///
    /// # Errors
    /// It failed; its stderr is in the message.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        let output = self.command().args(args).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            bail!(
                "node {}: `substrate {}` ended with {}:\n{}",
                self.name,
                args.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs one command with `--json` and returns what it printed.
    ///
    /// # Errors
    /// As [`Node::cli`], or it printed no JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut with_json = vec!["--json"];
        with_json.extend_from_slice(args);
        let text = self.cli(&with_json)?;
        serde_json::from_str(&text)
            .with_context(|| format!("`substrate --json {}` printed {text}", args.join(" ")))
    }

    /// Waits until `check` holds.
    ///
    /// # Errors
    /// It did not within `within`; `what` and the end of the log are in the message.
    pub fn wait_for(
        &self,
        what: &str,
        within: Duration,
        mut check: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            if check(self)? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!(
                    "node {}: {what} did not happen within {within:?}:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// Resident bytes of the daemon.
    ///
    /// # Errors
    /// It does not run.
    pub fn resident_bytes(&self) -> Result<u64> {
        let pid = self.pid().context("the daemon does not run")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .context("no VmRSS")?;
        let kib: u64 = line
            .split_whitespace()
            .nth(1)
            .context("no number")?
            .parse()?;
        Ok(kib * 1024)
    }

    /// The daemon's log.
    pub fn log_path(&self) -> PathBuf {
        self.home.with_extension("log")
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A daemon that outlives its handle would answer a later test.
        let _ = self.kill();
    }
}

/// Ports for nodes: below those that the system gives to whoever connects (from 32768 on), as one of them might be taken between
/// our look and the node's start.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Ports between the first that two processes with neighbouring ids try: more than one of them needs.
const APART: u32 = 97;

/// A port that nobody has now, on loopback, for TCP and for UDP. No other call of this process gave it.
fn free_port() -> Result<SocketAddr> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(APART);
    for _ in PORTS {
        let place = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS.len() as u32;
        let port = PORTS.start + u16::try_from(place)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no port between {} and {} is free", PORTS.start, PORTS.end)
}

/// A fresh folder any user may enter, removed with its handle.
pub struct Scratch(PathBuf);

impl Scratch {
    /// `name` tells runs of different kinds apart.
    ///
    /// # Errors
    /// The disk's.
    pub fn new(name: &str) -> Result<Self> {
        let unique = format!(
            "substrate-{name}-{}-{}",
            std::process::id(),
            free_port()?.port()
        );
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::env::var_os("SUBSTRATE_KEEP_SCRATCH").is_none() {
            // A folder left behind in /tmp is only untidy.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// Every regular file below a folder.
///
/// # Errors
/// The disk's.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let meta = std::fs::symlink_metadata(&path)?;
            match meta.file_type() {
                kind if kind.is_dir() => folders.push(path),
                kind if kind.is_file() && meta.mode() & 0o400 != 0 => files.push(path),
                _ => {}
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_port_is_given_once_and_none_that_somebody_has() {
        let first = free_port().expect("a port");
        // Somebody has the next one, for UDP only.
        let next = SocketAddr::from((first.ip(), first.port() + 1));
        let _taken = UdpSocket::bind(next);
        let given: BTreeSet<SocketAddr> = (0..8).map(|_| free_port().expect("a port")).collect();
        assert_eq!(given.len(), 8);
        assert!(!given.contains(&first) && !given.contains(&next));
        assert!(given.iter().all(|address| PORTS.contains(&address.port())));
    }
}
