//! Records sent to one peer alone: the registry in full after hello, and, inside a circle, own entries and capabilities.
//!
//! Invariant: what comes this way is bounded and verified record by record before the loop sees any of it.

use std::time::Duration;

use substrate_mesh::MeshStream;
use substrate_mesh::entries::{EntriesCollector, EntriesFrame};
use substrate_mesh::frame::framed;
use substrate_record::{AnyRecord, NetworkId};
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

/// Takes what a peer sends on one stream.
///
/// # Errors
/// What it did wrong, in words for the log.
pub async fn receive(stream: MeshStream, network: &NetworkId) -> Result<Vec<AnyRecord>, String> {
    let (mut reader, _writer) = framed::<_, EntriesFrame>(stream);
    let mut collected = EntriesCollector::default();
    let records = timeout(DEADLINE, async {
        loop {
            match reader.next().await {
                Ok(EntriesFrame::Entries { records }) => {
                    collected.push(records).map_err(|error| error.to_string())?
                }
                Ok(EntriesFrame::Done { entries }) => {
                    return collected.finish(entries).map_err(|error| error.to_string());
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    });
    let records = records
        .await
        .map_err(|_| "records that take too long".to_owned())??;
    records
        .iter()
        .map(|bytes| AnyRecord::open(bytes, network).map_err(|error| error.to_string()))
        .collect()
}
