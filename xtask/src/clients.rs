//! Unmodified client packages against real nodes: `openai`, `anthropic`, `ollama`, and Open WebUI's request sequence.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xtask::model;
use xtask::node::{Node, Scratch};
use xtask::python;
use xtask::sh;
use xtask::trio::{Holders, MODEL, Trio, VECTORS};

/// The packages as their users install them, pinned so that a red gate is our doing.
const PACKAGES: [&str; 4] = [
    "openai==2.8.1",
    "anthropic==2.14.0",
    "ollama==0.6.1",
    "jsonschema==4.25.1",
];

/// Requests of the clients of schemas and of tools in `prove`; in the gate, their own defaults.
const BOUND: [(&str, &str); 2] = [("schema_client.py", "200"), ("tools_client.py", "50")];

/// The clients of schemas and of tools, at an issue's full figures and with its speed.
pub fn prove_bound(bin: &Path, model: &Path) -> Result<()> {
    let python = environment()?;
    let scratch = Scratch::new("bound")?;
    let trio = Trio::start(bin, scratch.path(), model, Holders::Guests)?;
    let asked = BOUND.map(|(script, requests)| {
        let mut more = vec!["--requests", requests];
        if script == "schema_client.py" {
            more.extend(["--least", "0.7"]);
        }
        client(&python, script, &trio.b.api.to_string(), &more)
    });
    // Both are asked, whatever the first finds.
    asked.into_iter().collect()
}

/// As [`client`], with the model for vectors as well.
fn client_of_both(python: &Path, script: &str, api: &str) -> Result<()> {
    client(python, script, api, &["--embedding-model", VECTORS])
}

/// Runs every client against a node that holds the model, and Open WebUI's against one that holds none.
pub fn run(bin: &Path, model: &Path) -> Result<()> {
    let python = environment()?;
    let scratch = Scratch::new("clients")?;
    let trio = Trio::start(bin, scratch.path(), model, Holders::Guests)?;
    trio.share_vectors(&model::vectors_beside(model))?;
    let api = trio.b.api.to_string();
    client_of_both(&python, "openai_client.py", &api)?;
    client_of_both(&python, "ollama_client.py", &api)?;
    client_of_both(&python, "batches_client.py", &api)?;
    for script in [
        "responses_client.py",
        "anthropic_client.py",
        "open_webui_sequence.py",
        "schema_client.py",
        "tools_client.py",
    ] {
        client(&python, script, &api, &[])?;
    }
    creating(&python, &trio.b, model)?;
    // A holds no model; B and C of its circle answer for it.
    client(
        &python,
        "open_webui_sequence.py",
        &trio.a.api.to_string(),
        &[],
    )
}

/// Makes models at a node, with a key that may, of a model it holds and of a file that is sent.
fn creating(python: &Path, node: &Node, model: &Path) -> Result<()> {
    let made = node.json(&["key", "add", "maker", "--admin"])?;
    let key = made["key"].as_str().context("no key")?;
    let file = model.to_str().context("a path in UTF-8")?;
    let adapter = model::adapter_beside(model);
    let adapter = adapter.to_str().context("a path in UTF-8")?;
    let more = ["--api-key", key, "--file", file, "--adapter", adapter];
    client(python, "create_client.py", &node.api.to_string(), &more)
}

fn client(python: &Path, script: &str, api: &str, more: &[&str]) -> Result<()> {
    sh::run(
        sh::command(python)
            .arg(sh::root().join("tests/clients").join(script))
            .args(["--base-url", &format!("http://{api}"), "--model", MODEL])
            .args(more),
    )
}

/// A Python environment with the packages, kept between runs.
pub fn environment() -> Result<PathBuf> {
    python::with_packages("clients", &PACKAGES)
}
