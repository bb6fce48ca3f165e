//! What every task of a running daemon shares: its key, its network, its store, its mesh, its workers.
//!
//! Invariant: nothing in here changes while the daemon is on one network; joining another one ends
//! this context and makes a new one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use substrate_mesh::Mesh;
use substrate_node::Timestamp;
use substrate_record::{
    AnyRecord, Body, InNetwork, NetworkId, NodeId, Place, Record, RecordId, SignError, Stream,
    Verified,
};

use super::pool::Pool;
use crate::grpc::desk::Desk;
use crate::http::ApiKeys;
use crate::store::StoreError;

/// Shared by the loop and every session.
pub struct Context {
    /// Own key.
    pub me: NodeId,
    /// The network's id.
    pub network: NetworkId,
    /// Store, blobs, models and key of this network.
    pub desk: Arc<Desk>,
    /// Loaded workers.
    pub pool: Pool,
    /// The swarm.
    pub mesh: Mesh,
    /// API keys the listeners accept.
    pub keys: ApiKeys,
    /// Addresses of the HTTP listeners.
    pub api: Vec<SocketAddr>,
    /// When this daemon started.
    pub started: Instant,
}

impl Context {
    /// Milliseconds since the start, by the monotonic clock.
    pub fn now(&self) -> Timestamp {
        Timestamp(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Whether the mesh has a connection to the node.
    pub async fn is_connected(&self, node: NodeId) -> bool {
        self.mesh.peers().await.iter().any(|peer| peer.node == node)
    }

    /// Signs a record that belongs to no stream.
    ///
    /// # Errors
    /// What a peer said went into it and no reader would take it.
    pub fn sign<B: Body + InNetwork>(&self, body: B) -> Result<Verified<B>, SignError> {
        self.record(None, body)
            .sign(self.desk.device.signing(), &self.network)
    }

    /// Signs a record into one of this device's streams and stores it, with what it rests on, in one transaction.
    ///
    /// # Errors
    /// The store's; then nothing was stored and the record must not leave this machine.
    pub async fn append<B, F>(
        self: &Arc<Self>,
        stream: Stream,
        body: B,
        wrap: F,
        before: Vec<AnyRecord>,
    ) -> Result<Verified<B>, StoreError>
    where
        B: Body + InNetwork + Clone + Send + 'static,
        F: FnOnce(Verified<B>) -> AnyRecord + Send + 'static,
    {
        let context = self.clone();
        let work = move || {
            let mut signed = None;
            context
                .desk
                .records
                .append_with(context.me, stream, &before, |place| {
                    let record = context
                        .record(Some(place), body)
                        .sign(context.desk.device.signing(), &context.network)?;
                    signed = Some(record.clone());
                    Ok(wrap(record))
                })?;
            Ok(signed.expect("append_with signs exactly once when it succeeds"))
        };
        blocking(work).await
    }

    /// Stores records of others; durable when this returns.
    ///
    /// # Errors
    /// The store's.
    pub async fn put(self: &Arc<Self>, records: Vec<AnyRecord>) -> Result<(), StoreError> {
        let context = self.clone();
        blocking(move || context.desk.records.put(&records).map(drop)).await
    }

    fn record<B: Body>(&self, place: Option<Place>, body: B) -> Record<B> {
        Record {
            author: self.me,
            place,
            epoch: 0,
            claimed_ms: unix_ms(),
            deps: Vec::<RecordId>::new(),
            body,
        }
    }
}

/// Runs what waits for the disk away from the tasks that must not wait.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Unix milliseconds, for `claimed_ms` and for people; no rule reads it.
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

/// Random bytes from the operating system.
pub fn draw<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}
