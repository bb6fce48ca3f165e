//! A job stream with its two halves apart: frames in through a bounded channel, frames out under a deadline.
//!
//! Invariant: a peer that stops reading cannot hold a session for longer than [`WRITE_DEADLINE`], and a peer
//! that writes faster than the session reads fills its own stream, not our memory.

use std::time::Duration;

use substrate_mesh::Offence;
use substrate_mesh::frame::{FrameReader, FrameWriter, ReadError, SLOW_FRAME, framed};
use substrate_mesh::job::JobFrame;
use tokio::io::{AsyncRead, AsyncWrite, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

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
    /// What came is no frame of the protocol, or came too slowly.
    #[error("{what}")]
    Broken {
        /// What it counts as.
        offence: Offence,
        /// In words for the log.
        what: String,
    },
    /// The other side does not read.
    #[error("the peer does not read")]
    Stuck,
}

/// What happened first on a stream that both reads and writes.
pub enum Turn {
    /// A frame came, or the stream ended.
    Frame(Result<JobFrame, IoEnd>),
    /// The queued frame has gone out.
    Gone,
}

/// One end of a job stream.
pub struct JobIo {
    frames: mpsc::Receiver<Result<JobFrame, IoEnd>>,
    writer: FrameWriter<WriteHalf<Box<dyn Stream>>, JobFrame>,
    /// When a queued frame must have gone out.
    leaves_by: Instant,
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
            leaves_by: Instant::now(),
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

    /// Whatever comes first of the next frame and, while a queued frame is on its way, that frame's departure.
    /// Safe to drop and call again.
    pub async fn turn(&mut self, reading: bool) -> Turn {
        let Self {
            frames,
            writer,
            leaves_by,
            ..
        } = self;
        tokio::select! {
            biased;
            frame = frames.recv(), if reading => Turn::Frame(frame.unwrap_or(Err(IoEnd::Closed))),
            gone = timeout_at(*leaves_by, writer.drain()), if writer.is_pending() => match gone {
                Ok(Ok(())) => Turn::Gone,
                Ok(Err(_)) => Turn::Frame(Err(IoEnd::Closed)),
                Err(_) => Turn::Frame(Err(IoEnd::Stuck)),
            },
            else => std::future::pending().await,
        }
    }

    /// Takes one frame without waiting; [`Self::turn`] brings it on its way and tells when it has gone.
    ///
    /// # Errors
    /// The frame is too long to be one.
    pub fn queue(&mut self, frame: &JobFrame) -> Result<(), IoEnd> {
        self.leaves_by = Instant::now() + SLOW_FRAME;
        self.writer.queue(frame).map_err(|_| IoEnd::Closed)
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
                Some(offence) => IoEnd::Broken {
                    offence,
                    what: error.to_string(),
                },
                None => IoEnd::Closed,
            });
        let ended = frame.is_err();
        if sender.send(frame).await.is_err() || ended {
            return;
        }
    }
}
