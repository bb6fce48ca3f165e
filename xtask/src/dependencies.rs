//! What may enter the dependency tree: the licences, sources and bans of `deny.toml`.
//!
//! `cargo deny` reads the same file and looks closer (at licence texts, for one), so it runs where it is installed. What
//! is here needs nothing but `cargo metadata`, so it runs everywhere.
//! Absent by design: advisories. They change without us, and a gate that is green gives the same answer tomorrow.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use xtask::sh;

/// The rules.
const RULES: &str = "deny.toml";

/// Every workspace of this checkout; the second is not shipped, but its crates run here all the same.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "fuzz/Cargo.toml"];

/// The part of `deny.toml` that is checked here.
#[derive(Deserialize)]
struct Rules {
    graph: Graph,
    licenses: Licences,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct Licences {
    allow: Vec<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    krate: String,
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    krate: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// A crate as `cargo metadata` tells of it. Our own have no source.
#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    req: String,
    path: Option<String>,
}

/// Fails with every crate that may not be here, and why.
pub fn check() -> Result<()> {
    let text = std::fs::read_to_string(sh::root().join(RULES))?;
    let rules: Rules = toml::from_str(&text).with_context(|| format!("read {RULES}"))?;
    let (mut seen, mut wrong) = (0, BTreeSet::new());
    for manifest in MANIFESTS {
        for target in &rules.graph.targets {
            let packages = packages(manifest, target)?;
            seen = seen.max(packages.len());
            wrong.extend(packages.iter().flat_map(|package| rules.offences(package)));
        }
    }
    if !wrong.is_empty() {
        let wrong: Vec<String> = wrong.into_iter().collect();
        bail!("{RULES} does not allow:\n  {}", wrong.join("\n  "));
    }
    eprintln!("{seen} crates: licences, sources and bans as in {RULES}");
    if sh::on_path("cargo-deny") {
        let parts = ["check", "bans", "licenses", "sources"];
        sh::run(sh::cargo().args(["deny", "--locked"]).args(parts))?;
    }
    Ok(())
}

fn packages(manifest: &str, target: &str) -> Result<Vec<Package>> {
    let metadata = sh::output(sh::cargo().args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--manifest-path",
        manifest,
        "--filter-platform",
        target,
    ]))?;
    let metadata: Metadata = serde_json::from_str(&metadata)?;
    Ok(metadata.packages)
}

impl Rules {
    fn offences(&self, package: &Package) -> Vec<String> {
        let name = format!("{} {}", package.name, package.version);
        let Some(source) = &package.source else {
            return wildcards(package);
        };
        let mut offences = Vec::new();
        if !self.allows_source(source) {
            offences.push(format!("{name}: it comes from {source}"));
        }
        if let Some(ban) = self.bans.deny.iter().find(|ban| ban.krate == package.name) {
            offences.push(format!("{name}: {}", ban.reason));
        }
        match &package.license {
            None => offences.push(format!("{name}: it names no licence")),
            Some(licence) if self.allows_licence(&package.name, licence) => {}
            Some(licence) => offences.push(format!("{name}: its licence is {licence}")),
        }
        offences
    }

    fn allows_source(&self, source: &str) -> bool {
        let registry = source.strip_prefix("registry+");
        let registry = registry.or_else(|| source.strip_prefix("sparse+"));
        registry.is_some_and(|registry| {
            self.sources
                .allow_registry
                .iter()
                .any(|one| one == registry)
        })
    }

    fn allows_licence(&self, krate: &str, expression: &str) -> bool {
        let exceptions = self
            .licenses
            .exceptions
            .iter()
            .filter(|exception| exception.krate == krate)
            .flat_map(|exception| &exception.allow);
        let allowed: Vec<&String> = self.licenses.allow.iter().chain(exceptions).collect();
        satisfied(expression, |licence| {
            allowed.iter().any(|one| *one == licence)
        }) == Some(true)
    }
}

/// Our own crates say which versions they mean.
fn wildcards(package: &Package) -> Vec<String> {
    package
        .dependencies
        .iter()
        .filter(|dependency| dependency.req == "*" && dependency.path.is_none())
        .map(|dependency| format!("{}: any version of {}", package.name, dependency.name))
        .collect()
}

/// Whether an SPDX expression can be met with allowed licences only; `None` if it is not one. `AND` binds closer than
/// `OR` (SPDX 2.3, annex D), and `/` is how `OR` was once written.
fn satisfied(expression: &str, allowed: impl Fn(&str) -> bool) -> Option<bool> {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    let met = any(&mut rest, &allowed)?;
    rest.is_empty().then_some(met)
}

