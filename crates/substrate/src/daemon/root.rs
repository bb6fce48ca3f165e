//! Root: refused, or given up at once for a user that was named.
//!
//! Invariant: whoever named a user gets a process that is that user in every id, is in no other group, has no capability and
//! cannot become root again; all of it is looked at afterwards, not believed. It happens before a second thread, a folder or
//! a socket. Absent by design: a way to stay root.

use std::fs;

use nix::unistd::{Gid, Uid, User, getgroups, getresgid, getresuid, setgid, setgroups, setuid};

/// Why this process does not become, or did not quite become, the user that was named.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootError {
    /// The system does not know the name.
    #[error("there is no user '{0}' on this machine")]
    Unknown(String),
    /// A user that is root by another name, or in root's group.
    #[error(
        "'{0}' is root, or its group is root's: a worker behind its wall must be nobody to this machine"
    )]
    IsRoot(String),
    /// Only root can become somebody else.
    #[error("only root can become '{name}': this is user {me}")]
    NotRoot {
        /// The name.
        name: String,
        /// Who runs this.
        me: u32,
    },
    /// A call that gives something up failed.
    #[error("cannot {what}")]
    Call {
        /// What it was for.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: nix::Error,
    },
    /// Something of root's is left.
    #[error("root was not given up: {0}")]
    Left(&'static str),
}

/// Whether this process is root.
pub fn is_root() -> bool {
    Uid::effective().is_root()
}

/// Makes this process the user of this name, for good. Nothing happens if it is already.
///
/// # Errors
/// Why it is not that user now. A process that got [`RootError::Call`] or [`RootError::Left`] must end.
pub fn become_user(name: &str) -> Result<(), RootError> {
    let found = User::from_name(name).map_err(call("look the user up"))?;
    let user = found.ok_or_else(|| RootError::Unknown(name.to_owned()))?;
    if user.uid.is_root() || user.gid.as_raw() == 0 {
        return Err(RootError::IsRoot(name.to_owned()));
    }
    if !is_root() {
        let me = Uid::effective();
        return match me == user.uid {
            true => Ok(()),
            false => Err(RootError::NotRoot {
                name: name.to_owned(),
                me: me.as_raw(),
            }),
        };
    }
    // In this order: without root the groups could not be changed any more.
    setgroups(&[user.gid]).map_err(call("leave root's groups"))?;
    setgid(user.gid).map_err(call("change the group"))?;
    setuid(user.uid).map_err(call("change the user"))?;
    verify(user.uid, user.gid)
}

fn verify(uid: Uid, gid: Gid) -> Result<(), RootError> {
    let ids = getresuid().map_err(call("look at the user"))?;
    if [ids.real, ids.effective, ids.saved] != [uid; 3] {
        return Err(RootError::Left("one of the user ids is another"));
    }
    let ids = getresgid().map_err(call("look at the group"))?;
    if [ids.real, ids.effective, ids.saved] != [gid; 3] {
        return Err(RootError::Left("one of the group ids is another"));
    }
    if getgroups().map_err(call("look at the groups"))? != [gid] {
        return Err(RootError::Left("a group is left"));
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !is_powerless(&status) {
        return Err(RootError::Left("a capability is left"));
    }
    if setuid(Uid::from_raw(0)).is_ok() {
        return Err(RootError::Left("it can be had again"));
    }
    Ok(())
}

/// Whether no set of capabilities that a process can use or hand on has one in it.
fn is_powerless(status: &str) -> bool {
    ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"]
        .iter()
        .all(|set| {
            let line = status.lines().find_map(|line| line.strip_prefix(set));
            line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()) == Some(0)
        })
}

fn call(what: &'static str) -> impl FnOnce(nix::Error) -> RootError {
    move |source| RootError::Call { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_in_any_set_counts_and_so_does_a_missing_line() {
        let none = "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\n";
        assert!(is_powerless(none));
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            let one = none.replace(&format!("{set}:\t0"), &format!("{set}:\t8"));
            assert_ne!(one, none);
            assert!(!is_powerless(&one), "{set}");
            assert!(!is_powerless(&none.replace(set, "Cap")), "{set}");
        }
        assert!(!is_powerless(""));
    }

    #[test]
    fn nobody_becomes_root_or_whom_the_system_does_not_know() {
        let told = |name| become_user(name).unwrap_err().to_string();
        assert!(told("root").starts_with("'root' is root"));
        assert_eq!(
            told("no-such-user-here"),
            "there is no user 'no-such-user-here' on this machine"
        );
    }
}
