//! Swap that would keep a prompt after the power is off: what `doctor` points out.
//!
//! Invariant: looks only. A place that cannot be told to be encrypted counts as not encrypted.
//! Absent by design: locking memory. A worker holds gigabytes, and an ordinary user may lock a few megabytes (docs/sandbox.md).

use std::path::{Path, PathBuf};

/// Where the system swaps to in the clear, as it names the places.
pub fn in_the_clear() -> Vec<PathBuf> {
    let listed = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let places = places(&listed).into_iter();
    places
        .filter(|place| !is_memory(place) && !is_encrypted(place, Path::new("/sys/class/block")))
        .collect()
}

/// The first column of `/proc/swaps` below its head.
fn places(listed: &str) -> Vec<PathBuf> {
    let lines = listed.lines().skip(1);
    let place = |line: &str| line.split_whitespace().next().map(PathBuf::from);
    lines.filter_map(place).collect()
}

/// Compressed memory goes with the power.
fn is_memory(place: &Path) -> bool {
    let name = place.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("zram"))
}

/// Whether it is a device that dm-crypt made. A file on a file system is not told from one in the clear.
fn is_encrypted(place: &Path, blocks: &Path) -> bool {
    let device = std::fs::canonicalize(place).unwrap_or_else(|_| place.to_path_buf());
    let Some(name) = device.file_name() else {
        return false;
    };
    let uuid = std::fs::read_to_string(blocks.join(name).join("dm/uuid"));
    uuid.is_ok_and(|uuid| uuid.starts_with("CRYPT-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "Filename\tType\tSize\tUsed\tPriority\n\
        /dev/dm-1 partition 8388604 0 -2\n/swapfile file 2097148 512 -3\n/dev/zram0 partition 4194300 0 100\n";

    #[test]
    fn places_are_read_from_the_systems_own_table() {
        let names = ["/dev/dm-1", "/swapfile", "/dev/zram0"].map(PathBuf::from);
        assert_eq!(places(LISTED), names);
        assert!(places("Filename\tType\n").is_empty() && places("").is_empty());
        assert_eq!(names.map(|name| is_memory(&name)), [false, false, true]);
    }

    #[test]
    fn a_device_is_encrypted_if_the_system_says_who_made_it() {
        let blocks = tempfile::tempdir().expect("a temporary folder");
        for (name, uuid) in [("dm-1", "CRYPT-PLAIN-swap\n"), ("dm-2", "LVM-abc\n")] {
            let folder = blocks.path().join(name).join("dm");
            std::fs::create_dir_all(&folder).expect("a folder");
            std::fs::write(folder.join("uuid"), uuid).expect("a file");
        }
        let told = ["/nowhere/dm-1", "/nowhere/dm-2", "/nowhere/sda2"]
            .map(|place| is_encrypted(Path::new(place), blocks.path()));
        assert_eq!(told, [true, false, false]);
    }
}
