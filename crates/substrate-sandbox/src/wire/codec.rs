//! Frames: a big-endian length, then one message.
//!
//! Invariant: a length over the direction's limit is refused before a byte of its body is stored,
//! and memory grows with the bytes that really came, not with what a header promises.
//!
//! Absent by design: sockets and clocks. Blocking ends use [`read`] and [`write`]; asynchronous
//! ends feed a [`Decoder`]. Only `read` and `write` calls are made on a stream, because the
//! worker's second seal allows nothing else.

use std::io::{self, Read, Write};
use std::marker::PhantomData;

use serde::{Serialize, de::DeserializeOwned};

use super::{FromWorker, ToWorker};

/// Length of the length.
const HEADER: usize = 4;

/// How much a reader trusts a header at a time: one read of a full socket buffer.
const STEP: usize = 64 * 1024;

/// A message that has a direction, and with it a largest frame.
pub trait Wire: Serialize + DeserializeOwned {
    /// The largest body in bytes.
    const MAX_FRAME: usize;
}

impl Wire for ToWorker {
    /// An input (8 MiB) and the ids of a resumed answer, with room to spare.
    const MAX_FRAME: usize = 16 * 1024 * 1024;
}

impl Wire for FromWorker {
    /// The worker is not trusted; its largest honest message is a rendered prompt or a template.
    const MAX_FRAME: usize = 1024 * 1024;
}

/// Why a message could not be framed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The message is larger than its direction allows.
    #[error("message of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// Bytes of the body.
        size: usize,
        /// The direction's limit.
        limit: usize,
    },
    /// The message cannot be serialised.
    #[error("message cannot be serialised")]
    Serialise(#[source] postcard::Error),
}

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The header promises more than the direction allows.
    #[error("frame of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// Bytes promised.
        size: usize,
        /// The direction's limit.
        limit: usize,
    },
    /// The frame has no body.
    #[error("frame is empty")]
    Empty,
    /// The body is not a message of this direction.
    #[error("frame is not a message")]
    Malformed(#[source] postcard::Error),
    /// Bytes follow the message within its frame.
    #[error("{0} bytes after the message")]
    Trailing(usize),
}

/// Why no message could be read from a stream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The stream failed.
    #[error("pipe failed")]
    Io(#[source] io::Error),
    /// The stream ended inside a frame.
    #[error("pipe closed inside a frame")]
    Torn,
    /// The frame is damaged.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// One message as a whole frame.
pub fn encode<M: Wire>(message: &M) -> Result<Vec<u8>, EncodeError> {
    let mut frame =
        postcard::to_extend(message, vec![0; HEADER]).map_err(EncodeError::Serialise)?;
    let size = frame.len() - HEADER;
    let header = match u32::try_from(size) {
        Ok(header) if size <= M::MAX_FRAME => header,
        _ => {
            let limit = M::MAX_FRAME;
            return Err(EncodeError::TooLarge { size, limit });
        }
    };
    frame[..HEADER].copy_from_slice(&header.to_be_bytes());
    Ok(frame)
}

/// One message from a frame's body.
pub fn decode<M: Wire>(body: &[u8]) -> Result<M, DecodeError> {
    check_size::<M>(body.len())?;
    let (message, rest) = postcard::take_from_bytes(body).map_err(DecodeError::Malformed)?;
    match rest.len() {
        0 => Ok(message),
        extra => Err(DecodeError::Trailing(extra)),
    }
}

/// Reads one message; `None` when the stream ends between frames.
pub fn read<M: Wire>(stream: &mut impl Read) -> Result<Option<M>, ReadError> {
    let mut header = [0; HEADER];
    let got = fill(stream, &mut header)?;
    if got == 0 {
        return Ok(None);
    }
    if got < HEADER {
        return Err(ReadError::Torn);
    }
    let size = u32::from_be_bytes(header) as usize;
    check_size::<M>(size)?;
    let mut body = Vec::new();
    while body.len() < size {
        let start = body.len();
        body.resize(size.min(start + STEP), 0);
        if fill(stream, &mut body[start..])? < body.len() - start {
            return Err(ReadError::Torn);
        }
    }
    Ok(Some(decode(&body)?))
}

/// Writes one message.
///
/// # Errors
/// A message over its limit is `InvalidData`, before anything is written.
pub fn write<M: Wire>(stream: &mut impl Write, message: &M) -> io::Result<()> {
    let frame =
        encode(message).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    stream.write_all(&frame)
}

/// Collects bytes as they come and gives messages as they are whole.
///
/// Take messages with [`Decoder::pop`] until it gives `None` after each [`Decoder::push`]; then at
/// most one frame and one push are ever held. The first error is final: a damaged stream cannot be
/// trusted to be in step again.
pub struct Decoder<M> {
    held: Vec<u8>,
    start: usize,
    failed: Option<DecodeError>,
    message: PhantomData<fn() -> M>,
}

impl<M: Wire> Decoder<M> {
    /// An empty decoder.
    pub fn new() -> Self {
        Self {
            held: Vec::new(),
            start: 0,
            failed: None,
            message: PhantomData,
        }
    }

    /// Adds bytes from the stream. After an error they are dropped.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        self.held.drain(..self.start);
        self.start = 0;
        self.held.extend_from_slice(bytes);
    }

    /// The next whole message, if there is one.
    pub fn pop(&mut self) -> Result<Option<M>, DecodeError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let popped = self.try_pop();
        if let Err(error) = &popped {
            self.failed = Some(error.clone());
            self.held = Vec::new();
            self.start = 0;
        }
        popped
    }

    /// Whether the stream may end here: no part of a frame is held.
    pub fn is_empty(&self) -> bool {
        self.held.len() == self.start
    }

    fn try_pop(&mut self) -> Result<Option<M>, DecodeError> {
        let Some((header, rest)) = self.held[self.start..].split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let size = u32::from_be_bytes(*header) as usize;
        check_size::<M>(size)?;
        let Some(body) = rest.get(..size) else {
            return Ok(None);
        };
        let message = decode(body)?;
        self.start += HEADER + size;
        Ok(Some(message))
    }
}

impl<M: Wire> Default for Decoder<M> {
    fn default() -> Self {
        Self::new()
    }
}

fn check_size<M: Wire>(size: usize) -> Result<(), DecodeError> {
    let limit = M::MAX_FRAME;
    match size {
        0 => Err(DecodeError::Empty),
        _ if size > limit => Err(DecodeError::TooLarge { size, limit }),
        _ => Ok(()),
    }
}

/// Reads until `buffer` is full or the stream ends; gives the bytes read.
fn fill(stream: &mut impl Read, buffer: &mut [u8]) -> Result<usize, ReadError> {
    let mut got = 0;
    while got < buffer.len() {
        match stream.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ReadError::Io(error)),
        }
    }
    Ok(got)
}
