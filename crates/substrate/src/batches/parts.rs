//! What came of a batch so far: two files of rows that only grow, one of good answers and one of the rest.
//!
//! Invariants: a row is counted only when it is on disk; after a crash the whole rows are there, what was half is cut off,
//! and nothing stands there twice.
//! Absent by design: another list of what is done. The rows say it themselves.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::lines::Rows;
use super::record::Counts;
use crate::blobs::RESERVE;
use crate::files::{FileError, free_bytes};

/// Longest row of an output: the largest answer kept for a client that does not stream, and what JSON makes of its letters.
pub(super) const MAX_OUTPUT_ROW: usize = 64 << 20;

/// Most bytes that may come of one batch: 40 KiB for each of the most lines.
const MAX_OUTPUT: u64 = 2 << 30;

/// Read from the disk at a time.
const BUFFER: usize = 64 << 10;

/// Why a row was not kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum PartError {
    /// The batch has ended meanwhile.
    #[error("the batch has ended")]
    Closed,
    /// Too much came of it.
    #[error("what comes of one batch may have at most {MAX_OUTPUT} bytes")]
    TooMuch,
    /// The disk's.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A row, as OpenAI's clients read it.
#[derive(Serialize)]
pub(super) struct OutputRow<'a> {
    pub(super) id: String,
    pub(super) custom_id: &'a str,
    pub(super) response: Option<OutputResponse<'a>>,
    pub(super) error: Option<OutputError<'a>>,
}

/// What a request was answered.
#[derive(Serialize)]
pub(super) struct OutputResponse<'a> {
    pub(super) status_code: u16,
    /// The job, whose receipts `substrate receipts show` tells.
    pub(super) request_id: &'a str,
    pub(super) body: &'a RawValue,
}

/// Why a request was not asked.
#[derive(Serialize)]
pub(super) struct OutputError<'a> {
    pub(super) code: &'a str,
    pub(super) message: &'a str,
}

/// Both files.
pub(super) struct Parts {
    good: Part,
    bad: Part,
    counts: Counts,
    is_closed: bool,
}

struct Part {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
}

impl Parts {
    /// Opens what there is. `done` hears the name of every request that has its row.
    pub(super) fn open(
        good: &Path,
        bad: &Path,
        total: u32,
        mut done: impl FnMut(&str),
    ) -> Result<Self, FileError> {
        let mut counts = Counts {
            total,
            ..Counts::default()
        };
        let good = Part::open(good, |name| {
            counts.completed += 1;
            done(name);
        })?;
        let bad = Part::open(bad, |name| {
            counts.failed += 1;
            done(name);
        })?;
        Ok(Self {
            good,
            bad,
            counts,
            is_closed: false,
        })
    }

    /// Adds a row. When this returns, it is on disk.
    pub(super) fn append(&mut self, row: &OutputRow<'_>) -> Result<Counts, PartError> {
        self.write(row)?;
        self.sync()?;
        Ok(self.counts)
    }

    /// Adds a row that counts with the next [`Parts::sync`].
    pub(super) fn write(&mut self, row: &OutputRow<'_>) -> Result<(), PartError> {
        if self.is_closed {
            return Err(PartError::Closed);
        }
        let mut text = serde_json::to_vec(row).expect("a row has no map with odd keys");
        text.push(b'\n');
        if self.good.bytes + self.bad.bytes + text.len() as u64 > MAX_OUTPUT {
            return Err(PartError::TooMuch);
        }
        let is_good =
            matches!(&row.response, Some(response) if (200..300).contains(&response.status_code));
        if is_good {
            self.good.append(&text)?;
            self.counts.completed += 1;
        } else {
            self.bad.append(&text)?;
            self.counts.failed += 1;
        }
        Ok(())
    }

    /// Forces what was written to disk.
    pub(super) fn sync(&mut self) -> Result<(), PartError> {
        for part in [&self.good, &self.bad] {
            if let Some(file) = &part.file {
                file.sync_data()
                    .map_err(FileError::at("sync", &part.path))?;
            }
        }
        Ok(())
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes no more.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
    }
}

impl Part {
    fn open(path: &Path, mut done: impl FnMut(&str)) -> Result<Self, FileError> {
        let open = OpenOptions::new().read(true).write(true).open(path);
        let file = match open {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            opened => Some(opened.map_err(FileError::at("read", path))?),
        };
        let mut part = Self {
            path: path.to_path_buf(),
            file,
            bytes: 0,
        };
        if let Some(file) = &mut part.file {
            part.bytes = recover(file, &mut done).map_err(FileError::at("read", path))?;
        }
        Ok(part)
    }

