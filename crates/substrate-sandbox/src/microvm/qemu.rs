//! QEMU's `microvm` machine: with KVM where that boots a guest, else under software emulation.
//!
//! Every file, port and socket is handed to it as an open descriptor, so that it need open nothing but its own programs.
//!
//! Invariant: `-nodefaults`: there is no device but those listed here, and none of them is a network card.

use std::{
    fs::{self, File},
    io,
    net::Shutdown,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    GuestImage, MAX_CONSOLE, MachineSpec, VmError, Vmm,
    confine::{self, Reach},
    program,
    qmp::Qmp,
};
use crate::{
    guest::{CONTROL_PORT, DISKS, PIPE_PORT},
    launch::{Process, Stderr, stderr_pipe},
};

/// The program.
pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// Memory of a saved machine, and its devices' state.
const STATE: &str = "qemu.state";

/// Where a machine's memory goes while it is saved.
const SOCKET: &str = "save.socket";

/// Between two questions whether a machine has been read back.
const LOOK_AGAIN: Duration = Duration::from_millis(3);

/// How long saving or reading back may take: some seconds for each GiB on a slow disk.
const COPY_DEADLINE: Duration = Duration::from_secs(120);

/// Translated code that is kept; the kernel and a worker take less.
const TRANSLATIONS_MIB: u32 = 256;

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself, by `/dev/kvm`.
    Kvm,
    /// QEMU's translator: right, and a hundred times slower and more for what an engine does (docs/benchmarks.md).
    Emulation,
}

impl Accelerator {
    /// Why it cannot be had on this machine; `None` if it may be, which only a boot tells.
    pub fn missing(self) -> Option<String> {
        if !Qemu::is_installed() {
            let absent = VmError::NoVmm { name: PROGRAM };
            let hint = absent.hint().map(|hint| format!("; {hint}"));
            return Some(format!("{absent}{}", hint.unwrap_or_default()));
        }
        let kvm = || File::options().read(true).write(true).open("/dev/kvm");
        match self {
            Self::Emulation => None,
            Self::Kvm => kvm().err().map(|error| {
                format!(
                    "/dev/kvm: {error}; a user in the group kvm may use it, if the machine has it"
                )
            }),
        }
    }
}

/// A machine under QEMU.
pub struct Qemu {
    process: Process,
    qmp: Qmp,
    ports: Option<(UnixStream, UnixStream)>,
}

impl Qemu {
    /// Whether the program is there.
    pub fn is_installed() -> bool {
        program(PROGRAM).is_some()
    }

    /// Starts a machine, which then boots.
    ///
    /// # Errors
    /// QEMU is not there or did not start.
    pub fn boot(
        image: &GuestImage,
        spec: &MachineSpec,
        accelerator: Accelerator,
    ) -> Result<Self, VmError> {
        Self::start(image, spec, accelerator, None)
    }

    /// Starts a machine as it was when it was saved, with other files on its disks. It must be of the same image, memory,
    /// processors and accelerator.
    ///
    /// # Errors
    /// As [`Self::boot`], or what was saved cannot be read back.
    pub fn restore(
        image: &GuestImage,
        spec: &MachineSpec,
        accelerator: Accelerator,
        folder: &Path,
    ) -> Result<Self, VmError> {
        let state = File::open(folder.join(STATE)).map_err(VmError::setup("a saved machine"))?;
        let mut machine = Self::start(image, spec, accelerator, Some(state))?;
        machine.go_on()?;
        Ok(machine)
    }

    fn start(
        image: &GuestImage,
        spec: &MachineSpec,
        accelerator: Accelerator,
        state: Option<File>,
    ) -> Result<Self, VmError> {
        let program = program(PROGRAM).ok_or(VmError::NoVmm { name: PROGRAM })?;
        let mut parts = Parts::default();
        let mut command = parts.command(&program, image, spec, accelerator, state)?;
        let (theirs, stderr) = stderr_pipe(Stderr::Pipe)?;
        command.stderr(theirs);
        let kvm: &[&Path] = match accelerator {
            Accelerator::Kvm => &[Path::new("/dev/kvm")],
            Accelerator::Emulation => &[],
        };
        let reach = Reach {
            files: &parts.readable,
            devices: kvm,
            folder: None,
        };
        let child =
            confine::start(command, &reach, parts.kept).map_err(|source| VmError::Start {
                name: PROGRAM,
                source,
            })?;
        let [control, pipe, qmp] = parts.ours.try_into().unwrap_or_else(|_| unreachable!());
        Ok(Self {
            process: Process::adopt(&child, stderr).map_err(VmError::setup("a handle to QEMU"))?,
            qmp: Qmp::new(qmp),
            ports: Some((control, pipe)),
        })
    }

