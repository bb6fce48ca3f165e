//! The input of a job on its way through the stream: a header that says how much, then the bytes.
//!
//! Invariant: memory grows only with bytes that have arrived, and never past the 8 MiB of PROTOCOL.md 4.
//! Absent by design: parsing. The input is opaque here and is opened only inside the wall;
//! nothing in this file can be printed.

use std::fmt;

use substrate_record::Salt;

use crate::cbor::{Body, Fields, FrameError, fixed};
use crate::job::JobFrame;

/// Most bytes of one input, resume ids included (PROTOCOL.md 4).
pub const MAX_INPUT: usize = 8 * 1024 * 1024;

/// Most bytes of input in one frame. What is left of 64 KiB pays for framing and padding.
pub const MAX_CHUNK: usize = 60 * 1024;

/// Bytes of input in one frame as this release sends it: every frame that arrives is a sign of life, and 8 KiB over
/// the slowest line a node should lend on (128 kbit/s) take half a second.
pub const SENT_CHUNK: usize = 8 * 1024;

/// Bytes of one resume id on the wire, big-endian as in `output_bytes`.
const ID: usize = 4;

/// Salts, seed and lengths of an input. The salts open the manifest's commitments.
#[derive(Clone, PartialEq, Eq)]
pub struct InputHeader {
    /// Salt of the seed commitment.
    pub seed_salt: Salt,
    /// Salt of the input commitment.
    pub input_salt: Salt,
    /// Salt of the resume commitment.
    pub resume_salt: Salt,
    /// Salt both sides will commit the output with.
    pub output_salt: Salt,
    /// 8 bytes (the client's own seed) or 32 (drawn by the requester).
    pub seed: Vec<u8>,
    /// Bytes of input that follow.
    pub input_len: u32,
    /// Token ids that follow the input, 4 bytes each.
    pub resume_len: u32,
    /// Which of the requester's own prefixes the provider may use of its cache; none if the prompt is to be read whole.
    pub partition: Option<Partition>,
}

/// A name of the requester's for one of its clients, which nobody else can link to that client.
pub type Partition = [u8; 16];

/// Why an input is not acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// The header announces nothing, or more than [`MAX_INPUT`].
    #[error("an input of {bytes} bytes and {ids} ids is not between 1 byte and {MAX_INPUT}")]
    Length {
        /// Input bytes announced.
        bytes: u32,
        /// Resume ids announced.
        ids: u32,
    },
    /// More bytes came than the header announced.
    #[error("{extra} more bytes of input than announced")]
    Overrun {
        /// How many.
        extra: usize,
    },
}

/// A whole input. It has no `Debug`: it holds a prompt.
pub struct Input {
    /// Salts and seed.
    pub header: InputHeader,
    /// Deterministic CBOR that the worker parses.
    pub input: Vec<u8>,
    /// Ids an earlier attempt produced.
    pub resume: Vec<u32>,
}

/// Puts an input together from its chunks.
pub struct InputAssembler {
    header: InputHeader,
    arrived: Vec<u8>,
    announced: usize,
}

/// The `Input` frames that follow a header, none longer than [`SENT_CHUNK`].
pub fn input_frames(input: &[u8], resume: &[u32]) -> impl Iterator<Item = JobFrame> + use<> {
    let mut bytes = input.to_vec();
    bytes.extend(resume.iter().flat_map(|id| id.to_be_bytes()));
    let mut at = 0;
    std::iter::from_fn(move || {
        let chunk = bytes.get(at..bytes.len().min(at + SENT_CHUNK))?.to_vec();
        at += chunk.len();
        if chunk.is_empty() {
            None
        } else {
            Some(JobFrame::Input { chunk })
        }
    })
}

impl InputAssembler {
    /// Begins with the header that was received.
    ///
    /// # Errors
    /// The header announces no input, or too much.
    pub fn new(header: InputHeader) -> Result<Self, InputError> {
        let announced = header.check_lengths()?;
        Ok(Self {
            header,
            arrived: Vec::new(),
            announced,
        })
    }

