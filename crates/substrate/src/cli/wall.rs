//! `wall`: what the walls of this machine hold back, tried now.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use substrate_sandbox::{
    launch::probe,
    suite::{Attempt, Suite},
};

use super::{session::Session, story::Story, table::Table};

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
        control. One whose control fails says nothing about the wall here. Fails if anything gets out."
    )]
    Check(Check),
}

#[derive(Debug, Args)]
struct Check {}

impl Wall {
    /// Runs the suite and prints what became of each attack.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        let WallCommand::Check(Check {}) = self.command;
        let tier = tokio::task::spawn_blocking(Tier::check).await??;
        if session.json {
            session.json(&json!({ "tiers": [tier.as_json()] }))?;
        } else {
            session.line(tier.table())?;
        }
        tier.verdict()
    }
}

/// One wall, and what it held back.
struct Tier {
    name: &'static str,
    offered: bool,
    reason: String,
    attempts: Vec<Attempt>,
}

impl Tier {
    fn check() -> anyhow::Result<Self> {
        let report = probe(None);
        let name = "process";
        if !report.offers_process() {
            return Ok(Self {
                name,
                offered: false,
                reason: report.whole.to_string(),
                attempts: Vec::new(),
            });
        }
        let ground = Ground::new()?;
        let suite = Suite {
            attacker: attacker_path()?,
            ground: ground.0.clone(),
            become_uid: None,
        };
        let mut attempts = Vec::new();
        for attack in suite.attacks()? {
            attempts.push(suite.attempt(attack)?);
        }
        let escaped = attempts.iter().filter(|attempt| !attempt.denied).count();
        let counted = attempts.iter().filter(|attempt| attempt.counts()).count();
        Ok(Self {
            name,
            offered: escaped == 0,
            reason: match escaped {
                0 => format!(
                    "{} attacks tried, none got out, {counted} of them succeed without the wall; {}",
                    attempts.len(),
                    report.hard_limits
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
            "tier": self.name,
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
        format!("{table}\n\n{}: {offered}, {}", self.name, self.reason)
    }

    fn verdict(self) -> anyhow::Result<()> {
        if self.offered {
            return Ok(());
        }
        let story = Story::new(format!("the wall {} does not hold here", self.name));
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

/// A folder that goes with its value.
struct Ground(PathBuf);

impl Ground {
    fn new() -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("substrate-suite-{}", std::process::id()));
        std::fs::create_dir(&folder).map_err(|error| {
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
