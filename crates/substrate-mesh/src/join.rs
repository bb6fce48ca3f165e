//! Frames of the `/join/1` stream: a secret from an invite in, what a network is made of out.
//!
//! Invariant: nothing is said to a joiner before its secret was shown.
//! Absent by design: the check of the secret (the daemon keeps it hashed, single use), and any
//! printing of it.

use std::fmt;

use ciborium::Value;
use substrate_record::{MAX_RECORD_BYTES, NodeId};

use crate::cbor::{Body, Fields, FrameError, Padding, fixed, open, seal};
use crate::entries::{batches, records, records_body};
use crate::frame::Frame;

/// Most members of a circle that are listed to a joiner.
pub const MAX_MEMBERS: usize = 1_024;

/// One frame of the join stream.
#[derive(Clone, PartialEq, Eq)]
pub enum JoinFrame {
    /// Joiner: the secret of the invite.
    Hello {
        /// 16 bytes, single use.
        secret: [u8; 16],
    },
    /// Inviter: the network.
    Welcome {
        /// Canonical bytes of the Genesis.
        genesis: Vec<u8>,
        /// Keys of the circle the invite was for; empty for a network invite.
        members: Vec<NodeId>,
    },
    /// Inviter: registry entries.
    Entries {
        /// Canonical bytes of ModelEntry records.
        records: Vec<Vec<u8>>,
    },
    /// Inviter: that was all.
    Done {
        /// How many entries were sent.
        entries: u32,
    },
    /// Inviter: no.
    Refused {
        /// The reason.
        why: JoinRefusal,
    },
}

/// Why a joiner is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum JoinRefusal {
    /// No invite has this secret.
    #[error("no invite has this secret")]
    UnknownSecret = 1,
    /// The invite was used before.
    #[error("the invite was used before")]
    Used = 2,
    /// The invite has expired by the inviter's clock.
    #[error("the invite has expired")]
    Expired = 3,
    /// Too many attempts from this key.
    #[error("too many attempts")]
    TooManyAttempts = 4,
}

impl JoinFrame {
    /// The whole answer to a good secret, in the order it is sent.
    pub fn welcome(
        genesis: Vec<u8>,
        members: Vec<NodeId>,
        entries: impl IntoIterator<Item = Vec<u8>>,
    ) -> Vec<Self> {
        let (batches, entries) = batches(entries);
        let mut frames = vec![Self::Welcome { genesis, members }];
        frames.extend(batches.into_iter().map(|records| Self::Entries { records }));
        frames.push(Self::Done { entries });
        frames
    }

    /// Encodes the payload that follows the length prefix.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let (kind, body) = match self {
            Self::Hello { secret } => (1, Body::default().with(1, secret.to_vec()).done()),
            Self::Welcome { genesis, members } => {
                let members: Vec<Value> = members
                    .iter()
                    .map(|key| Value::Bytes(key.as_bytes().to_vec()))
                    .collect();
                (
                    2,
                    Body::default()
                        .with(1, genesis.clone())
                        .with(2, members)
                        .done(),
                )
            }
            Self::Entries { records } => (3, records_body(1, records)),
            Self::Done { entries } => (4, Body::default().with(1, *entries).done()),
            Self::Refused { why } => (5, Body::default().with(1, *why as u64).done()),
        };
        seal(kind, body, Padding::None)
    }

    /// Decodes one payload. Total and bounded: safe on any bytes.
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let (kind, mut body) = open(payload, Padding::None)?;
        let frame = match kind {
            1 => Self::Hello {
                secret: body.array(1)?,
            },
            2 => Self::Welcome {
                genesis: body.bytes(1, MAX_RECORD_BYTES)?,
                members: members(&mut body)?,
            },
            3 => Self::Entries {
                records: records(&mut body, 1)?,
            },
            4 => Self::Done {
                entries: body.u32(1)?,
            },
            5 => Self::Refused {
                why: refusal(body.u64(1)?)?,
            },
            unknown => return Err(FrameError::UnknownKind(unknown)),
        };
        body.end()?;
        Ok(frame)
    }
}

fn members(body: &mut Fields) -> Result<Vec<NodeId>, FrameError> {
    let listed = body.list(2, MAX_MEMBERS)?;
    listed
        .into_iter()
        .map(|key| Ok(NodeId::from_bytes(fixed(key, 2)?)))
        .collect()
}

fn refusal(code: u64) -> Result<JoinRefusal, FrameError> {
    use JoinRefusal::{Expired, TooManyAttempts, UnknownSecret, Used};
    [UnknownSecret, Used, Expired, TooManyAttempts]
        .into_iter()
        .find(|known| *known as u64 == code)
        .ok_or(FrameError::Field { label: 1 })
}

impl Frame for JoinFrame {
    fn encode(&self) -> Result<Vec<u8>, FrameError> {
        Self::encode(self)
    }

    fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        Self::decode(payload)
    }
}

impl fmt::Debug for JoinFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello { .. } => f.write_str("Hello"),
            Self::Welcome { members, .. } => write!(f, "Welcome({} members)", members.len()),
            Self::Entries { records } => write!(f, "Entries({})", records.len()),
            Self::Done { entries } => write!(f, "Done({entries})"),
            Self::Refused { why } => write!(f, "Refused({why:?})"),
        }
    }
}
