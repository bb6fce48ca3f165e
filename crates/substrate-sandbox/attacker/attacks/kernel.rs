//! Parts of the kernel that a worker has no business with.

use libc::c_long;

use super::Kind::Kernel;
use super::Outside::{Depends, Works};
use super::{Attack, PIPE, at, attack, call, into, own_pid, to};

pub(super) const ATTACKS: &[Attack] = &[
    attack("load a bpf program", Kernel, Depends, || {
        const MAP_CREATE: c_long = 0;
        // union bpf_attr: an array of one value of four bytes, by keys of four.
        let map = [2_u32, 4, 4, 1, 0, 0, 0, 0];
        call(
            libc::SYS_bpf,
            [MAP_CREATE, to(&map), size_of_val(&map) as c_long],
        )
    }),
    attack("set up io_uring", Kernel, Depends, || {
        let mut parameters = [0_u64; 16];
        call(libc::SYS_io_uring_setup, [4, into(&mut parameters)])
    }),
    attack("handle page faults", Kernel, Depends, || {
        const OF_USERS_ONLY: c_long = 1;
        call(libc::SYS_userfaultfd, [OF_USERS_ONLY])
    }),
    attack("count with perf", Kernel, Depends, perf),
    attack("read the kernel's keys", Kernel, Works, || {
        const DESCRIBE: c_long = 0;
        const SESSION: c_long = -3;
        call(libc::SYS_keyctl, [DESCRIBE, SESSION, 1])
    }),
    attack("add a key", Kernel, Works, || {
        const PROCESS: c_long = -2;
        let value = *b"x";
        call(
            libc::SYS_add_key,
            [at(c"user"), at(c"x"), to(&value), 1, PROCESS],
        )
    }),
    attack("listen to system calls", Kernel, Depends, listener),
    attack("filter its own calls anew", Kernel, Works, || {
        // Mode 2 through prctl, the older way in, which the policy's rule for seccomp does not see.
        with_filter(|filter| {
            call(
                libc::SYS_prctl,
                [c_long::from(libc::PR_SET_SECCOMP), 2, filter],
            )
        })
    }),
    attack(
        "use another architecture's calls",
        Kernel,
        Depends,
        old_call,
    ),
    attack("change its personality", Kernel, Works, || {
        const ADDR_NO_RANDOMIZE: c_long = 0x004_0000;
        call(libc::SYS_personality, [ADDR_NO_RANDOMIZE])
    }),
    attack("read its segment table", Kernel, Depends, || {
        let mut table = [0_u64; 8];
        call(libc::SYS_modify_ldt, [0, into(&mut table), 64])
    }),
    attack("reach for ports", Kernel, Depends, || {
        call(libc::SYS_ioperm, [0x80, 1, 1])
    }),
    attack("load a module", Kernel, Depends, || {
        call(libc::SYS_finit_module, [0, at(c""), 0])
    }),
    attack("load a kernel", Kernel, Depends, || {
        call(libc::SYS_kexec_load, [0, 0, 0, 0])
    }),
    attack("reboot", Kernel, Depends, || {
        call(libc::SYS_reboot, [0, 0, 0])
    }),
    attack("read the kernel's log", Kernel, Depends, || {
        const SIZE: c_long = 10;
        call(libc::SYS_syslog, [SIZE, 0, 0])
    }),
    attack("set the clock", Kernel, Depends, || {
        let now = [0_u64; 2];
        call(libc::SYS_settimeofday, [to(&now), 0])
    }),
    attack("look into the clock", Kernel, Works, || {
        let mut state = [0_u64; 32];
        call(libc::SYS_adjtimex, [into(&mut state)])
    }),
    attack("swap to a file", Kernel, Depends, || {
        call(libc::SYS_swapon, [at(c"file"), 0])
    }),
    attack("set quotas", Kernel, Depends, || {
        call(libc::SYS_quotactl, [0, 0, 0, 0])
    }),
    attack("keep accounts of processes", Kernel, Depends, || {
        call(libc::SYS_acct, [at(c"file")])
    }),
    attack("name the machine's kernel", Kernel, Works, || {
        // struct new_utsname: six names of 65 bytes.
        let mut names = [0_u8; 6 * 65];
        call(libc::SYS_uname, [into(&mut names)])
    }),
    attack("control a device", Kernel, Works, || {
        let mut waiting = 0_i32;
        call(
            libc::SYS_ioctl,
            [PIPE, libc::FIONREAD as c_long, into(&mut waiting)],
        )
    }),
    attack("type for its terminal", Kernel, Depends, || {
        const TIOCSTI: c_long = 0x5412;
        let key = b'\n';
        call(libc::SYS_ioctl, [0, TIOCSTI, to(&key)])
    }),
    attack("become dumpable", Kernel, Works, || {
        call(libc::SYS_prctl, [c_long::from(libc::PR_SET_DUMPABLE), 1])
    }),
    attack("let others trace it", Kernel, Depends, || {
        call(libc::SYS_prctl, [c_long::from(libc::PR_SET_PTRACER), -1])
    }),
    attack("keep capabilities", Kernel, Works, || {
        call(libc::SYS_prctl, [c_long::from(libc::PR_SET_KEEPCAPS), 1])
    }),
    attack("move memory between processors", Kernel, Depends, || {
        call(libc::SYS_move_pages, [own_pid(), 0, 0, 0, 0, 0])
    }),
    attack("stop every processor", Kernel, Works, || {
        const QUERY: c_long = 0;
        call(libc::SYS_membarrier, [QUERY, 0, 0])
    }),
    attack("splice descriptors", Kernel, Works, || {
        let mut ends = [0_i32; 2];
        call(libc::SYS_pipe2, [into(&mut ends), 0]);
        let part = [to(&ends) as u64, 1];
        call(libc::SYS_vmsplice, [c_long::from(ends[1]), to(&part), 1, 0])
    }),
    attack("read through Landlock", Kernel, Depends, || {
        const VERSION: c_long = 1;
        call(libc::SYS_landlock_create_ruleset, [0, 0, VERSION])
    }),
];

/// Counts the tasks' switches, in user space only: what an ordinary user may, if any may.
fn perf() -> c_long {
    const SOFTWARE: u32 = 1;
    const SIZE: u32 = 64;
    const TASK_CLOCK: u64 = 1;
    const EXCLUDE_KERNEL_AND_HYPERVISOR: u64 = 1 << 5 | 1 << 6;
    // struct perf_event_attr of version 0: type and size, config, period, sample type, read format, flags, wake-up, more.
    let wanted = [
        u64::from(SOFTWARE) | (u64::from(SIZE) << 32),
        TASK_CLOCK,
        0,
        0,
        0,
        EXCLUDE_KERNEL_AND_HYPERVISOR,
        0,
        0,
    ];
    call(libc::SYS_perf_event_open, [to(&wanted), 0, -1, -1, 0])
}

/// A filter, and a descriptor that hears of every call.
fn listener() -> c_long {
    const SET_MODE_FILTER: c_long = 1;
    const NEW_LISTENER: c_long = 8;
    with_filter(|filter| call(libc::SYS_seccomp, [SET_MODE_FILTER, NEW_LISTENER, filter]))
}

/// Installs a filter that allows everything: one instruction, in a struct sock_fprog.
fn with_filter(install: impl FnOnce(c_long) -> c_long) -> c_long {
    let allow = [0x06_u64 | (0x7fff_0000 << 32)];
    let program = [1_u64, to(&allow) as u64];
    install(to(&program))
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
    call(libc::SYS_getppid, [])
}
