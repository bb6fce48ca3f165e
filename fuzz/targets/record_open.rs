//! Opening a record: no input panics, and an opened record is exactly the bytes it came from.
#![no_main]

use libfuzzer_sys::fuzz_target;
use substrate_record::{AnyRecord, NetworkId};

/// The network of the golden vectors, so that the corpus holds records that open.
const NETWORK: &str = "954b83a30f3b8de6c58b89f24e841168179f4216024c502d8ee0d553e21ec6f8";

fuzz_target!(|bytes: &[u8]| {
    let network: NetworkId = NETWORK.parse().expect("64 digits");
    if let Ok(record) = AnyRecord::open(bytes, &network) {
        assert_eq!(record.bytes(), bytes);
    }
});
