//! Scope, with real nodes: a job that may not leave the machine does not, however busy it is and whoever offers.

use std::time::Duration;

use anyhow::{Context, Result};
use xtask::node::{Node, Scratch};
use xtask::stream::complete;
use xtask::trio::{MODEL, id, import, join, test_bin, test_model};

/// Jobs asked with scope `mine`. Each is a whole signed job with a receipt.
const JOBS: usize = 1000;
/// Clients at once, so that the own machine always has a queue and the idle lender is the faster choice.
const CLIENTS: usize = 4;

#[test]
fn none_of_a_thousand_jobs_of_scope_mine_leaves_although_an_idle_lender_waits() -> Result<()> {
    let scratch = Scratch::new("scope")?;
    let mut own = Node::create(&test_bin(), scratch.path(), "own")?;
    let mut lender = Node::create(&test_bin(), scratch.path(), "lender")?;
    for node in [&mut own, &mut lender] {
        node.start()?;
    }
    join(&own, &lender)?;
    for node in [&own, &lender] {
        import(node, &test_model(), &[])?;
    }
    lender.cli(&["node", "lend", "always"])?;
    own.wait_for("the lender in sight", Duration::from_secs(30), |own| {
        let peers = own.json(&["peers"])?;
        let peers = peers["peers"].as_array().context("no list of peers")?;
        Ok(peers.iter().any(|peer| {
            peer["connected"] == true
                && peer["models"]
                    .as_array()
                    .is_some_and(|models| !models.is_empty())
        }))
    })?;
    // The lender is a real choice: a job that must run elsewhere runs there.
    let control = own
        .command()
        .args([
            "run",
            MODEL,
            "hi",
            "--elsewhere",
            "--scope",
            "circle",
            "--max-tokens",
            "1",
        ])
        .output()?;
    assert!(
        control.status.success(),
        "{}",
        String::from_utf8_lossy(&control.stderr)
    );
    let served = receipts(&lender)?;
    assert_eq!(served, 1, "the control job left a receipt at the lender");

    let key = id(&own)?;
    let api = own.api;
    let workers: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let key = key.clone();
            std::thread::spawn(move || -> Result<()> {
                for job in (client..JOBS).step_by(CLIENTS) {
                    let done = complete(api, MODEL, "a", 1, "mine")
                        .with_context(|| format!("job {job}"))?;
                    anyhow::ensure!(
                        done.node == key && done.route == "local" && done.scope == "mine",
                        "job {job} left: {done:?}"
                    );
                }
                Ok(())
            })
        })
        .collect();
    for worker in workers {
        worker.join().expect("no client panics")?;
    }
    assert_eq!(
        receipts(&lender)?,
        served,
        "the lender answered none of them"
    );
    Ok(())
}

fn receipts(node: &Node) -> Result<usize> {
    let listed = node.json(&["receipts", "list"])?;
    Ok(listed["receipts"]
        .as_array()
        .context("no list of receipts")?
        .len())
}
