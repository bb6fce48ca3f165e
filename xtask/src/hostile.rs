//! A real daemon with a worker that is taken over, and what it must bear.
//!
//! `substrate-hostile-worker` is put in the worker's place, in a folder of its own. Each model that it is given names a mode of
//! misbehaviour and a seed, and one of them, [`GOOD`], none.
//!
//! Invariant: whatever the worker does, a job has its first token by its deadline or ends, and one whose worker falls silent after
//! that ends with the lease of its work; it ends with an answer or an error in words; the daemon lives, keeps its size and its
//! descriptors, answers with its good model, and writes no prompt into its log.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::node::{Node, Scratch, files_below};
use crate::stage;

/// The mode, and the model, that answers as a worker does.
pub const GOOD: &str = "honest";

/// What a taken-over worker should not be able to put into a log.
pub const MARKER: &str = "zebra-quartz-hostile-4471";

/// How long a job may wait for its first token.
pub const DEADLINE: Duration = Duration::from_secs(3);

/// What a busy machine may take beyond it: starting the command, eight tries, the answer's way.
const SLACK: Duration = Duration::from_secs(20);

/// How long work may stand still once it has said a token (`WORK_LEASE_MS` in `substrate-node`).
const LEASE: Duration = Duration::from_secs(120);

/// The mode that says a token and then nothing. Each of its jobs lasts until it counts as stalled, at the latest for the lease of its work.
pub const SILENT: &str = "fall silent in the answer";

/// Modes that may do the same.
const FALL_SILENT: [&str; 2] = [SILENT, "chaos"];

/// How long a load may take here: one mode never ends its own, and all others wait for it.
const LOAD_TIMEOUT: &str = "2s";

/// Jobs at once: more than any test asks.
const JOBS: u32 = 16;

/// Models loaded at the same time: more than there are modes.
const LOADED: u32 = 200;

/// How long workers of models that were given up may take to be gone, and descriptors with them.
const CALM: Duration = Duration::from_secs(30);

/// What a daemon may grow by, however many hostile workers it has borne: its allocator's slack, the records of their jobs.
const MAY_GROW: u64 = 96 << 20;

/// Descriptors that come and go by themselves: the store's file, connections to the listener.
const MAY_OPEN: usize = 12;

/// Bytes of a model: as many as its header claims weights.
const MODEL_BYTES: usize = 4096;

/// A mode by name, and when it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mode {
    /// What it does.
    pub name: String,
    /// `Honest`, `Unsealed`, `Load`, `Loaded`, `Prepare`, `Answer` or `Deaf`.
    pub when: String,
}

/// What came of one job.
#[derive(Debug)]
pub enum Came {
    /// Its answer.
    Answer(String),
    /// What the client was told.
    Error(String),
}

/// A running daemon whose worker is hostile.
pub struct Hostile {
    /// The node.
    pub node: Node,
    models: PathBuf,
    /// Resident bytes and descriptors when it had answered once.
    before: (u64, usize),
}

/// The programs with the hostile worker in the worker's place, as an install would lay them out.
///
/// # Errors
/// The disk's, or `bin` is no stage.
pub fn staged(bin: &Path, folder: &Path) -> Result<PathBuf> {
    let staged = folder.join("bin");
    std::fs::create_dir_all(&staged)?;
    stage::place(&bin.join("substrate"), &staged.join("substrate"))?;
    let hostile = bin.join("substrate-hostile-worker");
    stage::place(&hostile, &staged.join("substrate-worker"))?;
    // As if this were what was installed: who replaces a worker has replaced what vouches for it.
    stage::write_manifest(&staged)?;
    Ok(staged)
}

/// Every mode there is.
///
/// # Errors
/// The program cannot be run.
pub fn modes(bin: &Path) -> Result<Vec<Mode>> {
    let mut program = crate::sh::command(bin.join("substrate-hostile-worker"));
    let listed = crate::sh::output(program.arg("list"))?;
    let mode = |line: &str| {
        let (when, name) = line.split_once('\t').context("a mode without a time")?;
        let (name, when) = (name.to_owned(), when.to_owned());
        Ok(Mode { name, when })
    };
    listed.lines().map(mode).collect()
}

impl Hostile {
    /// Starts the daemon, with the good model in it.
    ///
    /// # Errors
    /// It does not start, or not even the good model answers.
    pub fn start(bin: &Path, scratch: &Scratch) -> Result<Self> {
        let staged = staged(bin, scratch.path())?;
        let mut node = Node::create(&staged, scratch.path(), "n")?;
        node.write_config(&format!(
            "[models]\nload_timeout = \"{LOAD_TIMEOUT}\"\nmax_loaded = {LOADED}\nparallel = {JOBS}\nkeep_alive = -1\n"
        ))?;
        node.start()?;
        let models = scratch.path().join("models");
        std::fs::create_dir_all(&models)?;
        let mut hostile = Self {
            node,
            models,
            before: (0, 0),
        };
        let good = hostile.add(GOOD, 0)?;
        ensure!(good == GOOD, "the good model is called {good}");
        hostile.good_answers()?;
        hostile.before = hostile.size()?;
        Ok(hostile)
    }

