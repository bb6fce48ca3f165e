//! The real program, seen from outside: exit code, stdout and stderr, each as a snapshot.
//!
//! Invariant: no test here needs a model, a mesh or rights. Where a daemon is needed, a scripted
//! door answers over a real socket ([`daemon`]).

mod answers;
mod batches;
mod conversation;
mod daemon;
mod keys;
mod lists;
mod offline;
mod program;