    /// A row is written whole or not at all; a failed write is cut off again.
    fn append(&mut self, row: &[u8]) -> Result<(), FileError> {
        let folder = self.path.parent().unwrap_or(&self.path);
        if free_bytes(folder)? < RESERVE.saturating_add(row.len() as u64) {
            let path = self.path.clone();
            return Err(FileError::DiskFull { path });
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let open = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&self.path);
                let open = open.map_err(FileError::at("create", &self.path))?;
                crate::files::sync_folder(folder)?;
                self.file.insert(open)
            }
        };
        if let Err(error) = file.write_all(row) {
            let cut = file.set_len(self.bytes);
            if let Err(error) = cut.and_then(|()| file.seek(SeekFrom::Start(self.bytes))) {
                tracing::warn!(%error, path = %self.path.display(), "half a row stays until the next start");
            }
            return Err(FileError::at("write", &self.path)(error));
        }
        self.bytes += row.len() as u64;
        Ok(())
    }
}

/// What is looked for in a row that was written here.
#[derive(Deserialize)]
struct Named {
    custom_id: String,
}

/// Reads the rows and cuts off what is not whole. The bytes that are left.
fn recover(file: &mut File, done: &mut dyn FnMut(&str)) -> io::Result<u64> {
    let mut good = 0;
    let mut rows = Rows::new(BufReader::with_capacity(BUFFER, &*file), MAX_OUTPUT_ROW);
    while let Some(row) = rows.next_row()? {
        let Some(bytes) = row.bytes.filter(|_| row.is_whole) else {
            break;
        };
        let Ok(named) = serde_json::from_slice::<Named>(bytes) else {
            break;
        };
        done(&named.custom_id);
        good = row.offset + bytes.len() as u64 + 1;
    }
    file.set_len(good)?;
    file.sync_all()?;
    file.seek(SeekFrom::Start(good))?;
    Ok(good)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row<'a>(custom_id: &'a str, status: u16, body: &'a RawValue) -> OutputRow<'a> {
        OutputRow {
            id: format!("batch_req_{custom_id}"),
            custom_id,
            response: Some(OutputResponse {
                status_code: status,
                request_id: "j",
                body,
            }),
            error: None,
        }
    }

    fn open(folder: &Path) -> (Parts, Vec<String>) {
        let mut done = Vec::new();
        let parts = Parts::open(&folder.join("good"), &folder.join("bad"), 9, |name| {
            done.push(name.to_owned());
        });
        (parts.unwrap(), done)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn wherever_a_crash_cuts_whole_rows_stay_and_the_rest_is_asked_again(cut in 0_usize..200, more in ".{0,8}") {
            let folder = tempfile::tempdir().unwrap();
            let body = serde_json::value::to_raw_value(&more).unwrap();
            let names = ["a", "b", "c"];
            let (mut parts, _) = open(folder.path());
            for name in names {
                parts.append(&row(name, 200, &body)).unwrap();
            }
            drop(parts);
            let path = folder.path().join("good");
            let whole = std::fs::read(&path).unwrap();
            let kept = whole.len().saturating_sub(cut);
            std::fs::write(&path, &whole[..kept]).unwrap();
            let (mut parts, done) = open(folder.path());
            let rows = whole[..kept].iter().filter(|byte| **byte == b'\n').count();
            prop_assert_eq!(&done[..], &names[..rows]);
            for name in &names[rows..] {
                parts.append(&row(name, 200, &body)).unwrap();
            }
            prop_assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn good_answers_and_the_rest_are_counted_apart_and_an_ended_batch_takes_none() {
        let folder = tempfile::tempdir().unwrap();
        let body = serde_json::value::to_raw_value("x").unwrap();
        let (mut parts, _) = open(folder.path());
        parts.append(&row("a", 200, &body)).unwrap();
        parts.append(&row("b", 400, &body)).unwrap();
        let (mut parts, done) = open(folder.path());
        assert_eq!(done, ["a", "b"]);
        let counts = parts.counts();
        assert_eq!((counts.total, counts.completed, counts.failed), (9, 1, 1));
        parts.close();
        assert!(matches!(
            parts.append(&row("c", 200, &body)),
            Err(PartError::Closed)
        ));
    }
}
