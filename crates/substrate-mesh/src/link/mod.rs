//! Links: hello first on every connection, then the streams of the daemon.
//!
//! Invariant: no stream but hello's is opened or handed out on a connection before both hellos
//! of *that connection* are done.
//! Absent by design: dialing. A stream to a peer without a link is an error here.
//!
//! Why not `libp2p-stream`: it addresses peers, not connections, so hello could not be the first
//! thing on each; it drops an inbound stream when two arrive at once (its channel holds one); it
//! negotiates one outbound stream at a time per connection; and it never forgets a connection's
//! sender (0.5.0-alpha, `shared.rs`).

mod behaviour;
mod exchange;
mod handler;
mod offered;

pub(crate) use behaviour::{Behaviour, LinkEvent};
pub(crate) use handler::FromHandler;

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::hello::Hello;
use crate::name::{Names, Protocol};

/// Inbound job streams one peer may hold at once: as many as one node's daemon may keep
/// waiting here on behalf of its own clients before it should ask elsewhere.
const JOBS_PER_PEER: usize = 256;

/// Inbound registry exchanges one peer may hold at once.
const SYNCS_PER_PEER: usize = 2;

/// Inbound join streams one peer may hold at once.
const JOINS_PER_PEER: usize = 1;

/// What this node says and accepts; a new one is made when the session changes.
#[derive(Debug)]
pub(crate) struct Greeting {
    pub(crate) hello: Hello,
    pub(crate) joins_open: bool,
    pub(crate) names: Names,
}

/// How many more inbound streams a peer may hold, over all its connections.
#[derive(Debug)]
struct Allowance {
    jobs: Arc<Semaphore>,
    joins: Arc<Semaphore>,
    syncs: Arc<Semaphore>,
}

impl Allowance {
    fn new() -> Self {
        Self {
            jobs: Arc::new(Semaphore::new(JOBS_PER_PEER)),
            joins: Arc::new(Semaphore::new(JOINS_PER_PEER)),
            syncs: Arc::new(Semaphore::new(SYNCS_PER_PEER)),
        }
    }

    fn take(&self, protocol: Protocol) -> Option<OwnedSemaphorePermit> {
        let semaphore = match protocol {
            Protocol::Job => &self.jobs,
            Protocol::Join => &self.joins,
            Protocol::Sync => &self.syncs,
        };
        Arc::clone(semaphore).try_acquire_owned().ok()
    }
}
