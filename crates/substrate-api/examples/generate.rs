//! Generates `src/generated` from `proto/`: `cargo run -p substrate-api --example generate`.
//!
//! Needs `protoc` on the path (Debian: `protobuf-compiler`). Takes another output folder as its
//! only argument, if one is given.

use std::path::{Path, PathBuf};

#[path = "../tests/contract/mod.rs"]
mod contract;

fn main() -> std::io::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = std::env::args_os()
        .nth(1)
        .map_or_else(|| here.join("src/generated"), PathBuf::from);
    contract::generate(&out)
}
