//! Sound headers are read, and every lie about a size is refused with its place.

use super::*;
use proptest::prelude::*;
use std::io::Cursor;

/// A GGUF under construction.
struct Gguf(Vec<u8>);

impl Gguf {
    fn new(tensors: u64, entries: u64) -> Gguf {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(entries.to_le_bytes());
        Gguf(bytes)
    }

    fn text(mut self, text: &str) -> Gguf {
        self.0.extend((text.len() as u64).to_le_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    fn u32(mut self, n: u32) -> Gguf {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn u64(mut self, n: u64) -> Gguf {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn entry_text(self, key: &str, value: &str) -> Gguf {
        self.text(key).u32(8).text(value)
    }

    fn entry_u32(self, key: &str, value: u32) -> Gguf {
        self.text(key).u32(4).u32(value)
    }

    fn tensor(self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Gguf {
        let gguf = self.text(name).u32(shape.len() as u32);
        let gguf = shape.iter().fold(gguf, |gguf, &size| gguf.u64(size));
        gguf.u32(kind).u64(offset)
    }

    fn data(mut self, bytes: usize) -> Gguf {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + bytes, 0);
        self
    }

    fn read(&self) -> Result<Header, HeaderError> {
        read(Cursor::new(&self.0), types)
    }

    fn refusal(&self) -> String {
        self.read().expect_err("the header lies").to_string()
    }
}

/// Type 0: single floats; type 2: blocks of 32 in 18 bytes.
fn types(kind: u32) -> Option<(u64, u64)> {
    match kind {
        0 => Some((1, 4)),
        2 => Some((32, 18)),
        _ => None,
    }
}

fn sound() -> Gguf {
    Gguf::new(2, 5)
        .entry_text("general.architecture", "llama")
        .entry_text("general.name", "Tiny")
        .entry_u32("llama.context_length", 2048)
        .entry_u32("general.file_type", 2)
        .text("tokenizer.ggml.tokens")
        .u32(9)
        .u32(8)
        .u64(3)
        .text("a")
        .text("b")
        .text("c")
        .tensor("a.weight", &[32, 2], 2, 0)
        .tensor("b.weight", &[5], 0, 64)
        .data(84)
}

#[test]
fn a_sound_header_is_read() {
    let expected = Header {
        arch: "llama".into(),
        name: Some("Tiny".into()),
        file_type: Some(2),
        n_ctx_train: 2048,
        n_vocab: 3,
        n_params: 69,
        tensor_bytes: 56,
        shape: Shape {
            rest_bytes: 56,
            ..Shape::default()
        },
        ..Header::default()
    };
    assert_eq!(sound().read().expect("sound"), expected);
}

#[test]
fn every_truncation_is_refused() {
    let whole = sound().0;
    for length in 0..whole.len() {
        let cut = Gguf(whole[..length].to_vec());
        assert!(
            cut.read().is_err(),
            "cut to {length} of {} was accepted",
            whole.len()
        );
    }
}

#[test]
fn lies_are_named_with_their_place() {
    let arch =
        |tensors, entries| Gguf::new(tensors, entries).entry_text("general.architecture", "llama");
    let cases = [
        (Gguf(b"GGML\x03\0\0\0".to_vec()), "bad magic at byte 4"),
        (Gguf(b"GGUF\x01\0\0\0".to_vec()), "bad version at byte 8"),
        (
            Gguf::new(1 << 31, 0),
            "tensor count of 2147483648 is more than the file can hold at byte 24",
        ),
        (
            Gguf::new(0, 1 << 60),
            "entry count of 1152921504606846976 is more than the file can hold at byte 24",
        ),
        (
            Gguf::new(0, 9).data(20),
            "entry count of 9 is more than the file can hold at byte 24",
        ),
        (
            Gguf::new(0, 1).u64(1 << 40).data(64),
            "key of 1099511627776 is more than the file can hold at byte 32",
        ),
        (
            Gguf::new(0, 1).text("k").u32(99).data(8),
            "bad value type at byte 37",
        ),
        (
            Gguf::new(0, 1).text("k").u32(9).u32(4).u64(u64::MAX),
            "array length of 18446744073709551615 is more than the file can hold at byte 49",
        ),
        (
            Gguf::new(0, 1)
                .text("k")
                .u32(9)
                .u32(9)
                .u64(1)
                .u32(9)
                .u64(1)
                .u32(9)
                .u64(0)
                .data(64),
            "bad array type at byte 61",
        ),
        (
            Gguf::new(0, 1).entry_u32("general.file_type", 2),
            "no general.architecture at byte 57",
        ),
        (
            arch(0, 2).entry_text("general.architecture", "gpt2"),
            "bad key (given twice) at byte 113",
        ),
        (
            arch(0, 2).entry_u32("general.alignment", 48),
            "bad alignment at byte 102",
        ),
        (
            arch(1, 1).tensor("t", &[1 << 40, 1 << 40], 0, 0),
            "bad tensor shape at byte 98",
        ),
        (
            arch(1, 1).tensor("t", &[0], 0, 0),
            "bad tensor shape at byte 90",
        ),
        (
            arch(1, 1).tensor("t", &[33], 2, 0),
            "bad tensor shape at byte 94",
        ),
        (
            arch(1, 1).tensor("t", &[1], 77, 0),
            "bad tensor type at byte 94",
        ),
        (
            arch(1, 1).tensor("t", &[1], 0, 8),
            "bad tensor offset at byte 102",
        ),
        (
            arch(1, 1).tensor("t", &[8], 0, 0).data(31),
            "file ends inside the tensors at byte 102",
        ),
        (
            arch(1, 1).tensor("t", &[8], 0, 1 << 50).data(99),
            "file ends inside the tensors at byte 102",
        ),
        (
            arch(1, 1).tensor("t", &[8], 0, u64::MAX - 31),
            "tensor offset of 18446744073709551584 is more than the file can hold at byte 102",
        ),
    ];
    for (gguf, expected) in cases {
        assert_eq!(gguf.refusal(), expected);
    }
}

#[test]
fn keys_that_are_kept_are_few() {
    let lengths = |count: u32| {
        let gguf = Gguf::new(0, u64::from(count) + 1).entry_text("general.architecture", "llama");
        let gguf = (0..count).fold(gguf, |gguf, n| {
            gguf.entry_u32(&format!("{n}.context_length"), n)
        });
        gguf.data(0)
    };
    assert!(lengths(8).read().is_ok());
    assert_eq!(
        lengths(9).refusal(),
        "bad number of context lengths at byte 357"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn random_bytes_after_the_magic_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut gguf = b"GGUF\x03\0\0\0".to_vec();
        gguf.extend(bytes);
        let _ = Gguf(gguf).read();
    }

    #[test]
    fn a_damaged_header_never_panics(at in 0usize..400, byte in any::<u8>()) {
        let mut gguf = sound();
        let at = at % gguf.0.len();
        gguf.0[at] = byte;
        let _ = gguf.read();
    }
}

/// A model of three layers of which the second has no heads, and tensors in two of them.
fn shaped() -> Gguf {
    let per_layer = |gguf: Gguf, key: &str, values: &[u32]| {
        let gguf = gguf.text(key).u32(9).u32(4).u64(values.len() as u64);
        values.iter().fold(gguf, |gguf, &value| gguf.u32(value))
    };
    let gguf = Gguf::new(3, 9)
        .entry_u32("llama.block_count", 3)
        .entry_u32("llama.embedding_length", 64)
        .entry_u32("llama.attention.head_count", 4)
        .entry_u32("clip.block_count", 99)
        .entry_u32("llama.attention.value_length", 8)
        .entry_u32("llama.attention.sliding_window", 128);
    let gguf = per_layer(gguf, "llama.attention.head_count_kv", &[2, 0, 4]);
    per_layer(gguf, "llama.feed_forward_length", &[96, 160, 96])
        .entry_text("general.architecture", "llama")
        .tensor("blk.0.ffn.weight", &[32, 8], 2, 0)
        .tensor("blk.2.norm.weight", &[5], 0, 160)
        .tensor("token_embd.weight", &[32, 8], 2, 192)
        .data(336)
}

#[test]
fn the_shape_is_what_the_header_says_of_each_layer() {
    let shape = shaped().read().expect("sound").shape;
    let expected = Shape {
        layers: 3,
        embedding: 64,
        feed_forward: 160,
        heads: 4,
        key_length: 16,
        value_length: 8,
        keys: (2 + 4) * 16,
        values: (2 + 4) * 8,
        window: 128,
        state: 0,
        layer_bytes: vec![144, 0, 20],
        rest_bytes: 144,
        repacked: if cfg!(target_arch = "x86_64") { 144 } else { 0 },
    };
    assert_eq!(shape, expected);
}

#[test]
fn a_recurrent_layer_has_a_state_instead_of_keys() {
    let gguf = Gguf::new(1, 8)
        .entry_text("general.architecture", "mix")
        .entry_u32("mix.block_count", 4)
        .entry_u32("mix.embedding_length", 64)
        .entry_u32("mix.attention.head_count", 4)
        .entry_u32("mix.full_attention_interval", 4)
        .entry_u32("mix.ssm.state_size", 8)
        .entry_u32("mix.ssm.inner_size", 128)
        .entry_u32("mix.ssm.conv_kernel", 4)
        .tensor("a.weight", &[5], 0, 0)
        .data(20);
    let shape = gguf.read().expect("sound").shape;
    assert_eq!((shape.keys, shape.values), (64, 64), "one layer in four");
    assert_eq!(shape.state, 3 * 4 * (3 * 128 + 8 * 128));
}

#[test]
fn more_layers_than_the_engine_has_are_refused() {
    let gguf = Gguf::new(1, 2)
        .entry_text("general.architecture", "llama")
        .entry_u32("llama.block_count", 513)
        .tensor("a.weight", &[5], 0, 0)
        .data(20);
    assert!(
        gguf.refusal().starts_with("number of layers of 513"),
        "{}",
        gguf.refusal()
    );
}
