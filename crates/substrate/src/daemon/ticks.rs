//! Processor time by the kernel's own counters: of the machine, and of this daemon with its workers.
//!
//! Invariant: time of one's own never falls from one reading to the next: what an ended worker used stays counted by
//! its parent.
//! Absent by design: clocks, and what is done about it ([`super::threads`], [`super::owner`]).

use std::collections::BTreeSet;

/// Processor time in ticks since the boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ticks {
    /// Of all processors, busy or idle.
    pub total: u64,
    /// Of all processors, busy.
    pub busy: u64,
    /// Of this daemon and its workers.
    pub own: u64,
}

impl Ticks {
    /// Reads the counters; `None` where the kernel shows none. `workers` are processes known by name, for kernels that
    /// do not tell a parent its children.
    pub fn read(workers: &[u32]) -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        let (total, busy) = machine_ticks(&stat)?;
        let me = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let mut own = process_ticks(&me).map_or(0, |ticks| ticks.used + ticks.ended);
        for pid in children()
            .into_iter()
            .chain(workers.iter().copied())
            .collect::<BTreeSet<u32>>()
        {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            own += process_ticks(&stat).map_or(0, |ticks| ticks.used);
        }
        Some(Self { total, busy, own })
    }

    /// Thousandths of a core that others used on each of `cores` together since `before`; `None` if no time has passed.
    pub fn others_since(&self, before: &Self, cores: u32) -> Option<u64> {
        let total = self.total.checked_sub(before.total)?;
        let busy = self.busy.saturating_sub(before.busy);
        let others = busy.saturating_sub(self.own.saturating_sub(before.own));
        (others * u64::from(cores) * 1000).checked_div(total)
    }
}

/// Processes started by any thread of this one: also a worker that is being loaded, whom nobody else knows yet.
fn children() -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    let of_thread = |thread: std::fs::DirEntry| {
        let told = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        told.split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect::<Vec<u32>>()
    };
    threads.flatten().flat_map(of_thread).collect()
}

/// (total, busy) of the first line of `/proc/stat`: user nice system idle iowait irq softirq steal…
fn machine_ticks(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .take(8)
        .map_while(|word| word.parse().ok())
        .collect();
    let idle = ticks.get(3)? + ticks.get(4)?;
    let total: u64 = ticks.iter().sum();
    Some((total, total - idle))
}

/// What a process used, and those of its children that have ended.
#[derive(Debug, PartialEq, Eq)]
struct Used {
    used: u64,
    ended: u64,
}

/// utime + stime and cutime + cstime of `/proc/PID/stat`, whose second field may hold spaces and brackets.
fn process_ticks(stat: &str) -> Option<Used> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(Used {
        used: next()? + next()?,
        ended: next()? + next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_are_read() {
        assert_eq!(
            machine_ticks("cpu  10 0 5 80 5 0 0 0 0 0\ncpu0 …"),
            Some((100, 15))
        );
        let stat = "7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 30 12 5 4 20";
        let used = Used { used: 42, ended: 9 };
        assert_eq!(process_ticks(stat), Some(used));
    }

    #[test]
    fn what_others_use_is_the_rest() {
        let at = |total, busy, own| Ticks { total, busy, own };
        let before = at(100, 50, 20);
        assert_eq!(at(300, 150, 70).others_since(&before, 2), Some(500));
        assert_eq!(at(300, 150, 220).others_since(&before, 2), Some(0));
        assert_eq!(before.others_since(&before, 2), None);
    }

    #[test]
    fn a_child_is_ones_own_while_it_runs_and_when_it_has_ended() {
        let before = Ticks::read(&[]).unwrap();
        let mut child = std::process::Command::new("sh")
            .args([
                "-c",
                "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; read line",
            ])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        assert!(children().contains(&child.id()));
        drop(child.stdin.take());
        child.wait().unwrap();
        let after = Ticks::read(&[]).unwrap();
        assert!(after.own > before.own, "{before:?} {after:?}");
    }
}
