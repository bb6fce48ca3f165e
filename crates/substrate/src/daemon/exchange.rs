//! Records sent to one peer alone: the registry in full after hello, and, inside a circle, own entries and capabilities.
//!
//! Invariant: what comes this way is bounded and verified record by record before the loop sees any of it.

use std::time::Duration;

use substrate_mesh::entries::{EntriesCollector, EntriesError, EntriesFrame};
use substrate_mesh::frame::framed;
use substrate_mesh::{MeshStream, Offence};
use substrate_record::{AnyRecord, DecodeError, NetworkId, RecordError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

/// How long one exchange may take: 8 MiB over a 1 Mbit/s line.
const DEADLINE: Duration = Duration::from_secs(70);

/// Sends frames and closes the stream.
pub async fn send(stream: MeshStream, frames: Vec<EntriesFrame>) {
    let (_reader, mut writer) = framed::<_, EntriesFrame>(stream);
    let all = async {
        for frame in &frames {
            writer.send(frame).await?;
        }
        writer.close().await
    };
    if let Ok(Err(error)) = timeout(DEADLINE, all).await {
        tracing::debug!(%error, "records were not sent");
    }
}

/// What is wrong with what a peer sent.
#[derive(Debug)]
pub struct Fault {
    /// What it counts as; nothing, if the line may be to blame.
    pub offence: Option<Offence>,
    /// In words for the log.
    pub what: String,
}

/// Takes what a peer sends on one stream. Records of a type or version this build does not know are left out.
///
/// # Errors
/// What went wrong, and whether the peer is to blame.
pub async fn receive(stream: MeshStream, network: &NetworkId) -> Result<Vec<AnyRecord>, Fault> {
    let records = timeout(DEADLINE, collect(stream))
        .await
        .map_err(|_| Fault {
            offence: None,
            what: "records that take too long".to_owned(),
        })??;
    let opened = records.iter().map(|bytes| open(bytes, network));
    opened.filter_map(Result::transpose).collect()
}

async fn collect(stream: impl AsyncRead + AsyncWrite) -> Result<Vec<Vec<u8>>, Fault> {
    let (mut reader, _writer) = framed::<_, EntriesFrame>(stream);
    let mut collected = EntriesCollector::default();
    loop {
        match reader.next().await {
            Ok(EntriesFrame::Entries { records }) => collected.push(records)?,
            Ok(EntriesFrame::Done { entries }) => return Ok(collected.finish(entries)?),
            Err(error) => {
                return Err(Fault {
                    offence: error.offence(),
                    what: error.to_string(),
                });
            }
        }
    }
}

fn open(bytes: &[u8], network: &NetworkId) -> Result<Option<AnyRecord>, Fault> {
    match AnyRecord::open(bytes, network) {
        Ok(record) => Ok(Some(record)),
        Err(RecordError::Decode(DecodeError::UnknownType(_) | DecodeError::Version(_))) => Ok(None),
        Err(error) => Err(Fault {
            offence: Some(Offence::BadRecord),
            what: error.to_string(),
        }),
    }
}

impl From<EntriesError> for Fault {
    fn from(error: EntriesError) -> Self {
        let offence = match error {
            EntriesError::TooMany => Offence::Flood,
            _ => Offence::OutOfOrder,
        };
        Self {
            offence: Some(offence),
            what: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use substrate_mesh::frame::FrameWriter;
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn offence_of(frames: &[EntriesFrame], cut: &[u8]) -> Option<Offence> {
        let (here, there) = tokio::io::duplex(64 * 1024);
        let (_, mut raw) = tokio::io::split(there);
        let mut writer = FrameWriter::new(&mut raw);
        for frame in frames {
            writer.send(frame).await.expect("room for all");
        }
        raw.write_all(cut).await.expect("room for all");
        raw.shutdown().await.expect("nobody else writes");
        drop(raw);
        collect(here).await.err().and_then(|fault| fault.offence)
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_costs_its_peer_nothing() {
        let some = EntriesFrame::Entries {
            records: vec![vec![1; 200]],
        };
        let broken = [std::slice::from_ref(&some), &[]];
        for frames in broken {
            assert_eq!(offence_of(frames, &[]).await, None);
            assert_eq!(offence_of(frames, &[0, 0, 0, 9, 1]).await, None);
        }
        let miscounted = [some, EntriesFrame::Done { entries: 2 }];
        assert_eq!(
            offence_of(&miscounted, &[]).await,
            Some(Offence::OutOfOrder)
        );
        assert_eq!(
            offence_of(&[], &[0, 0, 0, 1, 0xff]).await,
            Some(Offence::MalformedFrame)
        );
        assert_eq!(
            offence_of(&[], &[0, 1, 0, 0]).await,
            Some(Offence::OversizeFrame)
        );
    }

    #[test]
    fn a_record_nobody_knows_yet_is_left_out_and_a_broken_one_is_not() {
        let network = NetworkId::from_bytes([1; 32]);
        let vector =
            include_str!("../../../substrate-record/tests/vectors/unknown-type/record.hex");
        let digits: Vec<u8> = vector
            .bytes()
            .filter(|digit| !digit.is_ascii_whitespace())
            .collect();
        let pairs = digits
            .chunks(2)
            .map(|pair| std::str::from_utf8(pair).expect("ASCII"));
        let unknown: Vec<u8> = pairs
            .map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal"))
            .collect();
        assert!(matches!(open(&unknown, &network), Ok(None)));
        let broken = open(&[0x84, 0x40], &network).expect_err("no record");
        assert_eq!(broken.offence, Some(Offence::BadRecord));
    }
}
