//! What the reader thread has taken from the pipe and the engine has not yet handled.
//!
//! The reader never blocks on the engine, so a Cancel is seen the moment it arrives, however much
//! waits before it: it raises the interrupt of the running sequence at once, and takes its place in
//! the queue as well.
//!
//! Invariant: bounded. Messages over [`MAX_MESSAGES`] or [`MAX_BYTES`] are replaced by their number
//! alone, to be refused in turn; a daemon that goes on past [`MAX_REFUSALS`] is hung up on.
//! Absent by design: threads (the caller starts the reader), and the pipe's other direction.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Condvar, Mutex, MutexGuard};

use substrate_sandbox::wire::{self, ToWorker};

use crate::ffi::Interrupt;

/// Messages that may wait; the daemon keeps its own queue and prepares a handful ahead.
const MAX_MESSAGES: usize = 1024;
/// Bytes of inputs that may wait: eight of the largest.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Refusals that may wait.
const MAX_REFUSALS: usize = 16 * 1024;
/// Cancelled or paused sequences remembered; older ones have long been handled in their turn.
const MAX_MARKS: usize = 1024;

/// One thing for the engine to do.
pub enum Work {
    /// A message.
    Message(ToWorker),
    /// A message about this sequence did not fit.
    Refused(u64),
    /// The daemon hung up or said to leave.
    Leave,
}

/// What has been asked about the running sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Signals {
    /// It is to end.
    pub cancelled: bool,
    /// It is to wait.
    pub paused: bool,
    /// Threads to use from now on.
    pub threads: Option<(u32, u32)>,
    /// The daemon is gone.
    pub leaving: bool,
}

/// The queue between the reader thread and the engine.
pub struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
    interrupt: Interrupt,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Work>,
    messages: usize,
    bytes: usize,
    running: Option<u64>,
    cancelled: VecDeque<u64>,
    paused: VecDeque<u64>,
    threads: Option<(u32, u32)>,
    leaving: bool,
}

impl Inbox {
    /// An empty inbox that raises `interrupt` when the running sequence is cancelled.
    pub fn new(interrupt: Interrupt) -> Inbox {
        Inbox {
            state: Mutex::default(),
            changed: Condvar::new(),
            interrupt,
        }
    }

    /// The reader thread's whole life: takes messages until the pipe ends.
    pub fn fill_from(&self, mut pipe: impl Read) {
        loop {
            match wire::read(&mut pipe) {
                Ok(Some(ToWorker::Shutdown)) | Ok(None) | Err(_) => break,
                Ok(Some(message)) => {
                    if !self.push(message) {
                        break;
                    }
                }
            }
        }
        self.hang_up();
    }

    /// Adds a message; false if the daemon has gone too far.
    pub fn push(&self, message: ToWorker) -> bool {
        let mut state = self.lock();
        state.mark(&message);
        if state.interrupts(&message) {
            self.interrupt.set(true);
        }
        let room = state.enqueue(message);
        self.changed.notify_all();
        room
    }

    /// Nothing more will come.
    pub fn hang_up(&self) {
        let mut state = self.lock();
        state.leaving = true;
        self.interrupt.set(true);
        self.changed.notify_all();
    }

