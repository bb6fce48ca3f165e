//! `wall`: what the walls of this machine hold back, tried now.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use substrate_sandbox::{
    launch::{GpuDriver, gpu_drivers, probe},
    microvm::{
        Accelerator, BOOT_DEADLINE, GuestImage, MANIFEST, Machine, MachineSpec, Qemu, Trust,
        VmError, name_of,
    },
    suite::{ATTACKER_MEMORY, Attempt, InMachine, Place, ProcessWall, Suite},
};

use super::{session::Session, story::Story, table::Table};

/// The guest image that holds the attacker, beside the programs.
const ATTACKERS_IMAGE: &str = "microvm-attacker";

/// What an attacker in a machine has for weights.
const MODEL: &[u8] = b"GGUF";

/// The walls around workers.
#[derive(Debug, Args)]
pub struct Wall {
    #[command(subcommand)]
    command: WallCommand,
}

#[derive(Debug, Subcommand)]
enum WallCommand {
    /// Try to get out of every wall that this machine offers
    #[command(
        after_help = "Each attack runs behind the wall, before a model is read and before a prompt is, and outside it as a\n\
        control. One whose control fails says nothing about the wall here. Fails if anything gets out.\n\
        A wall of virtual machines needs QEMU and the guest images; emulated, it takes half a minute on an idle machine."
    )]
    Check(Check),
}

#[derive(Debug, Args)]
struct Check {
    /// Only this wall, or these; all of them otherwise
    #[arg(long, value_enum)]
    tier: Vec<Name>,
}

impl Wall {
    /// Runs the suite in each wall and prints what became of each attack.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        let WallCommand::Check(check) = self.command;
        let bar = check.bar(session);
        let tiers = tokio::task::spawn_blocking(move || check.tiers(&bar)).await??;
        if session.json {
            let tiers: Vec<Value> = tiers.iter().map(Tier::as_json).collect();
            session.json(&json!({ "tiers": tiers }))?;
        } else {
            for tier in &tiers {
                session.line(tier.table())?;
            }
        }
        tiers.into_iter().try_for_each(Tier::verdict)
    }
}

impl Check {
    /// Under emulation the suite takes half a minute, and more on a busy machine.
    fn bar(&self, session: &Session) -> ProgressBar {
        let target = match session.json {
            true => ProgressDrawTarget::hidden(),
            false => ProgressDrawTarget::stderr(),
        };
        let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {msg}");
        let bar = ProgressBar::with_draw_target(None, target);
        match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }

    fn tiers(&self, bar: &ProgressBar) -> anyhow::Result<Vec<Tier>> {
        let chosen = |name: &Name| self.tier.is_empty() || self.tier.contains(name);
        let names = Name::value_variants().iter().copied().filter(chosen);
        let tiers = names.map(|name| Tier::check(name, bar)).collect();
        bar.finish_and_clear();
        tiers
    }
}

/// The walls that can be tried here, in the order of what they promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    #[value(name = "process+gpu")]
    ProcessGpu,
    Process,
    Microvm,
    MicrovmEmulated,
}

impl Name {
    fn word(self) -> &'static str {
        match self {
            Self::ProcessGpu => "process+gpu",
            Self::Process => "process",
            Self::Microvm => "microvm",
            Self::MicrovmEmulated => "microvm-emulated",
        }
    }
}

/// One wall, and what it held back.
struct Tier {
    name: Name,
    offered: bool,
    reason: String,
    attempts: Vec<Attempt>,
}

impl Tier {
    fn check(name: Name, bar: &ProgressBar) -> anyhow::Result<Self> {
        let ground = Ground::new()?;
        let suite = Suite {
            attacker: attacker_path()?,
            ground: ground.0.join("controls"),
            become_uid: None,
        };
        match place(name, &ground.0)? {
            Ok(mut place) => Self::attempts(name, &suite, place.as_mut(), bar),
            Err(reason) => Ok(Self {
                name,
                offered: false,
                reason,
                attempts: Vec::new(),
            }),
        }
    }

    fn attempts(
        name: Name,
        suite: &Suite,
        place: &mut dyn Place,
        bar: &ProgressBar,
    ) -> anyhow::Result<Self> {
        let mut attacks = suite.attacks()?;
        if matches!(name, Name::Microvm | Name::MicrovmEmulated) {
            attacks.extend(suite.breaches()?);
        }
        bar.set_length(attacks.len() as u64);
        bar.set_position(0);
        bar.set_prefix(name.word());
        let mut attempts = Vec::new();
        for attack in attacks {
            bar.set_message(attack.name.clone());
            attempts.push(suite.attempt(place, attack)?);
            bar.inc(1);
        }
        let limits = match name {
            Name::Process => format!("; {}", probe(None).hard_limits),
            Name::ProcessGpu | Name::Microvm | Name::MicrovmEmulated => String::new(),
        };
        let escaped = attempts.iter().filter(|attempt| !attempt.denied).count();
        let counted = attempts.iter().filter(|attempt| attempt.counts()).count();
        Ok(Self {
            name,
            offered: escaped == 0,
            reason: match escaped {
                0 => format!(
                    "{} attacks tried, none got out, {counted} of them succeed without the wall{limits}",
                    attempts.len()
                ),
                _ => format!("{escaped} of {} attacks got out", attempts.len()),
            },
            attempts,
        })
    }

