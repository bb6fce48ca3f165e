//! Golden vectors: one directory per lie a record can tell, and per honest record.
//!
//! `record.hex` is the record, `verdict.txt` what opening it in the network of `good-genesis` must
//! say: `accept <type> <id>` or `refuse <reason>`, then a sentence on what the vector is for.
//! They are committed and never made anew without saying so: `SUBSTRATE_WRITE_VECTORS=1 cargo test
//! -p substrate-record --test vectors` writes them, and the difference is for a person to judge.

#![allow(clippy::disallowed_methods, reason = "tests read the committed files")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use substrate_record::{AnyRecord, NetworkId, Signed};
use support::{accept, genesis, lies, provider};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors");

fn directories() -> Vec<PathBuf> {
    let entries = fs::read_dir(ROOT).expect("vectors are committed");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("listed").path()).collect();
    paths.retain(|path| path.is_dir());
    paths.sort();
    paths
}

fn read_record(directory: &Path) -> Vec<u8> {
    let text = fs::read_to_string(directory.join("record.hex")).expect("record.hex");
    let digits: String = text.split_whitespace().collect();
    hex::decode(digits).expect("hexadecimal")
}

fn read_verdict(directory: &Path) -> String {
    let text = fs::read_to_string(directory.join("verdict.txt")).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

fn verdict(bytes: &[u8], network: &NetworkId) -> String {
    match AnyRecord::open(bytes, network) {
        Ok(record) => format!("accept {} {}", record.record_type(), record.id()),
        Err(error) => format!("refuse {error}"),
    }
}

/// The network is the one the committed Genesis founds, not one made from today's code.
fn committed_network() -> NetworkId {
    let bytes = read_record(&Path::new(ROOT).join("good-genesis"));
    let genesis = Signed::decode(&bytes).expect("the golden genesis decodes");
    genesis
        .verify_genesis()
        .expect("and is authentic")
        .network()
}

#[test]
fn every_vector_gets_its_verdict() {
    let network = committed_network();
    let mut wrong = Vec::new();
    for directory in directories() {
        let (expected, found) = (
            read_verdict(&directory),
            verdict(&read_record(&directory), &network),
        );
        if expected != found {
            wrong.push(format!(
                "{}:\n  expected {expected}\n  found    {found}",
                directory.display()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_vector_has_a_record_and_a_verdict() {
    let directories = directories();
    assert!(
        directories.len() >= 100,
        "only {} vectors",
        directories.len()
    );
    for directory in directories {
        assert!(
            directory.join("record.hex").is_file(),
            "{} has no record",
            directory.display()
        );
        let verdict = read_verdict(&directory);
        let named_good = directory
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("good-"));
        let known = if named_good { "accept " } else { "refuse " };
        assert!(
            verdict.starts_with(known),
            "{}: verdict {verdict:?}",
            directory.display()
        );
    }
}

#[test]
fn the_forger_still_makes_the_committed_vectors() {
    let write = std::env::var_os("SUBSTRATE_WRITE_VECTORS").is_some();
    let vectors = lies::all();
    for vector in &vectors {
        let directory = Path::new(ROOT).join(vector.name);
        if write {
            write_vector(&directory, vector);
        }
        assert_eq!(read_record(&directory), vector.bytes, "{}", vector.name);
    }
    let mut made: Vec<_> = vectors
        .iter()
        .map(|vector| vector.name.to_owned())
        .collect();
    made.sort();
    let committed: Vec<_> = directories()
        .iter()
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect();
    assert_eq!(committed, made);
}

#[test]
fn an_encoder_written_from_the_protocol_text_makes_the_same_bytes() {
    let forged = lies::Draft::honest().forge().signed_by(&provider());
    assert_eq!(hex::encode(forged), hex::encode(accept().bytes()));
}

fn write_vector(directory: &Path, vector: &lies::Vector) {
    fs::create_dir_all(directory).expect("directory");
    let digits = hex::encode(&vector.bytes);
    let lines: Vec<_> = digits
        .as_bytes()
        .chunks(96)
        .map(String::from_utf8_lossy)
        .collect();
    let record = lines.join("\n") + "\n";
    fs::write(directory.join("record.hex"), record).expect("record.hex");
    let verdict = verdict(&vector.bytes, &genesis().network());
    let text = format!("{verdict}\n\n{}\n", vector.what);
    fs::write(directory.join("verdict.txt"), text).expect("verdict.txt");
}
