//! Keys on disk: the daemon's own device key, and registry keys that only a person can open.
//!
//! Invariant: a secret key never has `Debug`, is wiped when dropped, and is never in a file that
//! others of this machine may read.
//!
//! Absent by design: asking for a passphrase (the command line does), and any way for the daemon to
//! open a registry key by itself.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use age::secrecy::SecretString;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use substrate_record::{NetworkId, NodeId, SigningKey};
use zeroize::Zeroizing;

use crate::files::{FileError, write_atomically};
use crate::home::Home;

mod genesis;

pub use genesis::{MAX_NETWORK_NAME, genesis_of_network, genesis_of_one};

/// A key file or passphrase file longer than this is none.
const MAX_KEY_FILE: u64 = 16 * 1024;

/// The scrypt work (log2 N) of an encrypted key: about half a second on a 2024 laptop, 128 MiB. Fixed,
/// because age's own measurement makes a key that was sealed by an unoptimised build cheap to guess.
const WORK: u8 = 17;

/// The most work accepted when opening: 4 GiB of memory at 22, more than a home machine would have chosen.
const MAX_WORK: u8 = 22;

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Group or world may read it.
    #[error("{} can be read by others (mode {mode:03o}); mend it with: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key in PKCS#8 PEM.
    #[error("{} is not an Ed25519 key in PKCS#8 PEM", path.display())]
    Malformed {
        /// The key file.
        path: PathBuf,
    },
    /// The passphrase does not open it.
    #[error("the passphrase does not open {}", path.display())]
    WrongPassphrase {
        /// The key file.
        path: PathBuf,
    },
    /// Empty, or not text.
    #[error("{} holds no passphrase in its first line", path.display())]
    NoPassphrase {
        /// The passphrase file.
        path: PathBuf,
    },
    /// The encryption itself failed.
    #[error("cannot encrypt the key: {0}")]
    Encrypt(String),
    /// The network has no key here.
    #[error("this machine holds no registry key of network {network}")]
    NoRegistryKey {
        /// The network.
        network: NetworkId,
    },
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The daemon's key: expendable, made at first start.
pub struct DeviceKey {
    key: SigningKey,
}

impl DeviceKey {
    /// Opens the key, or makes one if there is none yet.
    pub fn open_or_create(home: &Home) -> Result<Self, KeyError> {
        match Self::open(home) {
            Err(KeyError::File(error)) if error.is_absent() => {
                let created = Self { key: draw() };
                let pem = to_pem(&created.key)?;
                write_atomically(&home.device_key(), 0o600, pem.as_bytes())?;
                Ok(created)
            }
            opened => opened,
        }
    }

    /// Opens the key and refuses one that others may read.
    pub fn open(home: &Home) -> Result<Self, KeyError> {
        let path = home.device_key();
        let bytes = read_private(&path)?;
        Ok(Self {
            key: from_pem(&bytes, &path)?,
        })
    }

    /// The name other nodes know it by.
    pub fn node(&self) -> NodeId {
        node_of(&self.key)
    }

    /// For signing records.
    pub fn signing(&self) -> &SigningKey {
        &self.key
    }

    /// The secret itself, for the mesh's own handshake; wiped when dropped.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.key.to_bytes())
    }
}

/// What a person knows; wiped when dropped.
pub struct Passphrase(SecretString);

impl Passphrase {
    /// A passphrase as typed.
    pub fn new(typed: String) -> Self {
        Self(SecretString::from(typed))
    }

    /// The first line of a file, for scripts.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let bytes = read_bounded(path)?;
        let text = std::str::from_utf8(&bytes).unwrap_or_default();
        match text.lines().next().filter(|line| !line.is_empty()) {
            Some(line) => Ok(Self::new(line.to_owned())),
            None => Err(KeyError::NoPassphrase {
                path: path.to_path_buf(),
            }),
        }
    }
}

/// A key that signs for a network's registry, opened by its holder for one command.
pub struct RegistryKey {
    key: SigningKey,
}

impl RegistryKey {
    /// A new key, so far only in memory: the Genesis that names it comes first.
    pub fn generate() -> Self {
        Self { key: draw() }
    }

