//! Firecracker: a VMM with hardly a device, for machines with KVM (Agache et al., "Firecracker: Lightweight Virtualization for
//! Serverless Applications", NSDI 2020).
//!
//! It is told what to do by HTTP over a Unix socket, and its guest is reached by vsock, whose host side is a Unix socket with a
//! handshake of one line (Firecracker's docs/vsock.md). Its jailer wants root, which the daemon is not; what the jailer does is
//! done by `confine`, but for the change of root, in whose place stand Landlock's rules. Firecracker's own filter of system
//! calls, one for each of its threads, is on by itself.
//!
//! Invariant: there is no network device, every drive is read-only, and each has a limit on what it may read in a second.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    GuestImage, MachineSpec, VmError, Vmm,
    confine::{self, Reach},
    program,
};
use crate::{
    guest::{CONTROL_VSOCK, DISKS, PIPE_VSOCK, SECTOR},
    launch::{Process, Stderr, stderr_pipe},
};

/// The program.
pub(super) const PROGRAM: &str = "firecracker";

/// The host's side of the guest's vsock.
const VSOCK: &str = "vsock";

/// Where orders go.
const API: &str = "api";

/// Memory of a saved machine, and the state of its devices.
const SAVED: [&str; 2] = ["firecracker.memory", "firecracker.state"];

/// The guest's address, of which a host with one guest to a socket needs no second.
const GUEST_CID: u32 = 3;

/// Bytes a drive may read in a second: more than a disk gives, and less than would keep others from theirs.
const DRIVE_RATE: u64 = 2 << 30;

/// An answer to an order is a status and at most a sentence.
const MAX_ANSWER: usize = 16 * 1024;

/// How long an order may take; saving writes all memory.
const ORDER_DEADLINE: Duration = Duration::from_secs(120);

/// Between two knocks on a socket that is not there yet.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What Linux is told: the clock is the host's, nothing is on a PCI bus, and a reset ends the machine.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 reboot=k pci=off";

/// A machine under Firecracker.
pub struct Firecracker {
    process: Process,
    folder: PathBuf,
}

impl Firecracker {
    /// Whether the program is there.
    pub fn is_installed() -> bool {
        program(PROGRAM).is_some()
    }

    /// Starts a machine, which then boots, with its sockets in an empty folder of its own.
    ///
    /// # Errors
    /// Firecracker is not there, did not start, or refused a part of the machine.
    pub fn boot(image: &GuestImage, spec: &MachineSpec, folder: &Path) -> Result<Self, VmError> {
        let parts = Parts::new(image, spec, folder)?;
        let orders = parts.orders(spec)?;
        let mut machine = parts.start(folder)?;
        for (path, body) in orders {
            machine.order("set the machine up", "PUT", path, &body)?;
        }
        let start = json!({ "action_type": "InstanceStart" });
        machine.order("start the machine", "PUT", "/actions", &start)?;
        Ok(machine)
    }

    /// Starts a machine as it was when it was saved into `saved`.
    ///
    /// # Errors
    /// As [`Self::boot`], or what was saved cannot be read back.
    pub fn restore(
        image: &GuestImage,
        spec: &MachineSpec,
        folder: &Path,
        saved: &Path,
    ) -> Result<Self, VmError> {
        let mut parts = Parts::new(image, spec, folder)?;
        let [memory, state] = SAVED.map(|name| saved.join(name));
        let memory = File::open(memory).map_err(VmError::setup("a saved machine"))?;
        let state = File::open(state).map_err(VmError::setup("a saved machine"))?;
        let (memory, state) = (parts.path(memory.into()), parts.path(state.into()));
        let mut machine = parts.start(folder)?;
        let load = json!({
            "snapshot_path": state,
            "mem_backend": { "backend_type": "File", "backend_path": memory },
        });
        machine.order("read a saved machine back", "PUT", "/snapshot/load", &load)?;
        machine.order("go on", "PATCH", "/vm", &json!({ "state": "Resumed" }))?;
        Ok(machine)
    }

