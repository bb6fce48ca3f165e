//! The committed code is what the contract generates.

use std::{fs, path::Path, process::Command};

mod contract;

#[test]
fn the_committed_code_is_what_the_contract_generates() {
    if Command::new("protoc").arg("--version").output().is_err() {
        // Only people who change the contract need it; the gate installs it.
        eprintln!("protoc is not installed: not compared");
        return;
    }
    let fresh = tempfile::tempdir().unwrap();
    contract::generate(fresh.path()).unwrap();
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/generated/substrate.v1.rs");
    let (fresh, committed) = (
        fs::read_to_string(fresh.path().join("substrate.v1.rs")).unwrap(),
        fs::read_to_string(committed).unwrap(),
    );
    assert!(
        fresh == committed,
        "run `cargo run -p substrate-api --example generate` and commit the result"
    );
}

#[test]
fn every_file_of_the_contract_is_compiled() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/substrate/v1");
    let on_disk = fs::read_dir(folder).unwrap().count();
    assert_eq!(on_disk, contract::PROTOS.len());
}
