//! An answer longer than the tail a provider keeps: acknowledged on the way, whole at the end, provable on both sides.

use anyhow::{Context, Result};
use xtask::node::Scratch;
use xtask::stream::Chat;
use xtask::trio::{Holders, MODEL, Trio, test_bin, test_model};

/// Past two acknowledgements of 256 tokens, and past the 512 that may be unacknowledged.
const TOKENS: u32 = 560;

#[test]
fn a_long_answer_is_acknowledged_on_the_way_and_settled_by_both_sides() -> Result<()> {
    let scratch = Scratch::new("long")?;
    let trio = Trio::start(&test_bin(), scratch.path(), &test_model(), Holders::Guests)?;
    // A list the model does not end by itself within the limit.
    let prompt = "Count from one to two hundred in words, one number on each line.";
    let answer = Chat::new(trio.a.api, MODEL, prompt, TOKENS).run()?;
    let tokens = answer.usage["completion_tokens"]
        .as_u64()
        .context("usage")?;
    assert!(
        tokens > 512,
        "only {tokens} tokens: the prompt no longer makes a long answer"
    );
    assert_eq!(answer.substrate["attempts"], 1, "{}", answer.substrate);
    let provider = answer.substrate["node"]
        .as_str()
        .context("node")?
        .to_owned();
    for node in [&trio.a, trio.guest(&provider)?] {
        node.wait_for("both halves", std::time::Duration::from_secs(10), |node| {
            Ok(node
                .cli(&["receipts", "show", &answer.job])
                .is_ok_and(|story| story.contains("both halves")))
        })?;
    }
    Ok(())
}
