//! What the indexes need to know of a record.

use substrate_record::{AnyRecord, ContentHash, JobId, NodeId, RecordId, Stream};

/// Facts of one record, read once before it is stored.
pub(super) struct Facts<'a> {
    pub id: RecordId,
    pub author: NodeId,
    pub place: Option<(Stream, u64)>,
    pub kind: u64,
    pub bytes: &'a [u8],
    pub link: Link,
}

/// What else a record is found by.
pub(super) enum Link {
    /// Its id alone.
    Nothing,
    /// A manifest: its job.
    Job(JobId),
    /// A record about a manifest: that manifest's job.
    Manifest(RecordId),
    /// A model entry: its files.
    Files(Vec<ContentHash>),
}

/// Reads the facts.
pub(super) fn describe(record: &AnyRecord) -> Facts<'_> {
    macro_rules! facts {
        ($verified:expr, $link:expr) => {
            Facts {
                id: $verified.id(),
                author: $verified.author(),
                place: $verified
                    .record()
                    .place
                    .as_ref()
                    .map(|place| (place.stream, place.seq)),
                kind: record.record_type() as u64,
                bytes: $verified.bytes(),
                link: $link,
            }
        };
    }
    match record {
        AnyRecord::Genesis(genesis) => facts!(genesis, Link::Nothing),
        AnyRecord::Capability(capability) => facts!(capability, Link::Nothing),
        AnyRecord::ModelEntry(entry) => facts!(
            entry,
            Link::Files(entry.body().files.iter().map(|file| file.sha256).collect())
        ),
        AnyRecord::JobManifest(manifest) => facts!(manifest, Link::Job(manifest.body().job)),
        AnyRecord::Accept(accept) => facts!(accept, Link::Manifest(accept.body().manifest)),
        AnyRecord::Ack(ack) => facts!(ack, Link::Manifest(ack.body().manifest)),
        AnyRecord::ReceiptW(half) => facts!(half, Link::Manifest(half.body().manifest)),
        AnyRecord::ReceiptR(half) => facts!(half, Link::Manifest(half.body().manifest)),
    }
}
