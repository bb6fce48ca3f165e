//! The pause an owner asked for by hand: one line in the home, so that it outlives a daemon.
//!
//! Invariant: a file that is there and cannot be understood is a pause until resumed: the owner comes first.
//! Absent by design: what a pause does. It withholds what is lent (`daemon/settings.rs`).

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::str::FromStr;

use crate::files::{FileError, write_atomically};
use crate::home::Home;

/// The longest line read: the word, a number of 64 bits and some space.
const MAX_LINE: u64 = 64;

/// What the file says of a pause without an end.
const RESUMED: &str = "resumed";

/// How long nothing is lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// Until `substrate resume`.
    UntilResumed,
    /// Until this moment, in Unix milliseconds.
    Until(u64),
}

impl Pause {
    /// Whether it still holds.
    pub fn holds(self, now_ms: u64) -> bool {
        match self {
            Self::UntilResumed => true,
            Self::Until(end) => now_ms < end,
        }
    }

    /// The pause that was asked for last, if there is one.
    pub fn read(home: &Home) -> Option<Self> {
        let mut line = String::new();
        match File::open(home.pause_file()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(_) => return Some(Self::UntilResumed),
            // A line that is no text is read as far as it is one, and is then none that is known.
            Ok(file) => drop(file.take(MAX_LINE).read_to_string(&mut line)),
        }
        Some(line.parse().unwrap_or(Self::UntilResumed))
    }

    /// Begins a pause in place of any other.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(self, home: &Home) -> Result<(), FileError> {
        let line = format!("{self}\n");
        write_atomically(&home.pause_file(), 0o600, line.as_bytes())
    }

    /// Ends any pause; `false` if there was none.
    ///
    /// # Errors
    /// The disk's.
    pub fn end(home: &Home) -> Result<bool, FileError> {
        let path = home.pause_file();
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(FileError::at("remove", &path)(error)),
        }
    }
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UntilResumed => write!(f, "until {RESUMED}"),
            Self::Until(end) => write!(f, "until {end}"),
        }
    }
}

impl FromStr for Pause {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let end = line.trim().strip_prefix("until ").ok_or(())?;
        if end == RESUMED {
            return Ok(Self::UntilResumed);
        }
        end.parse().map(Self::Until).map_err(drop)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pause_is_kept_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path().join("home"));
        home.prepare().unwrap();
        assert_eq!(Pause::read(&home), None);
        assert!(!Pause::end(&home).unwrap());
        for pause in [Pause::UntilResumed, Pause::Until(7)] {
            pause.write(&home).unwrap();
            assert_eq!(Pause::read(&home), Some(pause));
        }
        assert!(Pause::Until(7).holds(6) && !Pause::Until(7).holds(7));
        assert!(Pause::end(&home).unwrap());
        assert_eq!(Pause::read(&home), None);
    }

    #[test]
    fn what_is_not_understood_is_a_pause() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path().join("home"));
        home.prepare().unwrap();
        for text in [&b""[..], b"until noon", b"\xff\xfe", &[b'9'; 4096]] {
            std::fs::write(home.pause_file(), text).unwrap();
            assert_eq!(Pause::read(&home), Some(Pause::UntilResumed));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(end: u64) {
            let pause = Pause::Until(end);
            prop_assert_eq!(pause.to_string().parse(), Ok(pause));
        }

        #[test]
        fn no_line_is_a_panic(line in ".{0,80}") {
            let _: Result<Pause, ()> = line.parse();
        }
    }
}
