//! A daemon that is started as root: it refuses, or is somebody else at once and for good.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::node::{Node, Scratch};
use xtask::packages::is_root;
use xtask::stage::UNPRIVILEGED;
use xtask::trio::test_bin;

/// How long a daemon may take to answer, or to end when it is told to.
const PATIENCE: Duration = Duration::from_secs(30);

/// `substrate serve` as root, which [`Node`] never does.
fn serve(node: &Node, home: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(test_bin().join("substrate"));
    command
        .env_clear()
        .env("SUBSTRATE_HOME", home)
        .env("PATH", "/usr/bin:/bin")
        .args(["serve", "--api", &node.api.to_string()])
        .args(["--listen", &format!("/ip4/127.0.0.1/tcp/{}", node.mesh)])
        .args(more)
        .stdin(Stdio::null());
    command
}

fn refusal(output: Output) -> Result<String> {
    assert!(!output.status.success(), "the daemon ran as root");
    Ok(String::from_utf8(output.stderr)?)
}

#[test]
fn root_is_refused_before_anything_is_made() -> Result<()> {
    if !is_root() {
        eprintln!("skipped: only root can start a daemon as root");
        return Ok(());
    }
    let scratch = Scratch::new("refused")?;
    let node = Node::create(&test_bin(), scratch.path(), "n")?;
    let home = scratch.path().join("roots");
    let told = refusal(serve(&node, &home, &[]).output()?)?;
    assert!(told.contains("the daemon does not run as root"), "{told}");
    assert!(told.contains("serve --user NAME"), "{told}");
    assert!(!home.exists(), "a folder of root's was made");
    let told = refusal(serve(&node, &home, &["--user", "root"]).output()?)?;
    assert!(told.contains("'root' is root"), "{told}");
    let told = refusal(serve(&node, &home, &["--user", "nobody-like-this"]).output()?)?;
    assert!(
        told.contains("there is no user 'nobody-like-this'"),
        "{told}"
    );
    let mut homeless = serve(&node, &home, &["--user", "nobody"]);
    let told = refusal(homeless.env_remove("SUBSTRATE_HOME").output()?)?;
    assert!(told.contains("--user needs a home folder"), "{told}");
    fs::create_dir(&home)?;
    let told = refusal(serve(&node, &home, &["--user", "nobody"]).output()?)?;
    assert!(told.contains("belongs to user 0"), "{told}");
    assert_eq!(fs::read_dir(&home)?.count(), 0, "something was made in it");
    Ok(())
}

#[test]
fn root_that_names_a_user_is_that_user_in_every_thread() -> Result<()> {
    if !is_root() {
        eprintln!("skipped: only root can become another user");
        return Ok(());
    }
    let scratch = Scratch::new("became")?;
    let node = Node::create(&test_bin(), scratch.path(), "n")?;
    let daemon = Daemon(serve(&node, &node.home, &["--user", "nobody"]).spawn()?);
    let url = format!("http://{}/healthz", node.api);
    node.wait_for("its answer", PATIENCE, |_| {
        Ok(ureq::get(&url).call().is_ok())
    })?;
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{}/task", daemon.0.id()))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let numbers =
            |name: &str| line(name).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let nobody = UNPRIVILEGED.to_string();
        assert_eq!(numbers("Uid:").context("no Uid")?, [&nobody; 4]);
        assert_eq!(numbers("Gid:").context("no Gid")?, [&nobody; 4]);
        assert_eq!(numbers("Groups:").context("no Groups")?, [&nobody]);
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(
                numbers(set).context("no capabilities")?,
                ["0000000000000000"]
            );
        }
        threads += 1;
    }
    assert!(threads > 1, "a daemon of one thread shows nothing");
    for entry in fs::read_dir(&node.home)? {
        let entry = entry?;
        assert_eq!(entry.metadata()?.uid(), UNPRIVILEGED, "{:?}", entry.path());
    }
    // Its user speaks to it, and its wall stands.
    assert_eq!(node.json(&["status"])?["wall"], "process");
    node.cli(&["stop", "--daemon"])?;
    daemon.ends()
}

/// Killed if the test fails before its end.
struct Daemon(Child);

impl Daemon {
    fn ends(mut self) -> Result<()> {
        let status = self.0.wait()?;
        assert!(status.success(), "{status}");
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
