//! Who hears which frame of a worker, and what a worker may send at all.
//!
//! Invariant: a frame is heard by the sequence it is about while that is open, and by nobody else; whatever a worker sends, what is
//! kept of it is bounded by what it was granted. A sequence that was given up must be told ended in time.
//! Absent by design: processes and sockets. What is found wrong here is told, and the worker's reader ends it (`engine.rs`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use substrate_sandbox::wire::{self, FromWorker};
use tokio::sync::mpsc;

/// Frames of one sequence that may wait for its reader: those granted, and the ones that need no grant (`Prepared`,
/// `Finished` or `Failed`). When the reader stops, the grants do, and so does the sampler.
pub const SEQUENCE_DEPTH: usize = wire::INITIAL_GRANT as usize + 2;

/// Frames in a worker's life about sequences that it has told ended itself. An honest one sends none.
const MOST_STRAYS: u32 = 256;

/// How long a worker may take to tell the end of a sequence that was given up. It does so before its next step, and the longest
/// step measured is 82 s (`WORK_LEASE_MS` in `substrate-node`): one that is silent for longer computes nothing that anybody waits for.
const ANSWER_DEADLINE: Duration = Duration::from_secs(120);

/// Which sequence a reader gets frames of.
#[derive(Default)]
pub struct Readers {
    open: BTreeMap<u64, mpsc::Sender<FromWorker>>,
    /// Given up, and not told ended yet.
    given_up: BTreeMap<u64, GivenUp>,
    /// Sequences opened so far.
    opened: u64,
    /// Frames about sequences that are over.
    strays: u32,
}

/// A sequence that nobody reads any more.
struct GivenUp {
    /// When its end must have been told.
    by: Instant,
    /// Frames of it that may have been on their way.
    left: usize,
}

impl Readers {
    /// A sequence with its reader. The first is 1.
    pub fn open(&mut self, reader: mpsc::Sender<FromWorker>) -> u64 {
        self.opened += 1;
        self.open.insert(self.opened, reader);
        self.opened
    }

    /// Its reader goes away. True if the worker must be told, as it has not told the sequence's end.
    pub fn give_up(&mut self, seq: u64, now: Instant) -> bool {
        if self.open.remove(&seq).is_none() {
            return false;
        }
        let by = now + ANSWER_DEADLINE;
        let left = SEQUENCE_DEPTH;
        self.given_up.insert(seq, GivenUp { by, left });
        true
    }

    /// Whether the worker has kept silent about a sequence that was given up for longer than it may.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.given_up.values().any(|given_up| given_up.by <= now)
    }

    /// No reader hears any more.
    pub fn close(&mut self) {
        self.open.clear();
        self.given_up.clear();
    }

    /// Hands a frame to its reader, or says how it breaks the protocol.
    ///
    /// # Errors
    /// In our own words: the worker's may hold what it was asked.
    pub fn route(&mut self, frame: FromWorker) -> Result<(), String> {
        let Some(seq) = seq_of(&frame) else {
            return Err(match frame {
                FromWorker::Failed { why, .. } => format!("it gave itself up ({why:?})"),
                _ => "a frame out of turn".to_owned(),
            });
        };
        if seq == 0 || seq > self.opened {
            return Err("a frame of a sequence that nobody opened".to_owned());
        }
        let is_last = is_last(&frame);
        let Some(reader) = self.open.get(&seq) else {
            return self.stray(seq, is_last);
        };
        let taken = reader.try_send(frame);
        if is_last {
            self.open.remove(&seq);
        }
        match taken {
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err("it sent more than it was granted".to_owned())
            }
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }

    fn stray(&mut self, seq: u64, is_last: bool) -> Result<(), String> {
        if is_last && self.given_up.remove(&seq).is_some() {
            return Ok(());
        }
        let may = match self.given_up.get_mut(&seq) {
            Some(given_up) => {
                given_up.left = given_up.left.saturating_sub(1);
                given_up.left > 0
            }
            None => {
                self.strays += 1;
                self.strays <= MOST_STRAYS
            }
        };
        match may {
            true => Ok(()),
            false => Err("too many frames of sequences that ended".to_owned()),
        }
    }
}

/// Whether a frame counts against what was granted.
pub fn is_granted(frame: &FromWorker) -> bool {
    matches!(
        frame,
        FromWorker::Prefilled { .. } | FromWorker::Tokens { .. } | FromWorker::Row { .. }
    )
}

/// Whether nothing follows of the sequence.
pub fn is_last(frame: &FromWorker) -> bool {
    matches!(
        frame,
        FromWorker::Finished(_) | FromWorker::Failed { .. } | FromWorker::Benched { .. }
    )
}

