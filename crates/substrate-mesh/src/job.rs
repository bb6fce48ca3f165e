//! Frames of the job stream: what requester and provider say to each other about one attempt.
//!
//! Invariant: decoding is pure, bounded and total; a frame's length on the wire is a multiple of 256.
//! Absent by design: the order of frames (the job's session knows it), signatures (records carry
//! their own), and any printing of prompt, answer or salts: `Debug` shows kinds and lengths only.

use std::fmt;

use ciborium::Value;
use substrate_record::{MAX_RECORD_BYTES, RecordId};

use crate::cbor::{Body, Fields, FrameError, Padding, integer, open, seal};
use crate::frame::Frame;
use crate::input::{InputHeader, MAX_CHUNK};
use crate::token::{MAX_IDS, TokenLogprob, logprobs};

/// Most bytes of released text in one frame. One token is at most a few dozen bytes;
/// a resumed tail of 256 ids stays far below.
pub const MAX_TEXT: usize = 16 * 1024;

/// Most bytes of audit fingerprints that come with the receipt.
pub const MAX_FINGERPRINTS: usize = 32 * 1024;

/// Most bytes of a reason written for a person.
pub const MAX_REASON: usize = 256;

/// One frame of the job stream.
#[derive(Clone, PartialEq, Eq)]
pub enum JobFrame {
    /// Requester: a signed manifest asks for a slot.
    Offer {
        /// Canonical bytes of the JobManifest.
        manifest: Vec<u8>,
    },
    /// Provider: the offer waits.
    Queued {
        /// Jobs before this one.
        position: u32,
        /// Expected wait.
        expected_wait_ms: u64,
        /// The reason, for a person.
        why: String,
    },
    /// Provider: a slot is held, send the input.
    Ready,
    /// Requester: what the input is bound with, and how long it will be.
    InputHeader(InputHeader),
    /// Requester: the next bytes of input and resume ids.
    Input {
        /// 1 to [`MAX_CHUNK`] bytes.
        chunk: Vec<u8>,
    },
    /// Provider: the input was taken, work begins.
    Started {
        /// Canonical bytes of the Accept.
        accept: Vec<u8>,
    },
    /// Requester: what has arrived so far, signed.
    Ack {
        /// Canonical bytes of the Ack.
        bytes: Vec<u8>,
    },
    /// Provider: prompt tokens evaluated so far.
    Prefilled {
        /// Running count.
        n: u32,
    },
    /// Provider: tokens, as they are sampled.
    Token {
        /// Token ids.
        ids: Vec<u32>,
        /// Text released now: whole UTF-8 only.
        bytes: Vec<u8>,
        /// One entry per id, or none if they were not asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// Requester: stop within a token.
    Cancel,
    /// Provider: the work is over.
    Finished {
        /// Canonical bytes of the ReceiptW.
        receipt_w: Vec<u8>,
        /// What an audit needs, opaque here.
        fingerprints: Vec<u8>,
    },
    /// Requester: the other half of the receipt.
    ReceiptR {
        /// Canonical bytes of the ReceiptR.
        bytes: Vec<u8>,
    },
    /// Either side: both halves are durable here.
    Stored,
    /// Provider: not here, or not now. Only before Started.
    Refused {
        /// The reason, for a program.
        why: RefusalCode,
        /// When asking again makes sense; 0 = never with this manifest.
        retry_after_ms: u64,
        /// The reason, for a person.
        detail: String,
    },
    /// Both: still there.
    Heartbeat,
    /// Requester, on a new stream to the same provider: go on after `n` tokens.
    Resume {
        /// The manifest of the attempt.
        manifest: RecordId,
        /// Tokens that arrived.
        n: u32,
    },
}

/// Why an offer is turned away: the node's reasons, then those of the stream itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RefusalCode {
    /// The queue is full.
    QueueFull = 1,
    /// Too many jobs of this requester wait here.
    IdentityLimit = 2,
    /// The owner lends nothing now.
    LendingOff = 3,
    /// The scope does not include this node and this requester.
    OutOfScope = 4,
    /// The owner refuses this model, kind or requester.
    OwnerRefuses = 5,
    /// The model is not here.
    UnknownEntry = 6,
    /// The entry is not vouched for in this scope.
    EntryNotValid = 7,
    /// The demanded wall is not offered.
    WallUnmet = 8,
    /// The manifest was seen before.
    Replayed = 9,
    /// The manifest names an earlier session of this node.
    WrongSession = 10,
    /// The input is larger than this node takes.
    TooLarge = 11,
    /// The input did not come while the slot was held.
    LeaseExpired = 12,
    /// The deadline passed, or cannot be met.
    DeadlinePassed = 13,
    /// Input or answer does not fit the context.
    ContextOverflow = 14,
    /// The input does not open the commitments, or cannot be parsed.
    BadInput = 15,
    /// The worker failed before the work began.
    WorkerFailed = 16,
    /// The node is stopping.
    Draining = 17,
    /// The manifest is malformed, unsigned, or for somebody else.
    BadManifest = 18,
    /// The job's kind or sampler is not supported.
    Unsupported = 19,
    /// The attempt is not kept here any more.
    NothingToResume = 20,
    /// A fault of the provider's own.
    Internal = 21,
}

