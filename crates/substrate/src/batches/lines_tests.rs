//! Rows and requests: cases that read like the format's own rules, and its laws.

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

const CHAT: &str = "/v1/chat/completions";

fn check(row: &str, expect: Expect) {
    let told = match read(row.as_bytes(), CHAT) {
        Ok(line) => format!("{} asks {}", line.custom_id, line.body),
        Err(Fault {
            code,
            param,
            message,
        }) => format!("{code} at {}: {message}", param.unwrap_or("-")),
    };
    expect.assert_eq(&told);
}

#[test]
fn a_line_is_read_and_its_body_handed_on_as_it_was_written() {
    check(
        r#" {"custom_id":"a\u0041","method":"POST","url":"/v1/chat/completions","body":{"model": "m","x":[1 ,2]},"more":1}"#,
        expect![[r#"aA asks {"model": "m","x":[1 ,2]}"#]],
    );
}

#[test]
fn every_fault_names_its_field() {
    check(
        "nonsense",
        expect![["invalid_json_line at -: this line is not a JSON object"]],
    );
    check(
        "[1]",
        expect![["invalid_json_line at -: this line is not a JSON object"]],
    );
    check(
        r#"{"custom_id":"a""#,
        expect![[
            "invalid_json_line at -: this line is not a JSON object: EOF while parsing an object at line 1 column 16"
        ]],
    );
    check(
        r#"{}"#,
        expect![["invalid_custom_id at custom_id: custom_id is required"]],
    );
    check(
        r#"{"custom_id":""}"#,
        expect![["invalid_custom_id at custom_id: custom_id must have 1 to 512 bytes, not 0"]],
    );
    check(
        r#"{"custom_id":7}"#,
        expect![["invalid_type at custom_id: custom_id must be a string"]],
    );
    check(
        r#"{"custom_id":"a","method":"GET"}"#,
        expect![["invalid_method at method: method must be POST"]],
    );
    check(
        r#"{"custom_id":"a","method":"POST","url":"/v1/embeddings"}"#,
        expect![["invalid_url at url: url must be the batch's endpoint, /v1/chat/completions"]],
    );
    check(
        r#"{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":"x"}"#,
        expect![["invalid_body at body: body must be a JSON object"]],
    );
    check(
        r#"{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"stream":true}}"#,
        expect![[
            "invalid_value at body.stream: a line of a batch has no stream; leave it out, or set it to false"
        ]],
    );
}

/// Number, place and text of every row.
fn rows(text: &[u8], limit: usize, buffer: usize) -> Vec<(u32, u64, Option<Vec<u8>>, bool)> {
    let from = std::io::BufReader::with_capacity(buffer, text);
    let mut rows = Rows::new(from, limit);
    let mut all = Vec::new();
    while let Some(row) = rows.next_row().unwrap() {
        all.push((
            row.number,
            row.offset,
            row.bytes.map(<[u8]>::to_vec),
            row.is_whole,
        ));
    }
    all
}

#[test]
fn empty_rows_count_and_are_no_requests() {
    let text = b"\xef\xbb\xbfone\r\n\n  \nfar too long\nlast";
    let expected = [
        (1, 3, Some(b"one\r".to_vec()), true),
        (4, 12, None, true),
        (5, 25, Some(b"last".to_vec()), false),
    ];
    assert_eq!(rows(text, 7, 4), expected);
}

proptest! {
    #[test]
    fn rows_are_the_same_however_the_file_is_cut_into_pieces(
        text in proptest::collection::vec(prop_oneof![4 => any::<u8>(), 1 => Just(b'\n'), 1 => Just(b' ')], 0..300),
        limit in 1_usize..40,
        buffer in 1_usize..17,
    ) {
        let whole = rows(&text, limit, 4_096);
        prop_assert_eq!(&rows(&text, limit, buffer), &whole);
        for (_, offset, bytes, is_whole) in whole {
            let Some(bytes) = bytes else { continue };
            let (from, to) = (offset as usize, offset as usize + bytes.len());
            prop_assert_eq!(&text[from..to], &bytes[..]);
            prop_assert_eq!(text.get(to), is_whole.then_some(&b'\n'));
            prop_assert!(bytes.len() <= limit);
        }
    }

    #[test]
    fn what_is_written_is_read(id in ".{1,60}", content in ".{0,60}") {
        let body = serde_json::json!({ "messages": [{ "role": "user", "content": content }] }).to_string();
        let row = format!(
            r#"{{"custom_id":{},"method":"POST","url":"{CHAT}","body":{body}}}"#,
            serde_json::Value::from(id.clone())
        );
        let line = read(row.as_bytes(), CHAT);
        prop_assert_eq!(line, Ok(Line { custom_id: Cow::Owned(id), body: &body }));
    }

    #[test]
    fn nothing_panics(row in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&row, CHAT);
    }
}
