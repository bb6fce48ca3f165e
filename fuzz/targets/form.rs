//! A form with a file: no input panics, and however it is cut into pieces it has the same parts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use substrate_fuzz::form::{Decoder, FormError, Piece};

fuzz_target!(|input: &[u8]| {
    // The first byte says how the form is cut.
    let Some((size, form)) = input.split_first() else {
        return;
    };
    // The first line is the content type, if it is one.
    let end = form.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let kind = std::str::from_utf8(&form[..end]).unwrap_or_default();
    for kind in [kind, "multipart/form-data; boundary=cut"] {
        let whole = pieces(kind, &form[end..], usize::MAX);
        assert_eq!(pieces(kind, &form[end..], usize::from(*size) + 1), whole);
    }
});

fn pieces(kind: &str, form: &[u8], size: usize) -> Result<Vec<Piece>, FormError> {
    let mut decoder = Decoder::new(kind)?;
    let mut all: Vec<Piece> = Vec::new();
    for bytes in form.chunks(size) {
        for piece in decoder.push(bytes)? {
            match (all.last_mut(), piece) {
                (Some(Piece::Bytes(before)), Piece::Bytes(more)) => before.extend(more),
                (_, piece) => all.push(piece),
            }
        }
    }
    decoder.finish()?;
    Ok(all)
}