impl RefusalCode {
    /// Every code, in order.
    pub const ALL: [Self; 21] = [
        Self::QueueFull,
        Self::IdentityLimit,
        Self::LendingOff,
        Self::OutOfScope,
        Self::OwnerRefuses,
        Self::UnknownEntry,
        Self::EntryNotValid,
        Self::WallUnmet,
        Self::Replayed,
        Self::WrongSession,
        Self::TooLarge,
        Self::LeaseExpired,
        Self::DeadlinePassed,
        Self::ContextOverflow,
        Self::BadInput,
        Self::WorkerFailed,
        Self::Draining,
        Self::BadManifest,
        Self::Unsupported,
        Self::NothingToResume,
        Self::Internal,
    ];

    fn from_code(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u64 == code)
    }
}

impl JobFrame {
    /// Encodes the payload that follows the length prefix.
    ///
    /// # Errors
    /// The frame would be longer than `MAX_FRAME`.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        seal(self.kind(), self.body(), Padding::Job)
    }

    /// Decodes one payload. Total and bounded: safe on any bytes.
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let (kind, mut body) = open(payload, Padding::Job)?;
        let frame = Self::from_body(kind, &mut body)?;
        body.end()?;
        Ok(frame)
    }

    /// The kind's name, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Offer { .. } => "Offer",
            Self::Queued { .. } => "Queued",
            Self::Ready => "Ready",
            Self::InputHeader(_) => "InputHeader",
            Self::Input { .. } => "Input",
            Self::Started { .. } => "Started",
            Self::Ack { .. } => "Ack",
            Self::Prefilled { .. } => "Prefilled",
            Self::Token { .. } => "Token",
            Self::Cancel => "Cancel",
            Self::Finished { .. } => "Finished",
            Self::ReceiptR { .. } => "ReceiptR",
            Self::Stored => "Stored",
            Self::Refused { .. } => "Refused",
            Self::Heartbeat => "Heartbeat",
            Self::Resume { .. } => "Resume",
        }
    }

    fn kind(&self) -> u64 {
        match self {
            Self::Offer { .. } => 1,
            Self::Queued { .. } => 2,
            Self::Ready => 3,
            Self::InputHeader(_) => 4,
            Self::Input { .. } => 5,
            Self::Started { .. } => 6,
            Self::Ack { .. } => 7,
            Self::Prefilled { .. } => 8,
            Self::Token { .. } => 9,
            Self::Cancel => 10,
            Self::Finished { .. } => 11,
            Self::ReceiptR { .. } => 12,
            Self::Stored => 13,
            Self::Refused { .. } => 14,
            Self::Heartbeat => 15,
            Self::Resume { .. } => 16,
        }
    }

    fn body(&self) -> Value {
        let body = Body::default();
        match self {
            Self::Ready | Self::Cancel | Self::Stored | Self::Heartbeat => body,
            Self::Offer { manifest: record }
            | Self::Started { accept: record }
            | Self::Ack { bytes: record }
            | Self::ReceiptR { bytes: record } => body.with(1, record.clone()),
            Self::Queued {
                position,
                expected_wait_ms,
                why,
            } => body
                .with(1, *position)
                .with(2, *expected_wait_ms)
                .with(3, why.as_str()),
            Self::InputHeader(header) => header.body(body),
            Self::Input { chunk } => body.with(1, chunk.clone()),
            Self::Prefilled { n } => body.with(1, *n),
            Self::Token {
                ids,
                bytes,
                logprobs,
            } => {
                let ids: Vec<Value> = ids.iter().map(|id| Value::from(*id)).collect();
                let listed: Vec<Value> = logprobs.iter().map(TokenLogprob::value).collect();
                let listed = if listed.is_empty() {
                    None
                } else {
                    Some(listed)
                };
                body.with(1, ids)
                    .with(2, bytes.clone())
                    .with_some(3, listed)
            }
            Self::Finished {
                receipt_w,
                fingerprints,
            } => body
                .with(1, receipt_w.clone())
                .with(2, fingerprints.clone()),
            Self::Refused {
                why,
                retry_after_ms,
                detail,
            } => body
                .with(1, *why as u64)
                .with(2, *retry_after_ms)
                .with(3, detail.as_str()),
            Self::Resume { manifest, n } => body.with(1, manifest.as_bytes().to_vec()).with(2, *n),
        }
        .done()
    }

    fn from_body(kind: u64, body: &mut Fields) -> Result<Self, FrameError> {
        Ok(match kind {
            1 => Self::Offer {
                manifest: body.bytes(1, MAX_RECORD_BYTES)?,
            },
            2 => Self::Queued {
                position: body.u32(1)?,
                expected_wait_ms: body.u64(2)?,
                why: body.text(3, MAX_REASON)?,
            },
            3 => Self::Ready,
            4 => Self::InputHeader(InputHeader::from_body(body)?),
            5 => Self::Input {
                chunk: chunk(body)?,
            },
            6 => Self::Started {
                accept: body.bytes(1, MAX_RECORD_BYTES)?,
            },
            7 => Self::Ack {
                bytes: body.bytes(1, MAX_RECORD_BYTES)?,
            },
            8 => Self::Prefilled { n: body.u32(1)? },
            9 => token(body)?,
            10 => Self::Cancel,
            11 => Self::Finished {
                receipt_w: body.bytes(1, MAX_RECORD_BYTES)?,
                fingerprints: body.bytes(2, MAX_FINGERPRINTS)?,
            },
            12 => Self::ReceiptR {
                bytes: body.bytes(1, MAX_RECORD_BYTES)?,
            },
            13 => Self::Stored,
            14 => Self::Refused {
                why: RefusalCode::from_code(body.u64(1)?).ok_or(FrameError::Field { label: 1 })?,
                retry_after_ms: body.u64(2)?,
                detail: body.text(3, MAX_REASON)?,
            },
            15 => Self::Heartbeat,
            16 => Self::Resume {
                manifest: RecordId::from_bytes(body.array(1)?),
                n: body.u32(2)?,
            },
            unknown => return Err(FrameError::UnknownKind(unknown)),
        })
    }
}

