//! What root of a guest tries, to whom the process wall is nothing any more: the machine around it must hold by itself.
//!
//! They are tried in a guest whose first process starts the attacker bare (`guest`, feature `breached`, which no image that
//! answers has), so there is no control for them outside.
//!
//! Invariant: none changes anything on a host that does not hold: what is written is what was read from the same place.

use std::{
    fs::{self, File},
    io,
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    os::unix::fs::FileExt,
    time::Duration,
};

use libc::c_long;
use substrate_sandbox::guest::{CONTROL_PORT, DISKS, PIPE_PORT};

use super::{Attack, Kind, Outside, attack};

/// In the order of what is nearest.
pub const ATTACKS: &[Attack] = &[
    breach("write the image's disk", || write_disk("/dev/vda")),
    breach("write the model's disk", || write_disk("/dev/vdb")),
    breach("discard the model's disk", discard),
    breach("find another disk", other_disks),
    breach("find another port", other_ports),
    breach("find a network card", network_cards),
    breach("reach the host by vsock", vsock),
    breach("reach the host by TCP", tcp),
    breach("mount a folder of the host's by 9p", || mount(c"9p")),
    breach("mount a folder of the host's by virtiofs", || {
        mount(c"virtiofs")
    }),
];

const fn breach(name: &'static str, run: fn() -> c_long) -> Attack {
    attack(name, Kind::Machine, Outside::Depends, run)
}

/// The answer of a system call to an attempt that uses the library.
fn told<T>(outcome: io::Result<T>) -> c_long {
    match outcome {
        Ok(_) => 0,
        Err(error) => refused(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}

fn refused(errno: i32) -> c_long {
    // SAFETY: the location is this thread's own.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// Takes the mark of being read-only off, then writes what is there already.
fn write_disk(path: &str) -> c_long {
    const BLKROSET: libc::c_ulong = 0x125d;
    told((|| {
        let disk = File::options().read(true).write(true).open(path)?;
        let off: libc::c_int = 0;
        // SAFETY: the kernel reads one integer.
        unsafe { libc::ioctl(disk.as_raw_fd(), BLKROSET as _, &raw const off) };
        let mut sector = [0; 512];
        disk.read_exact_at(&mut sector, 0)?;
        disk.write_all_at(&sector, 0)?;
        disk.sync_all()
    })())
}

fn discard() -> c_long {
    const BLKDISCARD: libc::c_ulong = 0x1277;
    told((|| {
        let disk = File::options().read(true).write(true).open("/dev/vdb")?;
        let range = [0_u64, 512];
        // SAFETY: the kernel reads two integers.
        match unsafe { libc::ioctl(disk.as_raw_fd(), BLKDISCARD as _, &raw const range) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    })())
}

/// Whether a folder of the kernel's lists anything that is not among these.
fn lists_more(folder: &str, is_known: impl Fn(&str) -> bool) -> c_long {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    match names.any(|name| !is_known(&name)) {
        true => 0,
        false => refused(libc::ENODEV),
    }
}

fn other_disks() -> c_long {
    lists_more("/sys/block", |name| {
        let serial = fs::read_to_string(format!("/sys/block/{name}/serial"));
        DISKS.contains(&serial.unwrap_or_default().trim())
    })
}

fn other_ports() -> c_long {
    lists_more("/sys/class/virtio-ports", |name| {
        let port = fs::read_to_string(format!("/sys/class/virtio-ports/{name}/name"));
        [CONTROL_PORT, PIPE_PORT].contains(&port.unwrap_or_default().trim())
    })
}

fn network_cards() -> c_long {
    lists_more("/sys/class/net", |name| name == "lo")
}

fn vsock() -> c_long {
    // SAFETY: the address is plain memory on this stack, of the length that is given.
    unsafe {
        let socket = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0);
        if socket < 0 {
            return -1;
        }
        let mut host: libc::sockaddr_vm = std::mem::zeroed();
        host.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        host.svm_cid = libc::VMADDR_CID_HOST;
        host.svm_port = 22;
        let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        c_long::from(libc::connect(socket, (&raw const host).cast(), length))
    }
}

/// Where QEMU's own network, which this machine has none of, would show the host.
fn tcp() -> c_long {
    let host = SocketAddr::from(([10, 0, 2, 2], 22));
    told(TcpStream::connect_timeout(&host, Duration::from_secs(2)))
}

fn mount(kind: &'static std::ffi::CStr) -> c_long {
    // SAFETY: all pointers are those of static C strings, or null.
    unsafe {
        c_long::from(libc::mount(
            c"host".as_ptr(),
            c"/sys/kernel/debug".as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        ))
    }
}