    fn as_json(&self) -> Value {
        let attempts: Vec<Value> = self
            .attempts
            .iter()
            .map(|attempt| {
                json!({
                    "name": attempt.attack.name,
                    "kind": attempt.attack.kind,
                    "denied": attempt.denied,
                    "how": attempt.how,
                    "control_succeeded": attempt.control_succeeded,
                })
            })
            .collect();
        json!({
            "tier": self.name.word(),
            "offered": self.offered,
            "reason": self.reason,
            "attempts": attempts,
        })
    }

    fn table(&self) -> String {
        let mut table = Table::new(["ATTACK", "AFTER", "BEHIND THE WALL", "WITHOUT IT"]);
        for attempt in &self.attempts {
            let control = match attempt.control_succeeded {
                true => "succeeds",
                false => "no control on this kernel",
            };
            table.row([
                attempt.attack.name.clone(),
                attempt.attack.kind.clone(),
                attempt.how.clone(),
                control.to_owned(),
            ]);
        }
        let offered = if self.offered {
            "offered"
        } else {
            "not offered"
        };
        let verdict = format!("{}: {offered}, {}", self.name.word(), self.reason);
        match self.attempts.is_empty() {
            true => verdict,
            false => format!("{table}\n\n{verdict}\n"),
        }
    }

    /// What is not offered keeps nobody from using what is; only a wall that was broken, or the lack of any, is a failure.
    fn verdict(self) -> anyhow::Result<()> {
        if self.offered || (self.attempts.is_empty() && self.name != Name::Process) {
            return Ok(());
        }
        let story = Story::new(format!("the wall {} does not hold here", self.name.word()));
        let reason = anyhow::anyhow!(self.reason);
        Err(match self.attempts.is_empty() {
            true => story
                .because(reason)
                .hint("`substrate doctor` tells layer by layer what is missing"),
            false => story
                .because(reason)
                .hint("lend nothing from this machine, and report this: SECURITY.md says how"),
        }
        .into())
    }
}

/// A wall to try to get out of, or why this machine has none of the kind.
fn place(name: Name, ground: &Path) -> anyhow::Result<Result<Box<dyn Place>, String>> {
    let accelerator = match name {
        Name::ProcessGpu => return Ok(Err(gpus(&gpu_drivers()))),
        Name::Process => {
            let report = probe(None);
            return Ok(match report.offers_process() {
                true => Ok(Box::new(ProcessWall)),
                false => Err(report.whole.to_string()),
            });
        }
        Name::Microvm => Accelerator::Kvm,
        Name::MicrovmEmulated => Accelerator::Emulation,
    };
    let image = attacker_path()?.with_file_name(ATTACKERS_IMAGE);
    if !image.join(MANIFEST).is_file() {
        return Ok(Err(format!(
            "there is no guest image in {} (from a checkout, `cargo xtask image` builds it)",
            image.display()
        )));
    }
    if let Some(why) = accelerator.missing() {
        return Ok(Err(why));
    }
    // It is this machine's own, and holds no worker: its word about itself is enough.
    let image = GuestImage::open(&image, Trust::Name(name_of(&image)?))?;
    Ok(machine(&image, accelerator, ground).map_err(|error| {
        let hint = error.hint().map(|hint| format!("; {hint}"));
        format!(
            "{:#}{}",
            anyhow::Error::from(error),
            hint.unwrap_or_default()
        )
    }))
}

/// Why nothing is tried on a graphics processor: its wall is not built (docs/gpu.md).
fn gpus(drivers: &[GpuDriver]) -> String {
    let drivers: Vec<String> = drivers.iter().map(GpuDriver::to_string).collect();
    match drivers.as_slice() {
        [] => "no graphics processor that policy/gpu lists is here".to_owned(),
        drivers => drivers.join("; "),
    }
}

fn machine(
    image: &GuestImage,
    accelerator: Accelerator,
    ground: &Path,
) -> Result<Box<dyn Place>, VmError> {
    let setup = |source| VmError::Setup {
        what: "a model for an attacker",
        source,
    };
    let path = ground.join("disk");
    std::fs::write(&path, MODEL).map_err(setup)?;
    let spec = MachineSpec {
        files: [Some(std::fs::File::open(&path).map_err(setup)?), None, None],
        worker_memory: ATTACKER_MEMORY,
        processors: 1,
    };
    let vmm = Qemu::boot(image, &spec, accelerator)?;
    let mut machine = Machine::await_boot(Box::new(vmm), BOOT_DEADLINE)?;
    machine.seed()?;
    Ok(Box::new(InMachine::new(machine, MODEL.len() as u64)))
}

/// A folder that goes with its value.
struct Ground(PathBuf);

impl Ground {
    fn new() -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("substrate-suite-{}", std::process::id()));
        let made = std::fs::create_dir(&folder);
        made.and_then(|()| std::fs::create_dir(folder.join("controls")))
            .map_err(|error| {
                Story::new(format!("cannot make {}", folder.display())).because(error)
            })?;
        Ok(Self(folder))
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // What cannot be removed is three small files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The attacker beside the worker.
fn attacker_path() -> anyhow::Result<PathBuf> {
    let path = crate::installed::worker_path()?.with_file_name("substrate-wall-attacker");
    match path.is_file() {
        true => Ok(path),
        false => Err(Story::new(format!("there is no {}", path.display()))
            .hint("it is installed beside substrate-worker; from a checkout, `cargo xtask stage` builds it")
            .into()),
    }
}
