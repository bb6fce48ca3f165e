//! The microVM wall, tried with a real guest under QEMU's emulation.
//!
//! They need the images that `cargo xtask stage` lays beside the programs, and QEMU; where those are not, they say so and pass,
//! as on a machine that does not offer the tier. The gate has both and asks for them (`SUBSTRATE_TEST_MICROVM`).

#![cfg(target_os = "linux")]

mod attempts;
mod images;
mod lives;
mod stand;
