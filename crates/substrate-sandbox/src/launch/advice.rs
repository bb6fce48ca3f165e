//! What this machine lacks for a wall, and what its owner can change.
//!
//! Invariant: advice is read from the machine (sysctls, the kernel's answers), not guessed from the
//! name of a distribution. Absent by design: changing anything.

use std::{fmt, fs, io};

use super::LaunchError;
use crate::seal::{STAGE_A, STAGE_B};

/// A layer of the `process` wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// User, mount, pid, network, ipc, uts and cgroup namespaces, and the empty root.
    Namespaces,
    /// Landlock.
    Landlock,
    /// seccomp-bpf.
    Seccomp,
    /// A policy for this processor.
    Policy,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespaces => "user namespaces for ordinary users",
            Self::Landlock => "Landlock",
            Self::Seccomp => "seccomp filters that kill",
            Self::Policy => "system call policy for its processor",
        })
    }
}

/// The layers that can be asked for without a child. Namespaces cannot; the child tries.
pub(super) fn require_layers() -> Result<(), LaunchError> {
    let missing = |layer| move |source| LaunchError::Unavailable { layer, source };
    if STAGE_A.is_none() || STAGE_B.is_none() {
        return Err(missing(Layer::Policy)(io::ErrorKind::Unsupported.into()));
    }
    landlock_abi().map_err(missing(Layer::Landlock))?;
    seccomp_kills().map_err(missing(Layer::Seccomp))
}

/// The version of Landlock this kernel speaks.
pub(super) fn landlock_abi() -> io::Result<u32> {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no ruleset and only gives a number.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0,
            VERSION,
        )
    };
    u32::try_from(abi).map_err(|_| io::Error::last_os_error())
}

fn seccomp_kills() -> io::Result<()> {
    let action: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the kernel reads one u32 from the pointer.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What to change for a layer, in a sentence.
pub(super) fn hint(layer: Layer) -> String {
    match layer {
        Layer::Namespaces => namespaces_hint(),
        Layer::Landlock => {
            "Landlock needs Linux 5.13 or later with \"landlock\" among the security \
             modules in /sys/kernel/security/lsm (boot option lsm=)"
                .to_owned()
        }
        Layer::Seccomp => "the kernel needs CONFIG_SECCOMP_FILTER, and a container's own profile \
             must allow the seccomp call"
            .to_owned(),
        Layer::Policy => format!(
            "policy/seccomp has no constants for {}; nodes of this kind can ask, not lend",
            std::env::consts::ARCH
        ),
    }
}

/// Sysctls that forbid unprivileged user namespaces, the value that forbids, and the cure.
const FORBIDDING: [(&str, &str, &str); 3] = [
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "Ubuntu's sysctl kernel.apparmor_restrict_unprivileged_userns is 1: install an AppArmor \
         profile that grants the daemon \"userns,\", or set it to 0",
    ),
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "Debian's sysctl kernel.unprivileged_userns_clone is 0: set it to 1",
    ),
    (
        "/proc/sys/user/max_user_namespaces",
        "0",
        "the sysctl user.max_user_namespaces is 0: set it to 1024 or more",
    ),
];

fn namespaces_hint() -> String {
    let found = FORBIDDING.iter().find(|(path, forbids, _)| {
        fs::read_to_string(path).is_ok_and(|value| value.trim() == *forbids)
    });
    match found {
        Some((_, _, cure)) => (*cure).to_owned(),
        None => {
            "no sysctl forbids user namespaces here; inside a container its seccomp profile may"
                .to_owned()
        }
    }
}

/// Whether a step failed because user namespaces are forbidden, rather than for its own sake.
pub(super) fn forbidden(source: &io::Error) -> bool {
    matches!(
        source.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::ENOSPC | libc::ENOSYS | libc::EINVAL)
    )
}
