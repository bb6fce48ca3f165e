//! The header of an image, which daemon and worker look at before a decoder does: no input panics, what is accepted is within
//! the limits, and bytes behind the header change nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use substrate_sandbox::wire::image::{Look, MAX_POINTS, MAX_RATIO, MAX_SIDE};

fuzz_target!(|bytes: &[u8]| {
    let Ok(look) = Look::at(bytes) else {
        return;
    };
    let Look { width, height, .. } = look;
    assert!((1..=MAX_SIDE).contains(&width) && (1..=MAX_SIDE).contains(&height));
    assert!(u64::from(width) * u64::from(height) <= MAX_POINTS);
    assert!(width.max(height) / MAX_RATIO <= width.min(height));
    let mut longer = bytes.to_vec();
    longer.extend([0xff; 32]);
    assert_eq!(Look::at(&longer), Ok(look));
});
