//! What goes wrong in real life: a second daemon, a broken settings file, a damaged model, a full disk, an unknown model.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use xtask::node::{Node, Scratch, files_below};
use xtask::packages::is_root;
use xtask::stage::UNPRIVILEGED;
use xtask::stream::complete;
use xtask::trio::{MODEL, import, test_bin, test_model};

/// Jobs whose records a store may still hold in room it has: its file grows by megabytes, a job is a few kilobytes.
const FITTING: usize = 2_000;

fn node(scratch: &Scratch) -> Result<Node> {
    Node::create(&test_bin(), scratch.path(), "n")
}

/// Runs a command that must fail and returns its stderr.
fn refused(node: &Node, args: &[&str]) -> Result<String> {
    let output = node.command().args(args).output()?;
    assert!(!output.status.success(), "{args:?} did not fail");
    Ok(String::from_utf8(output.stderr)?)
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
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
    let quarantine = node.home.join("blobs/quarantine");
    for (name, bytes, reason) in [
        (
            "truncated",
            &whole[..whole.len() / 2],
            "file ends inside the tensors",
        ),
        ("lies", &lies[..], "is more than the file can hold"),
        ("noise", &[7; 4096][..], "bad magic"),
    ] {
        let file = scratch.path().join(format!("{name}.gguf"));
        std::fs::write(&file, bytes)?;
        let path = file.to_str().context("UTF-8")?;
        let told = refused(&node, &["import", path, "--as", name])?;
        println!("{name}: {told}");
        assert!(
            told.contains("was refused: ") && told.contains(reason),
            "{name} is refused for another reason than '{reason}': {told}"
        );
        // Our copy is where nothing looks for models; the owner's file is the owner's.
        let copy = quarantine.join(format!("sha256-{}", digest(bytes)));
        assert_eq!(std::fs::read(&copy)?, bytes, "{name} is in quarantine");
        assert!(
            !node
                .home
                .join("blobs")
                .join(copy.file_name().context("a name")?)
                .exists()
        );
        assert_eq!(std::fs::read(&file)?, bytes, "{name} is left to its owner");
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

/// A disk that can run full without anybody else's: a small tmpfs in a mount namespace of its own.
struct SmallDisk {
    /// A process whose namespace holds the disk. It ends with its standard input.
    keeper: Child,
    folder: PathBuf,
}

impl SmallDisk {
    fn mounted(folder: &Path, size: &str) -> Result<Self> {
        let uid = if is_root() {
            UNPRIVILEGED.to_string()
        } else {
            "0".to_owned()
        };
        let script = format!(
            "mount -t tmpfs -o size={size},mode=0700,uid={uid},gid={uid} none {} && echo mounted && cat",
            folder.display()
        );
        // Without root a user namespace allows the mount, and its one user is ours.
        let namespaces: &[&str] = match is_root() {
            true => &["--mount"],
            false => &["--user", "--map-root-user", "--mount"],
        };
        let mut keeper = Command::new("unshare")
            .args(namespaces)
            .args(["sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut told = [0; 7];
        let out = keeper.stdout.as_mut().context("it has a standard output")?;
        out.read_exact(&mut told)
            .context("the small disk was not mounted")?;
        Ok(Self {
            keeper,
            folder: folder.to_path_buf(),
        })
    }

    /// What comes before a command so that it sees the disk, as the tests' user.
    fn entrance(&self) -> Vec<String> {
        let target = self.keeper.id().to_string();
        match is_root() {
            true => {
                let user = UNPRIVILEGED.to_string();
                let enter = ["nsenter", "--target", &target, "--mount"];
                let drop_root = [
                    "setpriv",
                    "--reuid",
                    &user,
                    "--regid",
                    &user,
                    "--clear-groups",
                ];
                enter
                    .into_iter()
                    .chain(drop_root)
                    .map(str::to_owned)
                    .collect()
            }
            // The mount's user namespace knows our user as root, and a daemon does not run as root.
            false => {
                let enter = [
                    "nsenter",
                    "--target",
                    &target,
                    "--user",
                    "--preserve-credentials",
                    "--mount",
                ];
                let drop_root = ["unshare", "--user", "--map-user=1000", "--map-group=1000"];
                enter
                    .into_iter()
                    .chain(drop_root)
                    .map(str::to_owned)
                    .collect()
            }
        }
    }

    /// The disk's folder, as this process reaches it.
    fn seen_from_here(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.keeper.id()));
        root.join(self.folder.strip_prefix("/").unwrap_or(&self.folder))
    }

    /// Writes until nothing fits any more.
    fn fill(&self) -> Result<()> {
        let mut file = std::fs::File::create(self.seen_from_here().join("ballast"))?;
        for size in [1 << 20, 4096, 1] {
            let block = vec![1; size];
            while file.write_all(&block).is_ok() {}
        }
        Ok(())
    }

    fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.seen_from_here().join("ballast"))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The disk goes with its last process.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

#[test]
fn a_model_larger_than_the_disk_is_refused_with_a_clear_error() -> Result<()> {
    let scratch = Scratch::new("small")?;
    let node = node(&scratch)?;
    let disk = SmallDisk::mounted(&node.home, "48m")?;
    let entrance = disk.entrance();
    let node = node.with_root_prefix(&entrance.iter().map(String::as_str).collect::<Vec<_>>());
    let model = test_model();
    let told = refused(
        &node,
        &["import", model.to_str().context("UTF-8")?, "--as", MODEL],
    )?;
    assert!(told.contains("free") || told.contains("full"), "{told}");
    Ok(())
}

#[test]
fn a_disk_that_runs_full_under_a_daemon_is_told_and_the_store_stays_whole() -> Result<()> {
    let scratch = Scratch::new("full")?;
    let node = node(&scratch)?;
    let disk = SmallDisk::mounted(&node.home, "160m")?;
    let entrance = disk.entrance();
    let mut node = node.with_root_prefix(&entrance.iter().map(String::as_str).collect::<Vec<_>>());
    node.start()?;
    import(&node, &test_model(), &[])?;
    let before = complete(node.api, MODEL, "a", 1, "mine")?;

    disk.fill()?;
    let told = first_failure(&node)?;
    println!("told: {told}");
    assert!(told.contains("disk is full"), "{told}");
    disk.free()?;

    // It goes on where it was, and so does the next one on the same store.
    let after = complete(node.api, MODEL, "a", 1, "mine")?;
    for _ in 0..2 {
        for done in [&before, &after] {
            verifies(&node, &done.job)?;
        }
        node.stop()?;
        node.start()?;
    }
    complete(node.api, MODEL, "a", 1, "mine")?;
    Ok(())
}

/// What the first job that cannot be kept is told. The store may have room in its own file for some.
fn first_failure(node: &Node) -> Result<String> {
    for _ in 0..FITTING {
        if let Err(error) = complete(node.api, MODEL, "a", 1, "mine") {
            return Ok(error.to_string());
        }
    }
    anyhow::bail!("{FITTING} jobs were kept on a full disk")
}

fn verifies(node: &Node, job: &str) -> Result<()> {
    let file = node.home.join(format!("{job}.receipt"));
    let file = file.to_str().context("UTF-8")?;
    node.cli(&["receipts", "export", job, "--output", file])?;
    let told = node.cli(&["receipts", "verify", file])?;
    assert!(told.contains("both halves"), "{told}");
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
