//! What was installed: the programs that run behind the wall, and the digests they must have.
//!
//! `substrate-manifest.json` lies beside the worker and is written by whoever puts the programs there (`cargo xtask stage`).
//! A program whose digest is not in it is not started: half an upgrade, a damaged disk, or a worker built for something else.
//!
//! Invariant: nothing of the worker's is run before its digest was compared, not for its version either.
//! Absent by design: trust in the one who can write these files. He can write the daemon too.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use substrate_record::ContentHash;
use substrate_sandbox::launch::worker_sha256;

/// The manifest's file, beside the programs it names.
pub const MANIFEST: &str = "substrate-manifest.json";

/// The worker's file.
const WORKER: &str = "substrate-worker";

/// What names the guest image.
const GUEST_IMAGE: &str = "microvm/image.json";

/// A manifest names a handful of programs and images, with 64 digits each.
const MAX_MANIFEST: u64 = 64 * 1024;

/// The form of the manifest that this build reads.
const VERSION: u32 = 1;

/// What to do about any of the errors below.
const HINT: &str = "install substrate, its worker and the manifest together again; from a checkout, `cargo xtask stage` does";

/// Why a program is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstalledError {
    /// There is none.
    #[error(
        "there is no {WORKER} at {places}\nhint: both programs are installed together; from a checkout, `cargo xtask stage` builds both"
    )]
    NoWorker {
        /// Where it was looked for.
        places: String,
    },
    /// This program does not know where it lies.
    #[error("cannot find this program's own path")]
    NoPlace(#[source] io::Error),
    /// There is no manifest.
    #[error("there is no {} to tell which worker was installed\nhint: {HINT}", path.display())]
    NoManifest {
        /// Where it should be.
        path: PathBuf,
    },
    /// The manifest cannot be used.
    #[error("{} cannot be used: {why}\nhint: {HINT}", path.display())]
    BadManifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A program that the manifest does not name.
    #[error("{} is not in {MANIFEST}\nhint: {HINT}", path.display())]
    Unlisted {
        /// The program.
        path: PathBuf,
    },
    /// A program that is not the one that was installed.
    #[error("{} is not what was installed: its SHA-256 is {found}, {MANIFEST} says {expected}\nhint: {HINT}", path.display())]
    Wrong {
        /// The program.
        path: PathBuf,
        /// The digest of the manifest.
        expected: ContentHash,
        /// The digest of the file.
        found: ContentHash,
    },
    /// The program cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The program.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// The worker, with the digest it was found to have and is promised to have.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Where it lies.
    pub path: PathBuf,
    /// Its digest.
    pub sha256: ContentHash,
}

/// The worker that was installed with this program.
///
/// # Errors
/// There is none, or it is another one.
pub fn worker() -> Result<Worker, InstalledError> {
    let path = worker_path()?;
    let sha256 = Manifest::beside(&path)?.check(&path)?;
    Ok(Worker { path, sha256 })
}

/// The guest image that was installed with this program: its folder, and its name if the manifest tells one.
///
/// # Errors
/// There is no worker, which it lies beside, or no manifest.
pub fn guest_image() -> Result<(PathBuf, Option<ContentHash>), InstalledError> {
    let worker = worker_path()?;
    let name = Manifest::beside(&worker)?.digest(GUEST_IMAGE);
    let folder = worker.with_file_name(GUEST_IMAGE);
    Ok((folder.parent().unwrap_or(&folder).to_owned(), name))
}

/// The worker beside this program, or in libexec; whatever its digest.
///
/// # Errors
/// There is none.
pub fn worker_path() -> Result<PathBuf, InstalledError> {
    let own = std::env::current_exe().map_err(InstalledError::NoPlace)?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let candidates = [folder.join(WORKER), folder.join("../libexec").join(WORKER)];
    let found = candidates.iter().find(|path| path.is_file()).cloned();
    found.ok_or_else(|| InstalledError::NoWorker {
        places: candidates
            .map(|path| path.display().to_string())
            .join(" or "),
    })
}

/// What the manifest says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    version: u32,
    /// Names of files beside the manifest: programs, and images of guests.
    sha256: BTreeMap<String, ContentHashText>,
}

/// A digest in 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct ContentHashText(ContentHash);

