//! How many threads the engine may use at this moment: the cores that nobody else is using.
//!
//! llama.cpp's threads meet at a barrier that spins. With one core busy by something else, two threads fall to a
//! tenth of one thread's speed (measured: 4.9 against 46.8 tokens per second), so the rule is threads ≤ free cores
//! (docs/decisions/0012).
//!
//! Invariant: at least one, at most what the owner lends. Going down is at once, going up takes patience.
//! Absent by design: priorities, affinities, and any guess that is not read from the kernel's own counters.

use super::ticks::Ticks;

/// Looks without others' load before a thread is given back: a compiler pauses between two files.
const PATIENCE: u32 = 3;

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
        self.see(Ticks::read(workers)?)
    }

    fn see(&mut self, now: Ticks) -> Option<u32> {
        let before = self.last.replace(now)?;
        let others = now.others_since(&before, self.cores)?;
        // Rounded to whole cores: half a core of others' work costs one thread.
        let taken = u32::try_from((others + 500) / 1000).unwrap_or(self.cores);
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
}
