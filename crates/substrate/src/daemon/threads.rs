//! How many threads the engine may use at this moment: the cores that nobody else is using.
//!
//! llama.cpp's threads meet at a barrier that spins. With one core busy by something else, two threads fall to a
//! tenth of one thread's speed (measured: 4.9 against 46.8 tokens per second), so the rule is threads ≤ free cores.
//!
//! Invariant: at least one, at most what the owner lends. Going down is at once, going up takes patience.
//! Absent by design: priorities, affinities, and any guess that is not read from the kernel's own counters.

use std::collections::BTreeMap;

/// Looks without others' load before a thread is given back: a compiler pauses between two files.
const PATIENCE: u32 = 3;

/// Processor time in ticks since the boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Ticks {
    /// Of all processors, busy or idle.
    total: u64,
    /// Of all processors, busy.
    busy: u64,
    /// Of this daemon and its workers.
    own: u64,
}

/// Watches the machine and says how many threads fit.
#[derive(Debug)]
pub struct FreeCores {
    cores: u32,
    most: u32,
    last: Option<Ticks>,
    calm: u32,
    threads: u32,
    /// The owner said how many: nothing is looked at.
    fixed: bool,
    own_before: BTreeMap<u32, u64>,
}

impl FreeCores {
    /// `cores` the machine has, `most` the owner lends. Begins with one thread; the first look, a second later, may raise it.
    pub fn new(cores: u32, most: u32) -> Self {
        let most = most.clamp(1, cores.max(1));
        Self {
            cores: cores.max(1),
            most,
            last: None,
            calm: PATIENCE - 1,
            threads: 1,
            fixed: false,
            own_before: BTreeMap::new(),
        }
    }

    /// Always `threads`, whatever else runs.
    pub fn fixed(threads: u32) -> Self {
        let threads = threads.max(1);
        Self {
            threads,
            fixed: true,
            ..Self::new(threads, threads)
        }
    }

    /// The number in force.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Changes what the owner lends. `Some` if fewer threads are in force at once; more take the patience of [`Self::look`].
    pub fn limit(&mut self, most: u32) -> Option<u32> {
        self.most = most.clamp(1, self.cores);
        (self.threads > self.most).then(|| {
            self.threads = self.most;
            self.threads
        })
    }

    /// Looks at the kernel's counters; `Some` if the number changed. `workers` are the engine's processes.
    pub fn look(&mut self, workers: &[u32]) -> Option<u32> {
        if self.fixed {
            return None;
        }
        let own = self.own_ticks(workers);
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        let (total, busy) = machine_ticks(&stat)?;
        self.see(Ticks { total, busy, own })
    }

    /// Ticks of the own processes, never falling when one of them ends.
    fn own_ticks(&mut self, workers: &[u32]) -> u64 {
        for pid in workers.iter().copied().chain([std::process::id()]) {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if let Some(ticks) = process_ticks(&stat) {
                self.own_before.insert(pid, ticks);
            }
        }
        self.own_before.values().sum()
    }

    fn see(&mut self, now: Ticks) -> Option<u32> {
        let before = self.last.replace(now)?;
        let total = now
            .total
            .checked_sub(before.total)
            .filter(|total| *total > 0)?;
        let busy = now.busy.saturating_sub(before.busy);
        let others = busy.saturating_sub(now.own.saturating_sub(before.own));
        // Rounded to whole cores: half a core of others' work costs one thread.
        let taken = u32::try_from((others * u64::from(self.cores) * 2 + total) / (total * 2))
            .unwrap_or(self.cores);
        let fits = self.cores.saturating_sub(taken).clamp(1, self.most);
        self.settle(fits)
    }

    fn settle(&mut self, fits: u32) -> Option<u32> {
        self.calm = if fits > self.threads {
            self.calm + 1
        } else {
            0
        };
        let change = fits < self.threads || self.calm >= PATIENCE;
        if !change {
            return None;
        }
        self.calm = 0;
        self.threads = fits;
        Some(fits)
    }
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

/// utime + stime of `/proc/PID/stat`, whose second field may hold spaces and brackets.
fn process_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One look per row: (others' busy cores, own busy cores) over one second of two cores; the threads after each.
    fn check(rows: &[(u64, u64)], expected: &[u32]) {
        let mut free = FreeCores::new(2, 2);
        let mut now = Ticks::default();
        free.see(now);
        let mut seen = Vec::new();
        for (others, own) in rows {
            now.total += 200;
            now.busy += others + own;
            now.own += own;
            free.see(now);
            seen.push(free.threads());
        }
        assert_eq!(seen, expected);
    }

    #[test]
    fn own_work_does_not_count_as_others() {
        check(&[(0, 200), (10, 190), (0, 200)], &[2, 2, 2]);
    }

    #[test]
    fn one_busy_core_costs_one_thread_at_once_and_gives_it_back_with_patience() {
        check(&[(100, 100), (0, 100), (0, 100), (0, 100)], &[1, 1, 1, 2]);
    }

    #[test]
    fn a_machine_full_of_others_still_leaves_one_thread() {
        check(&[(200, 0), (200, 0)], &[1, 1]);
    }

    #[test]
    fn an_owner_who_lends_fewer_cores_has_them_back_at_once() {
        let mut free = FreeCores::new(4, 4);
        let mut now = Ticks::default();
        let mut looks = |free: &mut FreeCores| {
            for _ in 0..=PATIENCE {
                now.total += 400;
                free.see(now);
            }
            free.threads()
        };
        assert_eq!(looks(&mut free), 4);
        assert_eq!(free.limit(2), Some(2));
        assert_eq!(looks(&mut free), 2);
        assert_eq!(free.limit(3), None);
        assert_eq!(looks(&mut free), 3);
        assert_eq!(free.limit(0), Some(1), "one thread is always left");
        assert_eq!(free.limit(99), None);
        assert_eq!(looks(&mut free), 4);
    }

    #[test]
    fn a_pause_shorter_than_the_patience_changes_nothing() {
        check(
            &[(100, 50), (0, 100), (0, 100), (100, 50), (0, 100)],
            &[1, 1, 1, 1, 1],
        );
    }

    #[test]
    fn the_kernels_lines_are_read() {
        assert_eq!(
            machine_ticks("cpu  10 0 5 80 5 0 0 0 0 0\ncpu0 …"),
            Some((100, 15))
        );
        let stat = "7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 30 12 0 0 20";
        assert_eq!(process_ticks(stat), Some(42));
    }
}