    /// Waits until what was saved is read, then lets it run.
    fn go_on(&mut self) -> Result<(), VmError> {
        let since = Instant::now();
        while since.elapsed() < COPY_DEADLINE {
            let status = self.order("tell its state", "query-status", &json!({}))?;
            if status["status"] != "inmigrate" {
                return self.order("go on", "cont", &json!({})).map(drop);
            }
            thread::sleep(LOOK_AGAIN);
        }
        Err(VmError::Vmm {
            what: "read a saved machine back",
            why: format!("it took longer than {} s", COPY_DEADLINE.as_secs()),
        })
    }

    fn order(
        &mut self,
        what: &'static str,
        name: &str,
        arguments: &Value,
    ) -> Result<Value, VmError> {
        self.qmp.order(name, arguments).map_err(|error| {
            let why = match self.process.try_wait() {
                Ok(Some(exit)) => {
                    let said = String::from_utf8_lossy(self.process.stderr_so_far()).into_owned();
                    format!("it ended, {exit:?}: {}", said.trim())
                }
                _ => error.to_string(),
            };
            VmError::Vmm { what, why }
        })
    }

    /// Takes the machine's memory from QEMU, which may open no file to write it to.
    fn receive(&mut self, folder: &Path) -> Result<(), VmError> {
        let socket = folder.join(SOCKET);
        let setup = VmError::setup;
        let listener =
            UnixListener::bind(&socket).map_err(setup("a socket for a saved machine"))?;
        let state = File::create(folder.join(STATE)).map_err(setup("a saved machine"))?;
        let copying = thread::spawn(move || -> io::Result<()> {
            let (mut from, _) = listener.accept()?;
            io::copy(&mut from, &mut &state)?;
            state.sync_all()
        });
        let uri = format!("unix:{}", socket.display());
        self.order("save the machine", "migrate", &json!({ "uri": uri }))?;
        let since = Instant::now();
        let outcome = loop {
            let state = self.order("save the machine", "query-migrate", &json!({}))?;
            match state["status"].as_str() {
                Some("completed") => break Ok(()),
                Some("failed" | "cancelled") => break Err(state["error-desc"].to_string()),
                _ if since.elapsed() > COPY_DEADLINE => break Err("it took too long".to_owned()),
                _ => thread::sleep(LOOK_AGAIN),
            }
        };
        if outcome.is_err() {
            // Whoever waits for a connection that does not come is let go.
            let _ = UnixStream::connect(&socket).map(|stream| stream.shutdown(Shutdown::Both));
        }
        let copied = copying
            .join()
            .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        let _ = fs::remove_file(&socket);
        outcome.map_err(|why| VmError::Vmm {
            what: "save the machine",
            why,
        })?;
        copied.map_err(setup("a saved machine"))
    }
}

impl Vmm for Qemu {
    fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn connect(&mut self, _patience: Duration) -> Result<(UnixStream, UnixStream), VmError> {
        // Both were connected before the machine began.
        self.ports.take().ok_or(VmError::Vmm {
            what: "open its ports",
            why: "they were taken".to_owned(),
        })
    }

    fn save(&mut self, folder: &Path) -> Result<(), VmError> {
        self.order("stop the machine", "stop", &json!({}))?;
        self.receive(folder)
    }

    fn console(&mut self) -> String {
        let arguments = json!({ "device": "console", "size": MAX_CONSOLE });
        let said = self.qmp.order("ringbuf-read", &arguments);
        let mut said = said
            .ok()
            .and_then(|text| text.as_str().map(str::to_owned))
            .unwrap_or_default();
        said.push_str(&String::from_utf8_lossy(self.process.stderr_so_far()));
        said
    }

    fn into_process(self: Box<Self>) -> Process {
        self.process
    }

    fn kill(&mut self) {
        // One that has ended is what is wanted.
        let _ = self.process.kill();
    }
}

/// What QEMU is handed: arguments, and the descriptors that they name.
#[derive(Default)]
struct Parts {
    arguments: Vec<String>,
    /// Closed here once it has its own.
    kept: Vec<OwnedFd>,
    /// Those among them that it opens once more by name.
    readable: Vec<RawFd>,
    /// Our ends of its ports and of its monitor.
    ours: Vec<UnixStream>,
}

