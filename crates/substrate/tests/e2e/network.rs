//! One network after the other: models come along, whoever moves is told what it leaves.

use std::time::Duration;

use anyhow::{Context, Result};
use xtask::node::{Node, Scratch};
use xtask::stream::complete;
use xtask::trio::{MODEL, import, test_bin, test_model};

#[test]
fn models_come_along_into_a_network_that_is_founded_or_joined_later() -> Result<()> {
    let scratch = Scratch::new("network")?;
    let make = |name| Node::create(&test_bin(), scratch.path(), name);
    // The founder imports first, and founds then.
    let mut host = make("a")?;
    import(&host, &test_model(), &[])?;
    host.write_file("passphrase", "correct horse battery staple\n")?;
    let passphrase = host.home.join("passphrase");
    let passphrase = passphrase.to_str().context("a path in UTF-8")?;
    host.cli(&["network", "create", "ours", "--passphrase-file", passphrase])?;
    host.start()?;
    assert_eq!(names(&host)?, [MODEL]);
    complete(host.api, MODEL, "a", 1, "mine")?;

    // The guest has a model too, in its silent network of one.
    let mut guest = make("b")?;
    import(&guest, &test_model(), &[])?;
    guest.start()?;
    let code = host.json(&["circle", "invite"])?;
    let code = code["code"].as_str().context("no code")?;
    let told = guest.json(&["circle", "join", code])?;
    assert_eq!(told["network"], "ours");
    assert_eq!(told["left"], "this machine");
    assert_eq!(names(&guest)?, [MODEL]);

    // A second code of the same network moves nobody.
    let code = host.json(&["circle", "invite", "friends"])?;
    let code = code["code"].as_str().context("no code")?;
    let told = guest.json(&["circle", "join", code])?;
    assert!(told["left"].is_null(), "{told}");
    guest.wait_for("the host in sight", Duration::from_secs(30), |guest| {
        let peers = guest.json(&["peers"])?;
        let peers = peers["peers"].as_array().context("a list")?;
        Ok(peers.iter().any(|peer| peer["connected"] == true))
    })
}

fn names(node: &Node) -> Result<Vec<String>> {
    let models = node.json(&["list"])?;
    let models = models["models"].as_array().context("a list")?;
    let name = |model: &serde_json::Value| model["name"].as_str().map(str::to_owned);
    models
        .iter()
        .map(|model| name(model).context("a name"))
        .collect()
}
