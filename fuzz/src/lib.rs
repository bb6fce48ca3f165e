//! The decoders of the mesh, of invites, of the hub, of Modelfiles, of model files, of batches and of forms, compiled from
//! their own files without what surrounds them.
//!
//! Their crates carry a network stack, a store and llama.cpp, which take minutes to build; a decoder that needed
//! any of them would not compile here, and that is checked with every run.
//! Absent by design: any code of the product in a second copy.

#![allow(dead_code)] // The files are whole; targets call their decoders only.

#[path = "../../crates/substrate/src/batches/lines.rs"]
pub mod batch_lines;
#[path = "../../crates/substrate-mesh/src/cbor.rs"]
pub mod cbor;
#[path = "../../crates/substrate-mesh/src/entries.rs"]
pub mod entries;
#[path = "../../crates/substrate/src/http/multipart.rs"]
pub mod form;
#[path = "../../crates/substrate-mesh/src/frame.rs"]
pub mod frame;
#[path = "../../crates/substrate-worker/src/header.rs"]
pub mod header;
#[path = "../../crates/substrate-mesh/src/hello.rs"]
pub mod hello;
#[path = "../../crates/substrate-mesh/src/input.rs"]
pub mod input;
#[path = "../../crates/substrate/src/invite/code/mod.rs"]
pub mod invite;
#[path = "../../crates/substrate-mesh/src/job.rs"]
pub mod job;
#[path = "../../crates/substrate-mesh/src/join.rs"]
pub mod join;
#[path = "../../crates/substrate/src/models/pull/hub/listing.rs"]
pub mod listing;
#[path = "../../crates/substrate/src/models/modelfile.rs"]
pub mod modelfile;
#[path = "../../crates/substrate/src/models/parameters.rs"]
pub mod parameters;
#[path = "../../crates/substrate/src/models/recipe.rs"]
pub mod recipe;
#[path = "../../crates/substrate-mesh/src/standing.rs"]
mod standing;
#[path = "../../crates/substrate-mesh/src/token.rs"]
pub mod token;

/// Deeper than any frame goes: the frame's own decoder is the one to refuse.
const MAX_DEPTH: usize = 16;

/// What an invite's decoder asks of the store.
mod store {
    /// Every name is good here, so that the codec keeps its laws without the store's help.
    pub fn valid_circle_name(_name: &str) -> bool {
        true
    }
}

/// The law of every frame: what is read is written again as the same bytes.
pub fn one_form<F: frame::Frame>(payload: &[u8]) {
    if let Ok(frame) = F::decode(payload) {
        let again = frame.encode().expect("what was read can be written");
        assert_eq!(again, payload);
    }
}

/// A payload `[kind, body]` with the padding of the job stream, which mutation would hardly ever hit.
pub fn padded(payload: &[u8]) -> Option<Vec<u8>> {
    use ciborium::Value;

    let Ok(Value::Array(items)) = substrate_record::cbor::decode(payload, MAX_DEPTH) else {
        return None;
    };
    let [Value::Integer(kind), body] = <[Value; 2]>::try_from(items).ok()? else {
        return None;
    };
    cbor::seal(u64::try_from(kind).ok()?, body, cbor::Padding::Job).ok()
}
