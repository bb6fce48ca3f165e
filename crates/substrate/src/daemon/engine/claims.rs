//! What a worker says of itself and of its model, made fit to be shown and reckoned with.
//!
//! Invariant: a text of a worker that reaches a screen or a log has no control characters and a bounded length.
//! Absent by design: judging whether it is true. That needs another worker.

use substrate_sandbox::wire::ModelFacts;

/// Characters of a name that are kept: the longest in use have about eighty.
const MOST_OF_A_NAME: usize = 200;

/// Characters of a reason that are kept: what a job stream carries of one, in bytes.
const MOST_OF_A_REASON: usize = 256;

/// A rate above this, in millitokens per second, is nonsense on any machine.
const FASTEST: u64 = 1_000_000_000;

/// Why something failed, in a worker's words.
pub fn reason(text: &str) -> String {
    plain(text, MOST_OF_A_REASON)
}

/// What a worker said of its model. Its template and its licence stay as they are in the file: they are shown to whoever
/// asks for them.
pub fn facts(mut facts: ModelFacts) -> ModelFacts {
    for name in [
        &mut facts.arch,
        &mut facts.quant,
        &mut facts.name,
        &mut facts.backend,
        &mut facts.build,
    ] {
        *name = plain(name, MOST_OF_A_NAME);
    }
    facts
}

/// What a worker measured of itself.
pub fn rate(millitokens_per_second: u64) -> u64 {
    millitokens_per_second.min(FASTEST)
}

fn plain(text: &str, most: usize) -> String {
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(most).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workers_words_move_no_cursor_and_fill_no_log() {
        assert_eq!(reason("\u{1b}[2Jgone\nagain\u{9b}1m"), " [2Jgone again 1m");
        assert_eq!(reason(&"long ".repeat(1000)).len(), MOST_OF_A_REASON);
        assert_eq!(rate(u64::MAX), FASTEST);
    }
}
