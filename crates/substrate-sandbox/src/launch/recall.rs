//! The digest of the worker's binary, taken once for as long as the file stays what it is.
//!
//! Hashing tens of megabytes would be most of a worker's start. A file that was written since has another change time, which
//! no ordinary user can set back.
//!
//! Invariant: what is remembered is of a file whose change time lay well before it was read, so that a write after that
//! shows. Absent by design: more than one file. A daemon has one worker.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A file changed less than this ago is hashed each time: a change time is as coarse as a tick of the kernel's (10 ms at most),
/// or as two seconds on a simple file system.
const SETTLED: Duration = Duration::from_secs(3);

/// Which file, and which state of it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }

    fn is_settled(&self) -> bool {
        let seconds = u64::try_from(self.changed.0).unwrap_or(u64::MAX);
        let changed = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        // A change time ahead of the clock is not settled either.
        let age = changed.and_then(|changed| SystemTime::now().duration_since(changed).ok());
        age.is_some_and(|age| age > SETTLED)
    }
}

static LAST: Mutex<Option<(Stamp, [u8; 32])>> = Mutex::new(None);

/// The SHA-256 of this very descriptor's file.
pub(super) fn digest(file: &mut File) -> io::Result<[u8; 32]> {
    let stamp = Stamp::of(&file.metadata()?);
    let last = *LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((remembered, digest)) = last
        && remembered == stamp
    {
        return Ok(digest);
    }
    let settled = stamp.is_settled();
    let digest = super::digest(file)?;
    if settled && Stamp::of(&file.metadata()?) == stamp {
        *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some((stamp, digest));
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_changed_file_is_never_remembered_as_what_it_was() {
        let path = std::env::temp_dir().join(format!("substrate-recall-{}", std::process::id()));
        let told = || digest(&mut File::open(&path).unwrap()).unwrap();
        fs::write(&path, "one").unwrap();
        let one = told();
        // Just written, so not remembered: the next write may fall into the same tick.
        fs::write(&path, "two").unwrap();
        assert_ne!(told(), one);
        fs::write(&path, "one").unwrap();
        assert_eq!(told(), one);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_that_stays_is_read_once() {
        let path = std::env::current_exe().unwrap();
        let stamp = Stamp::of(&fs::metadata(&path).unwrap());
        if !stamp.is_settled() {
            return eprintln!("skipped: this program was built a moment ago");
        }
        let first = digest(&mut File::open(&path).unwrap()).unwrap();
        // The descriptor of another file shows what is compared: its stamp is this one's no more.
        let other = digest(&mut File::open("/proc/self/exe").unwrap()).unwrap();
        assert_eq!(first, other);
        let mut read = File::open(&path).unwrap();
        assert_eq!(digest(&mut read).unwrap(), first);
        let at = io::Seek::stream_position(&mut read).unwrap();
        assert_eq!(at, 0, "it was read again");
    }
}
