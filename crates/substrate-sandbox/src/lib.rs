//! The walls around a worker, and the one pipe through them.
//!
//! - [`wire`]: the frames and messages that cross the pipe; plain integers and bytes.
//! - [`seal`] (feature `seal`): called inside, by the worker, to lock itself in.
//! - [`launch`] (feature `launch`): called by the daemon, to start a worker behind the wall.
//! - [`guest`]: what a host and the first process of its guest say to each other.
//! - [`microvm`] (feature `launch`): a virtual machine around a worker that is behind the wall already.
//! - [`suite`] (feature `launch`): what the wall promises, tried on this machine.
//!
//! Invariant: a worker that says it is sealed can open nothing but its model, and after the second
//! seal nothing at all. A wall that cannot be built is an error with a reason, never a weaker wall.
//!
//! Absent by design: an async runtime, threads of its own beyond one that forks, any knowledge of
//! models, jobs or keys, and a way to ask for less wall than the policy says.

#![cfg_attr(not(any(feature = "seal", feature = "launch")), forbid(unsafe_code))]

pub mod wire;

#[cfg(all(target_os = "linux", feature = "seal"))]
pub mod seal;

#[cfg(all(target_os = "linux", feature = "launch"))]
pub mod launch;

pub mod guest;

#[cfg(all(target_os = "linux", feature = "launch"))]
pub mod microvm;

#[cfg(all(target_os = "linux", feature = "launch"))]
pub mod suite;
