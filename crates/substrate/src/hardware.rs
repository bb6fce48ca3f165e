//! What this machine has: processor, memory, disk, and graphics processors of three makers.
//!
//! Invariant: detection never fails. What cannot be read is left out or is zero; what is claimed to
//! others is measured besides.
//!
//! Absent by design: loading a maker's driver beyond the library it ships for questions (NVML).

mod engine;
pub mod swap;
mod watch;

pub use engine::{EngineGpu, EngineGpusError, engine_gpus};
pub use watch::GpuWatch;

use std::path::{Path, PathBuf};

use substrate_record::{Gpu, Hardware};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::files::free_bytes;

/// The longest name kept of a device.
const MAX_NAME: usize = 64;

/// The most graphics processors looked at.
const MAX_GPUS: usize = 16;

/// PCI numbers of the makers.
const AMD: &str = "0x1002";
const INTEL: &str = "0x8086";
const NVIDIA: &str = "0x10de";

/// Where the kernel shows devices; a test gives its own.
#[derive(Debug, Clone)]
pub struct Roots {
    /// `/sys`.
    pub sysfs: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            sysfs: PathBuf::from("/sys"),
        }
    }
}

/// This machine's hardware; `home` tells which disk counts.
pub fn detect(home: &Path) -> Hardware {
    detect_at(&Roots::default(), home)
}

/// The hardware as some roots show it.
pub fn detect_at(roots: &Roots, home: &Path) -> Hardware {
    let (cpu, cores, memory) = machine();
    let nvidia = nvidia();
    let mut gpus = drm_gpus(&roots.sysfs.join("class/drm"), nvidia.is_none());
    gpus.extend(nvidia.unwrap_or_default());
    gpus.truncate(MAX_GPUS);
    let storage = free_bytes(home).unwrap_or(0);
    Hardware {
        cpu,
        cores,
        memory,
        gpus,
        storage,
        bandwidth: None,
    }
}

/// Memory that can be taken now without swapping. Inside a container, no more than it may still use; 0 if nothing tells.
pub fn free_memory() -> u64 {
    let wanted = RefreshKind::nothing().with_memory(MemoryRefreshKind::everything());
    let Ok(system) = System::new_with_specifics(wanted) else {
        return 0;
    };
    let available = system.available_memory();
    system
        .cgroup_limits()
        .filter(|limits| limits.total_memory < system.total_memory())
        // What the kernel keeps of files counts as used there, and is given back when it is needed.
        .map_or(available, |limits| {
            limits
                .total_memory
                .saturating_sub(limits.rss)
                .min(available)
        })
}

/// Processor, cores and memory. Inside a container, what the container may use.
fn machine() -> (String, u32, u64) {
    let wanted = RefreshKind::nothing()
        .with_cpu(CpuRefreshKind::nothing())
        .with_memory(MemoryRefreshKind::everything());
    let cores = std::thread::available_parallelism()
        .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
    let Ok(system) = System::new_with_specifics(wanted) else {
        return (String::new(), cores, 0);
    };
    let cpu = system
        .cpus()
        .first()
        .map(|cpu| cut(cpu.brand()))
        .unwrap_or_default();
    let total = system.total_memory();
    let allowed = system
        .cgroup_limits()
        .map_or(total, |limits| limits.total_memory.min(total));
    (cpu, cores, if allowed == 0 { total } else { allowed })
}

/// NVIDIA's, through NVML; `None` if the library is not there or does not answer.
fn nvidia() -> Option<Vec<Gpu>> {
    let nvml = nvml_wrapper::Nvml::init().ok()?;
    let count = nvml.device_count().ok()?;
    let device = |index| {
        let device = nvml.device_by_index(index).ok()?;
        Some(Gpu {
            name: cut(&device.name().ok()?),
            memory: device.memory_info().ok()?.total,
        })
    };
    Some((0..count).filter_map(device).collect())
}

/// AMD's and Intel's (and NVIDIA's, nameless, where NVML is missing) as the kernel's DRM shows them.
fn drm_gpus(drm: &Path, with_nvidia: bool) -> Vec<Gpu> {
    drm_cards(drm)
        .iter()
        .filter_map(|card| gpu_of(card, with_nvidia))
        .collect()
}

