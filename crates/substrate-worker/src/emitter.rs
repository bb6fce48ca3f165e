//! From token bytes to text that may be shown: whole UTF-8 only, stop strings never.
//!
//! Bytes that could still become a character or a stop string are held back. The stop string that
//! is complete first ends the answer, and nothing of it is released.
//!
//! Invariant: what has been released is a function of the bytes pushed so far, not of how they were
//! cut; so the state can be rebuilt anywhere from the ids, and no text is repeated or lost.
//! Absent by design: tokens. Hidden ones push no bytes; the caller knows the vocabulary.

/// What replaces bytes that are not UTF-8, as in Unicode §3.9.
const REPLACEMENT: &str = "\u{fffd}";

/// The text state of one answer.
pub struct Emitter {
    stops: Vec<Vec<u8>>,
    held: Vec<u8>,
    stopped: bool,
}

impl Emitter {
    /// An emitter that ends at any of `stops`; empty ones are ignored.
    pub fn new<S: AsRef<[u8]>>(stops: &[S]) -> Emitter {
        let stops = stops
            .iter()
            .map(|s| s.as_ref().to_vec())
            .filter(|s| !s.is_empty())
            .collect();
        Emitter {
            stops,
            held: Vec::new(),
            stopped: false,
        }
    }

    /// Adds a token's bytes and appends to `out` what may now be shown.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        // Byte by byte is what makes the cut of the input irrelevant: no stop string can hide
        // behind one that ends later.
        for &byte in bytes {
            if self.stopped {
                return;
            }
            self.held.push(byte);
            self.settle(out);
        }
    }

    /// Whether a stop string has come.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The answer is over: appends to `out` what was held back.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        let end = self.held.len();
        self.release(end, out);
        if !self.held.is_empty() {
            out.extend_from_slice(REPLACEMENT.as_bytes());
            self.held.clear();
        }
    }

    fn settle(&mut self, out: &mut Vec<u8>) {
        if let Some(start) = self.completed_stop() {
            self.held.truncate(start);
            self.finish(out);
            self.stopped = true;
            return;
        }
        let end = self.held.len() - self.stop_prefix();
        self.release(end, out);
    }

    /// Where the longest stop string that ends with the held bytes begins.
    fn completed_stop(&self) -> Option<usize> {
        let whole = self.stops.iter().filter(|stop| self.held.ends_with(stop));
        whole.map(|stop| self.held.len() - stop.len()).min()
    }

    /// Length of the longest held suffix that a stop string may begin with.
    fn stop_prefix(&self) -> usize {
        let longest = |stop: &Vec<u8>| {
            let most = self.held.len().min(stop.len() - 1);
            (1..=most)
                .rev()
                .find(|&n| self.held.ends_with(&stop[..n]))
                .unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }

    /// Releases what is whole of the first `end` held bytes.
    fn release(&mut self, end: usize, out: &mut Vec<u8>) {
        let mut start = 0;
        while start < end {
            match std::str::from_utf8(&self.held[start..end]) {
                Ok(text) => {
                    out.extend_from_slice(text.as_bytes());
                    start = end;
                }
                Err(error) => {
                    let valid = start + error.valid_up_to();
                    out.extend_from_slice(&self.held[start..valid]);
                    start = valid;
                    let Some(bad) = error.error_len() else { break };
                    out.extend_from_slice(REPLACEMENT.as_bytes());
                    start += bad;
                }
            }
        }
        self.held.drain(..start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, String, bool) {
        let mut emitter = Emitter::new(stops);
        let released = pieces.iter().map(|piece| {
            let mut out = Vec::new();
            emitter.push(piece, &mut out);
            String::from_utf8(out).expect("whole characters only")
        });
        let released = released.collect();
        let mut tail = Vec::new();
        emitter.finish(&mut tail);
        (
            released,
            String::from_utf8(tail).expect("whole characters only"),
            emitter.is_stopped(),
        )
    }

    #[test]
    fn a_character_cut_by_tokens_waits_until_it_is_whole() {
        let bytes = "a🦀b".as_bytes();
        let (released, tail, _) = run(&[], &[&bytes[..2], &bytes[2..4], &bytes[4..]]);
        assert_eq!(released, ["a", "", "🦀b"]);
        assert_eq!(tail, "");
    }

    #[test]
    fn a_stop_string_across_tokens_is_removed_whole() {
        let (released, tail, stopped) = run(&["</end>"], &[b"hi <", b"/e", b"nd", b">there"]);
        assert_eq!(released, ["hi ", "", "", ""]);
        assert_eq!((tail.as_str(), stopped), ("", true));
    }

    #[test]
    fn a_stop_string_that_does_not_come_is_text_after_all() {
        let (released, tail, stopped) = run(&["</end>"], &[b"x</e", b"m>", b"</en"]);
        assert_eq!(released, ["x", "</em>", ""]);
        assert_eq!((tail.as_str(), stopped), ("</en", false));
    }

    #[test]
    fn of_two_stops_the_one_complete_first_wins() {
        let (released, _, stopped) = run(&["abcd", "bc"], &[b"xabcd"]);
        assert_eq!((released.concat().as_str(), stopped), ("xa", true));
    }

    #[test]
    fn bytes_that_are_no_text_become_replacement_characters() {
        let (released, tail, _) = run(&[], &[b"a\xff", b"b\xf0\x9f", b"c\xe2\x82"]);
        assert_eq!(released, ["a\u{fffd}", "b", "\u{fffd}c"]);
        assert_eq!(tail, "\u{fffd}");
    }

    /// What should come out, from the whole byte string at once.
    fn expected(stops: &[String], bytes: &[u8]) -> (String, bool) {
        for end in 0..=bytes.len() {
            let ended = stops
                .iter()
                .filter(|s| bytes[..end].ends_with(s.as_bytes()));
            if let Some(stop) = ended.max_by_key(|s| s.len()) {
                let kept = &bytes[..end - stop.len()];
                return (String::from_utf8_lossy(kept).into_owned(), true);
            }
        }
        (String::from_utf8_lossy(bytes).into_owned(), false)
    }

    fn pieces() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let piece = prop_oneof![
            "[ab<>/\u{e9}🦀]{0,4}".prop_map(|s| s.into_bytes()),
            prop::collection::vec(any::<u8>(), 0..3),
        ];
        prop::collection::vec(piece, 0..24)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn released_text_is_the_whole_text_up_to_the_first_stop(
            pieces in pieces(), stops in prop::collection::vec("[ab<>/\u{e9}]{1,4}", 0..3),
        ) {
            let refs: Vec<&str> = stops.iter().map(String::as_str).collect();
            let slices: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let (released, tail, stopped) = run(&refs, &slices);
            let whole = (released.concat() + &tail, stopped);
            prop_assert_eq!(whole, expected(&stops, &pieces.concat()));
        }

        #[test]
        fn a_rebuilt_emitter_goes_on_where_the_first_one_stood(
            pieces in pieces(), stops in prop::collection::vec("[ab<>/]{1,4}", 0..3), cut in 0usize..24,
        ) {
            let cut = cut.min(pieces.len());
            let refs: Vec<&str> = stops.iter().map(String::as_str).collect();
            let slices: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let (released, tail, _) = run(&refs, &slices);
            let mut rebuilt = Emitter::new(&refs);
            let mut already = Vec::new();
            for piece in &pieces[..cut] {
                rebuilt.push(piece, &mut already);
            }
            prop_assert_eq!(already, released[..cut].concat().into_bytes());
            let mut rest = Vec::new();
            for piece in &pieces[cut..] {
                rebuilt.push(piece, &mut rest);
            }
            rebuilt.finish(&mut rest);
            prop_assert_eq!(rest, (released[cut..].concat() + &tail).into_bytes());
        }
    }
}
