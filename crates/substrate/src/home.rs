//! Where everything of one installation lies, and the locks that keep one daemon per home.
//!
//! `SUBSTRATE_HOME` puts all of it in one folder; without it the XDG folders are used. Folders are
//! 0700: keys, receipts and the socket are nobody else's business.
//!
//! Absent by design: reading any file. A lock is the kernel's (`flock`), so a killed daemon leaves none behind.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcetera::BaseStrategy;
use substrate_record::NetworkId;

use crate::files::FileError;

/// The folder of this application inside the XDG folders.
const APP: &str = "substrate";

/// The longest path a Unix socket can be bound to: `sockaddr_un.sun_path` is 108 bytes with its final zero.
const MAX_SOCKET_PATH: usize = 107;

/// How often a daemon tries for its lock: `holder` in another process may have it for an instant.
const TAKE_ATTEMPTS: u32 = 4;

/// Between two tries; `holder` needs microseconds.
const TAKE_PAUSE: Duration = Duration::from_millis(25);

/// The folders of one installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    config: PathBuf,
    data: PathBuf,
    state: PathBuf,
    runtime: PathBuf,
}

/// Why there is no usable home.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HomeError {
    /// Neither `SUBSTRATE_HOME` nor `HOME` says where to be.
    #[error("no home folder: set SUBSTRATE_HOME to an absolute path")]
    Nowhere,
    /// A relative path would mean another home in every folder.
    #[error("SUBSTRATE_HOME must be an absolute path, not {}", path.display())]
    Relative {
        /// As given.
        path: PathBuf,
    },
    /// Another user owns the folder, and so could read what we put there.
    #[error("{} belongs to user {owner}, not to the user that runs this ({me})", path.display())]
    ForeignOwner {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Us.
        me: u32,
    },
    /// The kernel cannot bind a socket there.
    #[error("the socket's path is {len} bytes long, a socket allows {MAX_SOCKET_PATH}: {}", path.display())]
    SocketPathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        len: usize,
    },
    /// A folder could not be made.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Home {
    /// The home this process should use: `SUBSTRATE_HOME`, else the XDG folders.
    pub fn find() -> Result<Self, HomeError> {
        if let Some(root) = std::env::var_os("SUBSTRATE_HOME").filter(|root| !root.is_empty()) {
            let root = PathBuf::from(root);
            if !root.is_absolute() {
                return Err(HomeError::Relative { path: root });
            }
            return Ok(Self::at(root));
        }
        let xdg = etcetera::base_strategy::Xdg::new().map_err(|_| HomeError::Nowhere)?;
        let data = xdg.data_dir().join(APP);
        Ok(Self {
            config: xdg.config_dir().join(APP),
            state: xdg
                .state_dir()
                .map_or_else(|| data.clone(), |state| state.join(APP)),
            runtime: xdg
                .runtime_dir()
                .map_or_else(|| data.clone(), |runtime| runtime.join(APP)),
            data,
        })
    }

    /// Everything below one folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self {
            config: root.clone(),
            data: root.clone(),
            state: root.clone(),
            runtime: root,
        }
    }

    /// Makes the folders, 0700, and refuses those that another user owns.
    pub fn prepare(&self) -> Result<(), HomeError> {
        for folder in [&self.config, &self.data, &self.state, &self.runtime] {
            make_private(folder)?;
        }
        make_private(&self.keys())?;
        make_private(&self.blobs())?;
        make_private(&self.kept_files())?;
        make_private(&self.batches())?;
        make_private(&self.logs())
    }

    /// The owner's settings.
    pub fn config_file(&self) -> PathBuf {
        self.config.join("config.toml")
    }

    /// The folder of keys.
    pub fn keys(&self) -> PathBuf {
        self.data.join("keys")
    }

    /// The device key.
    pub fn device_key(&self) -> PathBuf {
        self.keys().join("device")
    }

    /// The encrypted registry key of one network.
    pub fn registry_key(&self, network: &NetworkId) -> PathBuf {
        self.keys().join(format!("registry-{network}"))
    }

    /// The record store.
    pub fn store(&self) -> PathBuf {
        self.data.join("store.redb")
    }

    /// Content-addressed files.
    pub fn blobs(&self) -> PathBuf {
        self.data.join("blobs")
    }

    /// Files that clients asked to be kept.
    pub fn kept_files(&self) -> PathBuf {
        self.data.join("files")
    }

    /// Batches, and what came of them so far.
    pub fn batches(&self) -> PathBuf {
        self.data.join("batches")
    }

    /// The folder of logs.
    pub fn logs(&self) -> PathBuf {
        self.state.join("log")
    }

    /// The log of a daemon that was started in the background.
    pub fn log_file(&self) -> PathBuf {
        self.logs().join("daemon.log")
    }

    /// Virtual machines that were saved to be copied; made anew by each daemon.
    pub fn machines(&self) -> PathBuf {
        self.state.join("machines")
    }

    /// The pause of lending that was asked for by hand.
    pub fn pause_file(&self) -> PathBuf {
        self.state.join("pause")
    }

    /// Held by a command while it starts a daemon.
    pub fn start_lock(&self) -> PathBuf {
        self.data.join("lock")
    }

    /// Held by the daemon as long as it lives.
    pub fn daemon_lock(&self) -> PathBuf {
        self.data.join("daemon.lock")
    }

    /// The owner's socket; its folder is made, and its length is checked before a bind would fail on it.
    pub fn socket(&self) -> Result<PathBuf, HomeError> {
        let path = self.runtime.join("api.sock");
        let len = path.as_os_str().len();
        if len > MAX_SOCKET_PATH {
            return Err(HomeError::SocketPathTooLong { path, len });
        }
        make_private(&self.runtime)?;
        Ok(path)
    }
}

