//! The wall, tested from both sides by real processes.
//!
//! Everything runs as an ordinary user: tests started by root have their workers become nobody.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

mod ground;

mod escapes;
mod life;
mod limits;
mod refusals;
mod view;
