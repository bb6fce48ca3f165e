//! Evidence of a trusted execution environment in a stranger's Capability, and a quote as a quoting service gives it: no
//! bytes panic; evidence has one encoding; what is made of a quote is read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use substrate_tee::{Evidence, Expectation, Policy, UnixSeconds, verify};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(evidence) = Evidence::decode(bytes) {
        assert_eq!(evidence.encode().expect("what was read fits"), bytes);
        judge(&evidence);
    }
    if let Ok(evidence) = Evidence::from_tdx_quote(bytes) {
        let encoded = evidence.encode().expect("what was made fits");
        assert_eq!(Evidence::decode(&encoded).as_ref(), Ok(&evidence));
        judge(&evidence);
    }
});

/// Reports and certificates are read, and no signature is checked: that would take most of the time, and a policy that accepts
/// nothing is asked before.
fn judge(evidence: &Evidence) {
    let Ok(claim) = evidence.claim() else {
        return;
    };
    let expected = Expectation {
        binding: substrate_tee::Binding::from_bytes(claim.user_data),
        policy: &Policy::default(),
    };
    assert!(verify(evidence, &expected, UnixSeconds(0)).is_err());
}
