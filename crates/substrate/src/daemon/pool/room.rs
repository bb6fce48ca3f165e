//! Who makes room for a model that is to be loaded: one step at a time, until it may be loaded or cannot be.
//!
//! Invariant: a model that answers is never unloaded, and nothing is unloaded for a model that would not fit even then.
//! Absent by design: processes, clocks, and how much a model needs (`crate::models::fit`).

use std::time::Duration;

use crate::models::fit::Misfit;
use crate::models::parts::Parts;

/// A model in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// Its files.
    pub parts: Parts,
    /// Jobs in it.
    pub busy: u32,
    /// How long it stays when it is idle; `None` = for ever.
    pub stay: Option<Duration>,
    /// How long it has been idle.
    pub idle: Duration,
    /// Bytes that come back with its end.
    pub bytes: u64,
    /// Of these, the ones the system still counts as free: not touched yet, or mapped from its file.
    pub promised: u64,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There is room.
    Load,
    /// End this one, then look again.
    Unload(Parts),
    /// As many models as may be loaded answer: wait for one, then look again.
    Wait,
    /// It does not fit, whoever leaves.
    Refuse(Misfit),
}

/// The next step. `fits` tells whether the model fits once so many bytes have come back.
pub fn next(residents: &[Resident], most: usize, fits: impl Fn(u64) -> Result<(), Misfit>) -> Step {
    let idle = residents.iter().filter(|resident| resident.busy == 0);
    let bytes = idle.fold(0u64, |all, resident| all.saturating_add(resident.bytes));
    if fits(bytes).is_err() {
        // What is told is what is free now: nothing will be unloaded.
        return fits(0).map_or_else(Step::Refuse, |()| Step::Load);
    }
    let is_full = residents.len() >= most;
    if !is_full && fits(0).is_ok() {
        return Step::Load;
    }
    match first_to_go(residents) {
        Some(victim) if victim.busy == 0 => Step::Unload(victim.parts),
        Some(_) if is_full => Step::Wait,
        // Nothing is loaded, so nothing can come back: `fits(0)` holds.
        _ => Step::Load,
    }
}

/// As in Ollama: the idle before the busy, then the shortest keep-alive; among equals the one that has been idle longest.
fn first_to_go(residents: &[Resident]) -> Option<Resident> {
    let forever = Duration::MAX;
    let order = |resident: &&Resident| {
        let stay = resident.stay.unwrap_or(forever);
        (resident.busy > 0, stay, std::cmp::Reverse(resident.idle))
    };
    residents.iter().min_by_key(order).copied()
}

#[cfg(test)]
mod tests {
    use substrate_record::ContentHash;

    use super::*;

    const NEEDS: u64 = 100;

    fn resident(n: u8, busy: u32, stay: u64) -> Resident {
        Resident {
            parts: digest(n),
            busy,
            stay: Some(Duration::from_secs(stay)),
            idle: Duration::ZERO,
            bytes: 60,
            promised: 0,
        }
    }

    fn digest(n: u8) -> Parts {
        ContentHash::from_bytes([n; 32]).into()
    }

    /// The step with so much free for a model that needs [`NEEDS`].
    fn step(residents: &[Resident], most: usize, free: u64) -> Step {
        next(residents, most, |freed| fits(free + freed))
    }

    fn fits(free: u64) -> Result<(), Misfit> {
        if free >= NEEDS {
            return Ok(());
        }
        Err(misfit(free))
    }

    fn misfit(free: u64) -> Misfit {
        Misfit {
            needs: NEEDS,
            may: free,
            free,
            over_limit: false,
        }
    }

    #[test]
    fn what_fits_is_loaded_beside_the_others() {
        assert_eq!(step(&[], 3, 100), Step::Load);
        let two = [resident(1, 0, 10), resident(2, 1, 10)];
        assert_eq!(step(&two, 3, 100), Step::Load);
    }

    #[test]
    fn the_idle_goes_first_then_the_shortest_keep_alive() {
        let busy_and_short = resident(1, 1, 1);
        let all = [busy_and_short, resident(2, 0, 300), resident(3, 0, 20)];
        assert_eq!(step(&all, 3, 100), Step::Unload(digest(3)));
        let forever = Resident {
            stay: None,
            ..resident(4, 0, 0)
        };
        let all = [busy_and_short, forever, resident(2, 0, 300)];
        assert_eq!(step(&all, 3, 100), Step::Unload(digest(2)));
        assert_eq!(
            step(&[busy_and_short, forever], 2, 100),
            Step::Unload(digest(4))
        );
    }

    #[test]
    fn among_equals_the_one_idle_longest_goes() {
        let longer = Resident {
            idle: Duration::from_secs(9),
            ..resident(1, 0, 300)
        };
        assert_eq!(
            step(&[resident(2, 0, 300), longer], 2, 100),
            Step::Unload(digest(1))
        );
    }

    #[test]
    fn a_full_house_that_answers_is_waited_for() {
        let all = [resident(1, 1, 1), resident(2, 2, 1)];
        assert_eq!(step(&all, 2, 1000), Step::Wait);
    }

    #[test]
    fn idle_models_leave_when_their_memory_is_needed() {
        let idle = [resident(1, 0, 10), resident(2, 0, 5)];
        assert_eq!(step(&idle, 3, 40), Step::Unload(digest(2)));
    }

    #[test]
    fn nothing_leaves_for_what_would_not_fit_anyway() {
        let idle_and_busy = [resident(1, 0, 10), resident(2, 1, 10)];
        assert_eq!(step(&idle_and_busy, 3, 39), Step::Refuse(misfit(39)));
        // What answers does not count as room, however much it holds.
        let busy = [resident(1, 1, 10), resident(2, 1, 10)];
        assert_eq!(step(&busy, 2, 99), Step::Refuse(misfit(99)));
    }
}
