//! The thread that clones.
//!
//! A worker dies with the daemon by `PR_SET_PDEATHSIG`, which the kernel fires when the *thread*
//! that cloned it ends, not the process. An asynchronous runtime ends its blocking threads when
//! they idle. So one thread per user does nothing but clone, and never ends.
//!
//! Invariant: the child is single-threaded, its signal handlers are reset, and it allocates nothing.
//! Absent by design: waiting. Building the wall happens in the child; its caller waits for that.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use super::{
    LaunchError, Step,
    advice::{self, Layer},
    child::{self, Inherited},
    plan::{self, Descriptors, Plan},
};

/// A child whose wall stands.
pub(super) struct Child {
    pub pid: u32,
    pub pidfd: OwnedFd,
}

struct Order {
    plan: Plan,
    descriptors: Descriptors,
    report: OwnedFd,
    answer: SyncSender<io::Result<Child>>,
}

type Spawners = BTreeMap<Option<u32>, SyncSender<Order>>;

/// One spawner per user that workers become; in practice one.
static SPAWNERS: Mutex<Spawners> = Mutex::new(Spawners::new());

/// Clones a child for this plan and waits until its wall stands.
pub(super) fn start(
    plan: Plan,
    descriptors: Descriptors,
    become_uid: Option<u32>,
) -> Result<Child, LaunchError> {
    let (reader, report) =
        plan::pipe(libc::O_CLOEXEC).map_err(LaunchError::setup("a pipe for the report"))?;
    let in_namespaces = plan.last.in_namespaces();
    let (answer, answered) = sync_channel(1);
    let order = Order {
        plan,
        descriptors,
        report,
        answer,
    };
    let gone = || LaunchError::Setup {
        what: "a thread that clones",
        source: io::ErrorKind::BrokenPipe.into(),
    };
    spawner(become_uid)?.send(order).map_err(|_| gone())?;
    let child = answered.recv().map_err(|_| gone())?.map_err(|source| {
        match in_namespaces && advice::forbidden(&source) {
            true => LaunchError::Unavailable {
                layer: Layer::Namespaces,
                source,
            },
            false => LaunchError::Setup {
                what: "a child",
                source,
            },
        }
    })?;
    match read_report(reader) {
        None => Ok(child),
        Some(failure) => {
            child::reap(&child.pidfd);
            Err(failure)
        }
    }
}

/// The sender to the spawner for this user, started on first use.
fn spawner(become_uid: Option<u32>) -> Result<SyncSender<Order>, LaunchError> {
    let mut spawners = SPAWNERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(spawner) = spawners.get(&become_uid) {
        return Ok(spawner.clone());
    }
    let (orders, received) = sync_channel(0);
    let (ready, started) = sync_channel(1);
    thread::Builder::new()
        .name("wall-spawner".to_owned())
        .spawn(move || {
            let outcome = become_uid.map_or(Ok(()), become_user);
            let serve = outcome.is_ok();
            if ready.send(outcome).is_ok() && serve {
                serve_orders(&received);
            }
        })
        .map_err(LaunchError::setup("a thread that clones"))?;
    started
        .recv()
        .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
        .map_err(LaunchError::setup("a thread of another user"))?;
    spawners.insert(become_uid, orders.clone());
    Ok(orders)
}

fn serve_orders(orders: &Receiver<Order>) {
    while let Ok(order) = orders.recv() {
        let child = clone(&order);
        let answer = order.answer.clone();
        // The child has its own copies; ours must close for the daemon to see its end.
        drop(order);
        // Nobody waits any more only if the daemon is going down, and then the child goes too.
        let _ = answer.send(child);
    }
}

/// Makes this one thread another user, for good. glibc's wrappers would change all threads.
fn become_user(uid: u32) -> io::Result<()> {
    // SAFETY: getuid and geteuid have no arguments and cannot fail.
    if unsafe { libc::geteuid() } == uid {
        return Ok(());
    }
    let id = libc::c_long::from(uid);
    // SAFETY: the calls take plain integers and an empty list, and change this thread only.
    let answers = unsafe {
        [
            libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()),
            libc::syscall(libc::SYS_setresgid, id, id, id),
            libc::syscall(libc::SYS_setresuid, id, id, id),
        ]
    };
    match answers {
        [0, 0, 0] => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn clone(order: &Order) -> io::Result<Child> {
    let mut pidfd: libc::c_int = -1;
    let namespaces = match order.plan.last.in_namespaces() {
        true => child::NAMESPACES,
        false => 0,
    };
    // SAFETY: clone_args is plain integers, for which zero means absent.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = (libc::CLONE_PIDFD as u64) | CLONE_CLEAR_SIGHAND | namespaces;
    arguments.pidfd = (&raw mut pidfd).addr() as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(group) = &order.descriptors.group {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = group.as_raw_fd() as u64;
    }
    let worker = order.descriptors.worker.as_ref();
    let inherited = Inherited {
        null: order.descriptors.null.as_raw_fd(),
        stderr: order.descriptors.stderr.as_raw_fd(),
        report: order.report.as_raw_fd(),
        control: order.descriptors.control.as_raw_fd(),
        worker: worker.map(AsRawFd::as_raw_fd),
    };
    let argv = [order.plan.argv[0].as_ptr(), std::ptr::null()];
    let envp = [order.plan.envp[0].as_ptr(), std::ptr::null()];

    // SAFETY: without CLONE_VM the child has a copy of this memory and its own stack, as after
    // fork. It runs only `child::run`, which never returns, allocates nothing and takes no lock.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => child::run(&order.plan, &inherited, &argv, &envp),
        pid => Ok(Child {
            pid: u32::try_from(pid).map_err(|_| io::ErrorKind::InvalidData)?,
            // SAFETY: on success the kernel wrote a new descriptor that nobody else owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Resets the daemon's signal handlers in the child, which must not run there (Linux 5.5).
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// The child begins in the group of `clone_args.cgroup` (Linux 5.7).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What went wrong in the child; nothing if its end of the pipe closed by exec or exit.
fn read_report(reader: OwnedFd) -> Option<LaunchError> {
    let mut report = [0; child::REPORT];
    File::from(reader).read_exact(&mut report).ok()?;
    let (step, errno) = child::unpack(report);
    let source = io::Error::from_raw_os_error(errno);
    match Step::from_number(step) {
        Some(Step::UidMap | Step::GidMap | Step::SetGroups | Step::PrivateMounts | Step::Root)
            if advice::forbidden(&source) =>
        {
            Some(LaunchError::Unavailable {
                layer: Layer::Namespaces,
                source,
            })
        }
        Some(step) => Some(LaunchError::Step { step, source }),
        None => Some(LaunchError::Setup {
            what: "sense of the child's report",
            source,
        }),
    }
}
