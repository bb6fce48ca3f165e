//! Frames of the `/sync/1` stream as this release speaks it: the registry, in full.
//!
//! Invariant: an exchange is bounded in entries and in bytes before it is decoded.
//! Absent by design: set reconciliation, which replaces this exchange when the ledger comes,
//! and any judgement of the records: they are opaque here.

use std::fmt;

use ciborium::Value;
use substrate_record::MAX_RECORD_BYTES;

use crate::cbor::{self, Body, Fields, FrameError, Padding, open, seal};
use crate::frame::Frame;

/// Most entries in one exchange. A curated registry has hundreds.
pub const MAX_ENTRIES: usize = 4_096;

/// Most bytes of entries in one exchange.
pub const MAX_ENTRY_BYTES: usize = 8 * 1024 * 1024;

/// Most bytes of entries in one frame, which leaves room for the framing.
const MAX_BATCH_BYTES: usize = 60 * 1024;

/// Most entries in one frame: the smallest record there can be is above 100 bytes.
pub(crate) const MAX_BATCH: usize = 512;

/// One frame of the exchange.
#[derive(Clone, PartialEq, Eq)]
pub enum EntriesFrame {
    /// Some entries.
    Entries {
        /// Canonical bytes of ModelEntry records.
        records: Vec<Vec<u8>>,
    },
    /// That was all.
    Done {
        /// How many were sent.
        entries: u32,
    },
}

/// Why an exchange is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntriesError {
    /// More than [`MAX_ENTRIES`] or [`MAX_ENTRY_BYTES`].
    #[error("peer sends more registry entries than are taken")]
    TooMany,
    /// The closing count differs from what arrived.
    #[error("peer announced {announced} entries and sent {arrived}")]
    Count {
        /// Claimed at the end.
        announced: u32,
        /// Counted here.
        arrived: u32,
    },
}

/// Collects the entries of one exchange within its limits.
#[derive(Default)]
pub struct EntriesCollector {
    records: Vec<Vec<u8>>,
    bytes: usize,
}

/// Cuts entries into frames, `Done` last. Entries past the limits are left out:
/// a peer would refuse them, and the registry's own bound lies below.
pub fn entries_frames(records: impl IntoIterator<Item = Vec<u8>>) -> Vec<EntriesFrame> {
    let (batches, entries) = batches(records);
    let mut frames: Vec<_> = batches
        .into_iter()
        .map(|records| EntriesFrame::Entries { records })
        .collect();
    frames.push(EntriesFrame::Done { entries });
    frames
}

/// Cuts entries into lists that fit a frame each.
pub(crate) fn batches(records: impl IntoIterator<Item = Vec<u8>>) -> (Vec<Vec<Vec<u8>>>, u32) {
    let mut batches: Vec<Vec<Vec<u8>>> = Vec::new();
    let (mut count, mut total, mut room) = (0, 0, 0);
    for record in records.into_iter().take(MAX_ENTRIES) {
        total += record.len();
        if total > MAX_ENTRY_BYTES {
            break;
        }
        count += 1;
        // Three bytes of CBOR header at most, for a string below 64 KiB.
        let cost = record.len() + 3;
        match batches.last_mut() {
            Some(batch) if cost <= room && batch.len() < MAX_BATCH => batch.push(record),
            _ => {
                batches.push(vec![record]);
                room = MAX_BATCH_BYTES;
            }
        }
        room = room.saturating_sub(cost);
    }
    (batches, count)
}

impl EntriesCollector {
    /// Takes a batch.
    pub fn push(&mut self, records: Vec<Vec<u8>>) -> Result<(), EntriesError> {
        self.bytes += records.iter().map(Vec::len).sum::<usize>();
        if self.bytes > MAX_ENTRY_BYTES || self.records.len() + records.len() > MAX_ENTRIES {
            return Err(EntriesError::TooMany);
        }
        self.records.extend(records);
        Ok(())
    }

    /// Ends the exchange.
    pub fn finish(self, announced: u32) -> Result<Vec<Vec<u8>>, EntriesError> {
        let arrived = u32::try_from(self.records.len()).expect("bounded by MAX_ENTRIES");
        if arrived == announced {
            Ok(self.records)
        } else {
            Err(EntriesError::Count { announced, arrived })
        }
    }
}

impl EntriesFrame {
    /// Decodes one payload. Total and bounded: safe on any bytes.
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let (kind, mut body) = open(payload, Padding::None)?;
        let frame = match kind {
            1 => Self::Entries {
                records: records(&mut body, 1)?,
            },
            2 => Self::Done {
                entries: body.u32(1)?,
            },
            unknown => return Err(FrameError::UnknownKind(unknown)),
        };
        body.end()?;
        Ok(frame)
    }

    /// Encodes the payload that follows the length prefix.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let (kind, body) = match self {
            Self::Entries { records } => (1, records_body(1, records)),
            Self::Done { entries } => (2, Body::default().with(1, *entries).done()),
        };
        seal(kind, body, Padding::None)
    }
}

/// A body that is one list of records.
pub(crate) fn records_body(label: u64, records: &[Vec<u8>]) -> Value {
    Body::default()
        .with(label, cbor::byte_strings(records))
        .done()
}

/// A list of records, none longer than a record may be.
pub(crate) fn records(body: &mut Fields, label: u64) -> Result<Vec<Vec<u8>>, FrameError> {
    let listed = body.list(label, MAX_BATCH)?;
    listed
        .into_iter()
        .map(|record| cbor::bytes(record, label, MAX_RECORD_BYTES))
        .collect()
}

impl Frame for EntriesFrame {
    fn encode(&self) -> Result<Vec<u8>, FrameError> {
        Self::encode(self)
    }

    fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        Self::decode(payload)
    }
}

impl fmt::Debug for EntriesFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entries { records } => write!(f, "Entries({})", records.len()),
            Self::Done { entries } => write!(f, "Done({entries})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_any_size_fit_their_frames_and_come_back_in_order() {
        for size in [100, 400, 5_000, MAX_RECORD_BYTES] {
            let sent: Vec<Vec<u8>> = (0..700u32).map(|i| vec![i as u8; size]).collect();
            let mut collector = EntriesCollector::default();
            for frame in entries_frames(sent.clone()) {
                match EntriesFrame::decode(&frame.encode().unwrap()).unwrap() {
                    EntriesFrame::Entries { records } => collector.push(records).unwrap(),
                    EntriesFrame::Done { entries } => {
                        let arrived = std::mem::take(&mut collector).finish(entries).unwrap();
                        assert_eq!(arrived[..], sent[..arrived.len()], "{size}");
                        assert!(arrived.len() == 700 || size == MAX_RECORD_BYTES);
                    }
                }
            }
        }
    }

    #[test]
    fn a_flood_of_entries_is_given_up() {
        let mut collector = EntriesCollector::default();
        let batch = vec![vec![0; MAX_RECORD_BYTES]; 3];
        let mut taken = 0;
        while collector.push(batch.clone()).is_ok() {
            taken += 3;
        }
        assert!(taken * MAX_RECORD_BYTES <= MAX_ENTRY_BYTES && taken > 500);
        let announced = EntriesCollector::default().finish(3);
        assert_eq!(
            announced,
            Err(EntriesError::Count {
                announced: 3,
                arrived: 0
            })
        );
    }
}
