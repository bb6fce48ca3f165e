//! Reads an export's file front to back, so that every refusal knows its byte.
//!
//! Invariant: the structure is checked whole before the first record is; a record is checked where
//! it stands. Absent by design: skipping a bad record to look at the rest.

use super::{Attempt, Export, ExportError, Location, MAX_ACKS, MAX_ATTEMPTS, MAX_ENTRIES};
use super::{MAX_EXPORT_BYTES, Role, VERSION};
use crate::cbor::{self, CborError, CborFault, Reader};
use crate::{Genesis, InNetwork, NetworkId, RecordError, Signed, Verified};

/// File, list of attempts, attempt, list of Acks.
const DEPTH: usize = 4;

pub(super) fn read(bytes: &[u8]) -> Result<Export, ExportError> {
    let length = bytes.len();
    if length > MAX_EXPORT_BYTES {
        return Err(ExportError::Oversize { length });
    }
    cbor::check(bytes, DEPTH).map_err(ExportError::Structure)?;
    let mut cursor = Cursor::new(bytes);
    cursor.fields(4)?;
    cursor.label(1)?;
    match cursor.uint()? {
        VERSION => {}
        other => return Err(ExportError::Version(other)),
    }
    cursor.label(2)?;
    let genesis = cursor.genesis()?;
    let network = genesis.network();
    cursor.label(3)?;
    let entries = cursor.list(MAX_ENTRIES, |cursor, index| {
        cursor.record(&network, Role::Entry(index))
    })?;
    cursor.label(4)?;
    let attempts = cursor.list(MAX_ATTEMPTS, |cursor, index| {
        cursor.attempt = Some(index);
        read_attempt(cursor, &network)
    })?;
    if attempts.is_empty() {
        return Err(ExportError::Empty);
    }
    let export = Export {
        genesis,
        entries,
        attempts,
    };
    if export.encode() != bytes {
        return cursor.refuse(CborFault::Expected("the canonical form of an export"));
    }
    Ok(export)
}

fn read_attempt(cursor: &mut Cursor<'_>, network: &NetworkId) -> Result<Attempt, ExportError> {
    let mut left = cursor.pairs()?;
    let mut next = |cursor: &mut Cursor<'_>, label| -> Result<bool, ExportError> {
        let found = left > 0 && cursor.at_label(label)?;
        left -= usize::from(found);
        Ok(found)
    };
    if !next(cursor, 1)? {
        return cursor.refuse(CborFault::Expected("a manifest"));
    }
    let manifest = cursor.record(network, Role::Manifest)?;
    let accept = match next(cursor, 2)? {
        true => Some(cursor.record(network, Role::Accept)?),
        false => None,
    };
    if !next(cursor, 3)? {
        return cursor.refuse(CborFault::Expected("a list of acks"));
    }
    let acks = cursor.list(MAX_ACKS, |cursor, index| {
        cursor.record(network, Role::Ack(index))
    })?;
    let receipt_w = match next(cursor, 4)? {
        true => Some(cursor.record(network, Role::ReceiptW)?),
        false => None,
    };
    let receipt_r = match next(cursor, 5)? {
        true => Some(cursor.record(network, Role::ReceiptR)?),
        false => None,
    };
    if left > 0 {
        return cursor.refuse(CborFault::Expected("no further label"));
    }
    Ok(Attempt {
        manifest,
        accept,
        acks,
        receipt_w,
        receipt_r,
    })
}

/// Stands at a byte of the file and knows in which attempt that is.
struct Cursor<'a> {
    bytes: &'a [u8],
    reader: Reader<'a>,
    attempt: Option<usize>,
}

impl<'a> Cursor<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            reader: Reader::new(bytes),
            attempt: None,
        }
    }

    fn uint(&mut self) -> Result<u64, ExportError> {
        self.reader.uint().map_err(ExportError::Structure)
    }

    fn pairs(&mut self) -> Result<usize, ExportError> {
        self.reader.map().map_err(ExportError::Structure)
    }

    fn fields(&mut self, count: usize) -> Result<(), ExportError> {
        if self.pairs()? == count {
            return Ok(());
        }
        self.refuse(CborFault::Expected("a map of four labels"))
    }

    fn label(&mut self, label: u64) -> Result<(), ExportError> {
        if self.at_label(label)? {
            return Ok(());
        }
        self.refuse(CborFault::Expected("the next label"))
    }

    /// Reads the label if it is the next one, else nothing.
    fn at_label(&mut self, label: u64) -> Result<bool, ExportError> {
        let mut ahead = Reader::new(&self.bytes[self.reader.offset()..]);
        if ahead.uint() != Ok(label) {
            return Ok(false);
        }
        self.uint().map(|_| true)
    }

    fn list<T>(
        &mut self,
        limit: usize,
        mut item: impl FnMut(&mut Self, usize) -> Result<T, ExportError>,
    ) -> Result<Vec<T>, ExportError> {
        let length = self.reader.array().map_err(ExportError::Structure)?;
        if length > limit {
            return self.refuse(CborFault::Expected("a shorter list"));
        }
        (0..length).map(|index| item(self, index)).collect()
    }

    fn genesis(&mut self) -> Result<Verified<Genesis>, ExportError> {
        self.open(Role::Genesis, |bytes| {
            Ok(Signed::<Genesis>::decode(bytes)?.verify_genesis()?)
        })
    }

    fn record<B: InNetwork>(
        &mut self,
        network: &NetworkId,
        role: Role,
    ) -> Result<Verified<B>, ExportError> {
        self.open(role, |bytes| {
            Ok(Signed::<B>::decode(bytes)?.verify(network)?)
        })
    }

    fn open<T>(
        &mut self,
        record: Role,
        check: impl FnOnce(&[u8]) -> Result<T, RecordError>,
    ) -> Result<T, ExportError> {
        let bytes = self.reader.byte_string().map_err(ExportError::Structure)?;
        let at = Location {
            attempt: self.attempt,
            record,
            offset: self.reader.offset() - bytes.len(),
        };
        check(bytes).map_err(|source| ExportError::Record { at, source })
    }

    fn refuse<T>(&self, fault: CborFault) -> Result<T, ExportError> {
        let offset = self.reader.offset();
        Err(ExportError::Structure(CborError { offset, fault }))
    }
}
