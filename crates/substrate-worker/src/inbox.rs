//! What the reader thread has taken from the pipe and the engine has not yet handled.
//!
//! The reader never blocks on the engine, so a Cancel is seen the moment it arrives, however much
//! waits before it: it takes its place in the queue, and if the step that runs is computed mostly for
//! its sequence, it stops that step at once.
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
/// One thing for the engine to do.
pub enum Work {
    /// A message.
    Message(ToWorker),
    /// A message about this sequence did not fit.
    Refused(u64),
    /// The daemon hung up or said to leave.
    Leave,
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
    /// Sequences whose cancellation stops the step that runs.
    interruptible: Vec<u64>,
    threads: Option<(u32, u32)>,
    leaving: bool,
}

impl Inbox {
    /// An empty inbox that raises `interrupt` when a sequence is cancelled that the running step is for.
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
        if let ToWorker::Threads { decode, batch } = &message {
            state.threads = Some((*decode, *batch));
        }
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

    /// The step that begins is mostly for these: their cancellation stops it. One that waits in the queue
    /// already stops it at once; with none, the interrupt is lowered.
    pub fn set_interruptible(&self, sequences: Vec<u64>) {
        let mut state = self.lock();
        let cancelled = state
            .queue
            .iter()
            .any(|work| matches!(work, Work::Message(ToWorker::Cancel { seq }) if sequences.contains(seq)));
        state.interruptible = sequences;
        self.interrupt.set(cancelled || state.leaving);
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
    fn interrupts(&self, message: &ToWorker) -> bool {
        matches!(message, ToWorker::Cancel { seq } if self.interruptible.contains(seq))
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
    fn a_cancel_stops_the_step_of_its_sequence_before_its_turn() {
        let interrupt = Interrupt::default();
        let inbox = Inbox::new(interrupt.clone());
        inbox.set_interruptible(vec![7]);
        inbox.push(text(8, 10));
        inbox.push(ToWorker::Cancel { seq: 9 });
        assert!(
            !interrupt.is_set(),
            "another sequence's cancel waits its turn"
        );
        inbox.push(ToWorker::Cancel { seq: 7 });
        assert!(interrupt.is_set());
        assert!(matches!(
            inbox.poll(),
            Some(Work::Message(ToWorker::Tokenize { seq: 8, .. }))
        ));
        inbox.set_interruptible(Vec::new());
        assert!(!interrupt.is_set(), "lowered for the steps of others");
    }

    #[test]
    fn a_cancel_that_came_before_the_step_stops_it_too() {
        let interrupt = Interrupt::default();
        let inbox = Inbox::new(interrupt.clone());
        inbox.push(ToWorker::Cancel { seq: 8 });
        inbox.set_interruptible(vec![7]);
        assert!(!interrupt.is_set());
        inbox.set_interruptible(vec![8]);
        assert!(interrupt.is_set());
    }

    #[test]
    fn what_does_not_fit_is_refused_and_room_comes_back() {
        let inbox = Inbox::new(Interrupt::default());
        assert!(inbox.push(text(1, MAX_BYTES)));
        assert!(inbox.push(text(2, 1)));
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
    fn threads_are_the_latest() {
        let inbox = Inbox::new(Interrupt::default());
        for decode in [2, 1] {
            inbox.push(ToWorker::Threads { decode, batch: 2 });
        }
        assert_eq!(inbox.threads(), Some((1, 2)));
        assert_eq!(inbox.threads(), None);
    }
}
