//! A job that demands a virtual machine, answered by the real engine in a real guest, under emulation; and what is done where
//! there is none, or none that boots.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::node::{Node, Scratch};
use xtask::trio::{MODEL, import, test_bin, test_model};

/// Emulated, a token takes seconds; so few are asked for, of a prompt of one, without the words that the model's own template adds.
const TOKENS: &str = "2";

/// What is asked.
const PROMPT: &str = "Hi";

/// The model with a template that adds nothing.
const SHORT: &str = "short";

/// Settings that make it bearable.
const EMULATED: &str = "[walls]\nmicrovm = \"emulated\"\n[models]\ncontext = 128\nparallel = 1\n";

/// The folder of the programs, if it has a guest image; the gate does not accept that it has none.
fn with_image() -> Option<PathBuf> {
    let bin = test_bin();
    let there = bin.join("microvm/image.json").is_file()
        && Path::new("/usr/bin/qemu-system-x86_64").is_file();
    let wanted = std::env::var_os("SUBSTRATE_TEST_MICROVM").is_some();
    assert!(
        there || !wanted,
        "no guest image in {}, or no QEMU",
        bin.display()
    );
    if !there {
        eprintln!("skipped: no guest image in {}, or no QEMU", bin.display());
    }
    there.then_some(bin)
}

fn started(bin: &Path, scratch: &Scratch, config: &str) -> Result<Node> {
    let mut node = Node::create(bin, scratch.path(), "n")?;
    node.write_config(config)?;
    node.start()?;
    import(&node, &test_model(), &[])?;
    let recipe = scratch.path().join("n/Modelfile");
    std::fs::write(
        &recipe,
        format!("FROM {MODEL}\nTEMPLATE {{{{ messages[-1]['content'] }}}}\n"),
    )?;
    node.cli(&["create", SHORT, "-f", &recipe.display().to_string()])?;
    Ok(node)
}

/// The text, the facts of the end, and the job.
fn ask(node: &Node, wall: &str) -> Result<(String, Value, String)> {
    let told = node.cli(&[
        "--json",
        "run",
        SHORT,
        PROMPT,
        "--temperature",
        "0",
        "--max-tokens",
        TOKENS,
        "--demand-wall",
        wall,
    ])?;
    let events = told.lines().map(serde_json::from_str);
    let events: Vec<Value> = events.collect::<Result<_, _>>()?;
    let texts = events.iter().filter_map(|event| event["text"].as_str());
    let end = events.last().context("no event")?.clone();
    ensure!(end["event"] == "finished", "{end}");
    let job = events.iter().find_map(|event| event["job"].as_str());
    let job = job.context("no event names the job")?;
    Ok((texts.collect(), end, job.to_owned()))
}

#[test]
fn a_job_that_demands_a_machine_is_answered_in_one() -> Result<()> {
    let Some(bin) = with_image() else {
        return Ok(());
    };
    let scratch = Scratch::new("machines")?;
    let node = started(&bin, &scratch, EMULATED)?;
    let (usual, end, _) = ask(&node, "process")?;
    assert_eq!(end["wall"], "process", "{end}");
    let (inside, end, job) = ask(&node, "microvm-emulated")?;
    assert_eq!(end["wall"], "microvm-emulated", "{end}");
    assert_eq!(inside, usual, "the same model, the same tokens");
    // The machine is gone with its job.
    let listed = node.json(&["ps"])?;
    let models = listed["models"].as_array().context("no list")?;
    let walls: Vec<&Value> = models.iter().map(|model| &model["wall"]).collect();
    assert_eq!(walls, ["process"], "{listed}");
    // And what both signed says which image it was.
    use sha2::{Digest, Sha256};
    let image = Sha256::digest(std::fs::read(bin.join("microvm/image.json"))?);
    println!("in an emulated machine: {}", end["timings_ms"]);
    let proof = scratch.path().join("n/proof");
    node.cli(&[
        "receipts",
        "export",
        &job,
        "-o",
        &proof.display().to_string(),
    ])?;
    let proof = std::fs::read(proof)?;
    ensure!(
        proof
            .windows(image.len())
            .any(|window| window == &image[..]),
        "the image's name is not in the proof"
    );
    Ok(())
}

#[test]
fn an_image_with_another_byte_is_no_wall_and_the_owner_is_told() -> Result<()> {
    let Some(bin) = with_image() else {
        return Ok(());
    };
    let scratch = Scratch::new("spoilt")?;
    let copy = scratch.path().join("bin");
    copy_tree(&bin, &copy)?;
    let root = copy.join("microvm/root.erofs");
    let mut bytes = std::fs::read(&root)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&root, bytes)?;
    let node = started(&copy, &scratch, EMULATED)?;
    let status = node.json(&["status"])?;
    let warnings = status["warnings"].to_string();
    ensure!(
        warnings.contains("virtual machines are no wall here") && warnings.contains("root.erofs"),
        "{status}"
    );
    // Nothing weaker is taken for it.
    let asked = node.cli(&[
        "run",
        MODEL,
        PROMPT,
        "--demand-wall",
        "microvm-emulated",
        "--deadline",
        "2s",
    ]);
    ensure!(asked.is_err(), "{asked:?}");
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_tree(&entry.path(), &target)?,
            false => drop(std::fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}
