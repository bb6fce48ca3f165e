//! `node`: this machine's key, its parts, its speed, and what of it is lent.

use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use substrate_api::v1;
use substrate_record::NodeId;

use crate::{
    config::{self, ByteSize, Hours, IdleSpan, JobType, LendingChange, When},
    hardware, installed,
    keys::DeviceKey,
    models::names::ModelName,
};

use super::{
    connect,
    session::{Session, note},
    start,
    story::{Story, refused},
    words,
};

/// This machine: its key, its parts, its speed, what it lends.
#[derive(Debug, Args)]
pub struct Node {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print this node's key
    Id,
    /// Show what this machine is made of
    Hardware,
    /// Measure a model's speed on this machine
    Bench {
        /// The model
        model: String,
    },
    /// Show what this machine lends, or change it
    Lend(Lend),
}

#[derive(Debug, Args)]
struct Lend {
    /// When others may use it
    when: Option<WhenArg>,

    /// At most so many cores, for your own jobs too; `all` lifts the limit
    #[arg(long, value_name = "COUNT")]
    cores: Option<Limit<u32>>,

    /// At most so much memory for a model, such as 8GiB, for your own jobs too and from the daemon's next start
    /// on; `all` lifts the limit
    #[arg(long, value_name = "SIZE")]
    memory: Option<Limit<ByteSize>>,

    /// Only this model; may be repeated; `all` lifts the limit
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<Limit<String>>,

    /// Only this kind of job; may be repeated
    #[arg(long = "job", value_name = "KIND")]
    jobs: Vec<JobArg>,

    /// Only within these hours of local time, such as 22:00-07:00; `all` lifts the limit
    #[arg(long, value_name = "FROM-TO")]
    hours: Option<Limit<Hours>>,

    /// Not before you have left the machine alone for so long, such as 3m
    #[arg(long, value_name = "SPAN")]
    idle_after: Option<IdleSpan>,

    /// Not while this program runs; may be repeated; `none` forgets them
    #[arg(long = "pause-for", value_name = "PROGRAM")]
    pause_for: Vec<String>,
}

/// A limit, or that there is none.
#[derive(Debug, Clone)]
enum Limit<T> {
    All,
    To(T),
}

impl<T: FromStr> FromStr for Limit<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "all" {
            Ok(Self::All)
        } else {
            text.parse().map(Self::To)
        }
    }
}

