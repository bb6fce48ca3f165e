//! Reading the lines of a batch before any is asked: what is wrong with them, and where each is.
//!
//! Invariant: memory grows by some 60 bytes a line and not by what is in it; either every line can be asked, or none is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt;

use substrate_record::ContentHash;

use super::lines::{self, Fault, MAX_ROW, Rows};
use super::record::{Endpoint, FAULTS_TOLD, Wrong};

/// Most lines of one batch: OpenAI's limit.
pub const MAX_LINES: usize = 50_000;

/// Read from the disk at a time.
const BUFFER: usize = 64 << 10;

/// The lines of a batch, by where they are.
pub(super) struct Lines {
    file: File,
    places: Vec<(u64, u32)>,
    /// By the hash of its `custom_id`, the line's place in the list.
    names: BTreeMap<ContentHash, u32>,
}

/// Reads all lines.
///
/// # Errors
/// What is wrong, the first [`FAULTS_TOLD`] of it.
pub(super) fn check(file: File, endpoint: Endpoint) -> Result<Lines, Vec<Wrong>> {
    let unreadable = |error: std::io::Error| {
        let why = format!("the input file cannot be read: {error}");
        vec![Wrong::whole("input_unreadable", why)]
    };
    let (mut places, mut names, mut wrong) = (Vec::new(), BTreeMap::new(), Vec::new());
    let mut rows = Rows::new(BufReader::with_capacity(BUFFER, &file), MAX_ROW);
    while let Some(row) = rows.next_row().map_err(unreadable)? {
        if places.len() == MAX_LINES {
            let why = format!("a batch may have at most {MAX_LINES} lines");
            return Err(vec![Wrong::whole("too_many_lines", why)]);
        }
        let place = u32::try_from(places.len()).unwrap_or(u32::MAX);
        let bytes = row.bytes.unwrap_or_default();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let fault = match row.bytes {
            None => Some(Fault::too_long()),
            Some(bytes) => match lines::read(bytes, endpoint.path()) {
                Err(fault) => Some(fault),
                Ok(line) => names
                    .insert(ContentHash::of(line.custom_id.as_bytes()), place)
                    .map(|_| Fault::duplicate(&line.custom_id)),
            },
        };
        places.push((row.offset, length));
        if let Some(fault) = fault {
            wrong.push(Wrong::at(row.number, fault));
            if wrong.len() == FAULTS_TOLD {
                return Err(wrong);
            }
        }
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    if places.is_empty() {
        let why = "the input file has no lines";
        return Err(vec![Wrong::whole("empty_file", why)]);
    }
    Ok(Lines {
        file,
        places,
        names,
    })
}

impl Lines {
    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.places.len()).unwrap_or(u32::MAX)
    }

    /// The line with this `custom_id`.
    pub(super) fn named(&self, custom_id: &str) -> Option<u32> {
        self.names
            .get(&ContentHash::of(custom_id.as_bytes()))
            .copied()
    }

    /// The bytes of a line. It was read before, so what is wrong now is the disk.
    pub(super) fn row(&self, line: u32) -> std::io::Result<Vec<u8>> {
        let (offset, length) = self.places[line as usize];
        let mut row = vec![0; length as usize];
        self.file.read_exact_at(&mut row, offset)?;
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn checked(text: &str) -> Result<Lines, Vec<Wrong>> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        check(file, Endpoint::Embeddings)
    }

    fn line(id: &str) -> String {
        format!(
            "{{\"custom_id\":\"{id}\",\"method\":\"POST\",\"url\":\"/v1/embeddings\",\"body\":{{}}}}\n"
        )
    }

    fn told(text: &str) -> String {
        let Err(wrong) = checked(text) else {
            return "right".into();
        };
        let told = wrong.iter().map(|wrong| {
            let line = wrong.line.map_or("-".into(), |line| line.to_string());
            format!("{line} {}", wrong.code)
        });
        told.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn every_fault_is_told_with_its_line() {
        let text = [&line("a"), "\n", "{}\n", &line("b"), &line("a"), "nonsense"].concat();
        assert_eq!(
            told(&text),
            "3 invalid_custom_id, 5 duplicate_custom_id, 6 invalid_json_line"
        );
        assert_eq!(told(""), "- empty_file");
        assert_eq!(told(" \n\n"), "- empty_file");
        assert_eq!(told(&"{}\n".repeat(500)).split(", ").count(), FAULTS_TOLD);
    }

    #[test]
    fn lines_are_found_by_their_place_and_their_name() {
        let lines = checked(&[line("a"), "\n".into(), line("b")].concat()).unwrap();
        assert_eq!(lines.count(), 2);
        assert_eq!((lines.named("b"), lines.named("c")), (Some(1), None));
        assert_eq!(lines.row(1).unwrap(), line("b").trim_end().as_bytes());
    }

    #[test]
    fn one_line_too_many_is_refused() {
        let all: String = (0..=MAX_LINES).map(|n| line(&n.to_string())).collect();
        assert_eq!(told(&all), "- too_many_lines");
        let cut = all.len() - line(&MAX_LINES.to_string()).len();
        assert_eq!(checked(&all[..cut]).unwrap().count() as usize, MAX_LINES);
    }
}