impl TryFrom<String> for ContentHashText {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut bytes = [0; 32];
        match hex::decode_to_slice(&text, &mut bytes) {
            Ok(()) => Ok(Self(ContentHash::from_bytes(bytes))),
            Err(error) => Err(format!("'{text}' is no SHA-256: {error}")),
        }
    }
}

impl Manifest {
    /// The manifest in the folder of this program.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    pub fn beside(program: &Path) -> Result<Self, InstalledError> {
        let path = program.with_file_name(MANIFEST);
        let bad = |why: String| InstalledError::BadManifest {
            path: path.clone(),
            why,
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(InstalledError::NoManifest { path });
            }
            Err(error) => return Err(bad(error.to_string())),
        };
        let mut text = Vec::new();
        let read = file.take(MAX_MANIFEST + 1).read_to_end(&mut text);
        read.map_err(|error| bad(error.to_string()))?;
        Self::parse(&text).map_err(bad)
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        if text.len() as u64 > MAX_MANIFEST {
            return Err(format!("it is longer than {MAX_MANIFEST} bytes"));
        }
        let manifest: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        match manifest.version {
            VERSION => Ok(manifest),
            other => Err(format!(
                "its version is {other}, this build reads {VERSION}"
            )),
        }
    }

    /// The digest promised for this name.
    fn digest(&self, name: &str) -> Option<ContentHash> {
        self.sha256.get(name).map(|ContentHashText(digest)| *digest)
    }

    /// The digest of this file, which is the one promised for its name.
    ///
    /// # Errors
    /// None is promised, or it has another.
    pub fn check(&self, path: &Path) -> Result<ContentHash, InstalledError> {
        let name = path.file_name().and_then(|name| name.to_str());
        let expected = name.and_then(|name| self.sha256.get(name));
        let Some(ContentHashText(expected)) = expected.copied() else {
            return Err(InstalledError::Unlisted {
                path: path.to_owned(),
            });
        };
        let found = worker_sha256(path).map_err(|source| InstalledError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let found = ContentHash::from_bytes(found);
        if found != expected {
            return Err(InstalledError::Wrong {
                path: path.to_owned(),
                expected,
                found,
            });
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_that_says_anything_else_is_refused() {
        let check = |text: &str, why: &str| {
            let told = Manifest::parse(text.as_bytes()).unwrap_err();
            assert!(told.contains(why), "{told} does not tell {why}");
        };
        let digest = "ab".repeat(32);
        let good = format!(r#"{{"version":1,"sha256":{{"substrate-worker":"{digest}"}}}}"#);
        assert!(Manifest::parse(good.as_bytes()).is_ok());
        check(
            &good.replace(":1,", ":2,"),
            "its version is 2, this build reads 1",
        );
        check(
            &good.replace("version", "edition"),
            "unknown field `edition`",
        );
        check(&good.replace(&digest, "abc"), "'abc' is no SHA-256");
        check(&good.replace(&digest, &"ab".repeat(33)), "is no SHA-256");
        check("", "EOF");
        check(&" ".repeat(70_000), "longer than 65536 bytes");
    }

    #[test]
    fn only_the_file_that_was_installed_under_its_name_passes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("substrate-worker");
        std::fs::write(&path, "worker").unwrap();
        let told = |error: InstalledError| error.to_string();
        assert!(told(Manifest::beside(&path).unwrap_err()).starts_with("there is no "));

        let digest = ContentHash::of(b"worker");
        let manifest = format!(r#"{{"version":1,"sha256":{{"substrate-worker":"{digest}"}}}}"#);
        std::fs::write(folder.path().join(MANIFEST), manifest).unwrap();
        let manifest = Manifest::beside(&path).unwrap();
        assert_eq!(manifest.check(&path).unwrap(), digest);

        std::fs::write(&path, "Worker").unwrap();
        let wrong = told(manifest.check(&path).unwrap_err());
        assert!(wrong.contains(&digest.to_string()), "{wrong}");
        assert!(
            wrong.contains(&ContentHash::of(b"Worker").to_string()),
            "{wrong}"
        );
        assert!(wrong.contains("hint: install substrate"), "{wrong}");
        let other = path.with_file_name("other");
        std::fs::write(&other, "worker").unwrap();
        assert!(
            told(manifest.check(&other).unwrap_err()).contains("is not in substrate-manifest.json")
        );
    }
}
