//! A batch's file: no input panics, rows are where they say and no longer than allowed, and a line that is read is one that
//! can be handed on.
#![no_main]

use std::io::BufReader;

use libfuzzer_sys::fuzz_target;
use substrate_fuzz::batch_lines::{MAX_CUSTOM_ID, Rows, read};

/// Shorter than the inputs, so that rows over it are met.
const LIMIT: usize = 4_096;

fuzz_target!(|input: &[u8]| {
    // The first byte says in what pieces the file comes.
    let Some((size, file)) = input.split_first() else {
        return;
    };
    let whole = rows(file, file.len() + 1);
    assert_eq!(rows(file, usize::from(*size) + 1), whole);
    for (_, row) in whole {
        let Some(row) = row else { continue };
        assert!(row.len() <= LIMIT);
        let Ok(line) = read(&row, "/v1/embeddings") else {
            continue;
        };
        assert!((1..=MAX_CUSTOM_ID).contains(&line.custom_id.len()));
        let body: serde_json::Value = match serde_json::from_str(line.body) {
            Ok(body) => body,
            // Too deep, or a number that is none: its endpoint refuses it.
            Err(_) => continue,
        };
        assert!(body.is_object());
    }
});

fn rows(file: &[u8], size: usize) -> Vec<(u64, Option<Vec<u8>>)> {
    let mut rows = Rows::new(BufReader::with_capacity(size, file), LIMIT);
    let mut all = Vec::new();
    while let Some(row) = rows.next_row().expect("memory has no errors") {
        let from = usize::try_from(row.offset).expect("it is in memory");
        if let Some(bytes) = row.bytes {
            assert_eq!(&file[from..from + bytes.len()], bytes);
        }
        all.push((row.offset, row.bytes.map(<[u8]>::to_vec)));
    }
    all
}
