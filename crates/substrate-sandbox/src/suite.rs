//! What the wall promises, tried on this machine: every attack of `substrate-wall-attacker`, once behind the wall at both stages
//! and once outside, where it must succeed if its refusal inside is to count for anything.
//!
//! Invariant: an attack counts as denied only if it was refused at both stages just now. What ended in any other way, and be it
//! that the attacker did not start, is an error or an escape, never a denial.
//! Absent by design: attacks themselves (they are the attacker's, which is not linked with the daemon), and what only time or
//! many workers show (the tests').

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use crate::{
    guest::Start,
    launch::{ExitKind, LaunchError, Wall, WallSpec},
    microvm::{Machine, VmError},
};

/// No attempt takes longer on a loaded machine; each is a few system calls.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer is a line.
const MAX_ANSWER: u64 = 4096;

/// Memory of an attacker in a machine, beyond what any worker gets: it computes nothing.
pub const ATTACKER_MEMORY: u64 = 64 << 20;

/// The stages of the wall: before the model is read, and before the first prompt.
const STAGES: [u8; 2] = [1, 2];

/// No stage at all: the attacker is root of its guest.
const UNSEALED: [u8; 1] = [0];

/// How an order of that begins.
const BREACHED: &str = "0 ";

/// Where and as whom the suite runs.
#[derive(Clone, Debug)]
pub struct Suite {
    /// `substrate-wall-attacker`, linked statically.
    pub attacker: PathBuf,
    /// An empty folder for what attacks find outside. Everything in it is overwritten.
    pub ground: PathBuf,
    /// As in [`WallSpec::become_uid`].
    pub become_uid: Option<u32>,
}

/// An attack, as the attacker lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attack {
    /// What it tries.
    pub name: String,
    /// What it is after.
    pub kind: String,
    /// Whether it is said to succeed outside on every machine, for one's own user or as root in namespaces of one's own.
    pub works_outside: bool,
}

/// What became of an attack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The attack.
    pub attack: Attack,
    /// Whether it was refused, at both stages.
    pub denied: bool,
    /// In what way.
    pub how: String,
    /// Whether it succeeds on this machine without the wall. If not, its refusal says nothing about the wall.
    pub control_succeeded: bool,
}

impl Attempt {
    /// Whether it shows that the wall holds: refused inside, and not outside.
    pub fn counts(&self) -> bool {
        self.denied && self.control_succeeded
    }
}

