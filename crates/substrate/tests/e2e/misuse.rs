//! What goes wrong in real life: a second daemon, a broken settings file, a damaged model, a full disk, an unknown model.

use std::process::Command;

use anyhow::{Context, Result};
use xtask::node::{Node, Scratch, files_below};
use xtask::stream::complete;
use xtask::trio::{MODEL, import, test_bin, test_model};

fn node(scratch: &Scratch) -> Result<Node> {
    Node::create(&test_bin(), scratch.path(), "n")
}

/// Runs a command that must fail and returns its stderr.
fn refused(node: &Node, args: &[&str]) -> Result<String> {
    let output = node.command().args(args).output()?;
    assert!(!output.status.success(), "{args:?} did not fail");
    Ok(String::from_utf8(output.stderr)?)
}

#[test]
fn a_second_daemon_on_the_same_home_says_who_holds_it() -> Result<()> {
    let scratch = Scratch::new("second")?;
    let mut first = node(&scratch)?;
    first.start()?;
    let pid = first.pid().context("it runs")?;
    let told = refused(&first, &["serve", "--api", "127.0.0.1:0"])?;
    assert!(told.contains(&pid.to_string()), "{told}");
    Ok(())
}

#[test]
fn a_broken_settings_file_is_named_with_key_and_line() -> Result<()> {
    let scratch = Scratch::new("config")?;
    let node = node(&scratch)?;
    node.write_config("[lending]\nwhen = \"always\"\ncores = \"many\"\n")?;
    let told = refused(&node, &["serve"])?;
    assert!(
        told.contains("config.toml:3") && told.contains("lending.cores"),
        "{told}"
    );
    Ok(())
}

#[test]
fn damaged_models_are_refused_before_use_and_nothing_of_them_is_listed() -> Result<()> {
    let scratch = Scratch::new("damaged")?;
    let mut node = node(&scratch)?;
    node.start()?;
    let whole = std::fs::read(test_model())?;
    let mut lies = whole[..4 * 1024 * 1024].to_vec();
    // The number of tensors, after the magic and the version.
    lies[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    for (name, bytes) in [
        ("truncated", &whole[..whole.len() / 2]),
        ("lies", &lies[..]),
        ("noise", &[7; 4096][..]),
    ] {
        let file = scratch.path().join(format!("{name}.gguf"));
        std::fs::write(&file, bytes)?;
        let told = refused(
            &node,
            &["import", file.to_str().context("UTF-8")?, "--as", name],
        )?;
        assert!(told.contains("error:"), "{name}: {told}");
    }
    assert_eq!(
        node.json(&["list"])?["models"].as_array().map(Vec::len),
        Some(0)
    );
    // The daemon is well: the whole file goes in and answers.
    import(&node, &test_model(), &[])?;
    complete(node.api, MODEL, "a", 1, "mine")?;
    Ok(())
}

#[test]
fn an_unknown_model_is_a_404_with_a_hint_in_each_apis_shape() -> Result<()> {
    let scratch = Scratch::new("unknown")?;
    let mut node = node(&scratch)?;
    node.start()?;
    import(&node, &test_model(), &[])?;
    let error =
        complete(node.api, "smollm2:136m", "a", 1, "mine").expect_err("there is no such model");
    let told = error.to_string();
    assert!(
        told.starts_with("404") && told.contains("\"error\"") && told.contains("smollm2:135m"),
        "{told}"
    );
    Ok(())
}

#[test]
fn a_full_disk_is_a_clear_error_and_the_store_stays_whole() -> Result<()> {
    let scratch = Scratch::new("full")?;
    let home = scratch.path().join("n");
    std::fs::create_dir(&home)?;
    // A disk too small for the model, mounted where the home will be; needs a mount namespace of its own.
    let script = format!(
        "mount -t tmpfs -o size=48m,mode=0700,uid={uid},gid={uid} none {home} && exec setpriv --reuid {uid} --regid {uid} --clear-groups \
         env SUBSTRATE_HOME={home} {bin}/substrate import {model} --as {MODEL}",
        uid = xtask::stage::UNPRIVILEGED,
        home = home.display(),
        bin = test_bin().display(),
        model = test_model().display(),
    );
    if !xtask::packages::is_root() {
        // Without root a user namespace gives the mount; the import then runs as its only user.
        return full_disk_unprivileged(&home);
    }
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "98 MB fit into 48");
    assert!(told.contains("free") || told.contains("full"), "{told}");
    Ok(())
}

fn full_disk_unprivileged(home: &std::path::Path) -> Result<()> {
    let script = format!(
        "mount -t tmpfs -o size=48m,mode=0700 none {home} && SUBSTRATE_HOME={home} exec {bin}/substrate import {model} --as {MODEL}",
        home = home.display(),
        bin = test_bin().display(),
        model = test_model().display(),
    );
    let output = Command::new("unshare")
        .args([
            "--user",
            "--map-current-user",
            "--mount",
            "sh",
            "-c",
            &script,
        ])
        .output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "98 MB fit into 48");
    assert!(told.contains("free") || told.contains("full"), "{told}");
    Ok(())
}

#[test]
fn a_killed_daemon_leaves_no_worker_and_starts_again_with_its_receipts() -> Result<()> {
    let scratch = Scratch::new("killed")?;
    let mut node = node(&scratch)?;
    node.start()?;
    import(&node, &test_model(), &[])?;
    let done = complete(node.api, MODEL, "a", 1, "mine")?;
    let worker = node.json(&["ps"])?["models"][0]["pid"]
        .as_u64()
        .context("a worker")?;
    node.kill()?;
    let gone = std::path::PathBuf::from(format!("/proc/{worker}"));
    node.wait_for(
        "the worker's end",
        std::time::Duration::from_secs(5),
        |_| Ok(!gone.exists()),
    )?;
    node.start()?;
    let story = node.cli(&["receipts", "show", &done.job])?;
    assert!(story.contains("both halves"), "{story}");
    assert!(!files_below(&node.home)?.is_empty());
    Ok(())
}
