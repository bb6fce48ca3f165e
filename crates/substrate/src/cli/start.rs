//! Starting a daemon in the background, once, however many commands want one.
//!
//! Invariant: the starter holds the start lock; whoever waited for it looks again before starting
//! another. The daemon opens a session of its own, so that closing the terminal does not end it.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    config::Config,
    home::{Home, StartLock},
};

use super::{
    connect::{self, Client},
    session::{Session, note},
    story::Story,
};

/// How long a daemon may take to open its socket (DESIGN.md 10).
const SOCKET_DEADLINE: Duration = Duration::from_secs(10);

/// Between two looks for the socket; short beside the half second a start takes.
const SOCKET_PAUSE: Duration = Duration::from_millis(50);

/// How much of the log's end is searched for the reason of a failed start.
const LOG_TAIL: u64 = 4096;

/// Lines of it that are shown.
const LOG_LINES: usize = 6;

/// A log larger than this is set aside when a daemon starts.
const LOG_KEPT: u64 = 16 * 1024 * 1024;

/// A daemon that was just started.
pub struct Started {
    process: Child,
    /// Length of the log before it: what earlier daemons wrote.
    log_from: u64,
}

/// Starts a daemon and waits until it answers, or finds that somebody else just did.
pub async fn start(session: &Session, home: &Home, extra: &[String]) -> anyhow::Result<Client> {
    check_config(home)?;
    let waiting = home.clone();
    let lock = tokio::task::spawn_blocking(move || StartLock::take(&waiting)).await?;
    let _lock = lock.map_err(|error| Story::new("cannot lock the home folder").because(error))?;
    if let Some(client) = connect::running(home).await? {
        return Ok(client);
    }
    note("starting the daemon ...");
    let daemon = spawn(session, home, extra)?;
    let pid = daemon.process.id();
    let client = wait_for(home, Some(daemon)).await?;
    note(format_args!(
        "the daemon runs (pid {pid}) until `substrate stop --daemon`; its log is {}",
        home.log_file().display()
    ));
    Ok(client)
}

/// Refuses a configuration that the daemon would refuse, where somebody reads it.
pub fn check_config(home: &Home) -> anyhow::Result<Config> {
    Config::load(home).map_err(|error| {
        Story::new("the configuration cannot be used")
            .because(error)
            .hint(format!(
                "mend that line of {}",
                home.config_file().display()
            ))
            .into()
    })
}

fn spawn(session: &Session, home: &Home, extra: &[String]) -> anyhow::Result<Started> {
    let cannot = |error: std::io::Error| {
        Story::new("cannot start the daemon")
            .because(error)
            .hint("run `substrate doctor`")
    };
    let log = open_log(&home.log_file()).map_err(cannot)?;
    let log_from = log.metadata().map_err(cannot)?.len();
    let mut command = Command::new(std::env::current_exe().map_err(cannot)?);
    if let Some(root) = session.named_home() {
        command
            .arg("--home")
            .arg(std::path::absolute(root).map_err(cannot)?);
    }
    command.args(["serve", "--in-own-session"]).args(extra);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let process = command.spawn().map_err(cannot)?;
    Ok(Started { process, log_from })
}

fn open_log(path: &Path) -> std::io::Result<File> {
    if std::fs::metadata(path).is_ok_and(|log| log.len() > LOG_KEPT) {
        std::fs::rename(path, path.with_extension("old"))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// Waits for the socket of a daemon that is starting; `daemon` is ours, if we started it.
pub async fn wait_for(home: &Home, mut daemon: Option<Started>) -> anyhow::Result<Client> {
    let begun = Instant::now();
    let log_from = daemon.as_ref().map_or(0, |daemon| daemon.log_from);
    while begun.elapsed() < SOCKET_DEADLINE {
        if let Some(client) = connect::running(home).await? {
            return Ok(client);
        }
        if let Some(daemon) = &mut daemon
            && let Some(status) = daemon.process.try_wait()?
        {
            let what = format!("the daemon ended at once ({status})");
            return Err(failed(home, what, log_from));
        }
        tokio::time::sleep(SOCKET_PAUSE).await;
    }
    let what = format!(
        "the daemon did not open its socket within {} s",
        SOCKET_DEADLINE.as_secs()
    );
    Err(failed(home, what, log_from))
}

fn failed(home: &Home, what: String, log_from: u64) -> anyhow::Error {
    let path = home.log_file();
    let story = Story::new(what).hint(format!(
        "its log is {}; `substrate doctor` checks this machine",
        path.display()
    ));
    match log_end(&path, log_from) {
        Some(end) => story
            .because(anyhow::anyhow!("its last words are\n{end}"))
            .into(),
        None => story.into(),
    }
}

/// The last lines of the log after its first bytes, indented.
fn log_end(path: &Path, from: u64) -> Option<String> {
    let mut log = File::open(path).ok()?;
    let length = log.metadata().ok()?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL).max(from)))
        .ok()?;
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
    (!last.is_empty()).then(|| {
        last.iter()
            .map(|line| format!("    {line}"))
            .collect::<Vec<_>>()
            .join("\n")
    })
}