    /// Takes the next chunk.
    ///
    /// # Errors
    /// More bytes than announced: the requester breaks the protocol.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), InputError> {
        let extra = (self.arrived.len() + chunk.len()).saturating_sub(self.announced);
        if extra > 0 {
            return Err(InputError::Overrun { extra });
        }
        self.arrived.extend_from_slice(chunk);
        Ok(())
    }

    /// Whether every announced byte has arrived.
    pub fn is_complete(&self) -> bool {
        self.arrived.len() == self.announced
    }

    /// The whole input, or nothing if bytes are missing.
    pub fn finish(mut self) -> Option<Input> {
        if !self.is_complete() {
            return None;
        }
        let resume = self.arrived.split_off(self.header.input_len as usize);
        let resume = resume
            .chunks_exact(ID)
            .map(|id| u32::from_be_bytes(id.try_into().expect("chunks_exact gives 4 bytes")))
            .collect();
        Some(Input {
            header: self.header,
            input: self.arrived,
            resume,
        })
    }
}

impl InputHeader {
    pub(crate) fn body(&self, body: Body) -> Body {
        body.with(1, self.seed_salt.as_bytes().to_vec())
            .with(2, self.input_salt.as_bytes().to_vec())
            .with(3, self.resume_salt.as_bytes().to_vec())
            .with(4, self.output_salt.as_bytes().to_vec())
            .with(5, self.seed.clone())
            .with(6, self.input_len)
            .with(7, self.resume_len)
            .with_some(8, self.partition.map(|partition| partition.to_vec()))
    }

    pub(crate) fn from_body(body: &mut Fields) -> Result<Self, FrameError> {
        let header = Self {
            seed_salt: Salt::from_bytes(body.array(1)?),
            input_salt: Salt::from_bytes(body.array(2)?),
            resume_salt: Salt::from_bytes(body.array(3)?),
            output_salt: Salt::from_bytes(body.array(4)?),
            seed: body.bytes(5, 32)?,
            input_len: body.u32(6)?,
            resume_len: body.u32(7)?,
            partition: body.optional(8).map(|value| fixed(value, 8)).transpose()?,
        };
        if header.seed.len() != 8 && header.seed.len() != 32 {
            return Err(FrameError::Field { label: 5 });
        }
        if header.check_lengths().is_err() {
            return Err(FrameError::Field { label: 6 });
        }
        Ok(header)
    }

    /// Bytes announced in all, if that is an acceptable number.
    fn check_lengths(&self) -> Result<usize, InputError> {
        let announced = self.input_len as usize + self.resume_len as usize * ID;
        if self.input_len == 0 || announced > MAX_INPUT {
            return Err(InputError::Length {
                bytes: self.input_len,
                ids: self.resume_len,
            });
        }
        Ok(announced)
    }
}

impl fmt::Debug for InputHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "InputHeader({} bytes, {} ids)",
            self.input_len, self.resume_len
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(input_len: u32, resume_len: u32) -> InputHeader {
        let salt = Salt::from_bytes([1; 32]);
        InputHeader {
            seed_salt: salt,
            input_salt: salt,
            resume_salt: salt,
            output_salt: salt,
            seed: vec![0; 8],
            input_len,
            resume_len,
            partition: None,
        }
    }

    #[test]
    fn an_input_comes_out_as_it_went_in() {
        for (len, resume) in [
            (1, vec![]),
            (MAX_CHUNK, vec![7, u32::MAX]),
            (200_000, vec![3; 500]),
        ] {
            let input: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let mut assembler =
                InputAssembler::new(header(len as u32, resume.len() as u32)).unwrap();
            for frame in input_frames(&input, &resume) {
                assert!(!assembler.is_complete());
                let JobFrame::Input { chunk } = frame else {
                    unreachable!()
                };
                assembler.push(&chunk).unwrap();
            }
            let whole = assembler.finish().unwrap();
            assert!(whole.input == input && whole.resume == resume, "{len}");
        }
    }

    #[test]
    fn an_input_is_bounded_before_a_byte_of_it_arrives() {
        for (bytes, ids) in [
            (0, 0),
            (0, 5),
            (MAX_INPUT as u32 + 1, 0),
            (1, u32::MAX),
            (u32::MAX, u32::MAX),
        ] {
            assert!(
                InputAssembler::new(header(bytes, ids)).is_err(),
                "{bytes} {ids}"
            );
        }
        let mut assembler = InputAssembler::new(header(3, 0)).unwrap();
        assembler.push(&[1, 2]).unwrap();
        assert_eq!(
            assembler.push(&[3, 4]),
            Err(InputError::Overrun { extra: 1 })
        );
    }
}
