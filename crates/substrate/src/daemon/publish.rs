//! The Capability of this machine: signed with a growing sequence number and sent, one after the other.
//!
//! Invariant: no two capabilities of this key ever carry the same number, over restarts too: the last number
//! and id are durable before the record is sent.
//! Absent by design: storing capabilities. They live ten minutes and are never in the log (LEDGER a3).

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use substrate_mesh::Protocol;
use substrate_mesh::entries::entries_frames;
use substrate_node::Audience;
use substrate_record::{
    Capability, Hardware, ModelOffer, NodeId, Place, Record, RecordId, SignError, Stream, Verified,
    WallTier,
};
use tokio::sync::{mpsc, watch};

use super::context::{Context, unix_ms};
use super::exchange;
use crate::files;

/// Publications that may wait: the node makes at most two every five seconds.
const DEPTH: usize = 8;

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
    place: Bookmark,
    circle: watch::Receiver<Vec<NodeId>>,
}

impl Publisher {
    /// Starts the task that signs and sends. Ends when the publisher is dropped.
    ///
    /// # Errors
    /// The number of the last capability cannot be read.
    pub fn start(context: Arc<Context>, hardware: Hardware) -> anyhow::Result<Self> {
        let place = Bookmark::open(&context)?;
        let (orders, inbox) = mpsc::channel(DEPTH);
        let (circle, members) = watch::channel(Vec::new());
        let press = Press {
            context,
            hardware,
            place,
            circle: members,
        };
        tokio::spawn(press.run(inbox));
        Ok(Self { orders, circle })
    }

    /// Hands over one publication. If the task is that far behind, a later one will say the same.
    pub fn publish(&self, audience: Audience, models: Vec<ModelOffer>, slots: u32, queue: u32) {
        if self
            .orders
            .try_send(Order {
                audience,
                models,
                slots,
                queue,
            })
            .is_err()
        {
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
            let record = match self.sign(order) {
                Ok(record) => record,
                Err(error) => {
                    tracing::error!(%error, "a capability was not sent");
                    continue;
                }
            };
            if let Err(error) = self.place.keep(&record) {
                tracing::error!(%error, "a capability was not sent: its number could not be kept");
                continue;
            }
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

    /// Long names of engines and cards may fill the record before its list of models is full: then the last models
    /// are left out.
    fn sign(&mut self, mut order: Order) -> Result<Verified<Capability>, SignError> {
        loop {
            match self.sign_all(&order) {
                Err(_) if !order.models.is_empty() => {
                    let kept = order.models.len() / 2;
                    tracing::warn!(kept, "a capability names fewer models than there are");
                    order.models.truncate(kept);
                }
                signed => return signed,
            }
        }
    }

    fn sign_all(&self, order: &Order) -> Result<Verified<Capability>, SignError> {
        let settings = self.context.pool.settings();
        let body = Capability {
            hardware: self.hardware.clone(),
            models: order.models.clone(),
            free_memory: free_memory(),
            slots: order.slots,
            queue: order.queue,
            // An emulated machine is nobody's but its owner's.
            walls: (self.context.pool.walls().into_iter())
                .filter(|wall| *wall != WallTier::MicrovmEmulated)
                .collect(),
            tee: None,
            build: crate::BUILD.to_owned(),
            worker_sha256: settings.sha256,
        };
        let place = self.place.next();
        let record = Record {
            author: self.context.me,
            place: Some(place),
            epoch: 0,
            claimed_ms: unix_ms(),
            deps: Vec::new(),
            body,
        };
        record.sign(self.context.desk.device.signing(), &self.context.network)
    }

    fn send_to_circle(&self, record: &Verified<Capability>) {
        for node in self.circle.borrow().clone() {
            let (mesh, bytes) = (self.context.mesh.clone(), record.bytes().to_vec());
            tokio::spawn(async move {
                let frames = entries_frames([bytes]);
                match mesh.open(node, Protocol::Sync).await {
                    Ok(stream) => exchange::send(stream, frames).await,
                    Err(error) => {
                        tracing::trace!(%node, %error, "a circle's member is not connected")
                    }
                }
            });
        }
    }
}

/// Where the own capability stream stands: a small file, because the records themselves are not stored.
struct Bookmark {
    path: PathBuf,
    last: Option<(u64, RecordId)>,
}

impl Bookmark {
    fn open(context: &Context) -> anyhow::Result<Self> {
        let path = context
            .desk
            .home
            .store()
            .with_file_name(format!("capability-{}", context.network));
        let last = match std::fs::read_to_string(&path) {
            Ok(text) => Some(
                parse(&text)
                    .with_context(|| format!("{} is not what was written there", path.display()))?,
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { path, last })
    }

    fn next(&self) -> Place {
        match self.last {
            Some((seq, id)) => Place {
                stream: Stream::Cap,
                seq: seq + 1,
                prev: Some(id),
            },
            None => Place {
                stream: Stream::Cap,
                seq: 1,
                prev: None,
            },
        }
    }

    fn keep(&mut self, record: &Verified<Capability>) -> Result<(), files::FileError> {
        let seq = self.next().seq;
        files::write_atomically(
            &self.path,
            0o600,
            format!("{seq} {}\n", record.id()).as_bytes(),
        )?;
        self.last = Some((seq, record.id()));
        Ok(())
    }
}

fn parse(text: &str) -> Option<(u64, RecordId)> {
    let (seq, id) = text.trim().split_once(' ')?;
    Some((seq.parse().ok()?, id.parse().ok()?))
}

fn free_memory() -> u64 {
    // A machine that does not tell how much is free offers none.
    let Ok(mut system) = sysinfo::System::new() else {
        return 0;
    };
    system.refresh_memory();
    system.available_memory()
}