impl<T: Clone> Limit<T> {
    fn value(&self) -> Option<T> {
        match self {
            Self::All => None,
            Self::To(value) => Some(value.clone()),
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum WhenArg {
    /// Never: the default
    Off,
    /// When nobody uses it
    Idle,
    /// Always
    Always,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum JobArg {
    /// Answering prompts
    Generate,
    /// Embeddings
    Embed,
    /// Both
    All,
}

impl Node {
    /// Does what was asked.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        match self.command {
            Command::Id => id(session),
            Command::Hardware => show_hardware(session).await,
            Command::Bench { model } => bench(session, model).await,
            Command::Lend(lend) => lend.run(session).await,
        }
    }
}

fn id(session: &Session) -> anyhow::Result<()> {
    let home = session.prepared_home()?;
    let key = DeviceKey::open_or_create(&home).map_err(|error| {
        Story::new("cannot open this device's key")
            .because(error)
            .hint("run `substrate doctor`")
    })?;
    if session.json {
        return Ok(session.json(&json!({ "node": key.node().to_string() }))?);
    }
    Ok(session.line(key.node())?)
}

async fn show_hardware(session: &Session) -> anyhow::Result<()> {
    let home = session.prepared_home()?;
    let hardware = hardware::detect(&home.blobs());
    let engine = engine_gpus().await;
    if session.json {
        let gpus = hardware
            .gpus
            .iter()
            .map(|gpu| json!({ "name": gpu.name, "memory": gpu.memory }));
        return Ok(session.json(&json!({
            "cpu": hardware.cpu,
            "cores": hardware.cores,
            "memory": hardware.memory,
            "gpus": gpus.collect::<Vec<_>>(),
            "engine_gpus": engine.iter().map(|gpu| json!({
                "name": gpu.name,
                "description": gpu.description,
                "integrated": gpu.integrated,
                "memory": gpu.total,
                "free": gpu.free,
            })).collect::<Vec<_>>(),
            "storage": hardware.storage,
            "bandwidth": hardware.bandwidth,
        }))?);
    }
    session.line(format_args!("cpu      {}", hardware.cpu))?;
    session.line(format_args!("cores    {}", hardware.cores))?;
    session.line(format_args!("memory   {}", words::size(hardware.memory)))?;
    for gpu in &hardware.gpus {
        session.line(format_args!(
            "gpu      {}, {}",
            gpu.name,
            words::size(gpu.memory)
        ))?;
    }
    for gpu in &engine {
        let kind = if gpu.integrated { ", integrated" } else { "" };
        session.line(format_args!(
            "engine   {}: {}{kind}, {} of {} free",
            gpu.name,
            gpu.description,
            words::size(gpu.free),
            words::size(gpu.total)
        ))?;
    }
    session.line(format_args!(
        "storage  {} free",
        words::size(hardware.storage)
    ))?;
    Ok(())
}

/// What the installed engine could compute on beside the processor.
async fn engine_gpus() -> Vec<hardware::EngineGpu> {
    let Ok(worker) = installed::worker() else {
        return Vec::new();
    };
    hardware::engine_gpus(&worker.path)
        .await
        .unwrap_or_else(|error| {
            note(format_args!("{error}"));
            Vec::new()
        })
}

async fn bench(session: &Session, model: String) -> anyhow::Result<()> {
    let mut client = connect::or_started(session).await?;
    note(format_args!("measuring '{model}' on this machine ..."));
    let measured = client
        .bench(v1::BenchRequest {
            model: model.clone(),
        })
        .await
        .map_err(refused)?
        .into_inner();
    if session.json {
        return Ok(session.json(
            &json!({ "model": model, "prefill": measured.prefill, "decode": measured.decode }),
        )?);
    }
    session.line(format_args!("reads   {}", words::rate(measured.prefill)))?;
    session.line(format_args!("writes  {}", words::rate(measured.decode)))?;
    Ok(())
}

impl Lend {
    async fn run(self, session: &Session) -> anyhow::Result<()> {
        let home = session.prepared_home()?;
        let change = self.change();
        let config = match &change {
            None => start::check_config(&home)?,
            Some(change) => config::set_lending(&home, change).map_err(|error| {
                Story::new("the setting cannot be changed")
                    .because(error)
                    .hint(format!("mend {}", home.config_file().display()))
            })?,
        };
        if let Some(change) = &change {
            if connect::tell_settings(&home).await? && change.memory.is_some() {
                note("the limit of memory holds from the daemon's next start on");
            }
            if change.models.is_some() {
                warn_of_unknown(session, &config.lending).await?;
            }
        }
        let withheld = withheld(session).await?;
        show_lending(session, &config.lending, withheld)
    }

    /// What was asked to change, if anything was.
    fn change(&self) -> Option<LendingChange> {
        let when = self.when.map(|when| match when {
            WhenArg::Off => When::Off,
            WhenArg::Idle => When::Idle,
            WhenArg::Always => When::Always,
        });
        let job = |job: &JobArg| match job {
            JobArg::Generate => Some(JobType::Generate),
            JobArg::Embed => Some(JobType::Embed),
            JobArg::All => None,
        };
        let change = LendingChange {
            when,
            cores: self.cores.as_ref().map(Limit::value),
            memory: self.memory.as_ref().map(Limit::value),
            models: (!self.models.is_empty())
                .then(|| self.models.iter().filter_map(Limit::value).collect()),
            job_types: (!self.jobs.is_empty()).then(|| self.jobs.iter().filter_map(job).collect()),
            hours: self.hours.as_ref().map(Limit::value),
            idle_after: self.idle_after,
            pause_for: (!self.pause_for.is_empty()).then(|| {
                let named = self.pause_for.iter().filter(|name| *name != "none");
                named.cloned().collect()
            }),
        };
        let nothing = change.when.is_none()
            && change.cores.is_none()
            && change.memory.is_none()
            && change.models.is_none()
            && change.job_types.is_none()
            && change.hours.is_none()
            && change.idle_after.is_none()
            && change.pause_for.is_none();
        (!nothing).then_some(change)
    }
}

/// A list with a slip in it lends less than its owner believes.
async fn warn_of_unknown(session: &Session, lending: &config::Lending) -> anyhow::Result<()> {
    let mut client = connect::or_desk(session).await?;
    let request = v1::ModelsRequest {
        scope: v1::Scope::Mine.into(),
    };
    let models = client.models(request).await.map_err(refused)?.into_inner();
    let own = models.models.iter().filter(|model| model.own);
    let held: Vec<ModelName> = own.filter_map(|model| model.name.parse().ok()).collect();
    for name in lending.unknown_models(held.iter()) {
        note(format_args!(
            "no model '{name}' is on this machine: nothing is lent by that name until it is"
        ));
    }
    Ok(())
}

/// Why the daemon that runs lends nothing at this moment all the same.
async fn withheld(session: &Session) -> anyhow::Result<Option<String>> {
    let Some(mut client) = connect::running(&session.prepared_home()?).await? else {
        return Ok(None);
    };
    let status = client.status(v1::StatusRequest {}).await.map_err(refused)?;
    Ok(status.into_inner().withheld)
}

fn show_lending(
    session: &Session,
    lending: &config::Lending,
    withheld: Option<String>,
) -> anyhow::Result<()> {
    let when = match lending.when {
        When::Off => "off",
        When::Idle => "idle",
        When::Always => "always",
    };
    let jobs: Vec<_> = lending.job_types.iter().map(job_name).collect();
    if session.json {
        return Ok(session.json(&json!({
            "when": when,
            "cores": lending.cores,
            "memory": lending.memory.map(|size| size.to_string()),
            "models": lending.models,
            "jobs": jobs,
            "hours": lending.hours.map(|hours| hours.to_string()),
            "idle_after_ms": u64::try_from(lending.idle_after.0.as_millis()).unwrap_or(u64::MAX),
            "pause_for": lending.pause_for,
            "busy_file": lending.busy_file,
            "withheld": withheld,
            "requesters": { "allow": nodes(&lending.requesters.allow), "deny": nodes(&lending.requesters.deny) },
        }))?);
    }
    let all = |list: String| {
        if list.is_empty() {
            "all".to_owned()
        } else {
            list
        }
    };
    session.line(format_args!("lending  {when}"))?;
    if let Some(why) = withheld {
        session.line(format_args!("not now  {why}"))?;
    }
    session.line(format_args!(
        "cores    {}",
        lending
            .cores
            .map_or_else(|| "all that are free".to_owned(), |cores| cores.to_string())
    ))?;
    session.line(format_args!(
        "memory   {}",
        lending.memory.map_or_else(
            || "all of the machine's".to_owned(),
            |size| size.to_string()
        )
    ))?;
    session.line(format_args!("models   {}", all(lending.models.join(", "))))?;
    session.line(format_args!("jobs     {}", all(jobs.join(", "))))?;
    session.line(format_args!(
        "hours    {}",
        all(lending
            .hours
            .map(|hours| hours.to_string())
            .unwrap_or_default())
    ))?;
    if lending.idle_after != IdleSpan::default() {
        let span = lending.idle_after;
        session.line(format_args!("after    {span} without you"))?;
    }
    for program in &lending.pause_for {
        session.line(format_args!("pauses   for {program}"))?;
    }
    if let Some(file) = &lending.busy_file {
        session.line(format_args!("pauses   while {} exists", file.display()))?;
    }
    for node in nodes(&lending.requesters.allow) {
        session.line(format_args!("only     {node}"))?;
    }
    for node in nodes(&lending.requesters.deny) {
        session.line(format_args!("never    {node}"))?;
    }
    Ok(())
}

fn nodes(nodes: &[NodeId]) -> Vec<String> {
    nodes.iter().map(ToString::to_string).collect()
}

fn job_name(job: &JobType) -> &'static str {
    match job {
        JobType::Generate => "generate",
        JobType::Embed => "embed",
    }
}
