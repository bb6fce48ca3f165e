//! `doctor`: what is wrong here and how to mend it.
//!
//! Invariant: looks only; mends nothing, starts nothing. Each finding that is not good has a hint.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use clap::Args;
use serde_json::json;
use substrate_api::v1;
use substrate_sandbox::launch::{self, HardLimits, LayerState};

use crate::{
    config::Config,
    files::free_bytes,
    home::{DaemonLock, Home},
    installed,
    keys::{DeviceKey, KeyError},
};

use super::{connect, session::Session, story::Story, words};

/// Less free disk than this is pointed out: the smallest useful model needs about a hundred megabytes, most need gigabytes.
const LITTLE_DISK: u64 = 2_000_000_000;

/// A clock further off than this is pointed out.
const SKEW_SHOWN_MS: u64 = 60_000;

/// How long a local port may take to answer.
const PORT_PATIENCE: Duration = Duration::from_millis(300);

/// Say what is wrong here and how to mend it.
#[derive(Debug, Args)]
pub struct Doctor {}

/// How one thing is.
struct Finding {
    what: &'static str,
    grade: Grade,
    how: String,
    hint: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Grade {
    Good,
    /// Works, with a limit.
    Note,
    /// Does not work.
    Bad,
}

impl Grade {
    fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Note => "note",
            Self::Bad => "BAD",
        }
    }
}

impl Finding {
    fn good(what: &'static str, how: impl Into<String>) -> Self {
        Self {
            what,
            grade: Grade::Good,
            how: how.into(),
            hint: None,
        }
    }

    fn note(what: &'static str, how: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            what,
            grade: Grade::Note,
            how: how.into(),
            hint: Some(hint.into()),
        }
    }

    fn bad(what: &'static str, how: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            what,
            grade: Grade::Bad,
            how: how.into(),
            hint: Some(hint.into()),
        }
    }
}

impl Doctor {
    /// Looks at everything and tells; fails if something does not work.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        let home = session.home()?;
        let mut findings = vec![folder(&home), configuration(&home), key(&home), disk(&home)];
        findings.extend(
            tokio::task::spawn_blocking({
                let home = home.clone();
                move || machine(&home)
            })
            .await?,
        );
        findings.extend(daemon(&home).await);
        tell(session, &findings)?;
        match findings
            .iter()
            .filter(|finding| finding.grade == Grade::Bad)
            .count()
        {
            0 => Ok(()),
            1 => Err(Story::new("1 thing does not work")
                .hint("the hint beside it says how to mend it")
                .into()),
            bad => Err(Story::new(format!("{bad} things do not work"))
                .hint("the hints beside them say how to mend them")
                .into()),
        }
    }
}

fn tell(session: &Session, findings: &[Finding]) -> anyhow::Result<()> {
    if session.json {
        let finding = |finding: &Finding| json!({ "what": finding.what, "grade": finding.grade.word(), "how": finding.how, "hint": finding.hint });
        return Ok(session
            .json(&json!({ "findings": findings.iter().map(finding).collect::<Vec<_>>() }))?);
    }
    for finding in findings {
        session.line(format_args!(
            "{:<5}{:<15}{}",
            finding.grade.word(),
            finding.what,
            finding.how
        ))?;
        if let Some(hint) = &finding.hint {
            session.line(format_args!("{:20}hint: {hint}", ""))?;
        }
    }
    Ok(())
}

fn folder(home: &Home) -> Finding {
    match home.prepare() {
        Ok(()) => Finding::good(
            "home",
            home.config_file().with_file_name("").display().to_string(),
        ),
        Err(error) => Finding::bad(
            "home",
            error.to_string(),
            "--home or SUBSTRATE_HOME names a folder of your own",
        ),
    }
}

fn configuration(home: &Home) -> Finding {
    let path = home.config_file();
    match Config::load(home) {
        Ok(_) if path.exists() => Finding::good("config", path.display().to_string()),
        Ok(_) => Finding::good("config", "none: the defaults hold"),
        Err(error) => Finding::bad(
            "config",
            error.to_string(),
            format!("mend that line of {}", path.display()),
        ),
    }
}

fn key(home: &Home) -> Finding {
    if !home.device_key().exists() {
        return Finding::good("device key", "none yet: it is made when it is needed");
    }
    match DeviceKey::open(home) {
        Ok(key) => Finding::good("device key", key.node().to_string()),
        Err(error) => Finding::bad(
            "device key",
            describe(error),
            "restore it from a copy; without one, remove it: this machine is a new node then",
        ),
    }
}