fn any(words: &mut &[&str], allowed: &impl Fn(&str) -> bool) -> Option<bool> {
    let mut met = all(words, allowed)?;
    while take(words, "OR") {
        met |= all(words, allowed)?;
    }
    Some(met)
}

fn all(words: &mut &[&str], allowed: &impl Fn(&str) -> bool) -> Option<bool> {
    let mut met = one(words, allowed)?;
    while take(words, "AND") {
        met &= one(words, allowed)?;
    }
    Some(met)
}

fn one(words: &mut &[&str], allowed: &impl Fn(&str) -> bool) -> Option<bool> {
    if take(words, "(") {
        let met = any(words, allowed)?;
        return take(words, ")").then_some(met);
    }
    let (licence, rest) = words.split_first()?;
    if ["AND", "OR", "WITH", ")"].contains(licence) {
        return None;
    }
    *words = rest;
    if !take(words, "WITH") {
        return Some(allowed(licence));
    }
    let (exception, rest) = words.split_first()?;
    *words = rest;
    Some(allowed(&format!("{licence} WITH {exception}")))
}

fn take(words: &mut &[&str], word: &str) -> bool {
    match words.split_first() {
        Some((first, rest)) if *first == word => {
            *words = rest;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

    fn rules() -> Rules {
        toml::from_str(
            r#"
            [graph]
            targets = []
            [licenses]
            allow = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"]
            exceptions = [{ crate = "odd", allow = ["NCSA"] }]
            [bans]
            deny = [{ crate = "openssl-sys", reason = "one TLS stack is enough" }]
            [sources]
            allow-registry = ["https://github.com/rust-lang/crates.io-index"]
            "#,
        )
        .expect("sound rules")
    }

    fn check(name: &str, license: Option<&str>, source: &str) -> Vec<String> {
        rules().offences(&Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: license.map(str::to_owned),
            source: Some(source.to_owned()),
            dependencies: Vec::new(),
        })
    }

    #[test]
    fn each_offence_is_named_with_its_crate() {
        assert!(check("good", Some("MIT"), CRATES_IO).is_empty());
        assert_eq!(
            check("bad", Some("GPL-3.0-only"), CRATES_IO),
            ["bad 1.0.0: its licence is GPL-3.0-only"]
        );
        assert_eq!(
            check("bare", None, CRATES_IO),
            ["bare 1.0.0: it names no licence"]
        );
        assert_eq!(
            check("openssl-sys", Some("MIT"), CRATES_IO),
            ["openssl-sys 1.0.0: one TLS stack is enough"]
        );
        for source in [
            "git+https://example.org/a#1",
            "registry+https://example.org",
        ] {
            assert_eq!(
                check("far", Some("MIT"), source),
                [format!("far 1.0.0: it comes from {source}")]
            );
        }
    }

    #[test]
    fn an_exception_is_for_one_crate() {
        let licence = Some("(MIT OR Apache-2.0) AND NCSA");
        assert!(check("odd", licence, CRATES_IO).is_empty());
        assert_eq!(check("even", licence, CRATES_IO).len(), 1);
    }

    #[test]
    fn our_own_crates_name_versions() {
        let any = |path: Option<&str>| Dependency {
            name: "serde".to_owned(),
            req: "*".to_owned(),
            path: path.map(str::to_owned),
        };
        let own = |dependencies| Package {
            name: "own".to_owned(),
            version: "0.1.0".to_owned(),
            license: None,
            source: None,
            dependencies,
        };
        assert!(rules().offences(&own(vec![any(Some("/own"))])).is_empty());
        assert_eq!(
            rules().offences(&own(vec![any(None)])),
            ["own: any version of serde"]
        );
    }

    #[test]
    fn expressions_are_read_as_spdx_reads_them() {
        let check = |expression| {
            satisfied(expression, |licence| {
                licence == "A" || licence == "B WITH C"
            })
        };
        for good in [
            "A",
            "A OR X",
            "X/A",
            "X AND X OR A",
            "A AND B WITH C",
            "(X OR A) AND A",
        ] {
            assert_eq!(check(good), Some(true), "{good}");
        }
        for bad in [
            "X",
            "A AND X",
            "X OR X AND A",
            "B",
            "A WITH C",
            "(A OR X) AND X",
        ] {
            assert_eq!(check(bad), Some(false), "{bad}");
        }
        for broken in ["", "A OR", "(A", "A)", "A B", "OR A", "A WITH"] {
            assert_eq!(check(broken), None, "{broken}");
        }
    }
}