    fn order(
        &mut self,
        what: &'static str,
        method: &str,
        path: &str,
        body: &Value,
    ) -> Result<(), VmError> {
        let socket = self.folder.join(API);
        let answer =
            knock(&socket, ORDER_DEADLINE).and_then(|stream| exchange(stream, method, path, body));
        let why = match answer {
            Ok((200..=299, _)) => return Ok(()),
            Ok((status, said)) => format!("{status} {said}"),
            Err(error) => error.to_string(),
        };
        let said = String::from_utf8_lossy(self.process.stderr_so_far()).into_owned();
        let why = format!("{why} {}", said.trim()).trim().to_owned();
        Err(VmError::Vmm { what, why })
    }
}

impl Vmm for Firecracker {
    fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn connect(&mut self, patience: Duration) -> Result<(UnixStream, UnixStream), VmError> {
        let socket = self.folder.join(VSOCK);
        let until = Instant::now() + patience;
        let open = |port| greet(&socket, port, until).map_err(VmError::Line);
        Ok((open(CONTROL_VSOCK)?, open(PIPE_VSOCK)?))
    }

    fn save(&mut self, folder: &Path) -> Result<(), VmError> {
        self.order(
            "stop the machine",
            "PATCH",
            "/vm",
            &json!({ "state": "Paused" }),
        )?;
        // It writes into its own folder only; from there they are moved.
        let [memory, state] = SAVED.map(|name| self.folder.join(name));
        let create = json!({
            "snapshot_type": "Full",
            "snapshot_path": state,
            "mem_file_path": memory,
        });
        self.order("save the machine", "PUT", "/snapshot/create", &create)?;
        for name in SAVED {
            fs::rename(self.folder.join(name), folder.join(name))
                .map_err(VmError::setup("a saved machine"))?;
        }
        Ok(())
    }

    fn console(&mut self) -> String {
        String::from_utf8_lossy(self.process.stderr_so_far()).into_owned()
    }

    fn into_process(self: Box<Self>) -> Process {
        self.process
    }

    fn kill(&mut self) {
        // One that has ended is what is wanted.
        let _ = self.process.kill();
    }
}

/// What Firecracker is handed, and the names by which it opens it once more.
struct Parts {
    kept: Vec<OwnedFd>,
    readable: Vec<RawFd>,
    kernel: String,
    initrd: String,
}

impl Parts {
    fn new(image: &GuestImage, spec: &MachineSpec, folder: &Path) -> Result<Self, VmError> {
        let setup = VmError::setup;
        let mut parts = Self {
            kept: Vec::new(),
            readable: Vec::new(),
            kernel: String::new(),
            initrd: String::new(),
        };
        let copy = |file: &File| file.try_clone().map(OwnedFd::from);
        parts.kernel = parts.path(copy(image.kernel()).map_err(setup("a copy of a descriptor"))?);
        parts.initrd = parts.path(copy(image.initrd()).map_err(setup("a copy of a descriptor"))?);
        let root = image
            .root()
            .try_clone()
            .map_err(setup("a copy of a descriptor"))?;
        parts.link(folder, DISKS[0], root)?;
        for (file, name) in spec.files.iter().zip(&DISKS[1..]) {
            let padded = folder.join(format!("{name}.padded"));
            let drive = whole(file.as_ref(), &padded).map_err(setup("a disk"))?;
            parts.link(folder, name, drive)?;
        }
        Ok(parts)
    }

    /// A drive goes by a name in the machine's folder: a saved machine remembers it, and finds another file under it.
    fn link(&mut self, folder: &Path, name: &str, file: File) -> Result<(), VmError> {
        let path = self.path(file.into());
        std::os::unix::fs::symlink(path, folder.join(name)).map_err(VmError::setup("a disk"))
    }

    fn path(&mut self, descriptor: OwnedFd) -> String {
        let number = descriptor.as_raw_fd();
        self.readable.push(number);
        self.kept.push(descriptor);
        format!("/proc/self/fd/{number}")
    }

