//! What a wall with a graphics processor in it (`process+gpu`) would let through on this machine.
//!
//! The lists are data (`policy/gpu/*.json`), compiled in. A worker would see the device nodes and driver files named there and
//! nothing else of the machine.
//!
//! Invariant: the tier is never offered: its suite has passed on no card yet, and what was not tried is not promised.
//! Absent by design: building that wall. The kernel's driver would be inside what has to be trusted.

use std::{
    fmt, fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

/// One maker's list, as compiled.
pub(crate) struct Vendor {
    name: &'static str,
    pci: &'static str,
    nodes: &'static [Node],
    files: &'static [&'static str],
}

/// A device node; a final `*` stands for a number.
pub(crate) struct Node {
    path: &'static str,
    /// Nodes of this name are of every maker; which, the kernel tells in `/sys/class/drm`.
    of_vendor: bool,
}

include!(concat!(env!("OUT_DIR"), "/gpus.rs"));

/// What one maker's list finds on a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuDriver {
    /// The maker.
    pub vendor: &'static str,
    /// Device nodes that are here.
    pub nodes: Vec<PathBuf>,
    /// Driver files that are here.
    pub files: Vec<PathBuf>,
    /// Driver files of the list that are not; one set of them belongs to each way of computing, so some always miss.
    pub missing: usize,
}

/// What the lists find on this machine; empty without a graphics processor.
pub fn gpu_drivers() -> Vec<GpuDriver> {
    drivers_at(Path::new("/"), |path| {
        let found = fs::symlink_metadata(path);
        found.is_ok_and(|found| found.file_type().is_char_device())
    })
}

fn drivers_at(root: &Path, is_device: impl Fn(&Path) -> bool) -> Vec<GpuDriver> {
    let driver = |vendor: &Vendor| {
        let nodes = vendor.nodes.iter();
        let nodes = nodes.flat_map(|node| nodes_at(root, node, vendor.pci, &is_device));
        let nodes: Vec<PathBuf> = nodes.collect();
        if nodes.is_empty() {
            return None;
        }
        let at = |path: &&str| root.join(path.trim_start_matches('/'));
        let files = vendor.files.iter().map(at).filter(|path| path.exists());
        let files: Vec<PathBuf> = files.collect();
        Some(GpuDriver {
            vendor: vendor.name,
            missing: vendor.files.len() - files.len(),
            nodes,
            files,
        })
    };
    VENDORS.iter().filter_map(driver).collect()
}

/// The device nodes that one line of a list means, in order.
fn nodes_at(
    root: &Path,
    node: &Node,
    pci: &str,
    is_device: impl Fn(&Path) -> bool,
) -> Vec<PathBuf> {
    let path = root.join(node.path.trim_start_matches('/'));
    let Some(folder) = path.parent() else {
        return Vec::new();
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let meant = path
                .file_name()
                .is_some_and(|wanted| is_meant(&wanted.to_string_lossy(), &name));
            meant && (!node.of_vendor || vendor_of(root, &name).as_deref() == Some(pci))
        })
        .map(|entry| entry.path())
        .filter(|path| is_device(path))
        .collect();
    found.sort();
    found
}

fn is_meant(wanted: &str, name: &str) -> bool {
    let Some(stem) = wanted.strip_suffix('*') else {
        return wanted == name;
    };
    let number = name.strip_prefix(stem).unwrap_or_default();
    !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
}

/// The PCI number of a render node's maker.
fn vendor_of(root: &Path, node: &str) -> Option<String> {
    let path = root.join("sys/class/drm").join(node).join("device/vendor");
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

impl fmt::Display for GpuDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nodes, files) = (self.nodes.len(), self.files.len());
        write!(
            f,
            "{}: {nodes} device nodes, {files} of {} driver files here; process+gpu is unproven on it and off for strangers",
            self.vendor,
            files + self.missing
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(root: &Path, path: &str, content: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn every_list_is_compiled_in_and_names_what_is_here() {
        let folder = std::env::temp_dir().join(format!("substrate-gpus-{}", std::process::id()));
        for (path, content) in [
            ("dev/nvidiactl", ""),
            ("dev/nvidia0", ""),
            ("dev/nvidia12", ""),
            ("dev/nvidia-uvm", ""),
            // Not on the list: for profilers, and for the display.
            ("dev/nvidia-uvm-tools", ""),
            ("dev/nvidia-modeset", ""),
            ("dev/nvidia0-link", ""),
            ("dev/dri/renderD128", ""),
            ("dev/dri/renderD129", ""),
            ("dev/dri/card0", ""),
            ("sys/class/drm/renderD128/device/vendor", "0x8086\n"),
            ("sys/class/drm/renderD129/device/vendor", "0x10de\n"),
            ("usr/lib/x86_64-linux-gnu/libcuda.so.1", ""),
        ] {
            file(&folder, path, content);
        }
        let found = drivers_at(&folder, |_| true);
        let nodes = |driver: &GpuDriver| {
            let names = driver
                .nodes
                .iter()
                .map(|node| node.file_name().unwrap().to_owned());
            names
                .map(|name| name.into_string().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0].vendor, "intel");
        assert_eq!(nodes(&found[0]), ["renderD128"]);
        assert_eq!(found[1].vendor, "nvidia");
        assert_eq!(
            nodes(&found[1]),
            ["nvidiactl", "nvidia0", "nvidia12", "nvidia-uvm"]
        );
        assert_eq!((found[1].files.len(), found[1].missing), (1, 3));
        assert_eq!(
            found[1].to_string(),
            "nvidia: 4 device nodes, 1 of 4 driver files here; process+gpu is unproven on it and off for strangers"
        );
        // What has a node's name and is none does not count: a link would lead elsewhere.
        assert!(drivers_at(&folder, |_| false).is_empty());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_lists_are_of_three_makers() {
        let names: Vec<_> = VENDORS.iter().map(|vendor| vendor.name).collect();
        assert_eq!(names, ["amd", "intel", "nvidia"]);
    }
}
