//! `substrate wall check`: the suite, by the installed programs, as an ordinary user.

use anyhow::{Context, Result};
use xtask::node::{Node, Scratch};
use xtask::trio::test_bin;

/// Attacks in all, and those that must succeed without the wall: what the walls' issue asks for.
const ATTACKS: usize = 60;
const COUNTED: usize = 40;

#[test]
fn nothing_gets_out_of_the_wall_and_the_table_says_so() -> Result<()> {
    let scratch = Scratch::new("walls")?;
    let node = Node::create(&test_bin(), scratch.path(), "n")?;
    let told = node.json(&["wall", "check", "--tier", "process"])?;
    let tier = &told["tiers"][0];
    assert_eq!(tier["offered"], true, "{tier}");
    let attempts = tier["attempts"].as_array().context("no attempts")?;
    let counted = |name: &str| {
        let counts = |attempt: &&serde_json::Value| {
            attempt["denied"] == true && attempt["control_succeeded"] == true
        };
        let named = |attempt: &&serde_json::Value| name.is_empty() || attempt["name"] == name;
        attempts.iter().filter(named).filter(counts).count()
    };
    assert!(attempts.len() >= ATTACKS, "{}", attempts.len());
    assert!(counted("") >= COUNTED, "{}", counted(""));
    // One of each kind, so that the controls are seen to be these attacks' own.
    for name in [
        "open a file of the host",
        "swap the model",
        "speak TCP",
        "fork",
        "mount",
        "add a key",
        "outlive the daemon",
    ] {
        assert_eq!(counted(name), 1, "{name}");
    }
    let table = node.cli(&["wall", "check", "--tier", "process"])?;
    assert!(table.contains("killed by the filter"), "{table}");
    assert!(
        table.contains("succeed without the wall; no cgroup delegated")
            || table.contains("succeed without the wall; each worker has a cgroup"),
        "{table}"
    );
    Ok(())
}

#[test]
fn the_wall_of_graphics_processors_is_in_the_table_and_not_offered() -> Result<()> {
    let scratch = Scratch::new("walls-gpu")?;
    let node = Node::create(&test_bin(), scratch.path(), "n")?;
    let told = node.json(&["wall", "check", "--tier", "process+gpu"])?;
    let tier = &told["tiers"][0];
    assert_eq!(tier["tier"], "process+gpu", "{told}");
    assert_eq!(tier["offered"], false, "{told}");
    assert_eq!(tier["attempts"], serde_json::json!([]), "{told}");
    let reason = tier["reason"].as_str().context("no reason")?;
    assert!(
        reason.contains("no graphics processor") || reason.contains("unproven"),
        "{reason}"
    );
    Ok(())
}
