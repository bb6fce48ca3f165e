//! Files that are either whole or absent, and what a disk can answer instead.
//!
//! Invariant: a reader never sees half of a file written here; the old content stays until the new
//! one is on disk.
//!
//! Absent by design: retries. A full disk is told to whoever asked, at once.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// No space, or the user's quota is used up.
    #[error("the disk that holds {} is full", path.display())]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// Anything else the system said.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// A verb: `read`, `write`, `create`.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's own words.
        #[source]
        source: io::Error,
    },
}

impl FileError {
    /// Turns an I/O error at `path` into a typed one: `.map_err(FileError::at("read", path))`.
    pub fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| {
            let path = path.to_path_buf();
            if is_full(&source) {
                Self::DiskFull { path }
            } else {
                Self::Io {
                    doing,
                    path,
                    source,
                }
            }
        }
    }

    /// The file simply is not there.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Whether an I/O error means that there is no room left.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Writes a whole file beside its name, forces it to disk, and renames it into place.
pub fn write_atomically(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), FileError> {
    let folder = parent(path);
    let beside = beside(path);
    let written = write_new(&beside, mode, bytes)
        .map_err(FileError::at("write", path))
        .and_then(|()| std::fs::rename(&beside, path).map_err(FileError::at("write", path)))
        .and_then(|()| sync_folder(folder));
    if written.is_err() {
        // The error worth telling is the first one; a left-over is harmless.
        let _ = std::fs::remove_file(&beside);
    }
    written
}

/// Forces a folder's own entries (a rename, a new name) to disk.
pub fn sync_folder(folder: &Path) -> Result<(), FileError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(FileError::at("sync", folder))
}

/// Bytes an ordinary user may still write on the disk that holds `path`.
pub fn free_bytes(path: &Path) -> Result<u64, FileError> {
    let stat = rustix::fs::statvfs(path)
        .map_err(io::Error::from)
        .map_err(FileError::at("measure", path))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    // Two writers of one file must not share it: the later rename wins, whole.
    name.push(format!(".{:016x}.tmp", rand::random::<u64>()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_left_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settings");
        write_atomically(&path, 0o600, b"old").unwrap();
        // A folder in the way of the rename is an error after the bytes were written beside.
        let blocked = folder.path().join("blocked");
        std::fs::create_dir(&blocked).unwrap();
        std::fs::write(blocked.join("x"), b"").unwrap();
        assert!(write_atomically(&blocked, 0o600, b"new").is_err());
        write_atomically(&path, 0o600, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        let names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn a_full_disk_has_its_own_error() {
        let full =
            FileError::at("write", Path::new("/x"))(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.to_string(), "the disk that holds /x is full");
        assert!(free_bytes(Path::new("/")).unwrap() > 0);
    }
}