impl Frame for JobFrame {
    fn encode(&self) -> Result<Vec<u8>, FrameError> {
        Self::encode(self)
    }

    fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        Self::decode(payload)
    }
}

fn chunk(body: &mut Fields) -> Result<Vec<u8>, FrameError> {
    let chunk = body.bytes(1, MAX_CHUNK)?;
    if chunk.is_empty() {
        Err(FrameError::Field { label: 1 })
    } else {
        Ok(chunk)
    }
}

fn token(body: &mut Fields) -> Result<JobFrame, FrameError> {
    let ids = body.list(1, MAX_IDS)?;
    let ids = ids
        .into_iter()
        .map(|id| integer(id, 1))
        .collect::<Result<Vec<u32>, _>>()?;
    let text = body.bytes(2, MAX_TEXT)?;
    let logprobs = match body.optional(3) {
        None => Vec::new(),
        Some(listed) => logprobs(listed, &ids)?,
    };
    Ok(JobFrame::Token {
        ids,
        bytes: text,
        logprobs,
    })
}

impl fmt::Debug for JobFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queued {
                position,
                expected_wait_ms,
                ..
            } => {
                write!(f, "Queued({position}, {expected_wait_ms} ms)")
            }
            Self::InputHeader(header) => header.fmt(f),
            Self::Input { chunk } => write!(f, "Input({} bytes)", chunk.len()),
            Self::Prefilled { n } => write!(f, "Prefilled({n})"),
            Self::Token { ids, bytes, .. } => {
                write!(f, "Token({} ids, {} bytes)", ids.len(), bytes.len())
            }
            Self::Refused {
                why,
                retry_after_ms,
                ..
            } => {
                write!(f, "Refused({why:?}, {retry_after_ms} ms)")
            }
            Self::Resume { manifest, n } => write!(f, "Resume({manifest:?}, {n})"),
            other => f.write_str(other.name()),
        }
    }
}