    /// Keeps the key for a network, encrypted.
    pub fn seal(
        &self,
        home: &Home,
        network: &NetworkId,
        passphrase: &Passphrase,
    ) -> Result<(), KeyError> {
        let pem = to_pem(&self.key)?;
        let sealed = encrypt(pem.as_bytes(), passphrase).map_err(KeyError::Encrypt)?;
        Ok(write_atomically(
            &home.registry_key(network),
            0o600,
            &sealed,
        )?)
    }

    /// Opens the key of a network.
    pub fn open(
        home: &Home,
        network: &NetworkId,
        passphrase: &Passphrase,
    ) -> Result<Self, KeyError> {
        let path = home.registry_key(network);
        let sealed = match read_private(&path) {
            Err(KeyError::File(error)) if error.is_absent() => {
                return Err(KeyError::NoRegistryKey { network: *network });
            }
            sealed => sealed?,
        };
        let pem = decrypt(&sealed, passphrase)
            .ok_or_else(|| KeyError::WrongPassphrase { path: path.clone() })?;
        Ok(Self {
            key: from_pem(&pem, &path)?,
        })
    }

    /// Whether this machine holds a key of the network.
    pub fn exists(home: &Home, network: &NetworkId) -> bool {
        home.registry_key(network).is_file()
    }

    /// The public half, named in the Genesis.
    pub fn node(&self) -> NodeId {
        node_of(&self.key)
    }

    /// For signing entries.
    pub fn signing(&self) -> &SigningKey {
        &self.key
    }
}

fn draw() -> SigningKey {
    let seed = Zeroizing::new(rand::random::<[u8; 32]>());
    SigningKey::from_bytes(&seed)
}

fn node_of(key: &SigningKey) -> NodeId {
    NodeId::from_bytes(key.verifying_key().to_bytes())
}

fn to_pem(key: &SigningKey) -> Result<Zeroizing<String>, KeyError> {
    key.to_pkcs8_pem(LineEnding::LF)
        .map_err(|error| KeyError::Encrypt(error.to_string()))
}

fn from_pem(pem: &[u8], path: &Path) -> Result<SigningKey, KeyError> {
    let malformed = || KeyError::Malformed {
        path: path.to_path_buf(),
    };
    let text = std::str::from_utf8(pem).map_err(|_| malformed())?;
    SigningKey::from_pkcs8_pem(text).map_err(|_| malformed())
}

/// Reads a secret file after asking who else may.
fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let mode = std::fs::metadata(path)
        .map_err(FileError::at("read", path))?
        .mode()
        & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed {
            path: path.to_path_buf(),
            mode,
        });
    }
    read_bounded(path)
}

fn read_bounded(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let file = std::fs::File::open(path).map_err(FileError::at("read", path))?;
    // Room from the start, so that no half-filled buffer with a secret is left behind by growing.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE as usize));
    file.take(MAX_KEY_FILE)
        .read_to_end(&mut bytes)
        .map_err(FileError::at("read", path))?;
    Ok(bytes)
}

fn encrypt(plain: &[u8], passphrase: &Passphrase) -> Result<Vec<u8>, String> {
    let mut recipient = age::scrypt::Recipient::new(passphrase.0.clone());
    recipient.set_work_factor(work_factor());
    let encryptor =
        age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient))
            .map_err(|error| error.to_string())?;
    let mut sealed = Vec::new();
    let mut writer = encryptor
        .wrap_output(&mut sealed)
        .map_err(|error| error.to_string())?;
    writer
        .write_all(plain)
        .and_then(|()| writer.finish().map(drop))
        .map_err(|error| error.to_string())?;
    Ok(sealed)
}

fn decrypt(sealed: &[u8], passphrase: &Passphrase) -> Option<Zeroizing<Vec<u8>>> {
    let mut identity = age::scrypt::Identity::new(passphrase.0.clone());
    identity.set_max_work_factor(MAX_WORK);
    let decryptor = age::Decryptor::new(sealed).ok()?;
    let reader = decryptor
        .decrypt(std::iter::once(&identity as &dyn age::Identity))
        .ok()?;
    let mut plain = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE as usize));
    reader.take(MAX_KEY_FILE).read_to_end(&mut plain).ok()?;
    Some(plain)
}

/// Work for a new key. Unit tests check the file, not the cost of guessing.
fn work_factor() -> u8 {
    if cfg!(test) { 4 } else { WORK }
}

#[cfg(test)]
mod tests;
