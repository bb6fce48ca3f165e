//! What a guest stands on: its pseudo file systems, its drivers, and the image's root under an overlay that dies with it.
//!
//! Invariant: the root disk is mounted read-only, and what is written over it lies in memory of a bounded size.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::Path,
    time::{Duration, Instant},
};

use crate::disks;

/// The names of the image's drivers, in the order in which they are loaded.
const MODULES: &str = "/modules/order";

/// How long the root disk may take to appear after its driver was loaded.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What may be written over the root. A worker can write nothing at all; this is for the mount points.
const OVERLAY: &str = "size=1m,mode=755";

/// Everything up to the image's own root as `/`.
pub fn prepare() -> io::Result<()> {
    let quiet = libc::MS_NOSUID | libc::MS_NOEXEC;
    mount("proc", "/proc", "proc", quiet | libc::MS_NODEV, "")?;
    mount("sys", "/sys", "sysfs", quiet | libc::MS_NODEV, "")?;
    mount("dev", "/dev", "devtmpfs", quiet, "")?;
    load_modules()?;
    let root = wait_for_root()?;
    let read_only = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;
    mount(&root.to_string_lossy(), "/image", "erofs", read_only, "")?;
    mount("overlay", "/over", "tmpfs", quiet | libc::MS_NODEV, OVERLAY)?;
    for folder in ["/over/upper", "/over/work"] {
        fs::create_dir(folder)?;
    }
    let layers = "lowerdir=/image,upperdir=/over/upper,workdir=/over/work";
    let nothing_special = libc::MS_NOSUID | libc::MS_NODEV;
    mount("root", "/root", "overlay", nothing_special, layers)?;
    for folder in ["proc", "sys", "dev"] {
        let (from, to) = (format!("/{folder}"), format!("/root/{folder}"));
        mount(&from, &to, "", libc::MS_MOVE, "")?;
    }
    std::env::set_current_dir("/root")?;
    mount(".", "/", "", libc::MS_MOVE, "")?;
    change_root()
}

/// Ends the machine: its VMM takes a reset for the end.
pub fn end() -> ! {
    // SAFETY: the call takes plain integers. It does not return for the first process of a machine, which has the right to it.
    unsafe {
        libc::sync();
        libc::reboot(libc::LINUX_REBOOT_CMD_RESTART);
        libc::_exit(1)
    }
}

fn load_modules() -> io::Result<()> {
    for name in fs::read_to_string(MODULES)?.lines() {
        let path = format!("/modules/{name}");
        let module = File::open(&path).map_err(|error| named(&path, &error))?;
        // SAFETY: the descriptor is open, the parameters are an empty C string.
        let loaded =
            unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), c"".as_ptr(), 0) };
        if loaded < 0 {
            return Err(named(&path, &io::Error::last_os_error()));
        }
    }
    Ok(())
}

fn wait_for_root() -> io::Result<std::path::PathBuf> {
    let since = Instant::now();
    loop {
        if let Some(disk) = disks::find(0) {
            return Ok(disk);
        }
        if since.elapsed() > PATIENCE {
            return Err(io::Error::other("no root disk has appeared"));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn mount(from: &str, to: &str, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    if !Path::new(to).exists() {
        fs::create_dir_all(to)?;
    }
    let text = |text: &str| CString::new(text).map_err(io::Error::from);
    let (source, target, kind, data) = (text(from)?, text(to)?, text(kind)?, text(data)?);
    // SAFETY: all pointers are those of live C strings.
    let mounted = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    };
    match mounted {
        0 => Ok(()),
        _ => Err(named(to, &io::Error::last_os_error())),
    }
}

fn change_root() -> io::Result<()> {
    // SAFETY: the path is a static C string.
    match unsafe { libc::chroot(c".".as_ptr()) } {
        0 => std::env::set_current_dir("/"),
        _ => Err(io::Error::last_os_error()),
    }
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
