//! Who answers the lines: the same handlers that answer everybody's requests, behind a trait, so that this module needs
//! no listener and its tests no node.

use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::value::RawValue;

use super::record::Endpoint;
use crate::door::Client;

/// One line to be asked.
#[derive(Debug)]
pub struct Asked {
    /// Whose it is.
    pub client: Client,
    /// The scope that its batch was made with.
    pub scope: Box<str>,
    /// The network whose circles that scope meant.
    pub network: Box<str>,
    /// Where it goes.
    pub endpoint: Endpoint,
    /// The request's body.
    pub body: String,
}

/// What came of asking.
#[derive(Debug)]
pub enum Told {
    /// An answer that another try would not change.
    Answer(Reply),
    /// A failure that may pass: nobody there, everybody busy, an answer lost.
    MayPass {
        /// What was answered.
        reply: Reply,
        /// When to come back, if that was told.
        after: Option<Duration>,
        /// How often such a failure is asked about before it is the answer.
        tries: u32,
    },
    /// Not now, for a reason that has nothing to do with the line: the daemon stops, the key has asked enough for now.
    NotNow {
        /// When to come back.
        after: Duration,
    },
    /// Not any more: whoever asked may not.
    Never {
        /// In plain words.
        why: String,
    },
}

/// The answer to a request, an error too.
#[derive(Debug)]
pub struct Reply {
    /// HTTP's status.
    pub status: u16,
    /// The job, if there was one.
    pub request_id: Option<String>,
    /// The body.
    pub body: Box<RawValue>,
}

/// Answers lines.
pub trait Asker: Send + Sync + 'static {
    /// Has one line answered. Dropping the future cancels its job everywhere.
    fn ask(&self, asked: Asked) -> BoxFuture<'_, Told>;
}
