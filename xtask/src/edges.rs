//! The crate edges DESIGN allows, checked against `cargo metadata`. A new edge is an architectural
//! change: it is argued in its commit and added here.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};

use xtask::sh;

/// crate → the workspace crates it may depend on.
const ALLOWED: [(&str, &[&str]); 10] = [
    ("substrate-record", &[]),
    ("substrate-ledger", &["substrate-record"]),
    ("substrate-node", &["substrate-record", "substrate-ledger"]),
    ("substrate-mesh", &["substrate-record"]),
    ("substrate-tee", &["substrate-record"]),
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
            "substrate-tee",
            "substrate-sandbox",
            "substrate-api",
        ],
    ),
    ("xtask", &[]),
];

/// crate → the one crate that may name it, in tests too. libp2p stays inside the mesh, llama.cpp inside the worker.
const SOLE_NAMERS: [(&str, &str); 3] = [
    ("libp2p", "substrate-mesh"),
    ("llama-cpp-sys-2", "substrate-worker"),
    ("redb", "substrate"),
];

/// What a crate's manifest names.
#[derive(Default)]
struct Named {
    /// For the crate itself and its build script.
    product: BTreeSet<String>,
    /// For its tests only.
    tests: BTreeSet<String>,
}

/// Fails on any edge that is not allowed.
pub fn check() -> Result<()> {
    let wrong = offences(&declared()?)?;
    if !wrong.is_empty() {
        bail!(
            "crate edges that DESIGN does not allow:\n  {}",
            wrong.join("\n  ")
        );
    }
    Ok(())
}

/// Between our own crates test-only edges are free; what has one namer has it for tests, too.
fn offences(declared: &BTreeMap<String, Named>) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (name, named) in declared {
        let allowed = ALLOWED
            .iter()
            .find(|(krate, _)| krate == name)
            .with_context(|| format!("{name} is not in the list of crates (xtask/src/edges.rs)"))?
            .1;
        for edge in &named.product {
            if declared.contains_key(edge) && !allowed.contains(&edge.as_str()) {
                wrong.push(format!("{name} → {edge}"));
            }
        }
        for edge in named.product.union(&named.tests) {
            if SOLE_NAMERS
                .iter()
                .any(|(dep, namer)| dep == edge && namer != name)
            {
                wrong.push(format!("{name} → {edge} (only its one namer may)"));
            }
        }
    }
    Ok(wrong)
}

fn declared() -> Result<BTreeMap<String, Named>> {
    let metadata =
        sh::output(sh::cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    packages.iter().map(named_by).collect()
}

fn named_by(package: &serde_json::Value) -> Result<(String, Named)> {
    let name = package["name"]
        .as_str()
        .context("a package without a name")?;
    let dependencies = package["dependencies"]
        .as_array()
        .context("a package without dependencies")?;
    let mut named = Named::default();
    for dependency in dependencies {
        let edge = dependency["name"].as_str().context("an edge to nothing")?;
        let list = if dependency["kind"] == "dev" {
            &mut named.tests
        } else {
            &mut named.product
        };
        list.insert(edge.to_owned());
    }
    Ok((name.to_owned(), named))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(crates: &[(&str, &[&str], &[&str])]) -> Vec<String> {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let declared = crates.iter().map(|(name, product, tests)| {
            let named = Named {
                product: set(product),
                tests: set(tests),
            };
            ((*name).to_owned(), named)
        });
        offences(&declared.collect()).expect("every crate is listed")
    }

    #[test]
    fn an_edge_between_crates_is_free_in_tests_only() {
        let record = ("substrate-record", &[][..], &[][..]);
        assert!(check(&[record, ("substrate-sandbox", &[], &["substrate-record"])]).is_empty());
        assert_eq!(
            check(&[record, ("substrate-sandbox", &["substrate-record"], &[])]),
            ["substrate-sandbox → substrate-record"]
        );
    }

    #[test]
    fn what_has_one_namer_is_not_named_elsewhere_even_in_tests() {
        assert!(check(&[("substrate-mesh", &["libp2p"], &[])]).is_empty());
        assert_eq!(
            check(&[("substrate-node", &[], &["libp2p"])]),
            ["substrate-node → libp2p (only its one namer may)"]
        );
    }
}