fn drm_cards(drm: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(drm) else {
        return Vec::new();
    };
    let mut cards: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| is_card(path))
        .collect();
    cards.sort();
    cards
}

/// `card0`, not `card0-HDMI-A-1` nor `renderD128`.
fn is_card(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    name.strip_prefix("card").is_some_and(|number| {
        !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
    })
}

fn gpu_of(card: &Path, with_nvidia: bool) -> Option<Gpu> {
    let device = card.join("device");
    let vendor = read(&device.join("vendor"))?;
    let model = read(&device.join("device")).unwrap_or_default();
    let number = |path: PathBuf| read(&path).and_then(|text| text.parse().ok());
    let (maker, memory) = match vendor.as_str() {
        AMD => ("AMD", number(device.join("mem_info_vram_total"))?),
        // Integrated ones have no memory of their own: they use the machine's, which is counted there.
        INTEL => ("Intel", number(card.join("lmem_total_bytes")).unwrap_or(0)),
        NVIDIA if with_nvidia => ("NVIDIA", 0),
        _ => return None,
    };
    let name = read(&device.join("product_name"))
        .filter(|name| !name.is_empty())
        .unwrap_or(format!("GPU {model}"));
    Some(Gpu {
        name: cut(&format!("{maker} {name}")),
        memory,
    })
}

/// A small file of one line.
fn read(path: &Path) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

fn cut(name: &str) -> String {
    name.trim()
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_NAME)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(root: &Path, name: &str, files: &[(&str, &str)]) {
        for (file, content) in files {
            let path = root.join("class/drm").join(name).join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{content}\n")).unwrap();
        }
    }

    #[test]
    fn this_machine_has_a_processor_memory_and_a_disk() {
        let found = detect(Path::new("/"));
        assert!(
            found.cores > 0 && found.memory > 0 && found.storage > 0,
            "{found:?}"
        );
    }

    #[test]
    fn what_is_free_is_less_than_there_is() {
        let free = free_memory();
        assert!(free > 0 && free <= detect(Path::new("/")).memory, "{free}");
    }

    #[test]
    fn cards_are_told_apart_by_their_maker() {
        let root = tempfile::tempdir().unwrap();
        card(
            root.path(),
            "card0",
            &[
                ("device/vendor", AMD),
                ("device/device", "0x744c"),
                ("device/mem_info_vram_total", "25753026560"),
                ("device/product_name", "RX 7900 XTX"),
            ],
        );
        card(
            root.path(),
            "card1",
            &[("device/vendor", INTEL), ("device/device", "0x9a49")],
        );
        card(
            root.path(),
            "card2",
            &[
                ("device/vendor", INTEL),
                ("device/device", "0x56a0"),
                ("lmem_total_bytes", "17079205888"),
            ],
        );
        card(
            root.path(),
            "card3",
            &[("device/vendor", NVIDIA), ("device/device", "0x2684")],
        );
        card(
            root.path(),
            "card4",
            &[
                ("device/vendor", AMD),
                ("device/mem_info_vram_total", "not a number"),
            ],
        );
        card(
            root.path(),
            "card0-HDMI-A-1",
            &[("device/vendor", AMD), ("device/mem_info_vram_total", "1")],
        );
        card(
            root.path(),
            "renderD128",
            &[("device/vendor", AMD), ("device/mem_info_vram_total", "1")],
        );
        let found = drm_gpus(&root.path().join("class/drm"), true);
        let lines: Vec<_> = found
            .iter()
            .map(|gpu| format!("{} {}", gpu.name, gpu.memory))
            .collect();
        assert_eq!(
            lines,
            [
                "AMD RX 7900 XTX 25753026560",
                "Intel GPU 0x9a49 0",
                "Intel GPU 0x56a0 17079205888",
                "NVIDIA GPU 0x2684 0"
            ]
        );
        assert_eq!(drm_gpus(&root.path().join("class/drm"), false).len(), 3);
        assert!(drm_gpus(Path::new("/nowhere"), true).is_empty());
    }
}