    fn orders(&self, spec: &MachineSpec) -> Result<Vec<(&'static str, Value)>, VmError> {
        let memory = spec
            .memory()
            .map_err(VmError::setup("a machine of that size"))?
            >> 20;
        let mut orders = vec![
            (
                "/machine-config",
                json!({ "vcpu_count": spec.processors, "mem_size_mib": memory, "smt": false }),
            ),
            (
                "/boot-source",
                json!({
                    "kernel_image_path": self.kernel,
                    "initrd_path": self.initrd,
                    "boot_args": COMMAND_LINE,
                }),
            ),
            (
                "/vsock",
                json!({ "guest_cid": GUEST_CID, "uds_path": VSOCK }),
            ),
        ];
        const PATHS: [&str; 4] = [
            "/drives/root",
            "/drives/model",
            "/drives/projector",
            "/drives/adapter",
        ];
        for (name, path) in DISKS.iter().zip(PATHS) {
            let rate = json!({ "bandwidth": { "size": DRIVE_RATE, "refill_time": 1000 } });
            orders.push((
                path,
                json!({
                    "drive_id": name,
                    "path_on_host": name,
                    "is_root_device": false,
                    "is_read_only": true,
                    "rate_limiter": rate,
                }),
            ));
        }
        Ok(orders)
    }

    fn start(self, folder: &Path) -> Result<Firecracker, VmError> {
        let program = program(PROGRAM).ok_or(VmError::NoVmm { name: PROGRAM })?;
        let (theirs, stderr) = stderr_pipe(Stderr::Pipe)?;
        let mut command = Command::new(program);
        command
            .args(["--api-sock", API, "--id", "guest"])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(theirs);
        let reach = Reach {
            files: &self.readable,
            devices: &[Path::new("/dev/kvm")],
            folder: Some(folder),
        };
        let child =
            confine::start(command, &reach, self.kept).map_err(|source| VmError::Start {
                name: PROGRAM,
                source,
            })?;
        Ok(Firecracker {
            process: Process::adopt(&child, stderr)
                .map_err(VmError::setup("a handle to Firecracker"))?,
            folder: folder.to_owned(),
        })
    }
}

/// A file of whole sectors: Firecracker leaves a part of one away, and the end of a model with it. Such a file is copied, which
/// costs nothing where the file system shares blocks. None is one empty sector, so that saved machines have the same disks.
fn whole(file: Option<&File>, beside: &Path) -> io::Result<File> {
    if let Some(file) = file
        && file.metadata()?.len().is_multiple_of(SECTOR)
    {
        return file.try_clone();
    }
    let mut copy = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(beside)?;
    let mut length = 0;
    if let Some(file) = file {
        // By its own path in this process: a shared descriptor has one position, and others read through it.
        let mut source = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        length = io::copy(&mut source, &mut copy)?;
    }
    copy.set_len(length.max(1).div_ceil(SECTOR) * SECTOR)?;
    File::open(beside)
}

/// Connects to a socket that a program is about to make.
fn knock(socket: &Path, patience: Duration) -> io::Result<UnixStream> {
    let since = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                stream.set_read_timeout(Some(patience))?;
                return Ok(stream);
            }
            Err(error) if since.elapsed() > patience => return Err(error),
            Err(_) => thread::sleep(LOOK_AGAIN),
        }
    }
}

/// One request (RFC 9112) and the status and body of its response.
fn exchange(
    mut stream: UnixStream,
    method: &str,
    path: &str,
    body: &Value,
) -> io::Result<(u16, String)> {
    let body = body.to_string();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(&answer).map_err(io::Error::other)?;
        if let (httparse::Status::Complete(end), Some(status)) = (parsed, response.code) {
            let length = response
                .headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case("content-length"))
                .and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse().ok())
                .unwrap_or(0_usize);
            if answer.len() >= end.saturating_add(length) {
                let body = &answer[end..end + length];
                return Ok((status, String::from_utf8_lossy(body).into_owned()));
            }
        }
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n if answer.len() + n > MAX_ANSWER => {
                return Err(io::Error::other("an answer without end"));
            }
            n => answer.extend(&chunk[..n]),
        }
    }
}

/// Opens a stream to a port of the guest, which may not listen yet.
fn greet(socket: &Path, port: u32, until: Instant) -> io::Result<UnixStream> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut stream = knock(socket, left)?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
        match accepted(&mut stream) {
            Ok(true) => {
                stream.set_read_timeout(None)?;
                return Ok(stream);
            }
            Ok(false) => return Err(io::ErrorKind::InvalidData.into()),
            // Nobody listens there: the stream is closed at once.
            Err(_) => thread::sleep(LOOK_AGAIN),
        }
    }
}

