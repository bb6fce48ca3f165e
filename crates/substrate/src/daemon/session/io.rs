//! A job stream with its two halves apart: frames in through a bounded channel, frames out under a deadline.
//!
//! Invariant: a peer that stops reading cannot hold a session for longer than [`WRITE_DEADLINE`], and a peer
//! that writes faster than the session reads fills its own stream, not our memory.

use std::time::Duration;

use substrate_mesh::frame::{FrameReader, FrameWriter, ReadError, framed};
use substrate_mesh::job::JobFrame;
use tokio::io::{AsyncRead, AsyncWrite, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Frames read ahead of the session.
const READ_AHEAD: usize = 8;

/// Bytes in flight between the two ends of a job inside one machine: one full frame.
const LOCAL_BYTES: usize = 64 * 1024;

/// PROTOCOL.md 4: silent for this long is dead.
pub const WRITE_DEADLINE: Duration = Duration::from_millis(1800);

/// PROTOCOL.md 4.
pub const HEARTBEAT: Duration = Duration::from_millis(500);

/// Anything a job stream can run over.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Why nothing more comes from or goes into a stream.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IoEnd {
    /// The other side closed it, or the connection broke.
    #[error("the stream closed")]
    Closed,
    /// What came is no frame of the protocol.
    #[error("{0}")]
    Malformed(String),
    /// The other side does not read.
    #[error("the peer does not read")]
    Stuck,
}

/// One end of a job stream.
pub struct JobIo {
    frames: mpsc::Receiver<Result<JobFrame, IoEnd>>,
    writer: FrameWriter<WriteHalf<Box<dyn Stream>>, JobFrame>,
    reader: JoinHandle<()>,
}

impl JobIo {
    /// Takes over a stream.
    pub fn new(stream: impl Stream + 'static) -> Self {
        let stream: Box<dyn Stream> = Box::new(stream);
        let (reader, writer) = framed(stream);
        let (sender, frames) = mpsc::channel(READ_AHEAD);
        let reader = tokio::spawn(read_ahead(reader, sender));
        Self {
            frames,
            writer,
            reader,
        }
    }

    /// Two ends joined in memory, for a job of this machine for itself.
    pub fn pair() -> (Self, Self) {
        let (left, right) = tokio::io::duplex(LOCAL_BYTES);
        (Self::new(left), Self::new(right))
    }

    /// The next frame. Safe to drop and call again.
    ///
    /// # Errors
    /// How the stream ended.
    pub async fn next(&mut self) -> Result<JobFrame, IoEnd> {
        self.frames.recv().await.unwrap_or(Err(IoEnd::Closed))
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// How the stream ended.
    pub async fn send(&mut self, frame: &JobFrame) -> Result<(), IoEnd> {
        match timeout(WRITE_DEADLINE, self.writer.send(frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(IoEnd::Closed),
            Err(_) => Err(IoEnd::Stuck),
        }
    }
}

impl Drop for JobIo {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read_ahead<R: AsyncRead + Send + Unpin>(
    mut reader: FrameReader<R, JobFrame>,
    sender: mpsc::Sender<Result<JobFrame, IoEnd>>,
) {
    loop {
        let frame = reader
            .next()
            .await
            .map_err(|error: ReadError| match error.offence() {
                Some(_) => IoEnd::Malformed(error.to_string()),
                None => IoEnd::Closed,
            });
        let ended = frame.is_err();
        if sender.send(frame).await.is_err() || ended {
            return;
        }
    }
}