/// Why the suite could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SuiteError {
    /// The attacker cannot be started at all.
    #[error("cannot run {}", path.display())]
    Attacker {
        /// The program.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The folder for its controls cannot be filled.
    #[error("cannot prepare {}", path.display())]
    Ground {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// No wall stands here.
    #[error("the wall cannot be built")]
    Wall(#[from] LaunchError),
    /// The machine that the attacker runs in failed.
    #[error("the machine does not run attacks")]
    Machine(#[from] VmError),
    /// The pipe to a walled attacker failed.
    #[error("the attacker cannot be given its order")]
    Pipe(#[source] io::Error),
}

/// A wall with an attacker behind it.
pub trait Place {
    /// Starts the attacker, gives it one order, and says what it answered and how it ended; `None` = it did not.
    ///
    /// # Errors
    /// It could not be started or told.
    fn run(&mut self, suite: &Suite, order: &str)
    -> Result<(String, Option<ExitKind>), SuiteError>;
}

/// The process wall of this machine.
#[derive(Clone, Copy, Debug)]
pub struct ProcessWall;

impl Place for ProcessWall {
    fn run(
        &mut self,
        suite: &Suite,
        order: &str,
    ) -> Result<(String, Option<ExitKind>), SuiteError> {
        let mut worker = Wall::spawn(WallSpec {
            become_uid: suite.become_uid,
            ..WallSpec::new(&suite.attacker, suite.model())
        })?;
        let mut answer = String::new();
        if let Some(mut pipe) = worker.take_pipe() {
            pipe.set_read_timeout(Some(PATIENCE))
                .and_then(|()| writeln!(pipe, "{order}"))
                .map_err(SuiteError::Pipe)?;
            // A killed worker may reset the pipe, which is an end like any other.
            let _ = BufReader::new(&pipe).read_line(&mut answer);
            let _ = pipe.shutdown(Shutdown::Both);
        }
        let exit = worker.wait_at_most(PATIENCE).map_err(SuiteError::Pipe)?;
        Ok((answer, exit))
    }
}

/// A machine whose image has the attacker in the worker's place: behind the process wall again, and that inside the machine.
pub struct InMachine {
    machine: Machine,
    start: Start,
}

impl InMachine {
    /// Attacks run in this machine, one after the other. It has its seed, and a model of this many bytes.
    pub fn new(machine: Machine, model: u64) -> Self {
        let start = Start {
            files: [model, 0, 0],
            memory: ATTACKER_MEMORY,
        };
        Self { machine, start }
    }
}

impl Place for InMachine {
    fn run(&mut self, _: &Suite, order: &str) -> Result<(String, Option<ExitKind>), SuiteError> {
        match order.starts_with(BREACHED) {
            true => self.machine.breach(self.start)?,
            false => self.machine.start(self.start)?,
        }
        let pipe = self.machine.pipe();
        writeln!(pipe, "{order}").map_err(SuiteError::Pipe)?;
        let (exit, sent) = self.machine.await_end(PATIENCE)?;
        // All that it wrote has come: the guest tells the end after it has passed everything on.
        let pipe = self.machine.pipe();
        pipe.set_read_timeout(Some(PATIENCE))
            .map_err(SuiteError::Pipe)?;
        let mut answer = vec![0; usize::try_from(sent.min(MAX_ANSWER)).unwrap_or(0)];
        pipe.read_exact(&mut answer).map_err(SuiteError::Pipe)?;
        Ok((String::from_utf8_lossy(&answer).into_owned(), Some(exit)))
    }
}

impl Suite {
    /// All attacks on the process wall, and on that inside a machine.
    ///
    /// # Errors
    /// The attacker cannot be run.
    pub fn attacks(&self) -> Result<Vec<Attack>, SuiteError> {
        let mut attacks = self.listed()?;
        attacks.retain(|attack| !attack.is_on_machine());
        Ok(attacks)
    }

    /// Attacks on a machine by root of its guest, to whom the wall inside is nothing any more.
    ///
    /// # Errors
    /// The attacker cannot be run.
    pub fn breaches(&self) -> Result<Vec<Attack>, SuiteError> {
        let mut attacks = self.listed()?;
        attacks.retain(Attack::is_on_machine);
        Ok(attacks)
    }

    fn listed(&self) -> Result<Vec<Attack>, SuiteError> {
        let output = self.outside(&["list"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let attacks: Vec<Attack> = text.lines().filter_map(Attack::parse).collect();
        if attacks.is_empty() {
            return Err(SuiteError::Attacker {
                path: self.attacker.clone(),
                source: io::Error::other("it names no attacks"),
            });
        }
        Ok(attacks)
    }

    /// One attack: its control outside, and both stages inside, in a place of this wall.
    ///
    /// # Errors
    /// It could not be tried.
    pub fn attempt(&self, place: &mut dyn Place, attack: Attack) -> Result<Attempt, SuiteError> {
        let on_machine = attack.is_on_machine();
        // What is a guest's own is nowhere else.
        let control_succeeded = !on_machine && self.control(&attack.name)?;
        self.lay_ground()?;
        let mut ends = Vec::new();
        for stage in if on_machine { &UNSEALED[..] } else { &STAGES } {
            ends.push(self.inside(place, *stage, &attack.name)?);
        }
        let denied = ends.iter().all(|end| end.is_ok());
        ends.dedup();
        let told: Vec<String> = ends
            .into_iter()
            .map(|end| end.unwrap_or_else(|escaped| escaped))
            .collect();
        Ok(Attempt {
            attack,
            denied,
            how: told.join(", then "),
            control_succeeded,
        })
    }

    /// Whether the attack succeeds without a wall, for the same user or for root of its own namespaces.
    fn control(&self, name: &str) -> Result<bool, SuiteError> {
        for who in ["bare", "root"] {
            self.lay_ground()?;
            let output = self.outside(&[who, name])?;
            // A program that was executed instead says nothing and succeeds.
            let worked = output.stdout == b"allowed\n" || output.stdout.is_empty();
            if output.status.success() && worked {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn outside(&self, arguments: &[&str]) -> Result<Output, SuiteError> {
        let mut command = Command::new(&self.attacker);
        command
            .args(arguments)
            .current_dir(&self.ground)
            .env_clear();
        if let Some(uid) = self.become_uid {
            command.uid(uid).gid(uid);
        }
        command.output().map_err(|source| SuiteError::Attacker {
            path: self.attacker.clone(),
            source,
        })
    }

    /// `Ok` with the way in which it was refused; `Err` with what happened otherwise.
    fn inside(
        &self,
        place: &mut dyn Place,
        stage: u8,
        name: &str,
    ) -> Result<Result<String, String>, SuiteError> {
        let (answer, exit) = place.run(self, &format!("{stage} {name}"))?;
        Ok(match (answer.trim_end(), exit) {
            ("", Some(exit)) if exit.is_violation() => Ok("killed by the filter".to_owned()),
            (answer, Some(ExitKind::Exited(0))) => match answer.strip_prefix("denied ") {
                Some(why) => Ok(without_number(why).to_owned()),
                None => Err(format!("NOT DENIED: {answer}")),
            },
            (answer, exit) => Err(format!("NOT DENIED: {answer} {exit:?}")),
        })
    }

    fn model(&self) -> PathBuf {
        self.ground.join("model.gguf")
    }

    /// What attacks find: a model and a file, both their user's, and no trace of the attack before.
    fn lay_ground(&self) -> Result<(), SuiteError> {
        self.lay().map_err(|source| SuiteError::Ground {
            path: self.ground.clone(),
            source,
        })
    }

    fn lay(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.ground)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        fs::set_permissions(&self.ground, fs::Permissions::from_mode(0o755))?;
        self.give(&self.ground)?;
        for name in ["model.gguf", "file"] {
            let path = self.ground.join(name);
            fs::write(&path, b"GGUF")?;
            self.give(&path)?;
        }
        Ok(())
    }

    fn give(&self, path: &Path) -> io::Result<()> {
        match self.become_uid {
            Some(uid) => std::os::unix::fs::chown(path, Some(uid), Some(uid)),
            None => Ok(()),
        }
    }
}

impl Attack {
    fn is_on_machine(&self) -> bool {
        self.kind == "machine"
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(3, '\t');
        let (kind, outside, name) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Self {
            name: name.to_owned(),
            kind: kind.to_lowercase(),
            works_outside: outside.starts_with("Works"),
        })
    }
}

/// An error's text without "(os error 13)".
fn without_number(why: &str) -> &str {
    why.split(" (os error").next().unwrap_or(why)
}
