//! What a provider has sent and the requester has not acknowledged: sent again after a lost stream.
//!
//! Invariant: bounded; while it is full, nothing more is read from the worker, so the sampler waits.

use std::collections::VecDeque;

use substrate_mesh::job::JobFrame;

/// Tokens that may be unacknowledged. PROTOCOL.md 5 keeps 256; as many again may be on their way
/// while the Ack of the first 256 comes back, so that a long round trip does not stop the sampler.
pub const TAIL_TOKENS: usize = 512;

/// Unacknowledged frames, oldest first, each with the number of tokens after it.
#[derive(Default)]
pub struct Tail {
    frames: VecDeque<(u32, JobFrame)>,
    /// Text held back until the end: a frame without tokens, which no count can acknowledge.
    last: Option<JobFrame>,
    acked: u32,
    sent: u32,
}

impl Tail {
    /// Remembers a frame of `tokens` tokens that is about to be sent.
    pub fn push(&mut self, tokens: usize, frame: JobFrame) {
        self.sent += u32::try_from(tokens).unwrap_or(u32::MAX);
        self.frames.push_back((self.sent, frame));
    }

    /// Remembers the text that came with the end. A requester that has it already knows it by its lack of tokens.
    pub fn end(&mut self, frame: JobFrame) {
        self.last = Some(frame);
    }

    /// Forgets what the requester has.
    pub fn acked(&mut self, tokens: u32) {
        self.acked = self.acked.max(tokens);
        while self
            .frames
            .front()
            .is_some_and(|(after, _)| *after <= tokens)
        {
            self.frames.pop_front();
        }
    }

    /// Whether the sampler must wait.
    pub fn is_full(&self) -> bool {
        (self.sent - self.acked) as usize >= TAIL_TOKENS
    }

    /// The frames that follow the first `tokens` tokens; `None` if they are not all here or split a frame.
    pub fn after(&self, tokens: u32) -> Option<impl Iterator<Item = &JobFrame>> {
        let at_border = tokens == self.acked
            || tokens == self.sent
            || self.frames.iter().any(|(after, _)| *after == tokens);
        (at_border && tokens >= self.acked).then(|| {
            self.frames
                .iter()
                .filter(move |(after, _)| *after > tokens)
                .map(|(_, frame)| frame)
                .chain(&self.last)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32) -> JobFrame {
        JobFrame::Token {
            ids: vec![id],
            bytes: Vec::new(),
            logprobs: Vec::new(),
        }
    }

    fn tail(n: u32) -> Tail {
        let mut tail = Tail::default();
        for id in 0..n {
            tail.push(1, token(id));
        }
        tail
    }

    #[test]
    fn what_follows_the_last_token_received_is_sent_again() {
        let mut tail = tail(10);
        tail.acked(4);
        let again: Vec<_> = tail.after(7).expect("7 is a border").cloned().collect();
        assert_eq!(again, [token(7), token(8), token(9)]);
        assert_eq!(tail.after(10).map(Iterator::count), Some(0));
        assert_eq!(tail.after(4).map(Iterator::count), Some(6));
    }

    #[test]
    fn the_last_text_is_sent_again_whatever_was_acknowledged() {
        let mut tail = tail(3);
        tail.acked(3);
        let end = JobFrame::Token {
            ids: Vec::new(),
            bytes: b"!".to_vec(),
            logprobs: Vec::new(),
        };
        tail.end(end.clone());
        assert_eq!(
            tail.after(3)
                .expect("3 is a border")
                .cloned()
                .collect::<Vec<_>>(),
            [end]
        );
    }

    #[test]
    fn a_count_before_the_acknowledged_one_or_past_the_end_is_refused() {
        let mut tail = tail(10);
        tail.acked(4);
        assert!(tail.after(3).is_none());
        assert!(tail.after(11).is_none());
    }

    #[test]
    fn a_full_tail_stops_the_sampler_until_an_ack() {
        let mut tail = tail(u32::try_from(TAIL_TOKENS).expect("small"));
        assert!(tail.is_full());
        tail.acked(1);
        assert!(!tail.is_full());
    }
}