/// Reads `OK <port>`, and nothing behind it.
fn accepted(stream: &mut UnixStream) -> io::Result<bool> {
    const LONGEST: usize = "OK 4294967295".len();
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() <= LONGEST {
        stream.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            return Ok(line.starts_with(b"OK "));
        }
        line.push(byte[0]);
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("substrate-fc-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// Answers one request with this, byte by byte, and gives back what was asked.
    fn server(stream: UnixStream, answer: &'static [u8]) -> thread::JoinHandle<String> {
        thread::spawn(move || {
            let mut stream = stream;
            let mut asked = Vec::new();
            let mut byte = [0];
            while !asked.ends_with(b"}") {
                stream.read_exact(&mut byte).unwrap();
                asked.push(byte[0]);
            }
            for byte in answer {
                // Whoever asked may have heard enough.
                let _ = stream.write_all(&[*byte]);
            }
            String::from_utf8(asked).unwrap()
        })
    }

    #[test]
    fn an_order_is_a_request_and_a_refusal_says_why() {
        let ask = |answer: &'static [u8]| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let server = server(theirs, answer);
            let heard = exchange(ours, "PUT", "/vm", &json!({ "state": "Paused" }));
            (heard, server.join().unwrap())
        };
        let (heard, asked) = ask(b"HTTP/1.1 204 \r\nServer: Firecracker API\r\n\r\n");
        assert_eq!(heard.unwrap(), (204, String::new()));
        assert!(asked.starts_with("PUT /vm HTTP/1.1\r\n"), "{asked}");
        assert!(
            asked.ends_with("Content-Length: 18\r\n\r\n{\"state\":\"Paused\"}"),
            "{asked}"
        );
        let (heard, _) =
            ask(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 12\r\n\r\n{\"fault\":\"x\"");
        assert_eq!(heard.unwrap(), (400, "{\"fault\":\"x\"".to_owned()));
        assert!(ask(b"SSH-2.0-OpenSSH\r\n").0.is_err());
        assert!(
            ask(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}")
                .0
                .is_err()
        );
    }

    #[test]
    fn a_port_is_open_once_the_guest_says_so() {
        let folder = folder("greet");
        let socket = folder.join("vsock");
        let listener = UnixListener::bind(&socket).unwrap();
        let host = thread::spawn(move || {
            // The guest does not listen yet; then it does.
            let (first, _) = listener.accept().unwrap();
            drop(first);
            let (mut second, _) = listener.accept().unwrap();
            let mut asked = [0; "CONNECT 5000\n".len()];
            second.read_exact(&mut asked).unwrap();
            second.write_all(b"OK 1073741824\nready 1\n").unwrap();
            asked
        });
        let until = Instant::now() + Duration::from_secs(30);
        let mut stream = greet(&socket, CONTROL_VSOCK, until).unwrap();
        assert_eq!(&host.join().unwrap(), b"CONNECT 5000\n");
        // What follows is left to be read.
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "ready 1\n");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn disks_have_whole_sectors_and_all_of_their_file() {
        let folder = folder("whole");
        let path = folder.join("model");
        fs::write(&path, vec![7; 700]).unwrap();
        let file = File::open(&path).unwrap();
        let mut padded = Vec::new();
        whole(Some(&file), &folder.join("copy"))
            .unwrap()
            .read_to_end(&mut padded)
            .unwrap();
        assert_eq!(
            (padded.len(), &padded[..700], padded[700]),
            (1024, &[7; 700][..], 0)
        );
        assert_eq!(
            whole(None, &folder.join("none"))
                .unwrap()
                .metadata()
                .unwrap()
                .len(),
            512
        );
        fs::write(&path, vec![7; 1024]).unwrap();
        let file = File::open(&path).unwrap();
        whole(Some(&file), &folder.join("unused")).unwrap();
        assert!(!folder.join("unused").exists());
        fs::remove_dir_all(folder).unwrap();
    }
}
