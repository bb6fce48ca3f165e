//! The mesh: who is there, what they tell everyone, and streams between two of them.
//!
//! One task owns a libp2p swarm (QUIC, and TCP with Noise and Yamux); the daemon holds a [`Mesh`]
//! and reads [`MeshEvent`]s. What travels on the streams is in [`job`], [`join`] and [`entries`]:
//! pure codecs that need no network.
//!
//! Invariants: nothing a peer says is acted on before both hellos of its connection; every queue,
//! table, frame and allowance is bounded; libp2p is named in this crate only.
//!
//! Absent by design: what a job, a record or a refusal *means* (the node decides, the mesh
//! carries), and for now relays, hole punching, reachability tests and port mapping.
//!
//! Reading order: [`hello`], [`job`], [`frame`], `link/` (hello first, then streams), `task/`
//! (what ties them), [`Mesh`].

mod cbor;
mod config;
pub mod entries;
mod event;
pub mod frame;
mod gossip;
pub mod hello;
mod identity;
pub mod input;
pub mod job;
pub mod join;
mod link;
mod mesh;
mod name;
mod redial;
mod standing;
mod stream;
mod swarm;
mod table;
mod task;
#[cfg(test)]
mod testing;
pub mod token;

pub use cbor::{FrameError, MAX_FRAME, PAD_TO};
pub use config::{Discovery, Limits, MeshConfig};
pub use event::{
    Counters, DialError, Direction, Judgement, MeshError, MeshEvent, MessageToken, OpenError,
    PeerView, PublishError,
};
pub use hello::HelloMismatch;
pub use mesh::{Mesh, PORT, listen_on_all, start};
pub use name::Protocol;
pub use standing::Offence;
pub use stream::MeshStream;
