//! Whether anybody else computes on a graphics processor at this moment.
//!
//! Invariant: what cannot be read counts as nobody. NVIDIA's driver tells which process computes; AMD's only how busy
//! the card is, so it is asked only while no worker of ours may be what keeps it busy.
//! Absent by design: Intel's cards, whose kernel driver shows their use to root alone; memory others merely hold.

use std::path::Path;

use nvml_wrapper::Nvml;

use super::{MAX_GPUS, Roots, drm_cards, read};

/// Percent of a card that count as use: a desktop that only draws its windows stays under it.
const IN_USE: u32 = 25;

/// Looks at the graphics processors again and again.
#[derive(Default)]
pub struct GpuWatch {
    nvml: Asked,
    /// When each of NVIDIA's devices was last asked, by its own clock.
    seen_us: [u64; MAX_GPUS],
    roots: Roots,
}

/// The maker's library, loaded once: it takes a tenth of a second.
#[derive(Default)]
enum Asked {
    #[default]
    Not,
    Absent,
    There(Box<Nvml>),
}

impl GpuWatch {
    /// The name of a card that a process other than `ours` computes on.
    pub fn others(&mut self, ours: &[u32]) -> Option<String> {
        let amd = || busy_card(&self.roots.sysfs.join("class/drm"));
        let found = if ours.is_empty() { amd() } else { None };
        found.or_else(|| self.nvidia(ours))
    }

    fn nvidia(&mut self, ours: &[u32]) -> Option<String> {
        if let Asked::Not = self.nvml {
            self.nvml = Nvml::init().map_or(Asked::Absent, |nvml| Asked::There(Box::new(nvml)));
        }
        let Asked::There(nvml) = &self.nvml else {
            return None;
        };
        let count = nvml.device_count().unwrap_or(0);
        for (index, seen_us) in (0..count).zip(&mut self.seen_us) {
            let Ok(device) = nvml.device_by_index(index) else {
                continue;
            };
            let Ok(samples) = device.process_utilization_stats(*seen_us) else {
                continue;
            };
            let newest = samples.iter().map(|sample| sample.timestamp).max();
            *seen_us = newest.unwrap_or(0).max(*seen_us);
            let by_others = samples.iter().filter(|sample| !ours.contains(&sample.pid));
            if by_others.map(|sample| sample.sm_util).sum::<u32>() >= IN_USE {
                return Some(device.name().unwrap_or_else(|_| format!("GPU {index}")));
            }
        }
        None
    }
}

/// AMD's driver tells how busy a card is.
fn busy_card(drm: &Path) -> Option<String> {
    let busy = |card: &Path| {
        let percent = read(&card.join("device/gpu_busy_percent"))?;
        (percent.parse::<u32>().ok()? >= IN_USE).then_some(())
    };
    let card = drm_cards(drm)
        .into_iter()
        .find(|card| busy(card).is_some())?;
    Some(card.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_card_is_others_while_nothing_of_ours_computes() {
        let root = tempfile::tempdir().unwrap();
        let percent = |card: &str, text: &str| {
            let device = root.path().join("class/drm").join(card).join("device");
            std::fs::create_dir_all(&device).unwrap();
            std::fs::write(device.join("gpu_busy_percent"), text).unwrap();
        };
        let mut watch = GpuWatch {
            nvml: Asked::Absent,
            roots: Roots {
                sysfs: root.path().to_path_buf(),
            },
            ..GpuWatch::default()
        };
        assert_eq!(watch.others(&[]), None);
        percent("card0", "24\n");
        percent("card1", "no number\n");
        assert_eq!(watch.others(&[]), None);
        percent("card2", "25\n");
        assert_eq!(watch.others(&[]).as_deref(), Some("card2"));
        assert_eq!(watch.others(&[7]), None, "it may be ours");
    }
}
