//! A hundred nodes in virtual time: the same [`crate::Node`] as in the daemon, under a network and machines that fail and lie.
//!
//! Everything is drawn from one seed: latencies, losses, deaths, lies, jobs. A run ends in [`Figures`], or in a
//! [`Broken`] that names the seed, the moment and the rule.
//! Invariant: equal plans give equal traces ([`Figures::trace`]); a rule is judged by the simulator's own truth, never by
//! what a node believes.
//! Absent by design: signatures of jobs (records have their own tests) and token contents; libp2p itself.
//!
//! Reading order: `plan` (what is simulated), `rules` (what must hold), `machine` (one daemon), `network` (streams between
//! them), `run` (the loop),
//! `asker` and `server` (a daemon's two sides), `weather` (gossip, deaths, partitions).

mod asker;
mod machine;
mod network;
mod plan;
mod rules;
mod run;
mod server;
mod weather;

pub use plan::{Flaw, Plan};
pub use rules::{Broken, Figures, Rule};
pub use run::run;
