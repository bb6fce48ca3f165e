//! The first exchange on every connection, `/substrate/hello/1`: which network, which rules, which build.
//!
//! Each side opens one stream, sends `Hello` and reads `Welcome` or `Refused`. A connection is open for
//! work once both exchanges are done. The same exchange is repeated when a node draws a new session.
//!
//! Invariant: whether two nodes belong together is a pure function of their two hellos.
//! Absent by design: any decision that reads the other's clock. The wall clock in `Welcome` is shown to
//! people and nothing else (PROTOCOL.md 6).
//!
//! A joiner is a node that knows an invite but not yet the Genesis behind it: it starts a mesh configured
//! with the *inviter's* network id, so names and hello need no special case, and leaves the rules out of
//! its hello because it cannot know them. An inviter that accepts joins opens `/join/1`, and nothing
//! else, to such a peer.

use ciborium::Value;
use substrate_record::{NetworkId, SessionNonce};

use crate::cbor::{Body, Fields, FrameError, Padding, open, seal};
use crate::frame::Frame;

/// Most bytes of a version or build name.
pub const MAX_NAME: usize = 128;

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The network.
    pub network: NetworkId,
    /// SHA-256 of the rules in force; absent for a joiner.
    pub rules: Option<[u8; 32]>,
    /// Release.
    pub version: String,
    /// Build name.
    pub build: String,
    /// 16 random bytes of this start.
    pub session: SessionNonce,
}

/// One frame of the exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HelloFrame {
    /// The side that opened the stream introduces itself.
    Hello {
        /// Itself.
        hello: Hello,
        /// Its own monotonic microseconds, to be echoed: nobody else can read them.
        echo: u64,
    },
    /// The other side accepts.
    Welcome {
        /// The number from the hello.
        echo: u64,
        /// Milliseconds since 1970 by the answering side's clock, for showing skew.
        wall_ms: i64,
    },
    /// The other side does not, and closes.
    Refused {
        /// The reason.
        why: HelloMismatch,
    },
}

/// Why two nodes have nothing to say to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HelloMismatch {
    /// Another Genesis.
    #[error("the peer belongs to network {theirs}")]
    OtherNetwork {
        /// The network of the other side, as this side sees it.
        theirs: NetworkId,
    },
    /// Same Genesis, other rules.
    #[error("the peer follows other rules of the same network")]
    OtherRules,
    /// A joiner came, and no joins are open.
    #[error("joining is not open here")]
    NotJoinable,
    /// No complete hello came in time.
    #[error("no hello came in time")]
    NoHello,
    /// The peer does not speak hello: some other libp2p program.
    #[error("the peer is not a substrate node")]
    NotSubstrate,
    /// The hello could not be decoded.
    #[error("the hello is malformed")]
    Malformed,
}

impl Hello {
    /// Whether this node goes on with a peer that says `theirs`.
    ///
    /// # Errors
    /// The reason, as this side sees it; [`HelloMismatch::as_told_by`] turns it round for the peer.
    pub fn check(&self, theirs: &Self, joins_open: bool) -> Result<(), HelloMismatch> {
        if self.network != theirs.network {
            return Err(HelloMismatch::OtherNetwork {
                theirs: theirs.network,
            });
        }
        match (self.rules, theirs.rules) {
            (Some(_), None) if !joins_open => Err(HelloMismatch::NotJoinable),
            (Some(ours), Some(theirs)) if ours != theirs => Err(HelloMismatch::OtherRules),
            // A joiner takes any rules: it learns them from the Genesis it is about to get.
            _ => Ok(()),
        }
    }

    /// Whether this is a joiner's hello.
    pub fn is_joiner(&self) -> bool {
        self.rules.is_none()
    }

    fn body(&self, echo: u64) -> Value {
        Body::default()
            .with(1, self.network.as_bytes().to_vec())
            .with_some(2, self.rules.map(|rules| rules.to_vec()))
            .with(3, self.version.as_str())
            .with(4, self.build.as_str())
            .with(5, self.session.as_bytes().to_vec())
            .with(6, echo)
            .done()
    }

    fn from_body(body: &mut Fields) -> Result<Self, FrameError> {
        Ok(Self {
            network: NetworkId::from_bytes(body.array(1)?),
            rules: body
                .optional(2)
                .map(|rules| crate::cbor::fixed(rules, 2))
                .transpose()?,
            version: body.text(3, MAX_NAME)?,
            build: body.text(4, MAX_NAME)?,
            session: SessionNonce::from_bytes(body.array(5)?),
        })
    }
}

