//! The install manifest: a worker that is not the one that was installed is not started, and the owner learns why.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use substrate::installed::MANIFEST;
use xtask::node::{Node, Scratch};
use xtask::stage;
use xtask::trio::test_bin;

/// The staged programs once more, for one test to damage.
fn copy(folder: &Path) -> Result<PathBuf> {
    let bin = folder.join("bin");
    fs::create_dir_all(&bin)?;
    fs::set_permissions(&bin, fs::Permissions::from_mode(0o755))?;
    for name in ["substrate", "substrate-worker", "substrate-wall-attacker"] {
        stage::place(&test_bin().join(name), &bin.join(name))?;
    }
    fs::copy(test_bin().join(MANIFEST), bin.join(MANIFEST))?;
    Ok(bin)
}

/// What a daemon that does not start says.
fn refusal(bin: &Path, folder: &Path) -> Result<String> {
    let mut node = Node::create(bin, folder, "n")?;
    let told = node.start().err().context("the daemon started")?;
    Ok(format!("{told:#}"))
}

#[test]
fn a_worker_with_a_flipped_bit_is_refused_by_its_digest() -> Result<()> {
    let scratch = Scratch::new("installed")?;
    let bin = copy(scratch.path())?;
    let mut node = Node::create(&bin, scratch.path(), "whole")?;
    node.start().context("with all as it was installed")?;
    node.stop()?;

    // The last byte belongs to no code: the program would run.
    let worker = bin.join("substrate-worker");
    let mut bytes = fs::read(&worker)?;
    let last = bytes.last_mut().context("an empty worker")?;
    *last ^= 1;
    fs::write(&worker, bytes)?;
    let told = refusal(&bin, scratch.path())?;
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(bin.join(MANIFEST))?)?;
    let expected = manifest["sha256"]["substrate-worker"].as_str();
    let found = xtask::model::digest(&worker)?;
    for part in [
        &worker.display().to_string(),
        expected.context("the manifest names no worker")?,
        &found,
        "hint: install substrate, its worker and the manifest together again",
    ] {
        assert!(told.contains(part), "{told} does not tell {part}");
    }
    // The same for a command that needs a worker and no daemon, and for whoever asks what is wrong.
    let node = Node::create(&bin, scratch.path(), "n")?;
    let doctor = node.cli(&["doctor"]).unwrap_err().to_string();
    assert!(doctor.contains("1 thing does not work"), "{doctor}");
    // A command that starts a daemon tells that one's last words, and not the earlier one's.
    let starts = || node.cli(&["run", "any", "hello"]).unwrap_err().to_string();
    let told = starts();
    assert!(told.contains("the daemon ended at once"), "{told}");
    assert!(told.contains(&found), "{told}");
    let mut bytes = fs::read(&worker)?;
    bytes.push(0);
    fs::write(&worker, bytes)?;
    let told = starts();
    assert!(told.contains(&xtask::model::digest(&worker)?), "{told}");
    assert!(!told.contains(&found), "{told}");
    Ok(())
}

#[test]
fn without_a_manifest_or_a_line_in_it_no_worker_is_trusted() -> Result<()> {
    let scratch = Scratch::new("manifest")?;
    let bin = copy(scratch.path())?;
    fs::write(bin.join(MANIFEST), r#"{"version":1,"sha256":{}}"#)?;
    let told = refusal(&bin, scratch.path())?;
    assert!(told.contains("is not in substrate-manifest.json"), "{told}");
    fs::write(bin.join(MANIFEST), r#"{"version":1}"#)?;
    let told = refusal(&bin, scratch.path())?;
    assert!(told.contains("missing field `sha256`"), "{told}");
    fs::remove_file(bin.join(MANIFEST))?;
    let told = refusal(&bin, scratch.path())?;
    assert!(told.contains("there is no "), "{told}");
    assert!(told.contains("`cargo xtask stage` does"), "{told}");
    Ok(())
}
