//! Reading a body of any type, without a signature in the way: no input panics, and what is read
//! is written again as the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use substrate_record::{
    Accept, Ack, Body, Capability, Genesis, JobManifest, ModelEntry, ReceiptR, ReceiptW, cbor,
};

fuzz_target!(|bytes: &[u8]| {
    one_form::<Genesis>(bytes);
    one_form::<Capability>(bytes);
    one_form::<ModelEntry>(bytes);
    one_form::<JobManifest>(bytes);
    one_form::<Accept>(bytes);
    one_form::<Ack>(bytes);
    one_form::<ReceiptW>(bytes);
    one_form::<ReceiptR>(bytes);
});

fn one_form<B: Body>(bytes: &[u8]) {
    let Ok(value) = cbor::decode(bytes, cbor::MAX_DEPTH) else {
        return;
    };
    if let Ok(body) = B::from_cbor(value) {
        assert_eq!(cbor::encode(&body.to_cbor()), bytes);
    }
}
