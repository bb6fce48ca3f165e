//! The one way the contract is compiled, shared by the generator and the test that checks its output.

use std::{io, path::Path};

/// Every file of the contract, by its path below `proto/`.
pub const PROTOS: [&str; 7] = [
    "substrate/v1/batch.proto",
    "substrate/v1/history.proto",
    "substrate/v1/job.proto",
    "substrate/v1/model.proto",
    "substrate/v1/node.proto",
    "substrate/v1/service.proto",
    "substrate/v1/shelf.proto",
];

/// Compiles the contract into `out`. Needs `protoc`.
pub fn generate(out: &Path) -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let files = PROTOS.map(|file| root.join(file));
    tonic_prost_build::configure()
        .out_dir(out)
        .emit_rerun_if_changed(false)
        .compile_protos(&files, &[root])
}
