//! A machine that has booted, from its first line to its end.
//!
//! Invariant: whatever a guest says is a bounded line, waited for with a deadline; a machine that says anything else is ended.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{ANSWER_DEADLINE, VmError, Vmm};
use crate::{
    guest::{FromGuest, SEED_BYTES, Start, ToGuest, VERSION, read_line},
    launch::{ExitKind, Inside, Worker},
};

/// Answers that nobody has taken yet. There is one at a time.
const ANSWERS: usize = 4;

/// A machine without a worker yet, or with one that its holder speaks to.
pub struct Machine {
    vmm: Box<dyn Vmm>,
    control: UnixStream,
    pipe: UnixStream,
}

/// A saved machine. A copy of it must be of the same image, memory, processors and accelerator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Where it lies.
    pub folder: std::path::PathBuf,
}

impl Machine {
    /// Waits until a machine that was just started says that it is ready; ends it if it does not in time.
    ///
    /// # Errors
    /// It did not boot, or is of another version.
    pub fn await_boot(mut vmm: Box<dyn Vmm>, deadline: Duration) -> Result<Self, VmError> {
        let until = Instant::now() + deadline;
        let answer = vmm.connect(deadline).and_then(|(mut control, pipe)| {
            let said = hear(&mut control, until).map_err(VmError::Line)?;
            Ok((said, control, pipe))
        });
        match answer {
            Ok((FromGuest::Ready { version: VERSION }, control, pipe)) => {
                Ok(Self { vmm, control, pipe })
            }
            Ok((said, ..)) => {
                vmm.kill();
                Err(VmError::Guest(format!(
                    "it said {:?} first",
                    said.to_string()
                )))
            }
            Err(error) => {
                let console = last_line(&vmm.console());
                vmm.kill();
                Err(match error {
                    VmError::Line(error) if is_late(&error) => VmError::Boot { deadline, console },
                    VmError::Line(error) => VmError::Vmm {
                        what: "boot the guest",
                        why: format!("{error}{console}"),
                    },
                    other => other,
                })
            }
        }
    }

    /// Takes up a machine that was made from a saved one: it is ready already, and needs a seed.
    ///
    /// # Errors
    /// Its ports do not open.
    pub fn take_up(mut vmm: Box<dyn Vmm>) -> Result<Self, VmError> {
        let (control, pipe) = vmm.connect(ANSWER_DEADLINE)?;
        Ok(Self { vmm, control, pipe })
    }

    /// Gives the guest randomness of the host's. Without it, it starts nothing.
    ///
    /// # Errors
    /// The guest does not take it.
    pub fn seed(&mut self) -> Result<(), VmError> {
        let mut seed = [0; SEED_BYTES];
        File::open("/dev/urandom")
            .and_then(|mut random| random.read_exact(&mut seed))
            .map_err(VmError::setup("a seed"))?;
        match self.ask(&ToGuest::Seed(seed))? {
            FromGuest::Seeded => Ok(()),
            said => Err(unexpected(&said)),
        }
    }

    /// Starts a worker; it is behind its process wall when this returns.
    ///
    /// # Errors
    /// The guest's own.
    pub fn start(&mut self, start: Start) -> Result<(), VmError> {
        match self.ask(&ToGuest::Start(start))? {
            FromGuest::Started => Ok(()),
            said => Err(unexpected(&said)),
        }
    }

    /// Has an image for attackers start what it holds as root of the guest, with nothing around it.
    ///
    /// # Errors
    /// The guest's own; every other image refuses.
    pub fn breach(&mut self, start: Start) -> Result<(), VmError> {
        match self.ask(&ToGuest::Breach(start))? {
            FromGuest::Started => Ok(()),
            said => Err(unexpected(&said)),
        }
    }

    /// Has the guest forget its seed, saves the machine into an empty folder, and ends it.
    ///
    /// # Errors
    /// The VMM's, or the guest's.
    pub fn save(mut self, folder: &Path) -> Result<Snapshot, VmError> {
        match self.ask(&ToGuest::Forget)? {
            FromGuest::Forgotten => {}
            said => return Err(unexpected(&said)),
        }
        fs::create_dir_all(folder).map_err(VmError::setup("a folder for a saved machine"))?;
        self.vmm.save(folder)?;
        Ok(Snapshot {
            folder: folder.to_owned(),
        })
    }

    /// The VMM's process.
    pub fn pid(&self) -> u32 {
        self.vmm.pid()
    }

    /// The worker's pipe.
    pub fn pipe(&mut self) -> &mut UnixStream {
        &mut self.pipe
    }

