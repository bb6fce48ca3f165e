//! The binaries, built and laid out where an unprivileged user can run them.
//!
//! The worker and what is put in its place are linked statically: inside the wall there is no library to load. A plain
//! `cargo build` makes dynamic ones at the same place, so the static ones are copied aside at once.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{model, sh};

/// Who runs daemons and workers when the task itself runs as root (`nobody`).
pub const UNPRIVILEGED: u32 = 65534;

/// Cargo's selection of everything but the worker.
///
/// Cargo unites the features of whatever is selected together, those of build scripts too. Selecting the worker with the
/// rest would build llama.cpp once for that union and once more for the static worker, ten minutes of processor time.
pub const ALL_BUT_WORKER: [&str; 3] = ["--workspace", "--exclude", "substrate-worker"];

/// The simulator is a feature of the node, off in the product.
pub const SIMULATOR: [&str; 2] = ["--features", "substrate-node/sim"];

/// Programs that run behind the wall: name, package, and the feature that makes them.
const WALLED: [(&str, &str, &[&str]); 3] = [
    ("substrate-worker", "substrate-worker", &[]),
    (
        "substrate-wall-attacker",
        "substrate-sandbox",
        &["--features", "attacker"],
    ),
    (
        "substrate-hostile-worker",
        "substrate-sandbox",
        &["--features", "attacker"],
    ),
];

/// Builds `substrate`, the static `substrate-worker` and the static programs that tests put in its place, and returns the folder
/// that holds them.
///
/// # Errors
/// A build fails, or the worker is not static.
pub fn build() -> Result<PathBuf> {
    build_with(&DEV, &[])
}

/// As [`build`], as users build it (`cargo build --release`): what is measured beside another program's release.
///
/// # Errors
/// As [`build`].
pub fn build_release() -> Result<PathBuf> {
    build_with(&RELEASE, &[])
}

/// As [`build`], with the tests and the examples that some of them start: what tests need changes the features of
/// libraries, and building the programs with them at once builds libp2p once and not twice.
///
/// # Errors
/// As [`build`].
pub fn build_with_tests() -> Result<PathBuf> {
    build_with(&DEV, &[&["--tests", "--examples"], &SIMULATOR[..]].concat())
}

/// One of cargo's profiles.
struct Profile {
    /// How cargo is told.
    arguments: &'static [&'static str],
    /// Its folder under the target directory.
    folder: &'static str,
    /// Where its programs are laid out, below this checkout's scratch folder.
    stage: &'static str,
}

const DEV: Profile = Profile {
    arguments: &[],
    folder: "debug",
    stage: "stage",
};

const RELEASE: Profile = Profile {
    arguments: &["--release"],
    folder: "release",
    stage: "stage-release",
};

fn build_with(profile: &Profile, more: &[&str]) -> Result<PathBuf> {
    sh::run(
        sh::cargo()
            .args(["build", "--quiet", "--bins"])
            .args(profile.arguments)
            .args(ALL_BUT_WORKER)
            .args(more),
    )?;
    let built = target_dir()?.join(profile.folder);
    let stage = scratch(profile.stage)?;
    place(&built.join("substrate"), &stage.join("substrate"))?;
    for (name, package, features) in WALLED {
        sh::run(
            sh::cargo()
                .args(["rustc", "--quiet"])
                .args(profile.arguments)
                .args(["--package", package, "--bin", name])
                .args(features)
                .args(["--", "-C", "target-feature=+crt-static"]),
        )?;
        place(&built.join(name), &stage.join(name))?;
        assert_static(&stage.join(name))?;
    }
    write_manifest(&stage)?;
    Ok(stage)
}

/// Builds the guest's first process with this feature, static as what it starts, and returns where it is.
///
/// # Errors
/// As [`build`].
pub fn guest(feature: &str) -> Result<PathBuf> {
    guest_in(&target_dir()?, feature)
}

/// As [`guest`], with everything compiled into this folder.
///
/// # Errors
/// As [`build`].
pub fn guest_in(target: &Path, feature: &str) -> Result<PathBuf> {
    const NAME: &str = "substrate-guest";
    sh::run(
        sh::cargo()
            .args(["rustc", "--quiet"])
            .args(["--package", "substrate-sandbox", "--bin", NAME])
            .args(["--features", feature, "--target-dir"])
            .arg(target)
            // Nobody debugs it where it runs, and all of it is unpacked at each boot.
            .args(["--", "-C", "target-feature=+crt-static"])
            .args(["-C", "strip=symbols"]),
    )?;
    let built = target.join(DEV.folder).join(NAME);
    assert_static(&built)?;
    Ok(built)
}

/// What the daemon calls the file; it refuses a worker whose digest is not in it.
const MANIFEST: &str = "substrate-manifest.json";

/// Writes down the digests of the programs in this folder, and of the manifests of its guest images. Call again after placing
/// another.
///
/// # Errors
/// A file cannot be read, or the manifest not written.
pub fn write_manifest(stage: &Path) -> Result<()> {
    let mut digests = serde_json::Map::new();
    for entry in std::fs::read_dir(stage)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let walled = WALLED.iter().any(|(program, _, _)| *program == name);
        let image = path.join("image.json");
        if walled {
            digests.insert(name.clone().into_owned(), model::digest(&path)?.into());
        } else if image.is_file() {
            digests.insert(format!("{name}/image.json"), model::digest(&image)?.into());
        }
    }
    let manifest = serde_json::json!({ "version": 1, "sha256": digests });
    let beside = stage.join("substrate-manifest.new");
    std::fs::write(&beside, format!("{manifest:#}\n"))?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o644))?;
    std::fs::rename(beside, stage.join(MANIFEST))?;
    Ok(())
}

/// A folder outside every home that anyone may enter, one per checkout.
pub fn scratch(name: &str) -> Result<PathBuf> {
    use sha2::{Digest, Sha256};
    let tag = hex::encode(&Sha256::digest(sh::root().as_os_str().as_encoded_bytes())[..4]);
    let base = std::env::temp_dir().join(format!("substrate-{tag}"));
    let dir = base.join(name);
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    for each in [&base, &dir] {
        std::fs::set_permissions(each, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(dir)
}

/// Copies unless the same bytes are there; a new inode, so that a running copy is not disturbed.
pub fn place(from: &Path, to: &Path) -> Result<()> {
    let beside = to.with_extension("new");
    std::fs::copy(from, &beside).with_context(|| format!("copy {}", from.display()))?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o755))?;
    std::fs::rename(&beside, to)?;
    Ok(())
}

/// A program of these bytes.
pub fn write_program(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("write {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o555))?;
    Ok(())
}

/// A new file that its owner alone may read.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut options = std::fs::File::options();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.write(true).create_new(true).open(path);
    let mut file = file.with_context(|| format!("make {}", path.display()))?;
    Ok(std::io::Write::write_all(&mut file, bytes)?)
}

/// The linker accepts a half-static program that dies at start; only the dynamic section tells.
fn assert_static(program: &Path) -> Result<()> {
    let section = sh::output(sh::command("readelf").arg("-d").arg(program))?;
    if section.contains("(NEEDED)") {
        bail!(
            "{} still needs shared libraries:\n{section}",
            program.display()
        );
    }
    Ok(())
}

/// Cargo's target directory, wherever the environment put it.
pub fn target_dir() -> Result<PathBuf> {
    let metadata =
        sh::output(sh::cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let dir = metadata["target_directory"]
        .as_str()
        .context("cargo metadata names no target directory")?;
    Ok(dir.into())
}
