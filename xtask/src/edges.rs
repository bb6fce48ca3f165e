//! The crate edges DESIGN allows, checked against `cargo metadata`. A new edge is an architectural
//! change: it is argued in its commit and added here.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};

use xtask::sh;

/// crate → the workspace crates it may depend on.
const ALLOWED: [(&str, &[&str]); 9] = [
    ("substrate-record", &[]),
    ("substrate-ledger", &["substrate-record"]),
    ("substrate-node", &["substrate-record", "substrate-ledger"]),
    ("substrate-mesh", &["substrate-record"]),
    ("substrate-sandbox", &[]),
    ("substrate-worker", &["substrate-sandbox"]),
    ("substrate-api", &[]),
    (
        "substrate",
        &[
            "substrate-record",
            "substrate-ledger",
            "substrate-node",
            "substrate-mesh",
            "substrate-sandbox",
            "substrate-api",
        ],
    ),
    ("xtask", &[]),
];

/// crate → the one crate that may name it. libp2p stays inside the mesh, llama.cpp inside the worker.
const SOLE_NAMERS: [(&str, &str); 4] = [
    ("libp2p", "substrate-mesh"),
    ("libp2p-stream", "substrate-mesh"),
    ("llama-cpp-sys-2", "substrate-worker"),
    ("redb", "substrate"),
];

/// Fails on any edge that is not allowed.
pub fn check() -> Result<()> {
    let declared = declared_edges()?;
    let mut wrong = Vec::new();
    for (name, edges) in &declared {
        let allowed = ALLOWED
            .iter()
            .find(|(krate, _)| krate == name)
            .with_context(|| format!("{name} is not in the list of crates (xtask/src/edges.rs)"))?
            .1;
        for edge in edges {
            let own = declared.contains_key(edge);
            if own && !allowed.contains(&edge.as_str()) {
                wrong.push(format!("{name} → {edge}"));
            }
            if SOLE_NAMERS
                .iter()
                .any(|(dep, namer)| dep == edge && namer != name)
            {
                wrong.push(format!("{name} → {edge} (only its one namer may)"));
            }
        }
    }
    if !wrong.is_empty() {
        bail!(
            "crate edges that DESIGN does not allow:\n  {}",
            wrong.join("\n  ")
        );
    }
    Ok(())
}

/// Normal and build dependencies of each workspace crate; test-only edges are free.
fn declared_edges() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let metadata =
        sh::output(sh::cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    packages.iter().map(edges_of).collect()
}

fn edges_of(package: &serde_json::Value) -> Result<(String, BTreeSet<String>)> {
    let name = package["name"]
        .as_str()
        .context("a package without a name")?;
    let dependencies = package["dependencies"]
        .as_array()
        .context("a package without dependencies")?;
    let edges = dependencies
        .iter()
        .filter(|dependency| dependency["kind"] != "dev")
        .filter_map(|dependency| dependency["name"].as_str().map(str::to_owned))
        .collect();
    Ok((name.to_owned(), edges))
}