    /// The next thing to do, waiting for it.
    pub fn wait(&self) -> Work {
        let mut state = self.lock();
        loop {
            if let Some(work) = state.take() {
                return work;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// The next thing to do, if there is one.
    pub fn poll(&self) -> Option<Work> {
        self.lock().take()
    }

    /// `seq` runs from now on; lowers an interrupt meant for another.
    pub fn set_running(&self, seq: Option<u64>) {
        let mut state = self.lock();
        state.running = seq;
        let cancelled = seq.is_some_and(|seq| state.cancelled.contains(&seq));
        self.interrupt.set(cancelled || state.leaving);
    }

    /// What has been asked about `seq` meanwhile.
    pub fn signals(&self, seq: u64) -> Signals {
        let mut state = self.lock();
        Signals {
            cancelled: state.cancelled.contains(&seq),
            paused: state.paused.contains(&seq),
            threads: state.threads.take(),
            leaving: state.leaving,
        }
    }

    /// Threads asked for since the last look.
    pub fn threads(&self) -> Option<(u32, u32)> {
        self.lock().threads.take()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    /// Takes note of what must not wait its turn.
    fn mark(&mut self, message: &ToWorker) {
        match message {
            ToWorker::Cancel { seq } => remember(&mut self.cancelled, *seq),
            ToWorker::Pause { seq } => remember(&mut self.paused, *seq),
            ToWorker::Resume { seq } => self.paused.retain(|paused| paused != seq),
            ToWorker::Threads { decode, batch } => self.threads = Some((*decode, *batch)),
            // A number used again begins with a clean slate.
            ToWorker::Prepare(job) => {
                self.cancelled.retain(|seq| *seq != job.seq);
                self.paused.retain(|seq| *seq != job.seq);
            }
            _ => {}
        }
    }

    fn interrupts(&self, message: &ToWorker) -> bool {
        matches!(message, ToWorker::Cancel { seq } if self.running == Some(*seq))
    }

    fn enqueue(&mut self, message: ToWorker) -> bool {
        let size = size_of_text(&message);
        if self.messages < MAX_MESSAGES && self.bytes + size <= MAX_BYTES {
            self.messages += 1;
            self.bytes += size;
            self.queue.push_back(Work::Message(message));
            return true;
        }
        if let Some(seq) = seq_of(&message) {
            self.queue.push_back(Work::Refused(seq));
        }
        self.queue.len() < MAX_REFUSALS
    }

    fn take(&mut self) -> Option<Work> {
        if self.leaving {
            return Some(Work::Leave);
        }
        let work = self.queue.pop_front()?;
        if let Work::Message(message) = &work {
            self.messages -= 1;
            self.bytes -= size_of_text(message);
        }
        Some(work)
    }
}

fn remember(ring: &mut VecDeque<u64>, seq: u64) {
    if !ring.contains(&seq) {
        if ring.len() == MAX_MARKS {
            ring.pop_front();
        }
        ring.push_back(seq);
    }
}

fn size_of_text(message: &ToWorker) -> usize {
    match message {
        ToWorker::Prepare(job) => job.input.len() + job.resume.len() * 4,
        ToWorker::Tokenize { text, .. } => text.len(),
        ToWorker::Detokenize { ids, .. } => ids.len() * 4,
        ToWorker::Render { input, .. } => input.len(),
        _ => 0,
    }
}

/// The sequence a refusal would name. What carries none, or only ends something, needs no answer.
fn seq_of(message: &ToWorker) -> Option<u64> {
    match message {
        ToWorker::Prepare(job) => Some(job.seq),
        ToWorker::Begin { seq }
        | ToWorker::Tokenize { seq, .. }
        | ToWorker::Detokenize { seq, .. }
        | ToWorker::Render { seq, .. }
        | ToWorker::Bench { seq, .. } => Some(*seq),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seq: u64, size: usize) -> ToWorker {
        ToWorker::Tokenize {
            seq,
            text: "x".repeat(size),
            special: false,
        }
    }

    #[test]
    fn a_cancel_is_seen_before_its_turn() {
        let interrupt = Interrupt::default();
        let inbox = Inbox::new(interrupt.clone());
        inbox.set_running(Some(7));
        inbox.push(text(8, 10));
        assert!(!interrupt.is_set());
        inbox.push(ToWorker::Cancel { seq: 7 });
        assert!(interrupt.is_set());
        assert!(inbox.signals(7).cancelled && !inbox.signals(8).cancelled);
        assert!(matches!(
            inbox.poll(),
            Some(Work::Message(ToWorker::Tokenize { seq: 8, .. }))
        ));
    }

    #[test]
    fn a_cancel_of_another_does_not_interrupt() {
        let interrupt = Interrupt::default();
        let inbox = Inbox::new(interrupt.clone());
        inbox.set_running(Some(7));
        inbox.push(ToWorker::Cancel { seq: 8 });
        assert!(!interrupt.is_set());
        inbox.set_running(Some(8));
        assert!(interrupt.is_set());
        inbox.set_running(Some(9));
        assert!(!interrupt.is_set());
    }

    #[test]
    fn what_does_not_fit_is_refused_and_a_cancel_behind_it_is_still_seen() {
        let inbox = Inbox::new(Interrupt::default());
        assert!(inbox.push(text(1, MAX_BYTES)));
        assert!(inbox.push(text(2, 1)));
        inbox.push(ToWorker::Cancel { seq: 3 });
        assert!(inbox.signals(3).cancelled);
        assert!(matches!(inbox.poll(), Some(Work::Message(_))));
        assert!(matches!(inbox.poll(), Some(Work::Refused(2))));
        assert!(inbox.push(text(4, MAX_BYTES)), "the room is free again");
    }

    #[test]
    fn a_daemon_that_never_stops_sending_is_hung_up_on() {
        let inbox = Inbox::new(Interrupt::default());
        let sent = (0..100_000)
            .take_while(|&seq| inbox.push(text(seq, 0)))
            .count();
        assert!(sent <= MAX_REFUSALS);
    }

    #[test]
    fn pause_and_resume_and_threads_are_the_latest() {
        let inbox = Inbox::new(Interrupt::default());
        inbox.push(ToWorker::Pause { seq: 1 });
        inbox.push(ToWorker::Threads {
            decode: 2,
            batch: 2,
        });
        inbox.push(ToWorker::Threads {
            decode: 1,
            batch: 2,
        });
        let expected = Signals {
            paused: true,
            threads: Some((1, 2)),
            ..Signals::default()
        };
        assert_eq!(inbox.signals(1), expected);
        inbox.push(ToWorker::Resume { seq: 1 });
        assert_eq!(inbox.signals(1), Signals::default());
    }
}