fn make_private(folder: &Path) -> Result<(), HomeError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(FileError::at("create", folder))?;
    let found = std::fs::metadata(folder).map_err(FileError::at("read", folder))?;
    let me = rustix::process::geteuid().as_raw();
    if found.uid() != me {
        return Err(HomeError::ForeignOwner {
            path: folder.to_path_buf(),
            owner: found.uid(),
            me,
        });
    }
    if found.mode() & 0o077 != 0 {
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(folder, private).map_err(FileError::at("protect", folder))?;
    }
    Ok(())
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// A second daemon on the same home.
    #[error("a daemon{} already runs on this home ({})", pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), path.display())]
    Held {
        /// Who holds it, if it had written its number already.
        pid: Option<u32>,
        /// The lock.
        path: PathBuf,
    },
    /// The lock's file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The right to be this home's daemon. The kernel takes it back when the process ends, however it ends.
#[derive(Debug)]
pub struct DaemonLock {
    _held: File,
}

impl DaemonLock {
    /// Takes the lock and writes this process's number into it, or says who has it.
    pub fn take(home: &Home) -> Result<Self, LockError> {
        let path = home.daemon_lock();
        let mut file = open_lock(&path)?;
        for attempt in 1.. {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if attempt < TAKE_ATTEMPTS => {
                    std::thread::sleep(TAKE_PAUSE)
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held {
                        pid: read_pid(&mut file),
                        path,
                    });
                }
                Err(TryLockError::Error(source)) => {
                    return Err(FileError::at("lock", &path)(source).into());
                }
            }
        }
        write_pid(&mut file).map_err(FileError::at("write", &path))?;
        Ok(Self { _held: file })
    }

    /// The running daemon's process number; `None` if no daemon runs. Zero stands for one that has not written it yet.
    pub fn holder(home: &Home) -> Result<Option<u32>, LockError> {
        let path = home.daemon_lock();
        if !path.exists() {
            return Ok(None);
        }
        let mut file = open_lock(&path)?;
        // A shared lock would keep a starting daemon out for a moment only; it is dropped with the file.
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(read_pid(&mut file).unwrap_or(0))),
            Err(TryLockError::Error(source)) => Err(FileError::at("lock", &path)(source).into()),
        }
    }
}

/// The right to start a daemon: of two commands that both find none, one starts it and the other waits.
#[derive(Debug)]
pub struct StartLock {
    _held: File,
}

impl StartLock {
    /// Waits until no other command is starting a daemon.
    pub fn take(home: &Home) -> Result<Self, LockError> {
        let path = home.start_lock();
        let file = open_lock(&path)?;
        file.lock().map_err(FileError::at("lock", &path))?;
        Ok(Self { _held: file })
    }
}

fn open_lock(path: &Path) -> Result<File, FileError> {
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    open.map_err(FileError::at("open", path))
}

fn write_pid(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{}", std::process::id())
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    // A process number has at most ten digits.
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_was_first() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path().join("home"));
        home.prepare().unwrap();
        assert_eq!(DaemonLock::holder(&home).unwrap(), None);
        let first = DaemonLock::take(&home).unwrap();
        let me = std::process::id();
        assert_eq!(DaemonLock::holder(&home).unwrap(), Some(me));
        let second = DaemonLock::take(&home).unwrap_err();
        assert!(
            second
                .to_string()
                .contains(&format!("(pid {me}) already runs")),
            "{second}"
        );
        drop(first);
        assert_eq!(DaemonLock::holder(&home).unwrap(), None);
        DaemonLock::take(&home).unwrap();
    }

    #[test]
    fn folders_are_private_even_if_they_were_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("home");
        std::fs::create_dir(&root).unwrap();
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
        let home = Home::at(&root);
        home.prepare().unwrap();
        for path in [root.clone(), home.keys(), home.blobs(), home.logs()] {
            assert_eq!(
                std::fs::metadata(&path).unwrap().mode() & 0o777,
                0o700,
                "{}",
                path.display()
            );
        }
    }

    #[test]
    fn a_socket_path_the_kernel_cannot_bind_is_refused_by_name() {
        let home = Home::at(format!("/tmp/{}", "x".repeat(100)));
        assert!(matches!(
            home.socket(),
            Err(HomeError::SocketPathTooLong { len: 114, .. })
        ));
    }
}