impl Parts {
    fn command(
        &mut self,
        program: &Path,
        image: &GuestImage,
        spec: &MachineSpec,
        accelerator: Accelerator,
        state: Option<File>,
    ) -> Result<Command, VmError> {
        let setup = VmError::setup;
        self.machine(spec, accelerator)
            .map_err(setup("a machine of that size"))?;
        let kernel = self
            .path(image.kernel())
            .map_err(setup("a copy of a descriptor"))?;
        let initrd = self
            .path(image.initrd())
            .map_err(setup("a copy of a descriptor"))?;
        self.say(["-kernel", &kernel, "-initrd", &initrd]);
        self.say(["-append", &command_line(accelerator)]);
        let root = Some(image.root());
        let files = spec.files.iter().map(Option::as_ref);
        for (place, file) in std::iter::once(root).chain(files).enumerate() {
            self.disk(place, file).map_err(setup("a disk"))?;
        }
        self.say(["-device", "virtio-serial-device"]);
        for (id, name) in [("control", CONTROL_PORT), ("pipe", PIPE_PORT)] {
            self.socket(id).map_err(setup("a port"))?;
            self.say([
                "-device",
                &format!("virtserialport,chardev={id},name={name}"),
            ]);
        }
        self.socket("qmp").map_err(setup("a monitor"))?;
        self.say(["-mon", "chardev=qmp,mode=control"]);
        if let Some(state) = state {
            let state = self.keep(state.into());
            self.say(["-incoming", &format!("fd:{state}")]);
        }
        let mut command = Command::new(program);
        command.args(&self.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(command)
    }

    fn machine(&mut self, spec: &MachineSpec, accelerator: Accelerator) -> io::Result<()> {
        let machine = "microvm,acpi=on,pit=on,pic=on,rtc=on,dump-guest-core=off,mem-merge=off";
        self.say(["-nodefaults", "-no-user-config", "-no-reboot"]);
        self.say(["-display", "none", "-machine", machine]);
        match accelerator {
            Accelerator::Kvm => self.say(["-accel", "kvm", "-cpu", "host"]),
            Accelerator::Emulation => {
                let translator = format!("tcg,thread=multi,tb-size={TRANSLATIONS_MIB}");
                self.say(["-accel", &translator, "-cpu", "max"]);
            }
        }
        let memory = format!("{}M", spec.memory()? >> 20);
        self.say(["-m", &memory, "-smp", &spec.processors.to_string()]);
        self.say(["-global", "virtio-mmio.force-legacy=false"]);
        let filter = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
        self.say(["-sandbox", filter]);
        let console = format!("ringbuf,id=console,size={MAX_CONSOLE}");
        self.say(["-chardev", &console, "-serial", "chardev:console"]);
        Ok(())
    }

    fn disk(&mut self, place: usize, file: Option<&File>) -> io::Result<()> {
        let name = DISKS[place];
        let node = match file {
            Some(file) => {
                let descriptor = self.keep(file.try_clone()?.into());
                self.say(["-add-fd", &format!("fd={descriptor},set={place}")]);
                format!(
                    "driver=raw,node-name={name},read-only=on,file.driver=file,file.read-only=on,\
                     file.locking=off,file.filename=/dev/fdset/{place}"
                )
            }
            // A machine that is saved and one that is made from it have the same devices.
            None => format!("driver=null-co,node-name={name},read-only=on,size=0"),
        };
        self.say(["-blockdev", &node]);
        self.say([
            "-device",
            &format!("virtio-blk-device,drive={name},serial={name}"),
        ]);
        Ok(())
    }

    fn socket(&mut self, id: &str) -> io::Result<()> {
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = self.keep(theirs.into());
        self.ours.push(ours);
        self.say(["-chardev", &format!("socket,id={id},fd={theirs}")]);
        Ok(())
    }

    /// A name under which QEMU can open a file that is open here.
    fn path(&mut self, file: &File) -> io::Result<String> {
        let descriptor = self.keep(file.try_clone()?.into());
        self.readable.push(descriptor);
        Ok(format!("/proc/self/fd/{descriptor}"))
    }

    fn keep(&mut self, descriptor: OwnedFd) -> RawFd {
        let number = descriptor.as_raw_fd();
        self.kept.push(descriptor);
        number
    }

    fn say<const N: usize>(&mut self, arguments: [&str; N]) {
        self.arguments.extend(arguments.map(str::to_owned));
    }
}

/// What the kernel is told. Under emulation it must not measure its clocks: the one it measures by stands still while the host
/// is busy, and the boot with it.
fn command_line(accelerator: Accelerator) -> String {
    let always = "console=ttyS0 quiet panic=-1 reboot=t";
    match accelerator {
        Accelerator::Kvm => always.to_owned(),
        Accelerator::Emulation => {
            let khz = host_khz();
            format!("{always} tsc_early_khz={khz} tsc=unstable lpj=10000000 no_timer_check")
        }
    }
}

/// The host's clock rate in kHz, which emulated time stamps count in; a common one where it is not told.
fn host_khz() -> u64 {
    const COMMON: u64 = 2_500_000;
    let told = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mhz = told.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == "cpu MHz").then(|| value.trim().parse::<f64>().ok())?
    });
    mhz.map_or(COMMON, |mhz| (mhz * 1000.0) as u64)
}