    /// Waits for the end of the worker: how, and how many bytes it had written.
    ///
    /// # Errors
    /// The guest says something else, or nothing in time.
    pub fn await_end(&mut self, patience: Duration) -> Result<(ExitKind, u64), VmError> {
        let until = Instant::now() + patience;
        match hear(&mut self.control, until).map_err(VmError::Line)? {
            FromGuest::Ended {
                by_signal,
                code,
                sent,
            } => Ok((exit(by_signal, code), sent)),
            said => Err(unexpected(&said)),
        }
    }

    /// The worker as any other. The machine ends with it.
    ///
    /// # Errors
    /// No thread can be had to watch it.
    pub fn into_worker(self) -> Result<Worker, VmError> {
        let Self { vmm, control, pipe } = self;
        let process = vmm.into_process();
        let (answer, answers) = sync_channel(ANSWERS);
        let exit = Arc::<Mutex<Option<ExitKind>>>::default();
        let mut heard = control.try_clone().map_err(VmError::setup("a port"))?;
        heard
            .set_read_timeout(None)
            .map_err(VmError::setup("a port"))?;
        let ending = process
            .pidfd()
            .map_err(VmError::setup("a handle to the VMM"))?;
        let seen = exit.clone();
        thread::Builder::new()
            .name("guest-watcher".to_owned())
            .spawn(move || {
                watch(&mut heard, &answer, &seen);
                // Nothing that follows is to be believed, and without its worker a machine is no use.
                let _ = ending.kill();
            })
            .map_err(VmError::setup("a thread"))?;
        let guest = Guest {
            control: Mutex::new((control, answers)),
            exit,
        };
        Ok(Worker::in_machine(process, pipe, Box::new(guest)))
    }

    fn ask(&mut self, what: &ToGuest) -> Result<FromGuest, VmError> {
        let until = Instant::now() + ANSWER_DEADLINE;
        say(&mut self.control, what)
            .and_then(|()| hear(&mut self.control, until))
            .map_err(VmError::Line)
    }
}

/// The lines of a machine whose worker is somebody's.
struct Guest {
    control: Mutex<(UnixStream, Receiver<FromGuest>)>,
    exit: Arc<Mutex<Option<ExitKind>>>,
}

impl Inside for Guest {
    fn is_sealed(&self) -> io::Result<bool> {
        let mut held = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let (control, answers) = &mut *held;
        say(control, &ToGuest::Look)?;
        match answers.recv_timeout(ANSWER_DEADLINE) {
            Ok(FromGuest::Sealed(sealed)) => Ok(sealed),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn exit(&self) -> Option<ExitKind> {
        *self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Until the worker's end, the machine's, or a line too many.
fn watch(control: &mut UnixStream, answer: &SyncSender<FromGuest>, seen: &Mutex<Option<ExitKind>>) {
    while let Ok(Some(said)) = read_line(control) {
        match said {
            FromGuest::Ended {
                by_signal, code, ..
            } => {
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(exit(by_signal, code));
                return;
            }
            said => match answer.try_send(said) {
                Ok(()) => {}
                Err(_) => return,
            },
        }
    }
}

fn exit(by_signal: bool, code: i32) -> ExitKind {
    match by_signal {
        true => ExitKind::Signalled(code),
        false => ExitKind::Exited(code),
    }
}

fn unexpected(said: &FromGuest) -> VmError {
    match said {
        FromGuest::Failed(why) => VmError::Guest(why.clone()),
        said => VmError::Guest(format!("it said {:?}", said.to_string())),
    }
}

fn say(control: &mut UnixStream, what: &ToGuest) -> io::Result<()> {
    control.write_all(format!("{what}\n").as_bytes())
}

fn hear(control: &mut UnixStream, until: Instant) -> io::Result<FromGuest> {
    let line = read_line(&mut Until { control, until })?;
    line.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Whether it is time that ran out. A socket whose own limit passes says that it would block.
fn is_late(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
    )
}

/// A stream that is read until a moment, however slowly its bytes come.
struct Until<'a> {
    control: &'a mut UnixStream,
    until: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.control.set_read_timeout(Some(left))?;
        self.control.read(buffer)
    }
}

/// What a console said last, for the end of a sentence.
fn last_line(console: &str) -> String {
    let line = console
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty());
    line.map_or_else(String::new, |line| {
        let plain: String = line.chars().filter(|c| !c.is_control()).take(200).collect();
        format!("; its console said last: {plain}")
    })
}
