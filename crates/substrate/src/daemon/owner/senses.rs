//! How a machine shows that somebody uses it: a file, running programs, processors, graphics processors, terminals.
//!
//! Invariant: reading never fails and writes nothing. What cannot be read shows nobody.
//! Absent by design: screens, windows and input devices, which belong to the session of whoever sits there; names or
//! arguments of programs beyond those the owner listed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Seen, Sign};
use crate::daemon::context::unix_ms;
use crate::daemon::ticks::Ticks;
use crate::hardware::GpuWatch;

/// How far apart two readings of processor time are at least: the kernel counts in hundredths of a second.
const TICKS_APART: Duration = Duration::from_millis(500);

/// How often all running programs are gone through: a few hundred small files on a desktop.
const PROGRAMS_EVERY: Duration = Duration::from_millis(500);

/// The most processes gone through: Linux has 32,768 at most unless told otherwise.
const MAX_PROCESSES: usize = 1 << 15;

/// Bytes of its name that the kernel keeps of a program.
const KERNEL_NAME: usize = 15;

/// Thousandths of all cores that others may use on a machine that counts as idle: what runs in the background takes less.
const IDLE_THOUSANDTHS: u64 = 250;

/// And of one core at least, where there are few.
const IDLE_OF_ONE: u64 = 500;

/// How recent a key stroke counts: the kernel tells the time of the last one to eight seconds, so that nobody learns
/// passwords from it.
const TYPED_WITHIN: Duration = Duration::from_secs(10);

/// What is looked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Nothing is lent while it exists.
    pub busy_file: Option<PathBuf>,
    /// Nothing is lent while one of them runs.
    pub programs: Vec<String>,
    /// Others on the graphics processors take the machine: the engine computes there too.
    pub gpus_are_lent: bool,
    /// Whether it matters if somebody is active.
    pub activity: bool,
    /// Cores of the machine.
    pub cores: u32,
    /// The engine's processes.
    pub workers: Vec<u32>,
}

impl Wanted {
    /// There is nothing to be looked at.
    pub fn is_nothing(&self) -> bool {
        let nothing_takes = self.busy_file.is_none() && self.programs.is_empty();
        nothing_takes && !self.gpus_are_lent && !self.activity
    }
}

/// What was read before, to tell what changed.
#[derive(Default)]
pub struct Senses {
    ticks: Option<(Instant, Ticks)>,
    cores: Option<Sign>,
    programs: Option<(Instant, Option<Sign>)>,
    gpus: GpuWatch,
}

impl Senses {
    /// Looks once. Reads small files of the kernel's, and blocks for as long as that takes.
    pub fn look(&mut self, wanted: &Wanted) -> Seen {
        let gpu = if wanted.gpus_are_lent || wanted.activity {
            // An engine that computes on processors is never what keeps a card busy.
            let ours = wanted.gpus_are_lent.then_some(&*wanted.workers);
            self.gpus.others(ours.unwrap_or_default()).map(Sign::Gpu)
        } else {
            None
        };
        let file = wanted.busy_file.as_ref().filter(|file| is_there(file));
        let taken = (file.cloned().map(Sign::File))
            .or_else(|| self.program(&wanted.programs))
            .or_else(|| gpu.clone().filter(|_| wanted.gpus_are_lent));
        let active = wanted.activity.then(|| {
            let cores = self.cores(wanted.cores, &wanted.workers);
            cores
                .or(gpu)
                .or_else(|| typed(Path::new("/dev"), unix_ms()))
        });
        Seen {
            taken,
            active: active.flatten(),
        }
    }

    /// What others use of the processors, as far as the last two readings tell.
    fn cores(&mut self, cores: u32, workers: &[u32]) -> Option<Sign> {
        let since = self.ticks.as_ref().map(|(at, _)| at.elapsed());
        if since.is_some_and(|since| since < TICKS_APART) {
            return self.cores.clone();
        }
        let now = Ticks::read(workers)?;
        let before = self.ticks.replace((Instant::now(), now));
        let others = before.and_then(|(_, before)| now.others_since(&before, cores));
        self.cores = others.filter(|used| is_much(*used, cores)).map(Sign::Cores);
        self.cores.clone()
    }

    fn program(&mut self, names: &[String]) -> Option<Sign> {
        if names.is_empty() {
            self.programs = None;
            return None;
        }
        if let Some((at, found)) = &self.programs
            && at.elapsed() < PROGRAMS_EVERY
        {
            return found.clone();
        }
        let found = running(Path::new("/proc"), names).map(Sign::Program);
        self.programs = Some((Instant::now(), found.clone()));
        found
    }
}

/// A file whose folder cannot be read may be there: the owner comes first.
fn is_there(file: &Path) -> bool {
    file.try_exists().unwrap_or(true)
}

