//! A guest's image: a kernel, its first process with its drivers, and a read-only root that holds the worker.
//!
//! It is a folder of four files: `image.json`, which names the other three by digest, and whose own SHA-256 is the image's
//! name; and `image.sig`, an Ed25519 signature over that name.
//!
//! Invariant: a [`GuestImage`] holds descriptors of files that were hashed whole through those very descriptors, and found to
//! be what a trusted name or a trusted key says. No other file is booted.
//! Absent by design: unpacking, downloading, and a way to boot what is not signed or named.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The file that names the others.
pub const MANIFEST: &str = "image.json";

/// The file with the signature.
pub const SIGNATURE: &str = "image.sig";

/// What a signature is over, before the image's name: no signature over anything else is one over an image.
const DOMAIN: &[u8] = b"substrate guest image v1\0";

/// A manifest is a few hundred bytes.
const MAX_MANIFEST: u64 = 16 * 1024;

/// The only layout there is.
const VERSION: u32 = 1;

/// What an image consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// 1.
    pub version: u32,
    /// The kernel's release, for people.
    pub kernel_release: String,
    /// The kernel: an ELF file with a PVH entry, which QEMU and Firecracker both start.
    pub kernel: Part,
    /// A cpio archive with the first process and its drivers.
    pub initrd: Part,
    /// An erofs file system with the worker.
    pub root: Part,
    /// SHA-256 of the worker in the root, in hex: what receipts of the process wall would name.
    pub worker_sha256: String,
}

/// A file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its name in the folder.
    pub file: String,
    /// Bytes.
    pub size: u64,
    /// In hex.
    pub sha256: String,
}

/// Whose word makes an image good.
#[derive(Clone, Copy, Debug)]
pub enum Trust {
    /// This very image.
    Name([u8; 32]),
    /// Any image signed with this key.
    Key([u8; 32]),
}

/// An image that may be booted.
#[derive(Debug)]
pub struct GuestImage {
    name: [u8; 32],
    manifest: Manifest,
    kernel: Checked,
    initrd: Checked,
    root: Checked,
}

/// A file that was hashed, and its state then.
#[derive(Debug)]
struct Checked {
    file: File,
    path: PathBuf,
    state: State,
}

/// Length, inode, and times of the last change in nanoseconds.
type State = (u64, u64, i64, i64, i64, i64);

/// Why an image is not booted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The manifest is not one.
    #[error("{} is not an image's manifest", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A layout that this program does not know, or a name that leaves the folder.
    #[error("the manifest of the image says {what}, which cannot be used")]
    Layout {
        /// What it says.
        what: String,
    },
    /// A file is not the one that the manifest names.
    #[error("{} is not what the image was built with: it has SHA-256 {found} and not {expected}", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// By the manifest.
        expected: String,
        /// By its bytes.
        found: String,
    },
    /// It is another image.
    #[error("the image is {found} and not {expected}")]
    Name {
        /// The trusted one.
        expected: String,
        /// This one.
        found: String,
    },
    /// Its signature is not the trusted key's.
    #[error("the image {name} is not signed with the key that this machine trusts")]
    Signature {
        /// Its name.
        name: String,
    },
}

impl GuestImage {
    /// Reads and checks an image, which takes as long as hashing its files.
    ///
    /// # Errors
    /// It is not whole, or not trusted.
    pub fn open(folder: &Path, trust: Trust) -> Result<Self, ImageError> {
        let (manifest, name) = read_manifest(folder)?;
        match trust {
            Trust::Name(expected) if expected != name => Err(ImageError::Name {
                expected: hex(&expected),
                found: hex(&name),
            }),
            Trust::Name(_) => Ok(()),
            Trust::Key(key) => check_signature(folder, &key, &name),
        }?;
        Ok(Self {
            kernel: check(folder, &manifest.kernel)?,
            initrd: check(folder, &manifest.initrd)?,
            root: check(folder, &manifest.root)?,
            name,
            manifest,
        })
    }

    /// Its name: the SHA-256 of its manifest.
    pub fn name(&self) -> [u8; 32] {
        self.name
    }

    /// What it consists of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether nothing has touched its files since they were hashed. If something has, it is to be opened anew.
    pub fn is_untouched(&self) -> bool {
        [&self.kernel, &self.initrd, &self.root].iter().all(|part| {
            let now = fs::metadata(&part.path);
            now.is_ok_and(|now| state(&now) == part.state)
        })
    }

    pub(super) fn kernel(&self) -> &File {
        &self.kernel.file
    }

    pub(super) fn initrd(&self) -> &File {
        &self.initrd.file
    }

    pub(super) fn root(&self) -> &File {
        &self.root.file
    }
}

/// The name of the image in a folder, for whoever signs it.
///
/// # Errors
/// There is no manifest.
pub fn name_of(folder: &Path) -> Result<[u8; 32], ImageError> {
    read_manifest(folder).map(|(_, name)| name)
}

/// The bytes that a signature of an image is over.
pub fn to_sign(name: &[u8; 32]) -> Vec<u8> {
    [DOMAIN, name].concat()
}

fn read_manifest(folder: &Path) -> Result<(Manifest, [u8; 32]), ImageError> {
    let path = folder.join(MANIFEST);
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_MANIFEST).read_to_end(&mut bytes))
        .map_err(cannot_read(&path))?;
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|source| ImageError::Manifest { path, source })?;
    if manifest.version != VERSION {
        let what = format!("version {}", manifest.version);
        return Err(ImageError::Layout { what });
    }
    for part in [&manifest.kernel, &manifest.initrd, &manifest.root] {
        if Path::new(&part.file).file_name() != Some(part.file.as_ref()) {
            let what = format!("a file called {:?}", part.file);
            return Err(ImageError::Layout { what });
        }
    }
    Ok((manifest, Sha256::digest(&bytes).into()))
}

fn check_signature(folder: &Path, key: &[u8; 32], name: &[u8; 32]) -> Result<(), ImageError> {
    let path = folder.join(SIGNATURE);
    let mut bytes = [0; Signature::BYTE_SIZE];
    let mut file = File::open(&path).map_err(cannot_read(&path))?;
    file.read_exact(&mut bytes).map_err(cannot_read(&path))?;
    let wrong = |_| ImageError::Signature { name: hex(name) };
    let key = VerifyingKey::from_bytes(key).map_err(wrong)?;
    let signature = Signature::from_bytes(&bytes);
    key.verify_strict(&to_sign(name), &signature).map_err(wrong)
}

fn check(folder: &Path, part: &Part) -> Result<Checked, ImageError> {
    let path = folder.join(&part.file);
    let failed = cannot_read(&path);
    let hashed = || -> io::Result<(File, State, [u8; 32])> {
        let mut file = File::open(&path)?;
        let state = state(&file.metadata()?);
        let mut hasher = Sha256::new();
        // Not past what the manifest says: the file may be anything.
        io::copy(&mut (&file).take(part.size + 1), &mut hasher)?;
        file.seek(SeekFrom::Start(0))?;
        Ok((file, state, hasher.finalize().into()))
    };
    let (file, state, found) = hashed().map_err(failed)?;
    let found = hex(&found);
    if found != part.sha256 {
        let expected = part.sha256.clone();
        return Err(ImageError::Digest {
            path,
            expected,
            found,
        });
    }
    Ok(Checked { file, path, state })
}

fn state(metadata: &fs::Metadata) -> State {
    (
        metadata.len(),
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    )
}

fn cannot_read(path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::Read { path, source }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
