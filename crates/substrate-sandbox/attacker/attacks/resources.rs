//! More than its share, or a longer life.

use std::ptr::null_mut;

use libc::c_long;

use super::Kind::Resources;
use super::Outside::{Depends, Works};
use super::{Attack, at, attack, call, into, to};

pub(super) const ATTACKS: &[Attack] = &[
    attack("raise a limit", Resources, Works, raise_limit),
    attack("reserve a terabyte", Resources, Works, || {
        let page = map(1 << 40, libc::PROT_READ, libc::MAP_NORESERVE);
        if page == libc::MAP_FAILED { -1 } else { 0 }
    }),
    attack("copy a descriptor", Resources, Works, || {
        call(libc::SYS_dup, [0])
    }),
    attack("make a pipe", Resources, Works, || {
        let mut ends = [0_i32; 2];
        call(libc::SYS_pipe2, [into(&mut ends), 0])
    }),
    attack("make an event", Resources, Works, || {
        call(libc::SYS_eventfd2, [0, 0])
    }),
    attack("make a poll set", Resources, Works, || {
        call(libc::SYS_epoll_create1, [0])
    }),
    attack("make a timer", Resources, Works, || {
        call(libc::SYS_timerfd_create, [0, 0])
    }),
    attack("take signals by descriptor", Resources, Works, || {
        let none = 0_u64;
        call(libc::SYS_signalfd4, [-1, to(&none), 8, 0])
    }),
    attack("wake itself later", Resources, Works, || {
        // struct itimerval: again and first, in seconds and microseconds; all zero takes the timer away.
        let none = [0_u64; 4];
        call(libc::SYS_setitimer, [0, to(&none), 0])
    }),
    attack("sleep", Resources, Works, || {
        let moment = [0_u64, 1];
        call(libc::SYS_nanosleep, [to(&moment), 0])
    }),
    attack("share memory with others", Resources, Works, || {
        const PRIVATE: c_long = libc::IPC_PRIVATE as c_long;
        let segment = call(libc::SYS_shmget, [PRIVATE, 4096, 0o600]);
        remove(libc::SYS_shmctl, segment)
    }),
    attack("share semaphores with others", Resources, Works, || {
        const PRIVATE: c_long = libc::IPC_PRIVATE as c_long;
        let set = call(libc::SYS_semget, [PRIVATE, 1, 0o600]);
        match set {
            -1 => -1,
            // Its second argument is a semaphore's number.
            set => call(libc::SYS_semctl, [set, 0, c_long::from(libc::IPC_RMID)]),
        }
    }),
    attack("share messages with others", Resources, Works, || {
        const PRIVATE: c_long = libc::IPC_PRIVATE as c_long;
        let queue = call(libc::SYS_msgget, [PRIVATE, 0o600]);
        remove(libc::SYS_msgctl, queue)
    }),
    attack("open a message queue", Resources, Depends, || {
        let flags = c_long::from(libc::O_CREAT | libc::O_RDWR);
        let name = c"substrate-wall-attacker";
        let queue = call(libc::SYS_mq_open, [at(name), flags, 0o600, 0]);
        if queue >= 0 {
            call(libc::SYS_mq_unlink, [at(name)]);
        }
        queue
    }),
    attack("keep memory from being swapped", Resources, Works, || {
        let page = map(4096, libc::PROT_READ | libc::PROT_WRITE, 0);
        call(libc::SYS_mlock, [page as c_long, 4096])
    }),
    attack(
        "keep all memory from being swapped",
        Resources,
        Depends,
        || {
            const FUTURE: c_long = 2;
            call(libc::SYS_mlockall, [FUTURE])
        },
    ),
    attack("reserve a file's space", Resources, Works, || {
        let file = call(
            libc::SYS_openat,
            [
                c_long::from(libc::AT_FDCWD),
                at(c"file"),
                c_long::from(libc::O_WRONLY),
            ],
        );
        call(libc::SYS_fallocate, [file, 0, 0, 4096])
    }),
    attack("map new code", Resources, Works, || {
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        if map(4096, all, 0) == libc::MAP_FAILED {
            -1
        } else {
            0
        }
    }),
    attack("turn memory into code", Resources, Works, || {
        let page = map(4096, libc::PROT_READ | libc::PROT_WRITE, 0);
        let code = c_long::from(libc::PROT_READ | libc::PROT_EXEC);
        call(libc::SYS_mprotect, [page as c_long, 4096, code])
    }),
    attack("outlive the daemon", Resources, Works, || {
        call(libc::SYS_prctl, [c_long::from(libc::PR_SET_PDEATHSIG), 0])
    }),
    attack("take in the daemon's orphans", Resources, Works, || {
        call(
            libc::SYS_prctl,
            [c_long::from(libc::PR_SET_CHILD_SUBREAPER), 1],
        )
    }),
    attack("leave its session", Resources, Depends, || {
        call(libc::SYS_setsid, [])
    }),
];

fn map(size: usize, protection: i32, flags: i32) -> *mut libc::c_void {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new anonymous mapping replaces nothing.
    unsafe { libc::mmap(null_mut(), size, protection, flags, -1, 0) }
}

/// Takes away what was made, which nobody else would.
fn remove(control: c_long, id: c_long) -> c_long {
    match id {
        -1 => -1,
        id => call(control, [id, c_long::from(libc::IPC_RMID), 0]),
    }
}

/// Sets the limit of open files to what it is already, which anyone may do.
fn raise_limit() -> c_long {
    let files = libc::RLIMIT_NOFILE as c_long;
    let mut limit = [16_u64; 2];
    if call(libc::SYS_prlimit64, [0, files, 0, into(&mut limit)]) < 0 {
        return -1;
    }
    call(libc::SYS_prlimit64, [0, files, to(&limit), 0])
}
