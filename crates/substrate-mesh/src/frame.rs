//! Frames on a stream: a reader and a writer with limits and a deadline.
//!
//! Invariant: both are cancel safe: a future that is dropped loses no byte and splits no frame.
//! Absent by design: a deadline for a frame to *begin* (heartbeats are the session's), and a queue:
//! a peer that does not read makes the writer wait, and so the back pressure reaches the sampler.

use std::marker::PhantomData;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, timeout, timeout_at};

use crate::cbor::{FrameError, MAX_FRAME, PREFIX};
use crate::standing::Offence;

/// A frame must be whole this long after its first byte.
///
/// 64 KiB over the slowest line a node should lend on (128 kbit/s) takes four seconds.
pub const SLOW_FRAME: Duration = Duration::from_secs(5);

/// Heartbeats go both ways this often (PROTOCOL.md 4).
pub const HEARTBEAT_EVERY: Duration = Duration::from_millis(500);

/// Nothing for this long and the other side is dead (PROTOCOL.md 4): three heartbeats and some jitter.
pub const DEAD_AFTER: Duration = Duration::from_millis(1_800);

/// Capacity the read buffer starts with: most frames are one padded block of 256 bytes.
const FIRST_READ: usize = 1024;

/// A message with one canonical payload.
pub trait Frame: Sized {
    /// The payload that follows the length prefix.
    ///
    /// # Errors
    /// The frame would be longer than [`MAX_FRAME`].
    fn encode(&self) -> Result<Vec<u8>, FrameError>;

    /// Decodes one payload. Must be total and bounded.
    ///
    /// # Errors
    /// The payload is not exactly what `encode` makes.
    fn decode(payload: &[u8]) -> Result<Self, FrameError>;
}

/// Why no further frame comes from a stream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The stream ended between two frames.
    #[error("stream ended")]
    Ended,
    /// The stream ended or failed inside a frame.
    #[error("stream broke off inside a frame")]
    Broken(#[source] std::io::Error),
    /// A frame began and did not end within [`SLOW_FRAME`].
    #[error("frame did not arrive within {SLOW_FRAME:?}")]
    Slow,
    /// No frame came within the time the caller gave.
    #[error("nothing heard within {0:?}")]
    Silent(Duration),
    /// The bytes are not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl ReadError {
    /// What the peer is to be scored down for, if this is its fault.
    ///
    /// Silence and a broken stream are not: a cut cable looks the same.
    pub fn offence(&self) -> Option<Offence> {
        match self {
            Self::Slow => Some(Offence::SlowFrame),
            Self::Frame(FrameError::TooLarge { .. }) => Some(Offence::OversizeFrame),
            Self::Frame(_) => Some(Offence::MalformedFrame),
            Self::Ended | Self::Broken(_) | Self::Silent(_) => None,
        }
    }
}

/// Why a frame could not be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The frame itself is too long.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream failed.
    #[error("stream failed")]
    Broken(#[from] std::io::Error),
}

/// Splits a stream into a reader and a writer of one kind of frame.
pub fn framed<S, F>(stream: S) -> (FrameReader<ReadHalf<S>, F>, FrameWriter<WriteHalf<S>, F>)
where
    S: AsyncRead + AsyncWrite,
    F: Frame,
{
    let (read, write) = tokio::io::split(stream);
    (FrameReader::new(read), FrameWriter::new(write))
}

/// Reads frames.
pub struct FrameReader<S, F> {
    stream: S,
    buffer: Vec<u8>,
    /// When the frame in the buffer must be whole.
    deadline: Option<Instant>,
    frames: PhantomData<fn() -> F>,
}