/// The sequence a frame is about; `None` if it is about the worker.
fn seq_of(frame: &FromWorker) -> Option<u64> {
    match frame {
        FromWorker::Prepared { seq, .. }
        | FromWorker::Prefilled { seq, .. }
        | FromWorker::Tokens { seq, .. }
        | FromWorker::Row { seq, .. }
        | FromWorker::Tokenized { seq, .. }
        | FromWorker::Detokenized { seq, .. }
        | FromWorker::Rendered { seq, .. }
        | FromWorker::Benched { seq, .. } => Some(*seq),
        FromWorker::Finished(done) => Some(done.seq),
        FromWorker::Failed { seq, .. } => *seq,
        FromWorker::Sealed { .. } | FromWorker::Loaded(_) | FromWorker::Inspected(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use substrate_sandbox::wire::Failure;

    use super::*;

    fn prefilled(seq: u64) -> FromWorker {
        FromWorker::Prefilled { seq, n: 1 }
    }

    fn failed(seq: Option<u64>) -> FromWorker {
        FromWorker::Failed {
            seq,
            why: Failure::Internal,
            detail: "zebra".to_owned(),
        }
    }

    fn opened() -> (Readers, u64, mpsc::Receiver<FromWorker>) {
        let mut readers = Readers::default();
        let (sender, frames) = mpsc::channel(2);
        let seq = readers.open(sender);
        (readers, seq, frames)
    }

    #[test]
    fn a_worker_is_heard_about_open_sequences_only() {
        let (mut readers, seq, mut frames) = opened();
        readers.route(prefilled(seq)).expect("it is open");
        assert!(matches!(
            frames.try_recv(),
            Ok(FromWorker::Prefilled { .. })
        ));
        for other in [0, seq + 1, u64::MAX] {
            let told = readers
                .route(prefilled(other))
                .expect_err("nobody opened it");
            assert_eq!(told, "a frame of a sequence that nobody opened");
        }
    }

    #[test]
    fn frames_beyond_the_grant_break_the_protocol() {
        let (mut readers, seq, _frames) = opened();
        readers.route(prefilled(seq)).expect("granted");
        readers.route(prefilled(seq)).expect("granted");
        let told = readers
            .route(prefilled(seq))
            .expect_err("the reader is full");
        assert_eq!(told, "it sent more than it was granted");
    }

    #[test]
    fn of_a_sequence_that_was_given_up_only_what_was_on_its_way_may_come() {
        let (mut readers, seq, _frames) = opened();
        assert!(readers.give_up(seq, Instant::now()), "the worker is told");
        for _ in 1..SEQUENCE_DEPTH {
            readers.route(prefilled(seq)).expect("it was granted");
        }
        assert!(readers.route(prefilled(seq)).is_err());
        assert!(!readers.give_up(seq, Instant::now()), "only once");
    }

    #[test]
    fn a_sequence_ends_once_and_what_follows_is_counted() {
        let (mut readers, seq, mut frames) = opened();
        readers.route(failed(Some(seq))).expect("its end");
        assert!(matches!(frames.try_recv(), Ok(FromWorker::Failed { .. })));
        assert!(frames.try_recv().is_err(), "the channel closed");
        assert!(
            !readers.give_up(seq, Instant::now()),
            "it has ended already"
        );
        for _ in 0..MOST_STRAYS {
            readers.route(failed(Some(seq))).expect("not yet too many");
        }
        assert!(readers.route(failed(Some(seq))).is_err());
    }

    #[test]
    fn a_worker_that_does_not_tell_the_end_of_what_was_given_up_is_overdue() {
        let (mut readers, seq, _frames) = opened();
        let now = Instant::now();
        let later = now + ANSWER_DEADLINE;
        assert!(
            !readers.is_overdue(later),
            "an open sequence has its reader"
        );
        readers.give_up(seq, now);
        assert!(!readers.is_overdue(later - Duration::from_millis(1)));
        assert!(readers.is_overdue(later));
        readers.route(failed(Some(seq))).expect("late, but in time");
        assert!(!readers.is_overdue(later));
    }

    #[test]
    fn what_is_about_the_worker_is_said_before_it_is_asked_for_anything_or_not_at_all() {
        let again = FromWorker::Sealed {
            stage: 2,
            landlock: 2,
            seccomp: true,
        };
        let told = Readers::default().route(again).expect_err("out of turn");
        assert_eq!(told, "a frame out of turn");
        let told = Readers::default().route(failed(None)).expect_err("its end");
        assert_eq!(told, "it gave itself up (Internal)", "and not its words");
    }
}
