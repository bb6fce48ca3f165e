//! The attacks, as data: a name, what it does outside the wall, one call.
//!
//! Each is run in a child of its own at both stages, because the wall's answer is death. The list
//! is read by the tests as well, so that none can be left out.

// The attacker reads `run`, the tests read `outside`.
#![allow(dead_code)]

use std::ptr::null;

use libc::{c_long, syscall};

/// One attempt to get out.
pub struct Attack {
    /// What it tries.
    pub name: &'static str,
    /// What happens to an ordinary process that does this.
    pub outside: Outside,
    /// Gives −1 and sets errno when refused.
    pub run: fn() -> c_long,
}

/// What an attack does outside the wall, which the control run checks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// It succeeds: so what denies it inside is the wall.
    Works,
    /// It is refused to ordinary users, or depends on the machine. Inside it must not even be asked.
    Depends,
}

use Outside::{Depends, Works};

const fn attack(name: &'static str, outside: Outside, run: fn() -> c_long) -> Attack {
    Attack { name, outside, run }
}

/// All attacks.
pub const ATTACKS: &[Attack] = &[
    attack("open a file of the host", Works, || {
        open(c"/etc/passwd", libc::O_RDONLY)
    }),
    attack("open its own status", Works, || {
        open(c"/proc/self/status", libc::O_RDONLY)
    }),
    attack("open the root to list it", Works, || {
        open(c"/", libc::O_RDONLY | libc::O_DIRECTORY)
    }),
    attack("take a handle on the root", Works, || {
        open(c"/", libc::O_PATH)
    }),
    attack("create a file", Works, || {
        open(c".", libc::O_TMPFILE | libc::O_RDWR)
    }),
    attack("open the model to write", Depends, || {
        open(c"/model.gguf", libc::O_RDWR)
    }),
    attack("open the model to truncate", Depends, || {
        open(c"/model.gguf", libc::O_TRUNC)
    }),
    attack("stat a path", Works, || stat(c"/etc")),
    attack("remove the model", Depends, || {
        call(libc::SYS_unlink, [c"/model.gguf".as_ptr() as c_long, 0, 0])
    }),
    attack("change the model's mode", Depends, || {
        call(
            libc::SYS_chmod,
            [c"/model.gguf".as_ptr() as c_long, 0o777, 0],
        )
    }),
    attack("speak TCP", Works, || {
        socket(libc::AF_INET, libc::SOCK_STREAM)
    }),
    attack("speak UDP", Works, || {
        socket(libc::AF_INET6, libc::SOCK_DGRAM)
    }),
    attack("speak to local services", Works, || {
        socket(libc::AF_UNIX, libc::SOCK_STREAM)
    }),
    attack("speak to the kernel by netlink", Works, || {
        socket(libc::AF_NETLINK, libc::SOCK_RAW)
    }),
    attack("speak to a hypervisor", Depends, || {
        socket(libc::AF_VSOCK, libc::SOCK_STREAM)
    }),
    attack("send a descriptor", Depends, send_descriptor),
    attack("fork", Works, fork),
    attack("make a process with shared memory", Works, vfork_like),
    attack("clone3", Depends, || call(libc::SYS_clone3, [0, 0, 0])),
    attack("execute a program", Works, || {
        call(libc::SYS_execve, [c"/bin/true".as_ptr() as c_long, 0, 0])
    }),
    attack("be traced", Depends, || {
        call(libc::SYS_ptrace, [c_long::from(libc::PTRACE_TRACEME), 0, 0])
    }),
    attack("trace process 1", Depends, || {
        call(libc::SYS_ptrace, [c_long::from(libc::PTRACE_ATTACH), 1, 0])
    }),
    attack("read another's memory", Depends, || {
        call(libc::SYS_process_vm_readv, [1, 0, 0])
    }),
    attack("signal every process", Works, || {
        call(libc::SYS_kill, [-1, 0, 0])
    }),
    attack("get a handle on a process", Works, || {
        call(libc::SYS_pidfd_open, [1, 0, 0])
    }),
    attack("enter a new user namespace", Depends, || {
        call(libc::SYS_unshare, [c_long::from(libc::CLONE_NEWUSER), 0, 0])
    }),
    attack("join a namespace", Depends, || {
        call(libc::SYS_setns, [0, 0, 0])
    }),
    attack("mount", Depends, || {
        call(
            libc::SYS_mount,
            [0, c"/".as_ptr() as c_long, c"tmpfs".as_ptr() as c_long],
        )
    }),
    attack("change the root", Depends, || {
        call(libc::SYS_chroot, [c"/".as_ptr() as c_long, 0, 0])
    }),
    attack("load a bpf program", Depends, || {
        call(libc::SYS_bpf, [0, 0, 0])
    }),
    attack("set up io_uring", Depends, io_uring),
    attack("handle page faults", Depends, || {
        call(libc::SYS_userfaultfd, [1, 0, 0])
    }),
    attack("count with perf", Depends, || {
        call(libc::SYS_perf_event_open, [0, 0, -1])
    }),
    attack("read the kernel's keys", Works, || {
        call(libc::SYS_keyctl, [0, -3, 1])
    }),
    attack("make a file in memory", Works, || {
        call(libc::SYS_memfd_create, [c"x".as_ptr() as c_long, 0, 0])
    }),
    attack("map new code", Works, map_code),
    attack("turn memory into code", Works, protect_code),
    attack("take real-time priority", Depends, || {
        call(
            libc::SYS_sched_setscheduler,
            [0, 1, [1_u32].as_ptr() as c_long],
        )
    }),
    attack("share memory with others", Works, || {
        call(
            libc::SYS_shmget,
            [libc::c_long::from(libc::IPC_PRIVATE), 4096, 0o600],
        )
    }),
    attack("raise a limit", Works, raise_limit),
    attack("control a device", Depends, || {
        call(libc::SYS_ioctl, [0, libc::TCGETS as c_long, 0])
    }),
    attack("become dumpable", Works, || {
        call(libc::SYS_prctl, [c_long::from(libc::PR_SET_DUMPABLE), 1, 0])
    }),
    attack("listen to system calls", Depends, || {
        call(libc::SYS_seccomp, [1, 8, 0])
    }),
    attack("use another architecture's calls", Works, old_call),
    attack("reboot", Depends, || call(libc::SYS_reboot, [0, 0, 0])),
];

