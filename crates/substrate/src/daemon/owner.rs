//! Whether the owner uses the machine at this moment, and what nobody lends meanwhile.
//!
//! Two questions with one form. Is the machine *taken*: a file of the owner's says so, a program runs that the owner
//! named, or another program computes on the graphics processor that the engine would use? Then nothing is lent, even
//! `always`. Is the owner *active*: others' programs keep processors busy, somebody types? Then nothing is lent `idle`.
//!
//! Invariant: a sign counts at once, its end only after the owner's own span without another.
//! Absent by design: clocks and readings. [`senses`] reads, the loop says when.

pub mod senses;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use substrate_node::Timestamp;

use crate::config::When;

/// What shows that the machine is its owner's now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sign {
    /// The owner's file exists.
    File(PathBuf),
    /// A program the owner named runs.
    Program(String),
    /// Another program computes on a graphics processor.
    Gpu(String),
    /// Others' programs use so many thousandths of a core.
    Cores(u64),
    /// Somebody typed at a terminal.
    Terminal,
    /// It was not looked at for long enough.
    Unknown,
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{} exists", path.display()),
            Self::Program(name) => write!(f, "{name} runs"),
            Self::Gpu(name) => write!(f, "another program computes on {name}"),
            Self::Cores(thousandths) => {
                let tenths = thousandths / 100;
                write!(
                    f,
                    "other programs keep {}.{} cores busy",
                    tenths / 10,
                    tenths % 10
                )
            }
            Self::Terminal => f.write_str("somebody types at a terminal"),
            Self::Unknown => f.write_str("the machine was not watched for long enough"),
        }
    }
}

/// What one look brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The machine is taken.
    pub taken: Option<Sign>,
    /// Its owner is active.
    pub active: Option<Sign>,
}

/// Whether one of the two holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Presence {
    /// The last sign, and when it was seen.
    last: Option<(Sign, Timestamp)>,
    /// It was there when last looked.
    now: bool,
}

impl Presence {
    fn see(&mut self, now: Timestamp, sign: Option<Sign>, idle_after: Duration) {
        self.now = sign.is_some();
        match sign {
            Some(sign) => self.last = Some((sign, now)),
            None => {
                let over = |(_, at): &(Sign, Timestamp)| {
                    u128::from(now.since(*at)) >= idle_after.as_millis()
                };
                if self.last.as_ref().is_some_and(over) {
                    self.last = None;
                }
            }
        }
    }

    fn why(&self, now: Timestamp, idle_after: Duration) -> Option<String> {
        let (sign, at) = self.last.as_ref()?;
        if self.now {
            return Some(sign.to_string());
        }
        let left = idle_after.saturating_sub(Duration::from_millis(now.since(*at)));
        let seconds = left.as_secs().max(1);
        Some(match sign {
            Sign::Unknown => format!("{sign}; {seconds} s to go"),
            _ => format!("its owner used it a moment ago; {seconds} s to go"),
        })
    }
}

/// The owner, as far as a machine can tell.
#[derive(Debug, Clone, Default)]
pub struct Owner {
    taken: Presence,
    active: Presence,
}

impl Owner {
    /// A machine nobody has looked at: not taken, and not known to be idle.
    pub fn new(now: Timestamp) -> Self {
        Self {
            taken: Presence::default(),
            active: Presence {
                last: Some((Sign::Unknown, now)),
                now: false,
            },
        }
    }

    /// Activity counts from now on.
    pub fn begin_again(&mut self, now: Timestamp) {
        self.active = Self::new(now).active;
    }

    /// Takes in what was seen.
    pub fn see(&mut self, now: Timestamp, seen: Seen, idle_after: Duration) {
        self.taken.see(now, seen.taken, idle_after);
        self.active.see(now, seen.active, idle_after);
    }

    /// Whether the machine is its owner's, for one who lends at these times.
    pub fn is_here(&self, when: When) -> bool {
        let active = when == When::Idle && self.active.last.is_some();
        self.taken.last.is_some() || active
    }

    /// Why, in words.
    pub fn why(&self, when: When, now: Timestamp, idle_after: Duration) -> Option<String> {
        let taken = self.taken.why(now, idle_after);
        taken.or_else(|| match when {
            When::Idle => self.active.why(now, idle_after),
            When::Off | When::Always => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE_AFTER: Duration = Duration::from_secs(10);

    /// One look per row: (second, taken, active); whether nothing is lent `always` and `idle` after each.
    fn check(rows: &[(u64, bool, bool, bool, bool)]) {
        let mut owner = Owner::new(Timestamp(0));
        for (second, taken, active, always, idle) in rows {
            let seen = Seen {
                taken: taken.then(|| Sign::Program("game".into())),
                active: active.then_some(Sign::Cores(1500)),
            };
            owner.see(Timestamp(second * 1000), seen, IDLE_AFTER);
            let here = [When::Always, When::Idle].map(|when| owner.is_here(when));
            assert_eq!(here, [*always, *idle], "at {second} s");
        }
    }

    #[test]
    fn a_sign_counts_at_once_and_its_end_after_the_owners_span() {
        check(&[
            (0, false, false, false, true),
            (9, false, false, false, true),
            (10, false, false, false, false),
            (11, false, true, false, true),
            (12, false, false, false, true),
            (20, false, false, false, true),
            (21, false, false, false, false),
            (22, true, false, true, true),
            (31, false, false, true, true),
            (32, false, false, false, false),
        ]);
    }

    #[test]
    fn another_sign_begins_the_span_anew() {
        check(&[
            (0, true, false, true, true),
            (9, true, false, true, true),
            (18, false, false, true, true),
            (19, false, false, false, false),
        ]);
    }

    #[test]
    fn why_is_told_while_it_lasts_and_until_it_is_over() {
        let mut owner = Owner::new(Timestamp(0));
        let why = |owner: &Owner, ms| owner.why(When::Idle, Timestamp(ms), IDLE_AFTER);
        let told = why(&owner, 1_000).unwrap();
        assert!(
            told.ends_with("not watched for long enough; 9 s to go"),
            "{told}"
        );
        let cores = |thousandths| Seen {
            active: Some(Sign::Cores(thousandths)),
            ..Seen::default()
        };
        owner.see(Timestamp(2_000), cores(1540), IDLE_AFTER);
        let told = why(&owner, 2_000).unwrap();
        assert_eq!(told, "other programs keep 1.5 cores busy");
        owner.see(Timestamp(5_000), Seen::default(), IDLE_AFTER);
        let told = why(&owner, 5_000).unwrap();
        assert_eq!(told, "its owner used it a moment ago; 7 s to go");
        assert_eq!(owner.why(When::Always, Timestamp(5_000), IDLE_AFTER), None);
    }
}
