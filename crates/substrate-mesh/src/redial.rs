//! When to dial the peers whose addresses were given: at once, and again after they are lost.
//!
//! Invariant: pure; waiting times double up to a minute and start over after a success.
//! Absent by design: peers found by discovery: the routing table re-finds those by itself.

/// First wait after a failure or a loss: a restarted daemon is back within a second or two.
const FIRST_WAIT_MS: u64 = 1_000;

/// Longest wait. A static peer is somebody's choice, so it is never given up.
const LONGEST_WAIT_MS: u64 = 60_000;

/// How many times a known peer is tried before the others have to do.
const KNOWN_TRIES: u32 = 5;

/// Why an address is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// `--peer`: kept connected for as long as the daemon runs.
    Static,
    /// Known from an earlier run or an invite: tried until something answers.
    Known,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// To be dialed at this time.
    Wait(u64),
    Dialing,
    Up,
    /// Tried often enough.
    Done,
}

#[derive(Debug)]
struct Entry<A> {
    address: A,
    hold: Hold,
    state: State,
    failures: u32,
}

/// The addresses and where each of them stands.
#[derive(Debug)]
pub(crate) struct Redial<A> {
    entries: Vec<Entry<A>>,
    /// Spreads the redials of many nodes that lost the same peer: 0 to 19 percent more.
    spread: u64,
}

impl<A: Clone> Redial<A> {
    pub(crate) fn new(addresses: impl IntoIterator<Item = (A, Hold)>, spread: u8) -> Self {
        let entries = addresses.into_iter().map(|(address, hold)| Entry {
            address,
            hold,
            state: State::Wait(0),
            failures: 0,
        });
        Self {
            entries: entries.collect(),
            spread: u64::from(spread) % 20,
        }
    }

    /// Addresses to dial now, each with the number later calls name it by.
    pub(crate) fn due(&mut self, now_ms: u64) -> Vec<(usize, A)> {
        let mut due = Vec::new();
        for (i, entry) in self.entries.iter_mut().enumerate() {
            if matches!(entry.state, State::Wait(at) if at <= now_ms) {
                entry.state = State::Dialing;
                due.push((i, entry.address.clone()));
            }
        }
        due
    }

    /// The dial reached a peer of this network.
    pub(crate) fn on_up(&mut self, i: usize) {
        if let Some(entry) = self.entries.get_mut(i) {
            entry.failures = 0;
            entry.state = State::Up;
        }
    }

    /// The dial failed, or the peer is gone.
    pub(crate) fn on_lost(&mut self, i: usize, now_ms: u64) {
        let Some(entry) = self.entries.get_mut(i) else {
            return;
        };
        let wait = (FIRST_WAIT_MS << entry.failures.min(16)).min(LONGEST_WAIT_MS);
        entry.failures += 1;
        entry.state = match entry.hold {
            Hold::Known if entry.failures >= KNOWN_TRIES => State::Done,
            _ => State::Wait(now_ms + wait + wait * self.spread / 100),
        };
    }

    /// Nobody is connected any more: known peers are worth another round.
    pub(crate) fn on_alone(&mut self, now_ms: u64) {
        for entry in &mut self.entries {
            if entry.state == State::Done {
                entry.failures = 0;
                entry.state = State::Wait(now_ms + LONGEST_WAIT_MS);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_static_peer_is_redialed_with_doubling_waits_and_never_given_up() {
        let mut redial = Redial::new([("a", Hold::Static)], 0);
        let (mut now, mut waits) = (0, Vec::new());
        assert_eq!(redial.due(0), [(0, "a")]);
        for _ in 0..9 {
            redial.on_lost(0, now);
            let lost = now;
            while redial.due(now).is_empty() {
                now += 500;
            }
            waits.push((now - lost) / 1_000);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        redial.on_up(0);
        assert_eq!(redial.due(now + 1_000_000), []);
        redial.on_lost(0, now);
        assert_eq!(redial.due(now + FIRST_WAIT_MS), [(0, "a")]);
    }

    #[test]
    fn a_known_peer_is_left_alone_until_nobody_else_is_there() {
        let mut redial = Redial::new([("a", Hold::Known)], 7);
        for _ in 0..KNOWN_TRIES {
            assert_eq!(redial.due(u64::MAX / 2).len(), 1);
            redial.on_lost(0, 0);
        }
        assert_eq!(redial.due(u64::MAX / 2), []);
        redial.on_alone(1_000);
        assert_eq!(redial.due(1_000), []);
        assert_eq!(redial.due(1_000 + LONGEST_WAIT_MS), [(0, "a")]);
    }
}