impl<S: AsyncRead + Unpin, F: Frame> FrameReader<S, F> {
    /// Reads from the stream's current position.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::with_capacity(FIRST_READ),
            deadline: None,
            frames: PhantomData,
        }
    }

    /// The next frame. Cancel safe.
    pub async fn next(&mut self) -> Result<F, ReadError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            self.read_more().await?;
        }
    }

    /// The next frame, if one comes within `patience`. Cancel safe.
    pub async fn next_within(&mut self, patience: Duration) -> Result<F, ReadError> {
        timeout(patience, self.next())
            .await
            .unwrap_or(Err(ReadError::Silent(patience)))
    }

    /// Takes a whole frame out of the buffer.
    fn buffered(&mut self) -> Result<Option<F>, ReadError> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let end = PREFIX + u32::from_be_bytes(*prefix) as usize;
        if end > MAX_FRAME {
            return Err(FrameError::TooLarge { len: end }.into());
        }
        let Some(payload) = self.buffer.get(PREFIX..end) else {
            return Ok(None);
        };
        let frame = F::decode(payload)?;
        self.buffer.drain(..end);
        // What is left belongs to the next frame, whose time begins now.
        self.deadline = None;
        Ok(Some(frame))
    }

    async fn read_more(&mut self) -> Result<(), ReadError> {
        if !self.buffer.is_empty() && self.deadline.is_none() {
            self.deadline = Some(Instant::now() + SLOW_FRAME);
        }
        self.buffer.reserve(FIRST_READ);
        let read = self.stream.read_buf(&mut self.buffer);
        let count = match self.deadline {
            Some(deadline) => timeout_at(deadline, read)
                .await
                .map_err(|_| ReadError::Slow)?,
            None => read.await,
        };
        match count {
            Ok(0) if self.buffer.is_empty() => Err(ReadError::Ended),
            Ok(0) => Err(ReadError::Broken(std::io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(()),
            Err(error) => Err(ReadError::Broken(error)),
        }
    }
}

/// Writes frames.
pub struct FrameWriter<S, F> {
    stream: S,
    /// Bytes of frames not yet taken by the stream.
    pending: Vec<u8>,
    /// The stream took bytes that it may still hold back.
    unflushed: bool,
    frames: PhantomData<fn(F)>,
}

impl<S: AsyncWrite + Unpin, F: Frame> FrameWriter<S, F> {
    /// Writes from the stream's current position.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            pending: Vec::new(),
            unflushed: false,
            frames: PhantomData,
        }
    }

    /// Sends one frame and flushes it.
    ///
    /// Dropping the future is safe: what the stream has not taken goes out before the next frame.
    pub async fn send(&mut self, frame: &F) -> Result<(), WriteError> {
        self.drain().await?;
        self.queue(frame)?;
        self.drain().await
    }

    /// Takes one frame without waiting; it goes out with [`Self::drain`], or before the next frame sent.
    /// Whoever queues only while nothing [`is_pending`](Self::is_pending) holds one frame at most.
    pub fn queue(&mut self, frame: &F) -> Result<(), WriteError> {
        let payload = frame.encode()?;
        let len = u32::try_from(payload.len()).expect("encode refuses frames over 64 KiB");
        self.pending.extend_from_slice(&len.to_be_bytes());
        self.pending.extend_from_slice(&payload);
        Ok(())
    }

    /// Whether bytes of a frame are still to go out.
    pub fn is_pending(&self) -> bool {
        self.unflushed || !self.pending.is_empty()
    }

    /// Ends this direction of the stream: the peer reads what was sent, then the end.
    pub async fn close(&mut self) -> Result<(), WriteError> {
        self.drain().await?;
        Ok(self.stream.shutdown().await?)
    }

    /// Waits until the stream has taken every frame. Cancel safe.
    pub async fn drain(&mut self) -> Result<(), WriteError> {
        while !self.pending.is_empty() {
            let taken = self.stream.write(&self.pending).await?;
            if taken == 0 {
                return Err(WriteError::Broken(std::io::ErrorKind::WriteZero.into()));
            }
            self.pending.drain(..taken);
            self.unflushed = true;
        }
        self.stream.flush().await?;
        self.unflushed = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobFrame;

    type Reader<S> = FrameReader<S, JobFrame>;

    async fn read(bytes: &[u8]) -> Result<JobFrame, ReadError> {
        Reader::new(bytes).next().await
    }

    #[tokio::test]
    async fn a_frame_split_at_every_byte_arrives_whole() {
        let (here, there) = tokio::io::duplex(1);
        let sent = JobFrame::Token {
            ids: vec![1, 2, 3],
            bytes: b"abc".to_vec(),
            logprobs: vec![],
        };
        let copy = sent.clone();
        let writing = tokio::spawn(async move { FrameWriter::new(there).send(&copy).await });
        assert_eq!(Reader::new(here).next().await.unwrap(), sent);
        writing.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_dropped_send_does_not_split_the_frame() {
        let (here, there) = tokio::io::duplex(100);
        let mut writer = FrameWriter::new(there);
        let sent = JobFrame::Prefilled { n: 9 };
        // The pipe takes 100 of 256 bytes, then the send is dropped.
        let dropped = timeout(Duration::from_millis(1), writer.send(&sent)).await;
        assert!(dropped.is_err());
        let mut reader = Reader::new(here);
        let reading = async { (reader.next().await.unwrap(), reader.next().await.unwrap()) };
        let (read, second) = tokio::join!(reading, writer.send(&JobFrame::Cancel));
        second.unwrap();
        assert_eq!(read, (sent, JobFrame::Cancel));
    }

    #[tokio::test]
    async fn what_the_peer_does_wrong_is_told_apart_from_what_the_line_does() {
        let oversize = read(&[0, 1, 0, 0]).await.unwrap_err();
        assert_eq!(oversize.offence(), Some(Offence::OversizeFrame));
        let malformed = read(&[0, 0, 0, 1, 0xff]).await.unwrap_err();
        assert_eq!(malformed.offence(), Some(Offence::MalformedFrame));
        let broken = read(&[0, 0, 0, 9, 1]).await.unwrap_err();
        assert!(matches!(broken, ReadError::Broken(_)) && broken.offence().is_none());
        assert!(matches!(read(&[]).await.unwrap_err(), ReadError::Ended));
    }

    #[tokio::test]
    async fn a_slow_frame_is_given_up_and_silence_is_not_an_offence() {
        let (here, mut there) = tokio::io::duplex(64);
        let mut reader = Reader::new(here);
        let silent = reader.next_within(DEAD_AFTER).await.unwrap_err();
        assert!(matches!(silent, ReadError::Silent(_)) && silent.offence().is_none());
        there.write_all(&[0, 0, 0, 200, 1]).await.unwrap();
        let begun = Instant::now();
        let slow = reader.next().await.unwrap_err();
        assert_eq!(slow.offence(), Some(Offence::SlowFrame));
        assert!(begun.elapsed() >= SLOW_FRAME);
    }
}
