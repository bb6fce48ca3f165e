//! What a node does next: admission, scope, queue, routing, job states and failover, as a pure
//! function of (state, event, now); and, behind feature `sim`, the seeded simulator that proves it.
//!
//! Invariant: the same configuration, seed, events and times give the same actions, on every machine.
//! Absent by design: sockets, files, clocks, randomness, floats, hash order, records being signed or
//! checked, prompts and answers. The caller owns all of these.
//!
//! Read [`event`] first: it is the whole contract with the daemon.
//!
//! ```
//! use substrate_node::{Action, Config, Event, Node, Timestamp};
//! use substrate_record::{NodeId, SessionNonce, WallTier};
//!
//! let mut node = Node::new(
//!     Config {
//!         own: NodeId::from_bytes([7; 32]),
//!         session: SessionNonce::from_bytes([1; 16]),
//!         slots: 2,
//!         walls: vec![WallTier::Process],
//!         isolated: false,
//!         own_list: substrate_node::limits::OWN_LIST,
//!     },
//!     42,
//! );
//! let actions = node.handle(Timestamp(0), Event::Tick);
//! assert!(matches!(actions.last(), None | Some(Action::WakeAt(_))));
//! ```

#![deny(clippy::float_arithmetic)]

pub mod event;
pub mod limits;
pub mod node;
pub mod status;
pub mod terms;

mod conduct;
mod draws;
mod gossip;
mod provider;
mod queue;
mod requester;
mod route;
mod warm;
mod world;

#[cfg(feature = "sim")]
pub mod sim;

pub use event::{Action, Event};
pub use node::{Config, Node};
pub use status::{JobPhase, JobStatus, PeerStatus, WorkPhase, WorkStatus};
pub use terms::*;
