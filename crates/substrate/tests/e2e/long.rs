//! An answer longer than the tail a provider keeps: acknowledged on the way, whole at the end, provable on both sides.

use anyhow::{Context, Result};
use xtask::node::Scratch;
use xtask::stream::complete;
use xtask::trio::{Holders, MODEL, Trio, test_bin, test_model};

/// Past two acknowledgements of 256 tokens, and past the 512 that may be unacknowledged.
const TOKENS: u32 = 560;

#[test]
fn a_long_answer_is_acknowledged_on_the_way_and_settled_by_both_sides() -> Result<()> {
    let scratch = Scratch::new("long")?;
    let trio = Trio::start(&test_bin(), scratch.path(), &test_model(), Holders::Guests)?;
    // Raw text that goes on by itself: a chat answer would end when the model thinks it is done.
    let done = complete(
        trio.a.api,
        MODEL,
        "1, 2, 3, 4, 5, 6, 7, 8,",
        TOKENS,
        "circle",
    )?;
    let tokens = done.body["usage"]["completion_tokens"]
        .as_u64()
        .context("usage")?;
    assert_eq!(tokens, u64::from(TOKENS), "{}", done.body);
    assert_eq!(done.route, "direct");
    for node in [&trio.a, trio.guest(&done.node)?] {
        node.wait_for("both halves", std::time::Duration::from_secs(10), |node| {
            Ok(node
                .cli(&["receipts", "show", &done.job])
                .is_ok_and(|story| story.contains("both halves")))
        })?;
    }
    Ok(())
}
