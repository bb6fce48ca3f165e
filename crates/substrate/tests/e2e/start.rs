//! The newcomer's way: import and run, with no daemon started by hand.

use anyhow::Result;
use xtask::node::{Node, Scratch};
use xtask::trio::{MODEL, import, test_bin, test_model};

#[test]
fn run_starts_a_daemon_that_stays_until_it_is_told_to_stop() -> Result<()> {
    let scratch = Scratch::new("start")?;
    let node = Node::create(&test_bin(), scratch.path(), "n")?;
    node.write_config(&format!(
        "[api]\nlisten = [\"{}\"]\n\n[mesh]\nlisten = [\"/ip4/127.0.0.1/tcp/{}\"]\nmdns = false\n",
        node.api, node.mesh
    ))?;
    // Without a daemon, the command line does it itself, behind the same wall.
    import(&node, &test_model(), &[])?;
    let output = node
        .command()
        .args([
            "run",
            MODEL,
            "Say hello.",
            "--max-tokens",
            "8",
            "--temperature",
            "0",
        ])
        .output()?;
    let (said, told) = (
        String::from_utf8(output.stdout)?,
        String::from_utf8(output.stderr)?,
    );
    assert!(output.status.success(), "{told}");
    assert!(!said.trim().is_empty());
    assert!(
        told.contains("starting the daemon"),
        "it says that it started a daemon: {told}"
    );
    // It stays, and answers other clients.
    let status = node.json(&["status"])?;
    assert_eq!(status["lending"], "off");
    let listed = ureq::get(&format!("http://{}/api/version", node.api)).call();
    assert!(listed.is_ok(), "{listed:?}");
    node.cli(&["stop", "--daemon"])?;
    node.wait_for(
        "the daemon's end",
        std::time::Duration::from_secs(20),
        |node| {
            Ok(ureq::get(&format!("http://{}/healthz", node.api))
                .call()
                .is_err())
        },
    )
}
