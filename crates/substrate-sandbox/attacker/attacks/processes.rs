//! Other processes, and more of its own.

use libc::{c_long, syscall};

use super::Kind::Processes;
use super::Outside::{Depends, Works, WorksForRoot};
use super::{Attack, at, attack, call, into, open, own_pid, to};

pub(super) const ATTACKS: &[Attack] = &[
    attack("fork", Processes, Works, fork),
    attack(
        "make a process with shared memory",
        Processes,
        Works,
        vfork_like,
    ),
    attack("make a process by clone3", Processes, Works, clone3),
    attack("make a process by vfork", Processes, Works, vfork),
    attack("execute a program", Processes, Works, || {
        call(libc::SYS_execve, [at(c"/bin/true"), 0, 0])
    }),
    attack("execute from a descriptor", Processes, Works, || {
        let folder = c_long::from(libc::AT_FDCWD);
        call(libc::SYS_execveat, [folder, at(c"/bin/true"), 0, 0, 0])
    }),
    attack("be traced", Processes, Works, || {
        call(libc::SYS_ptrace, [c_long::from(libc::PTRACE_TRACEME), 0, 0])
    }),
    attack("trace process 1", Processes, Depends, || {
        call(libc::SYS_ptrace, [c_long::from(libc::PTRACE_SEIZE), 1, 0])
    }),
    attack("read memory by process id", Processes, Works, || {
        memory_of(libc::SYS_process_vm_readv)
    }),
    attack("write memory by process id", Processes, Works, || {
        memory_of(libc::SYS_process_vm_writev)
    }),
    attack("signal every process", Processes, Works, || {
        call(libc::SYS_kill, [-1, 0])
    }),
    attack("signal the daemon", Processes, Depends, || {
        let daemon = call(libc::SYS_getppid, []);
        call(libc::SYS_kill, [daemon, 0])
    }),
    attack("signal a thread", Processes, Works, || {
        call(libc::SYS_tkill, [own_pid(), 0])
    }),
    attack("queue a signal", Processes, Depends, || {
        let mut info = [0_u64; 16];
        call(libc::SYS_rt_sigqueueinfo, [own_pid(), 0, into(&mut info)])
    }),
    attack("get a handle on a process", Processes, Works, || {
        call(libc::SYS_pidfd_open, [own_pid(), 0])
    }),
    attack(
        "take a descriptor out of a process",
        Processes,
        Works,
        || {
            let process = call(libc::SYS_pidfd_open, [own_pid(), 0]);
            call(libc::SYS_pidfd_getfd, [process, 0, 0])
        },
    ),
    attack("compare processes", Processes, Depends, || {
        call(libc::SYS_kcmp, [own_pid(), own_pid(), 1, 0, 0])
    }),
    attack("learn its parent", Processes, Works, || {
        call(libc::SYS_getppid, [])
    }),
    attack("leave its session's group", Processes, Depends, || {
        call(libc::SYS_setpgid, [0, 0])
    }),
    attack("wait for children", Processes, Depends, || {
        call(libc::SYS_wait4, [-1, 0, 0, 0])
    }),
    attack("enter a new user namespace", Processes, Works, || {
        call(libc::SYS_unshare, [c_long::from(libc::CLONE_NEWUSER)])
    }),
    attack("enter a new network", Processes, WorksForRoot, || {
        call(libc::SYS_unshare, [c_long::from(libc::CLONE_NEWNET)])
    }),
    attack("join a namespace", Processes, WorksForRoot, || {
        let namespace = open(c"/proc/self/ns/uts", libc::O_RDONLY);
        call(libc::SYS_setns, [namespace, 0])
    }),
    attack("become root", Processes, WorksForRoot, || {
        call(libc::SYS_setuid, [0])
    }),
    attack("become another group", Processes, WorksForRoot, || {
        call(libc::SYS_setgid, [0])
    }),
    attack("take on groups", Processes, Depends, || {
        call(libc::SYS_setgroups, [0, 0])
    }),
    attack("set capabilities", Processes, Works, capset),
    attack("name the machine", Processes, WorksForRoot, || {
        let name = *b"x";
        call(libc::SYS_sethostname, [to(&name), 1])
    }),
    attack("take real-time priority", Processes, Depends, || {
        let priority = 1_i32;
        call(libc::SYS_sched_setscheduler, [0, 1, to(&priority)])
    }),
    attack("yield to others for ever", Processes, Works, || {
        const PROCESS: c_long = 0;
        call(libc::SYS_setpriority, [PROCESS, 0, 19])
    }),
    attack("choose its processors", Processes, Works, || {
        let all = [u64::MAX; 16];
        call(
            libc::SYS_sched_setaffinity,
            [0, size_of_val(&all) as c_long, to(&all)],
        )
    }),
];

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

fn vfork() -> c_long {
    let child = call(
        libc::SYS_clone,
        [c_long::from(libc::CLONE_VFORK | libc::SIGCHLD)],
    );
    if child == 0 {
        call(libc::SYS_exit_group, [0]);
    }
    child
}

fn clone3() -> c_long {
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls.
    let arguments = [0, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
    let child = call(
        libc::SYS_clone3,
        [to(&arguments), size_of_val(&arguments) as c_long],
    );
    if child == 0 {
        call(libc::SYS_exit_group, [0]);
    }
    child
}

/// One byte of its own memory, by the call for another's.
fn memory_of(number: c_long) -> c_long {
    let (mut here, mut there) = (0_u8, 0_u8);
    let part = |byte: &mut u8| libc::iovec {
        iov_base: std::ptr::from_mut(byte).cast(),
        iov_len: 1,
    };
    let (local, remote) = (part(&mut here), part(&mut there));
    call(number, [own_pid(), to(&local), 1, to(&remote), 1, 0])
}

/// Gives up all its capabilities, which anyone may.
fn capset() -> c_long {
    // Version 3 of struct __user_cap_header_struct, this process; none of each of the three sets, twice 32 bits.
    let header = [0x2008_0522_u32, 0];
    let none = [0_u32; 6];
    call(libc::SYS_capset, [to(&header), to(&none)])
}
