//! What a node does, as tables: a script of events on the left, the node's actions indented below each.
//!
//! `harness` knows the API; everything else reads like a specification.

mod harness;

mod crowd;
mod gossip;
mod provider;
mod requester;