fn call(number: c_long, [a, b, c]: [c_long; 3]) -> c_long {
    // SAFETY: every attack gives integers, null, or pointers to static strings; calls with too few
    // arguments for success are meant to be refused before the kernel looks at them.
    unsafe { syscall(number, a, b, c, 0, 0, 0) }
}

fn open(path: &std::ffi::CStr, flags: i32) -> c_long {
    // SAFETY: the path is a live C string.
    unsafe {
        syscall(
            libc::SYS_openat,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            0o600,
        )
    }
}

fn stat(path: &std::ffi::CStr) -> c_long {
    // SAFETY: the path is a live C string; the kernel fills a stat on this stack.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        syscall(
            libc::SYS_newfstatat,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw mut found,
            0,
        )
    }
}

fn socket(family: i32, kind: i32) -> c_long {
    call(
        libc::SYS_socket,
        [c_long::from(family), c_long::from(kind), 0],
    )
}

fn send_descriptor() -> c_long {
    call(libc::SYS_sendmsg, [4, 0, 0])
}

fn fork() -> c_long {
    // SAFETY: the child leaves at once.
    unsafe {
        let child = syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
        if child == 0 {
            libc::_exit(0);
        }
        child
    }
}

/// A process that shares memory but is not a thread; the flags of a thread with one bit missing.
fn vfork_like() -> c_long {
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: with CLONE_VFORK this process waits until the child has left, which it does at once
    // by a raw call that touches no memory.
    unsafe {
        let child = syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
        if child == 0 {
            syscall(libc::SYS_exit_group, 0);
        }
        child
    }
}

fn io_uring() -> c_long {
    let mut parameters = [0_u64; 16];
    call(
        libc::SYS_io_uring_setup,
        [4, parameters.as_mut_ptr() as c_long, 0],
    )
}

fn map(protection: i32) -> *mut libc::c_void {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new anonymous mapping replaces nothing.
    unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) }
}

fn map_code() -> c_long {
    let page = map(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
    if page == libc::MAP_FAILED { -1 } else { 0 }
}

fn protect_code() -> c_long {
    let page = map(libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: the page was mapped just now and nothing points to it.
    c_long::from(unsafe { libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC) })
}

/// Sets the limit of open files to what it is already, which anyone may do.
fn raise_limit() -> c_long {
    // SAFETY: the kernel reads and writes one rlimit on this stack.
    unsafe {
        let mut limit = libc::rlimit {
            rlim_cur: 16,
            rlim_max: 16,
        };
        let old = null::<libc::rlimit>();
        let resource = libc::RLIMIT_NOFILE;
        if syscall(libc::SYS_prlimit64, 0, resource, old, &raw mut limit) < 0 {
            return -1;
        }
        syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, old)
    }
}

/// getpid by the 32-bit entry, where the numbers mean other calls.
#[cfg(target_arch = "x86_64")]
fn old_call() -> c_long {
    const GETPID: c_long = 20;
    let answer: c_long;
    // SAFETY: the call takes no arguments and writes only rax and the registers named.
    unsafe {
        std::arch::asm!(
            "int 0x80",
            inlateout("rax") GETPID => answer,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    if answer > 0 { answer } else { -1 }
}

#[cfg(not(target_arch = "x86_64"))]
fn old_call() -> c_long {
    call(libc::SYS_getppid, [0, 0, 0])
}
