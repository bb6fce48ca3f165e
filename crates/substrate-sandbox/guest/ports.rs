//! The two ways to the host: its lines and the worker's pipe, by virtio-serial (QEMU) or vsock (Firecracker).
//!
//! Invariant: whichever it is, each is one stream of bytes that blocks, and its end is the end of this machine.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use substrate_sandbox::guest::{CONTROL_PORT, CONTROL_VSOCK, FromGuest, PIPE_PORT, PIPE_VSOCK};

/// Where the kernel lists ports.
const PORTS: &str = "/sys/class/virtio-ports";

/// How long a port may take to appear, and a host to open its end of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// One way to the host.
pub struct Port {
    file: File,
    /// Before the host has opened its end, a virtio-serial port reads as if it had closed.
    met: Option<Instant>,
}

/// Where answers go. Whole lines, from more than one thread.
pub struct Line(Mutex<Port>);

/// The lines, and the worker's pipe.
pub fn open() -> io::Result<(Port, Port)> {
    match fs::read_dir(PORTS) {
        Ok(_) => Ok((serial(CONTROL_PORT)?, serial(PIPE_PORT)?)),
        Err(_) => vsock(),
    }
}

impl Port {
    fn new(file: File) -> Self {
        Self {
            file,
            met: Some(Instant::now()),
        }
    }

    /// The same way once more, for another thread.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            met: self.met,
        })
    }
}

impl Read for Port {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.file.read(buffer)?;
            match self.met {
                Some(since) if n == 0 && since.elapsed() < PATIENCE => {
                    std::thread::sleep(LOOK_AGAIN);
                }
                _ => {
                    self.met = None;
                    return Ok(n);
                }
            }
        }
    }
}

impl Write for Port {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.file.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Line {
    pub fn new(port: Port) -> Self {
        Self(Mutex::new(port))
    }

    pub fn say(&self, what: &FromGuest) -> io::Result<()> {
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        port.write_all(format!("{what}\n").as_bytes())
    }
}

fn serial(name: &str) -> io::Result<Port> {
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        for port in fs::read_dir(PORTS)?.flatten() {
            let found = fs::read_to_string(port.path().join("name")).unwrap_or_default();
            if found.trim() == name {
                let path = std::path::Path::new("/dev").join(port.file_name());
                let file = File::options().read(true).write(true).open(path)?;
                return Ok(Port::new(file));
            }
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Err(io::Error::other(format!("no port called {name}")))
}

/// Both listeners first: the host may knock at them in any order.
fn vsock() -> io::Result<(Port, Port)> {
    let (control, pipe) = (listen(CONTROL_VSOCK)?, listen(PIPE_VSOCK)?);
    Ok((accept(&control)?, accept(&pipe)?))
}

fn listen(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: sockaddr_vm is plain memory, for which zero is a value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_port = port;
    address.svm_cid = libc::VMADDR_CID_ANY;
    // SAFETY: the kernel reads one sockaddr_vm from this stack; the descriptor is new and nobody else's.
    unsafe {
        let socket = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        let bound = libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length);
        if bound < 0 || libc::listen(socket.as_raw_fd(), 1) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }
}

fn accept(listener: &OwnedFd) -> io::Result<Port> {
    // SAFETY: no address is asked for; the descriptor is new and nobody else's.
    let file = unsafe {
        let socket = libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC,
        );
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        File::from_raw_fd(socket)
    };
    Ok(Port { file, met: None })
}
