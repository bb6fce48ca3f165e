//! The worker of this machine, and the bytes between it and its host.
//!
//! Invariant: at most one worker at a time. Its end is told only after all that it wrote was passed on, with the number of
//! bytes, so that the host knows when it has everything.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use substrate_sandbox::{
    guest::{FromGuest, Start},
    launch::{ExitKind, Wall, WallSpec, Worker},
};

use crate::{
    disks,
    ports::{Line, Port},
};

/// The program that the image is about.
const WORKER: &str = "/worker";

/// Who a worker is on this machine: nobody.
const NOBODY: u32 = 65534;

/// Read at once from either side: the size of a virtio-serial buffer's worth of pages.
const CHUNK: usize = 64 * 1024;

/// What is running.
pub struct Work {
    /// Where bytes of the host go: the worker's end of its pipe while there is one.
    current: Arc<Mutex<Option<UnixStream>>>,
    worker: Option<Arc<Mutex<Worker>>>,
    watcher: Option<JoinHandle<()>>,
    /// Whether the watcher is about to tell the end, or has.
    over: Arc<AtomicBool>,
    to_host: Arc<Mutex<Port>>,
    line: Arc<Line>,
}

impl Work {
    /// Nothing runs yet; what the host writes meanwhile is for nobody, and dropped.
    pub fn new(pipe: Port, line: Arc<Line>) -> Self {
        let current = Arc::<Mutex<Option<UnixStream>>>::default();
        let to_host = pipe.try_clone().map(|port| Arc::new(Mutex::new(port)));
        let to_host = to_host.unwrap_or_else(|_| crate::ground::end());
        let to_worker = current.clone();
        thread::spawn(move || {
            pass_on(pipe, &to_worker);
            // Without its host there is nothing to do here.
            crate::ground::end()
        });
        Self {
            current,
            worker: None,
            watcher: None,
            over: Arc::default(),
            to_host,
            line,
        }
    }

    /// Starts a worker, unless one runs.
    pub fn start(&mut self, start: Start) -> io::Result<()> {
        if !self.is_free() {
            return self.failed("a worker runs already");
        }
        let spec = match spec(&start) {
            Ok(spec) => spec,
            Err(error) => return self.failed(&error.to_string()),
        };
        let mut worker = match Wall::spawn(spec) {
            Ok(worker) => worker,
            Err(error) => return self.failed(&with_causes(&error)),
        };
        let Some(pipe) = worker.take_pipe() else {
            return self.failed("the worker has no pipe");
        };
        let worker = Arc::new(Mutex::new(worker));
        self.worker = Some(worker.clone());
        self.watch(pipe, move || end_of(&worker))
    }

    /// Starts what the image holds as root of this machine, with nothing around it. Only an image for attackers does.
    #[cfg(not(feature = "breached"))]
    pub fn breach(&mut self, _: Start) -> io::Result<()> {
        self.failed("this image starts nothing without a wall")
    }

    /// As above, in an image for attackers.
    #[cfg(feature = "breached")]
    pub fn breach(&mut self, start: Start) -> io::Result<()> {
        use std::os::{fd::AsRawFd, unix::process::CommandExt};
        if !self.is_free() {
            return self.failed("a worker runs already");
        }
        if let Err(error) = spec(&start) {
            return self.failed(&error.to_string());
        }
        let (ours, theirs) = UnixStream::pair()?;
        let (from, to) = (theirs.as_raw_fd(), substrate_sandbox::seal::CONTROL);
        let mut command = std::process::Command::new(WORKER);
        // SAFETY: dup2 and fcntl take numbers. A descriptor that is in its place already stays open by the second.
        unsafe {
            command.pre_exec(move || {
                let done = match from == to {
                    true => libc::fcntl(to, libc::F_SETFD, 0),
                    false => libc::dup2(from, to),
                };
                match done {
                    -1 => Err(io::Error::last_os_error()),
                    _ => Ok(()),
                }
            });
        }
        let mut child = command.spawn()?;
        drop(theirs);
        self.watch(ours, move || {
            use std::os::unix::process::ExitStatusExt;
            let status = child.wait().ok()?;
            let signal = status.signal().map(ExitKind::Signalled);
            signal.or(status.code().map(ExitKind::Exited))
        })
    }