    /// Imports a model of a mode, and tells its name.
    ///
    /// # Errors
    /// The command's.
    pub fn add(&self, mode: &str, seed: u64) -> Result<String> {
        let plain = plain(mode);
        let name = match seed {
            0 => plain,
            seed => format!("{plain}-{seed}"),
        };
        let file = self.models.join(format!("{name}.gguf"));
        let text = format!("GGUF {mode} {seed}");
        std::fs::write(&file, format!("{text:<MODEL_BYTES$}"))?;
        let path = file.to_str().context("a path in UTF-8")?;
        self.node.cli(&["import", path, "--as", &name])?;
        std::fs::remove_file(file)?;
        Ok(name)
    }

    /// Takes a model away again, and its worker with it.
    ///
    /// # Errors
    /// The command's.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.node.cli(&["rm", name]).map(drop)
    }

    /// Asks as the command line does. The prompt ends with the words given.
    ///
    /// # Errors
    /// It took longer than it may, or ended without a word.
    pub fn ask(&self, name: &str, words: &str, more: &[&str]) -> Result<Came> {
        let begun = Instant::now();
        let deadline = format!("{}s", DEADLINE.as_secs());
        let prompt = format!("{MARKER} {words}");
        let mut command = self.node.command();
        command
            .args(["run", "--deadline", &deadline, "--max-tokens", "16"])
            .args(more)
            .args([name, &prompt]);
        let ended = command.stdin(std::process::Stdio::null()).output()?;
        let took = begun.elapsed();
        let is_of = |mode: &&str| name.starts_with(&plain(mode));
        let lease = match FALL_SILENT.iter().any(is_of) {
            true => LEASE,
            false => Duration::ZERO,
        };
        ensure!(took < DEADLINE + lease + SLACK, "{name}: it took {took:?}");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if ended.status.success() {
            return Ok(Came::Answer(text(&ended.stdout)));
        }
        let told = text(&ended.stderr);
        ensure!(
            !told.trim().is_empty(),
            "{name}: {} and no word",
            ended.status
        );
        ensure!(
            !told.contains('\u{1b}'),
            "{name}: it moves the cursor: {told:?}"
        );
        Ok(Came::Error(told))
    }

    /// The good model, asked over HTTP as any client does.
    ///
    /// # Errors
    /// It does not answer.
    pub fn good_answers(&self) -> Result<()> {
        let done = crate::stream::complete(self.node.api, GOOD, "well?", 4, "mine")?;
        let text = done.body["choices"][0]["text"].as_str();
        ensure!(text == Some("ok ok ok ok "), "{}", done.body);
        Ok(())
    }

    /// What must hold at any time.
    ///
    /// # Errors
    /// What does not.
    pub fn bears_it(&self) -> Result<()> {
        self.good_answers()?;
        let log = std::fs::read_to_string(self.node.log_path())?;
        if let Some(line) = log.lines().find(|line| line.contains("panicked")) {
            bail!("the daemon panicked: {line}");
        }
        ensure!(!log.contains('\u{1b}'), "a worker's escapes are in the log");
        for file in files_below(&self.node.home)? {
            let bytes = std::fs::read(&file)?;
            let held = bytes
                .windows(MARKER.len())
                .any(|part| part == MARKER.as_bytes());
            ensure!(!held, "the prompt is in {}", file.display());
        }
        ensure!(!log.contains(MARKER), "the prompt is in the log");
        let (bytes, _) = self.size()?;
        let grown = bytes.saturating_sub(self.before.0);
        ensure!(grown < MAY_GROW, "the daemon grew by {} KiB", grown >> 10);
        Ok(())
    }

    /// Unloads everything and waits until nothing of any worker is left.
    ///
    /// # Errors
    /// A worker or a descriptor stays.
    pub fn leaves_nothing(&self) -> Result<()> {
        for name in self.loaded()? {
            // One that ended meanwhile is not in memory.
            let _ = self.node.cli(&["stop", &name]);
        }
        self.node.wait_for("the end of every worker", CALM, |_| {
            Ok(self.workers()?.is_empty())
        })?;
        let most = self.before.1 + MAY_OPEN;
        self.node.wait_for("the descriptors of before", CALM, |_| {
            Ok(self.size()?.1 <= most)
        })
    }

    /// Names of the models in memory.
    ///
    /// # Errors
    /// The command's.
    pub fn loaded(&self) -> Result<Vec<String>> {
        let listed = self.node.json(&["ps"])?;
        let models = listed["models"].as_array().context("no list")?;
        let name = |model: &Value| model["name"].as_str().map(str::to_owned);
        Ok(models.iter().filter_map(name).collect())
    }

    /// Processes of workers, by the system's word.
    ///
    /// # Errors
    /// The daemon does not run.
    pub fn workers(&self) -> Result<Vec<u32>> {
        children(self.node.pid().context("the daemon does not run")?)
    }

    /// Resident bytes and open descriptors of the daemon.
    ///
    /// # Errors
    /// It does not run.
    pub fn size(&self) -> Result<(u64, usize)> {
        let pid = self.node.pid().context("the daemon does not run")?;
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok((self.node.resident_bytes()?, descriptors))
    }
}

/// A mode as the name of a model.
fn plain(mode: &str) -> String {
    mode.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
}

/// Living children of a process.
///
/// # Errors
/// `/proc` cannot be read.
pub fn children(parent: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that ended meanwhile has no line any more.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut fields = stat
            .rsplit_once(") ")
            .map_or("", |(_, rest)| rest)
            .split(' ');
        let (state, of) = (fields.next(), fields.next());
        if of == Some(&parent.to_string()) && !matches!(state, Some("Z" | "X")) {
            found.push(pid);
        }
    }
    Ok(found)
}