fn describe(error: KeyError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

fn disk(home: &Home) -> Finding {
    match free_bytes(&home.blobs()) {
        Ok(free) if free < LITTLE_DISK => Finding::note(
            "disk",
            format!("{} free", words::size(free)),
            "`substrate rm` takes models away",
        ),
        Ok(free) => Finding::good("disk", format!("{} free", words::size(free))),
        Err(error) => Finding::bad(
            "disk",
            error.to_string(),
            "check that the folder's disk is there",
        ),
    }
}

/// The worker and the walls.
fn machine(home: &Home) -> Vec<Finding> {
    let worker = match installed::worker() {
        Ok(worker) => Finding::good("worker", worker.path.display().to_string()),
        Err(error) => {
            let told = error.to_string();
            // The errors carry their own hint.
            let (how, hint) = told.split_once("\nhint: ").unwrap_or((&told, ""));
            Finding::bad("worker", how, hint)
        }
    };
    let report = launch::probe(None);
    vec![
        worker,
        layer("namespaces", &report.namespaces),
        layer("landlock", &report.landlock),
        layer("seccomp", &report.seccomp),
        layer("whole wall", &report.whole),
        swap(),
        hard_limits(home),
    ]
    .into_iter()
    .chain(launch::gpu_drivers().iter().map(gpu_wall))
    .collect()
}

fn gpu_wall(driver: &launch::GpuDriver) -> Finding {
    Finding::note(
        "gpu wall",
        driver.to_string(),
        "install the worker built for the processor (docs/gpu.md)",
    )
}

/// What the daemon's workers have, or those of one that would be started from here.
fn hard_limits(home: &Home) -> Finding {
    let daemon = DaemonLock::holder(home).ok().flatten();
    // A daemon that has not written its number yet is 0.
    let daemon = daemon.filter(|process| *process != 0);
    match HardLimits::of(daemon.unwrap_or_else(std::process::id)) {
        on @ HardLimits::On => Finding::good("hard limits", on.to_string()),
        HardLimits::Off { why } => Finding::note(
            "hard limits",
            format!(
                "no cgroup delegated ({why}): resident memory is bounded by address space only"
            ),
            "run the daemon under a unit with Delegate=yes (docs/sandbox.md)",
        ),
    }
}

/// Whether what is in memory can end up on a disk.
fn swap() -> Finding {
    let places = crate::hardware::swap::in_the_clear();
    let named: Vec<String> = places
        .iter()
        .map(|place| place.display().to_string())
        .collect();
    match named.as_slice() {
        [] => Finding::good("swap", "none that keeps anything in the clear"),
        named => Finding::note(
            "swap",
            format!(
                "{} is not known to be encrypted: prompts may stay on it",
                named.join(", ")
            ),
            "encrypt it (crypttab's `swap` with a random key), swap to zram, or turn it off: swapoff -a",
        ),
    }
}

fn layer(what: &'static str, state: &LayerState) -> Finding {
    match state {
        LayerState::Works => Finding::good(what, "works"),
        LayerState::Partial(how) => {
            Finding::note(what, how.clone(), "a newer kernel has all of it")
        }
        LayerState::Missing { why, hint } => Finding::bad(
            what,
            why.clone(),
            hint.clone()
                .unwrap_or_else(|| "no model can run behind a wall here".into()),
        ),
    }
}

/// The daemon, its listener and its neighbours.
async fn daemon(home: &Home) -> Vec<Finding> {
    match connect::running(home).await {
        Ok(Some(mut client)) => running(&mut client).await,
        Ok(None) => match DaemonLock::holder(home) {
            Ok(Some(pid)) => vec![Finding::bad(
                "daemon",
                format!("process {pid} has the lock and does not answer"),
                format!("wait a moment; if it stays so, end it: kill {pid}"),
            )],
            _ => {
                let mut findings = vec![Finding::note(
                    "daemon",
                    "none runs",
                    "`substrate run` and `substrate serve` start one",
                )];
                let listen = Config::load(home).unwrap_or_default().api.listen;
                findings.extend(listen.into_iter().map(api_port));
                findings
            }
        },
        Err(error) => vec![Finding::bad(
            "daemon",
            format!("{error:#}"),
            "only the user who runs it may speak to it",
        )],
    }
}

/// Whether an address of the HTTP listener is taken by somebody else.
fn api_port(addr: SocketAddr) -> Finding {
    match TcpStream::connect_timeout(&addr, PORT_PATIENCE) {
        Ok(_) => Finding::bad(
            "api port",
            format!("another program listens on {addr}"),
            "`substrate serve --api 127.0.0.1:PORT` takes another port",
        ),
        Err(_) => Finding::good("api port", format!("{addr} is free")),
    }
}

async fn running(client: &mut connect::Client) -> Vec<Finding> {
    let status = match client.status(v1::StatusRequest {}).await {
        Ok(status) => status.into_inner(),
        Err(status) => {
            return vec![Finding::bad(
                "daemon",
                status.message().to_owned(),
                "`substrate stop --daemon` ends it",
            )];
        }
    };
    let api = status
        .api
        .as_ref()
        .map_or_else(|| "no HTTP".to_owned(), |api| format!("http://{api}"));
    let mut findings = vec![Finding::good(
        "daemon",
        format!(
            "up {}, {api}, {} peers",
            words::span(status.uptime_ms),
            status.peers
        ),
    )];
    if status.version != env!("CARGO_PKG_VERSION") {
        let how = format!(
            "it is release {}, this is {}",
            status.version,
            env!("CARGO_PKG_VERSION")
        );
        findings.push(Finding::note(
            "release",
            how,
            "`substrate stop --daemon`; the next command starts the new one",
        ));
    }
    findings.extend(status.warnings.into_iter().map(|warning| {
        Finding::note(
            "daemon says",
            warning,
            "`substrate status` shows it as it is now",
        )
    }));
    if let Ok(peers) = client.peers(v1::PeersRequest {}).await {
        findings.extend(clock(&peers.into_inner().peers));
    }
    findings
}

/// Whether most neighbours think that our clock is wrong.
fn clock(peers: &[v1::Peer]) -> Option<Finding> {
    let mut skews: Vec<i64> = peers.iter().filter_map(|peer| peer.skew_ms).collect();
    skews.sort_unstable();
    let median = *skews.get(skews.len() / 2)?;
    if median.unsigned_abs() < SKEW_SHOWN_MS {
        return Some(Finding::good("clock", "agrees with the nodes in sight"));
    }
    let way = if median > 0 { "behind" } else { "ahead of" };
    let how = format!(
        "{} {way} the nodes in sight",
        words::span(median.unsigned_abs())
    );
    Some(Finding::note(
        "clock",
        how,
        "jobs run all the same; times shown are off: set this machine's clock",
    ))
}