    /// Whether the worker before has ended, and all about it was told.
    fn is_free(&mut self) -> bool {
        if let Some(watcher) = self.watcher.take() {
            if !self.over.load(Ordering::SeqCst) {
                self.watcher = Some(watcher);
                return false;
            }
            // It has said all it had to say.
            let _ = watcher.join();
        }
        self.over.store(false, Ordering::SeqCst);
        true
    }

    /// Passes bytes both ways from now on, and tells the end.
    fn watch(
        &mut self,
        pipe: UnixStream,
        end: impl FnOnce() -> Option<ExitKind> + Send + 'static,
    ) -> io::Result<()> {
        *lock(&self.current) = Some(pipe.try_clone()?);
        self.line.say(&FromGuest::Started)?;
        let (current, to_host) = (self.current.clone(), self.to_host.clone());
        let (line, over) = (self.line.clone(), self.over.clone());
        self.watcher = Some(thread::spawn(move || {
            let sent = AtomicU64::new(0);
            // A worker that was killed may reset its pipe, which is an end like any other.
            let _ = pass_back(&pipe, &to_host, &sent);
            let end = end();
            *lock(&current) = None;
            let (by_signal, code) = match end {
                Some(ExitKind::Exited(code)) => (false, code),
                Some(ExitKind::Signalled(signal)) => (true, signal),
                None => (true, libc::SIGKILL),
            };
            let sent = sent.load(Ordering::SeqCst);
            over.store(true, Ordering::SeqCst);
            // The host is gone if this fails, and then this machine is about to end.
            let _ = line.say(&FromGuest::Ended {
                by_signal,
                code,
                sent,
            });
        }));
        Ok(())
    }

    /// Whether both seals are down, as this kernel tells.
    pub fn is_sealed(&self) -> bool {
        let Some(worker) = &self.worker else {
            return false;
        };
        lock(worker)
            .outside_view()
            .is_ok_and(|view| view.is_sealed())
    }

    /// Ends the worker, which is told as any end is.
    pub fn kill(&self) -> io::Result<()> {
        match &self.worker {
            Some(worker) => lock(worker).kill(),
            None => Ok(()),
        }
    }

    fn failed(&self, why: &str) -> io::Result<()> {
        self.line.say(&FromGuest::Failed(why.to_owned()))
    }
}

fn spec(start: &Start) -> io::Result<WallSpec> {
    let file = |place: usize| match start.files[place] {
        0 => Ok(None),
        size => disks::for_file(place + 1, size).map(Some),
    };
    let model = file(0)?.ok_or_else(|| io::Error::other("a worker needs a model"))?;
    Ok(WallSpec {
        projector: file(1)?,
        adapter: file(2)?,
        memory_limit: start.memory,
        become_uid: Some(NOBODY),
        models_are_disks: true,
        ..WallSpec::new(WORKER, model)
    })
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Waits for the end of a worker whose pipe has ended, without keeping others from killing it.
fn end_of(worker: &Mutex<Worker>) -> Option<ExitKind> {
    loop {
        let ended = lock(worker).wait_at_most(std::time::Duration::from_millis(50));
        match ended {
            Ok(None) => {}
            Ok(end) => return end,
            Err(_) => return None,
        }
    }
}

fn pass_on(mut pipe: Port, current: &Mutex<Option<UnixStream>>) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(n @ 1..) = pipe.read(&mut buffer) {
        let worker = lock(current).as_ref().map(UnixStream::try_clone);
        if let Some(Ok(mut worker)) = worker {
            // A worker that has ended hears nothing; its end is told elsewhere.
            let _ = worker.write_all(&buffer[..n]);
        }
    }
}

fn pass_back(mut pipe: &UnixStream, to_host: &Mutex<Port>, sent: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = pipe.read(&mut buffer)?;
        if n == 0 {
            return pipe.shutdown(Shutdown::Both);
        }
        lock(to_host).write_all(&buffer[..n])?;
        sent.fetch_add(n as u64, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
