//! The Substrate: the command line and the daemon of one machine.
//!
//! Reading order: [`cli`] is what a person types, [`grpc`] how it reaches the daemon, [`http`] how
//! other programs do; both speak through the [`door`]. [`daemon`] ties the pure node to the mesh
//! and the workers. The rest is what a machine keeps: its [`home`], settings, keys, records,
//! models and receipts.
//!
//! Invariants: prompts and answers are parsed by no one here; what strangers send is parsed by the
//! record and mesh crates and the worker behind its wall. Nothing is acknowledged before it is
//! durable. Absent by design: the engine, which is another program.

pub mod cli;

pub mod door;
pub mod grpc;
pub mod http;

pub mod daemon;

pub mod thoughts;

pub mod config;
pub mod home;
pub mod installed;
pub mod keys;
pub mod pause;

pub mod batches;
pub mod blobs;
pub mod files;
pub mod hardware;
pub mod invite;
pub mod kept;
pub mod models;
pub mod receipts;
pub mod store;

/// What this program says it is.
pub const BUILD: &str = concat!("substrate/", env!("CARGO_PKG_VERSION"));