impl HelloMismatch {
    /// The same reason from the other side's point of view.
    pub fn as_told_by(self, ours: &Hello) -> Self {
        match self {
            Self::OtherNetwork { .. } => Self::OtherNetwork {
                theirs: ours.network,
            },
            same => same,
        }
    }

    fn body(self) -> Value {
        let (code, network) = match self {
            Self::OtherNetwork { theirs } => (1u64, Some(theirs.as_bytes().to_vec())),
            Self::OtherRules => (2, None),
            Self::NotJoinable => (3, None),
            Self::NoHello => (4, None),
            Self::NotSubstrate => (5, None),
            Self::Malformed => (6, None),
        };
        Body::default().with(1, code).with_some(2, network).done()
    }

    fn from_body(body: &mut Fields) -> Result<Self, FrameError> {
        Ok(match body.u64(1)? {
            1 => Self::OtherNetwork {
                theirs: NetworkId::from_bytes(body.array(2)?),
            },
            2 => Self::OtherRules,
            3 => Self::NotJoinable,
            4 => Self::NoHello,
            5 => Self::NotSubstrate,
            6 => Self::Malformed,
            _ => return Err(FrameError::Field { label: 1 }),
        })
    }
}

impl HelloFrame {
    /// Encodes the payload that follows the length prefix.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let (kind, body) = match self {
            Self::Hello { hello, echo } => (1, hello.body(*echo)),
            Self::Welcome { echo, wall_ms } => {
                (2, Body::default().with(1, *echo).with(2, *wall_ms).done())
            }
            Self::Refused { why } => (3, why.body()),
        };
        seal(kind, body, Padding::None)
    }

    /// Decodes one payload. Total and bounded: safe on any bytes.
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let (kind, mut body) = open(payload, Padding::None)?;
        let frame = match kind {
            1 => Self::Hello {
                hello: Hello::from_body(&mut body)?,
                echo: body.u64(6)?,
            },
            2 => Self::Welcome {
                echo: body.u64(1)?,
                wall_ms: body.i64(2)?,
            },
            3 => Self::Refused {
                why: HelloMismatch::from_body(&mut body)?,
            },
            unknown => return Err(FrameError::UnknownKind(unknown)),
        };
        body.end()?;
        Ok(frame)
    }
}

impl Frame for HelloFrame {
    fn encode(&self) -> Result<Vec<u8>, FrameError> {
        Self::encode(self)
    }

    fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        Self::decode(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(network: u8, rules: Option<u8>) -> Hello {
        Hello {
            network: NetworkId::from_bytes([network; 32]),
            rules: rules.map(|rules| [rules; 32]),
            version: "0.1.0".into(),
            build: "dev".into(),
            session: SessionNonce::from_bytes([9; 16]),
        }
    }

    #[test]
    fn nodes_go_on_only_within_one_network_and_one_set_of_rules() {
        let ours = hello(1, Some(1));
        let check = |theirs: Hello, joins| ours.check(&theirs, joins);
        assert_eq!(check(hello(1, Some(1)), false), Ok(()));
        assert_eq!(
            check(hello(2, Some(1)), true),
            Err(HelloMismatch::OtherNetwork {
                theirs: hello(2, None).network
            })
        );
        assert_eq!(
            check(hello(1, Some(2)), true),
            Err(HelloMismatch::OtherRules)
        );
        assert_eq!(
            check(hello(1, None), false),
            Err(HelloMismatch::NotJoinable)
        );
        assert_eq!(check(hello(1, None), true), Ok(()));
        assert_eq!(hello(1, None).check(&ours, false), Ok(()));
    }

    #[test]
    fn every_frame_survives_the_wire() {
        let mismatch = HelloMismatch::OtherNetwork {
            theirs: NetworkId::from_bytes([3; 32]),
        };
        for frame in [
            HelloFrame::Hello {
                hello: hello(1, Some(4)),
                echo: u64::MAX,
            },
            HelloFrame::Hello {
                hello: hello(1, None),
                echo: 0,
            },
            HelloFrame::Welcome {
                echo: 7,
                wall_ms: -1,
            },
            HelloFrame::Refused { why: mismatch },
            HelloFrame::Refused {
                why: HelloMismatch::Malformed,
            },
        ] {
            assert_eq!(HelloFrame::decode(&frame.encode().unwrap()), Ok(frame));
        }
    }
}