fn is_much(thousandths: u64, cores: u32) -> bool {
    thousandths >= (u64::from(cores) * IDLE_THOUSANDTHS).max(IDLE_OF_ONE)
}

/// The first of these programs that runs.
fn running(proc: &Path, names: &[String]) -> Option<String> {
    let entries = fs::read_dir(proc).ok()?;
    let processes = entries.flatten().filter(|entry| {
        let name = entry.file_name();
        name.to_str()
            .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    });
    for process in processes.take(MAX_PROCESSES) {
        let Ok(comm) = fs::read_to_string(process.path().join("comm")) else {
            continue;
        };
        let found = names.iter().find(|name| is_called(comm.trim_end(), name));
        if let Some(name) = found {
            return Some(name.clone());
        }
    }
    None
}

/// The kernel keeps the start of a long name.
fn is_called(comm: &str, name: &str) -> bool {
    match name.as_bytes().get(..KERNEL_NAME) {
        Some(start) => comm.as_bytes() == start,
        None => comm == name,
    }
}

/// Whether somebody typed at a terminal a moment ago: reading from one sets its time of access.
fn typed(dev: &Path, now_ms: u64) -> Option<Sign> {
    let consoles = terminals(dev, |name| {
        name.strip_prefix("tty")
            .is_some_and(|number| number.parse::<u32>().is_ok())
    });
    let windows = terminals(&dev.join("pts"), |name| name.parse::<u32>().is_ok());
    let recent = |meta: &fs::Metadata| {
        let read_ms = u64::try_from(meta.atime())
            .unwrap_or(0)
            .saturating_mul(1000);
        Duration::from_millis(now_ms.saturating_sub(read_ms)) < TYPED_WITHIN
    };
    consoles
        .into_iter()
        .chain(windows)
        .any(|meta| recent(&meta))
        .then_some(Sign::Terminal)
}

fn terminals(folder: &Path, is_one: impl Fn(&str) -> bool) -> Vec<fs::Metadata> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(&is_one))
        .filter_map(|entry| entry.metadata().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(proc: &Path, pid: &str, comm: &str) {
        fs::create_dir_all(proc.join(pid)).unwrap();
        fs::write(proc.join(pid).join("comm"), format!("{comm}\n")).unwrap();
    }

    #[test]
    fn a_file_takes_the_machine_while_it_exists() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("busy");
        let wanted = Wanted {
            busy_file: Some(file.clone()),
            cores: 1,
            ..Wanted::default()
        };
        let mut senses = Senses::default();
        assert_eq!(senses.look(&wanted), Seen::default());
        fs::write(&file, "").unwrap();
        assert_eq!(senses.look(&wanted).taken, Some(Sign::File(file.clone())));
        fs::remove_file(&file).unwrap();
        assert_eq!(senses.look(&wanted), Seen::default());
    }

    #[test]
    fn programs_are_known_by_the_name_the_kernel_keeps() {
        let folder = tempfile::tempdir().unwrap();
        process(folder.path(), "1", "init");
        process(folder.path(), "77", "a-very-long-nam");
        process(folder.path(), "self", "blender");
        let found = |name: &str| running(folder.path(), &[name.to_owned()]);
        assert_eq!(found("init").as_deref(), Some("init"));
        assert!(found("a-very-long-name-indeed").is_some());
        assert_eq!(found("a-very-long"), None);
        assert_eq!(found("blender"), None, "no process, another's view of one");
        assert_eq!(running(Path::new("/nowhere"), &["init".to_owned()]), None);
    }

    #[test]
    fn a_quarter_of_the_cores_is_much_and_so_is_half_of_the_only_one() {
        let much = [
            (499, 1),
            (500, 1),
            (499, 2),
            (500, 2),
            (1_999, 8),
            (2_000, 8),
        ];
        let much = much.map(|(used, cores)| is_much(used, cores));
        assert_eq!(much, [false, true, false, true, false, true]);
    }

    #[test]
    fn a_terminal_that_was_read_a_moment_ago_shows_somebody() {
        let dev = tempfile::tempdir().unwrap();
        fs::create_dir(dev.path().join("pts")).unwrap();
        for name in ["pts/0", "tty1", "pts/ptmx", "ttyS0"] {
            fs::write(dev.path().join(name), "").unwrap();
        }
        assert_eq!(typed(dev.path(), unix_ms()), Some(Sign::Terminal));
        let later = unix_ms() + 60_000;
        assert_eq!(typed(dev.path(), later), None);
        for name in ["pts/0", "tty1"] {
            fs::remove_file(dev.path().join(name)).unwrap();
        }
        assert_eq!(
            typed(dev.path(), unix_ms()),
            None,
            "no terminal of a person's"
        );
        assert_eq!(typed(Path::new("/nowhere"), unix_ms()), None);
    }
}
