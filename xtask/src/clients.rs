//! Unmodified client packages against real nodes: `openai`, `anthropic`, `ollama`, and Open WebUI's request sequence.

use std::path::{Path, PathBuf};

use anyhow::Result;
use xtask::node::Scratch;
use xtask::sh;
use xtask::trio::{Holders, MODEL, Trio};

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
    for (script, requests) in BOUND {
        let mut more = vec!["--requests", requests];
        if script == "schema_client.py" {
            more.extend(["--least", "0.7"]);
        }
        client(&python, script, &trio.b.api.to_string(), &more)?;
    }
    Ok(())
}

/// Runs every client against a node that holds the model, and Open WebUI's against one that holds none.
pub fn run(bin: &Path, model: &Path) -> Result<()> {
    let python = environment()?;
    let scratch = Scratch::new("clients")?;
    let trio = Trio::start(bin, scratch.path(), model, Holders::Guests)?;
    for script in [
        "openai_client.py",
        "responses_client.py",
        "anthropic_client.py",
        "ollama_client.py",
        "open_webui_sequence.py",
        "schema_client.py",
        "tools_client.py",
    ] {
        client(&python, script, &trio.b.api.to_string(), &[])?;
    }
    // A holds no model; B and C of its circle answer for it.
    client(
        &python,
        "open_webui_sequence.py",
        &trio.a.api.to_string(),
        &[],
    )
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
    with_packages("clients", &PACKAGES)
}

/// A Python environment with these packages, kept between runs and made anew when the list changes.
pub fn with_packages(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = sh::cache()?.join(format!("venv-{name}"));
    let stamp = folder.join("packages");
    let wanted = packages.join("\n");
    let python = folder.join("bin/python");
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) && python.exists() {
        return Ok(python);
    }
    let _ = std::fs::remove_dir_all(&folder);
    sh::run(sh::command("python3").args(["-m", "venv"]).arg(&folder))?;
    sh::run(
        sh::command(&python)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(packages),
    )?;
    std::fs::write(stamp, wanted)?;
    Ok(python)
}
