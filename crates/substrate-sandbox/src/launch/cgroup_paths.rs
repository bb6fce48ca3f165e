//! Where a process's cgroup lies in the file system, from the two files in `/proc` that say it.
//!
//! Invariant: pure functions of text. Absent by design: reading anything.

use std::path::{Path, PathBuf};

/// The path within cgroup v2, from `/proc/PID/cgroup`: the one line whose hierarchy is 0 and has no controllers named.
pub(super) fn unified(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The folder of that path, from `/proc/self/mountinfo`: below the first cgroup2 mount that shows this part of the tree.
pub(super) fn folder(mounts: &str, path: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mount = Mount::parse(line)?;
        let below = Path::new(path).strip_prefix(&mount.root).ok()?;
        Some(match below.as_os_str().is_empty() {
            true => mount.place,
            false => mount.place.join(below),
        })
    })
}

/// A mount of cgroup v2: which folder of the tree, and where it is seen.
struct Mount {
    root: PathBuf,
    place: PathBuf,
}

impl Mount {
    /// proc(5): `ID PARENT DEVICE ROOT PLACE OPTIONS [FIELD…] - TYPE SOURCE SUPER`.
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = before.split(' ').skip(3);
        let mut path = || Some(PathBuf::from(unescape(fields.next()?)));
        Some(Self {
            root: path()?,
            place: path()?,
        })
    }
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        let code = after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                text.push(char::from(code));
                rest = &after[3..];
            }
            None => {
                text.push('\\');
                rest = after;
            }
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "9:name=systemd:/\n4:memory:/some/where\n0::/user.slice/x\n";

    #[test]
    fn the_line_of_version_two_is_found_among_the_others() {
        assert_eq!(unified(HYBRID), Some("/user.slice/x"));
        assert_eq!(unified("0::/\n"), Some("/"));
        assert_eq!(unified("1:cpu:/a\n"), None);
        assert_eq!(unified(""), None);
    }

    #[test]
    fn the_folder_is_below_the_mount_that_shows_it() {
        let check = |mount: &str, path: &str, expected: Option<&str>| {
            let noise = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                         32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n";
            let mounts = format!("{noise}{mount}\n");
            let found = folder(&mounts, path);
            assert_eq!(found.as_deref(), expected.map(Path::new), "{mount}");
        };
        let plain =
            "25 22 0:23 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        check(plain, "/", Some("/sys/fs/cgroup"));
        check(
            plain,
            "/system.slice/substrate.service",
            Some("/sys/fs/cgroup/system.slice/substrate.service"),
        );
        let hybrid = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        check(hybrid, "/a", Some("/sys/fs/cgroup/unified/a"));
        // A container that sees its own part alone, and a process outside it.
        let part = r"41 31 0:38 /box/one /my\040cgroups rw - cgroup2 none rw";
        check(part, "/box/one/a", Some("/my cgroups/a"));
        check(part, "/box/one", Some("/my cgroups"));
        check(part, "/box/two", None);
        check(part, "/box/one-and-more", None);
        check("", "/", None);
    }

    #[test]
    fn only_octal_escapes_are_undone() {
        assert_eq!(unescape(r"a\040b\134c"), r"a b\c");
        assert_eq!(unescape(r"a\9zz\"), r"a\9zz\");
    }
}
