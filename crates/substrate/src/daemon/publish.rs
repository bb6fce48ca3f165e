//! The Capability of this machine: signed with a growing sequence number and sent, one after the other.
//!
//! Invariant: no two capabilities of this key ever carry the same number, over restarts too: a counter of
//! starts is durable before the first of a start is signed.
//! Absent by design: storing capabilities. They live ten minutes and are never in the log (LEDGER a3).

use std::sync::Arc;

use substrate_mesh::entries::entries_frames;
use substrate_mesh::Protocol;
use substrate_node::Audience;
use substrate_record::{Capability, Hardware, ModelOffer, NodeId, Place, Record, RecordId, Stream, Verified};
use tokio::sync::{mpsc, watch};

use super::context::{Context, unix_ms};
use super::exchange;
use crate::files;

/// Publications that may wait: the node makes at most two every five seconds.
const DEPTH: usize = 8;

/// Numbers reserved per start: a capability every five seconds for ten years.
const NUMBERS_PER_START: u64 = 1 << 26;

/// Sends what the node wants published, in order.
pub struct Publisher {
    orders: mpsc::Sender<Order>,
    circle: watch::Sender<Vec<NodeId>>,
}

struct Order {
    audience: Audience,
    models: Vec<ModelOffer>,
    slots: u32,
    queue: u32,
}

struct Press {
    context: Arc<Context>,
    hardware: Hardware,
    seq: u64,
    prev: Option<RecordId>,
    circle: watch::Receiver<Vec<NodeId>>,
}

impl Publisher {
    /// Starts the task that signs and sends. Ends when the publisher is dropped.
    ///
    /// # Errors
    /// The counter of starts cannot be read or made durable.
    pub fn start(context: Arc<Context>, hardware: Hardware) -> anyhow::Result<Self> {
        let first = reserve(&context)?;
        let (orders, inbox) = mpsc::channel(DEPTH);
        let (circle, members) = watch::channel(Vec::new());
        let press = Press { context, hardware, seq: first, prev: None, circle: members };
        tokio::spawn(press.run(inbox));
        Ok(Self { orders, circle })
    }

    /// Hands over one publication. If the task is that far behind, a later one will say the same.
    pub fn publish(&self, audience: Audience, models: Vec<ModelOffer>, slots: u32, queue: u32) {
        if self.orders.try_send(Order { audience, models, slots, queue }).is_err() {
            tracing::debug!("a capability was not sent: the publisher is behind");
        }
    }

    /// Who gets what is meant for the circle.
    pub fn set_circle(&self, members: Vec<NodeId>) {
        self.circle.send_replace(members);
    }
}

impl Press {
    async fn run(mut self, mut inbox: mpsc::Receiver<Order>) {
        while let Some(order) = inbox.recv().await {
            let audience = order.audience;
            let record = self.sign(order);
            match audience {
                Audience::Gossip => {
                    if let Err(error) = self.context.mesh.publish(record.bytes().to_vec()).await {
                        tracing::debug!(%error, "a capability was not gossiped");
                    }
                }
                Audience::Circle => self.send_to_circle(&record),
            }
        }
    }

    fn sign(&mut self, order: Order) -> Verified<Capability> {
        let settings = self.context.pool.settings();
        let body = Capability {
            hardware: self.hardware.clone(),
            models: order.models,
            free_memory: free_memory(),
            slots: order.slots,
            queue: order.queue,
            walls: vec![self.context.pool.wall()],
            tee: None,
            build: crate::BUILD.to_owned(),
            worker_sha256: settings.sha256,
        };
        let place = Place { stream: Stream::Cap, seq: self.seq, prev: self.prev };
        let record = Record { author: self.context.me, place: Some(place), epoch: 0, claimed_ms: unix_ms(), deps: Vec::new(), body };
        let record = record
            .sign(self.context.desk.device.signing(), &self.context.network)
            .expect("hardware and models are cut to the record's bounds before");
        self.seq += 1;
        self.prev = Some(record.id());
        record
    }

    fn send_to_circle(&self, record: &Verified<Capability>) {
        for node in self.circle.borrow().clone() {
            let (mesh, bytes) = (self.context.mesh.clone(), record.bytes().to_vec());
            tokio::spawn(async move {
                let frames = entries_frames([bytes]);
                match mesh.open(node, Protocol::Sync).await {
                    Ok(stream) => exchange::send(stream, frames).await,
                    Err(error) => tracing::trace!(%node, %error, "a circle's member is not connected"),
                }
            });
        }
    }
}

/// The first number of this start, from a counter that is durable before this returns.
fn reserve(context: &Context) -> anyhow::Result<u64> {
    let path = context.desk.home.store().with_file_name("starts");
    let starts: u64 = match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| anyhow::anyhow!("{} holds no number", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error.into()),
    };
    files::write_atomically(&path, 0o600, format!("{}\n", starts + 1).as_bytes())?;
    Ok(starts * NUMBERS_PER_START + 1)
}

fn free_memory() -> u64 {
    // A machine that does not tell how much is free offers none.
    let Ok(mut system) = sysinfo::System::new() else { return 0 };
    system.refresh_memory();
    system.available_memory()
}
