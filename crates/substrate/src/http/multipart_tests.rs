//! Forms as clients send them, as nobody should, and cut anywhere.

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

const TYPE: &str = "multipart/form-data; boundary=xYz";

fn pieces(content_type: &str, form: &[u8], at_once: usize) -> Result<Vec<Piece>, FormError> {
    let mut decoder = Decoder::new(content_type)?;
    let mut all = Vec::new();
    for bytes in form.chunks(at_once.max(1)) {
        for piece in decoder.push(bytes)? {
            // Where the bytes of a field are cut says nothing.
            match (all.last_mut(), piece) {
                (Some(Piece::Bytes(before)), Piece::Bytes(more)) => before.extend(more),
                (_, piece) => all.push(piece),
            }
        }
        let most = (MAX_HEAD + decoder.delimiter.len()).saturating_add(at_once);
        assert!(
            decoder.held.len() <= most,
            "{} bytes held",
            decoder.held.len()
        );
    }
    decoder.finish()?;
    Ok(all)
}

fn check(form: &str, expect: Expect) {
    let told = match pieces(TYPE, form.as_bytes(), usize::MAX) {
        Err(error) => format!("{error}"),
        Ok(pieces) => {
            let told = pieces.iter().map(|piece| match piece {
                Piece::Field { name, filename } => format!("{name} {filename:?}"),
                Piece::Bytes(bytes) => format!("  {:?}", String::from_utf8_lossy(bytes)),
                Piece::End => "end".into(),
            });
            told.collect::<Vec<_>>().join("\n")
        }
    };
    expect.assert_eq(&told);
}

#[test]
fn a_form_is_its_fields_in_order() {
    check(
        "--xYz\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--xYz\r\n\
         content-disposition: form-data; name=\"file\"; filename=\"a \\\"b\\\" %22c%22;d.jsonl\"\r\n\
         Content-Type: application/octet-stream\r\n\r\none\r\n--xY\r\n\r\n--xYz\r\n\
         Content-Disposition: form-data; name=empty\r\n\r\n\r\n--xYz--\r\nepilogue",
        expect![[r#"
            purpose None
              "batch"
            end
            file Some("a \"b\" \"c\";d.jsonl")
              "one\r\n--xY\r\n"
            end
            empty None
            end"#]],
    );
    check("preamble\r\n--xYz--", expect![[""]]);
}

#[test]
fn what_is_no_form_is_told() {
    check("", expect!["the form broke off"]);
    check(
        "--xYz\r\nContent-Disposition: form-data; name=a\r\n\r\nhalf",
        expect!["the form broke off"],
    );
    check(
        "--xYzzz",
        expect![
            "the form is broken: a boundary is followed by something else than the end of its line"
        ],
    );
    check(
        "--xYz\r\nContent-Type: text/plain\r\n\r\n",
        expect!["a part of the form does not name its field"],
    );
    let part = "--xYz\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n";
    check(&part.repeat(17), expect!["the form has more than 16 parts"]);
    check(
        &format!("--xYz\r\nX: {}", "y".repeat(5_000)),
        expect!["the head of a part of the form is longer than 4096 bytes"],
    );
    for wrong in [
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
    ] {
        assert_eq!(
            Decoder::new(wrong).err(),
            Some(FormError::NotAForm),
            "{wrong}"
        );
    }
    assert!(Decoder::new("Multipart/Form-Data; charset=utf-8; Boundary=\"a b\"").is_ok());
}

proptest! {
    #[test]
    fn a_form_is_the_same_however_it_is_cut(
        fields in proptest::collection::vec(
            ("[a-z]{1,8}", proptest::option::of("[a-z .]{1,12}"), proptest::collection::vec(any::<u8>(), 0..80)), 0..5),
        at_once in 1_usize..40,
    ) {
        let mut form = Vec::new();
        let mut expected = Vec::new();
        for (name, filename, bytes) in fields {
            form.extend(format!("--xYz\r\nContent-Disposition: form-data; name=\"{name}\"").bytes());
            if let Some(filename) = &filename {
                form.extend(format!("; filename=\"{filename}\"").bytes());
            }
            form.extend(b"\r\n\r\n");
            form.extend(&bytes);
            form.extend(b"\r\n");
            expected.push(Piece::Field { name, filename });
            if !bytes.is_empty() {
                expected.push(Piece::Bytes(bytes));
            }
            expected.push(Piece::End);
        }
        form.extend(b"--xYz--\r\n");
        prop_assert_eq!(pieces(TYPE, &form, at_once), Ok(expected));
    }

    #[test]
    fn nothing_panics_and_little_is_held(
        form in proptest::collection::vec(
            prop_oneof![Just(b"\r\n--xYz".to_vec()), Just(b"\r\n".to_vec()), Just(b"--".to_vec()),
                Just(b"Content-Disposition: form-data; name=a".to_vec()), proptest::collection::vec(any::<u8>(), 0..20)], 0..40),
        at_once in 1_usize..90,
    ) {
        let form = form.concat();
        let whole = pieces(TYPE, &form, usize::MAX);
        prop_assert_eq!(pieces(TYPE, &form, at_once), whole);
    }
}
