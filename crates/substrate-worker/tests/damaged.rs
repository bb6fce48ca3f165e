//! Damaged model files: refused cleanly, quickly and with a place.

mod support;

use std::time::{Duration, Instant};

use substrate_sandbox::wire::{Failure, FromWorker, KvType, Load, ToWorker};
use support::{Client, model};

/// The start of the real model: header and the first tensors.
fn head(bytes: usize) -> Vec<u8> {
    use std::io::Read;
    let mut head = Vec::new();
    let file = std::fs::File::open(model()).expect("the test model opens");
    file.take(bytes as u64)
        .read_to_end(&mut head)
        .expect("it reads");
    head
}

fn with(mut bytes: Vec<u8>, at: usize, value: &[u8]) -> Vec<u8> {
    bytes[at..at + value.len()].copy_from_slice(value);
    bytes
}

/// Where the value of the integer entry `key` lies.
fn value_of(bytes: &[u8], key: &str) -> usize {
    let at = bytes
        .windows(key.len())
        .position(|window| window == key.as_bytes());
    at.expect("the key is in the header") + key.len() + 4
}

fn cases() -> Vec<(&'static str, Vec<u8>)> {
    let mut dice = 1u64;
    let random: Vec<u8> = std::iter::repeat_with(|| {
        dice = dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) as u8
    })
    .take(1 << 20)
    .collect();
    let real = head(4 << 20);
    let context = value_of(&real, "llama.context_length");
    vec![
        ("empty", Vec::new()),
        ("random", random.clone()),
        (
            "a magic and random",
            [b"GGUF\x03\0\0\0".as_slice(), &random].concat(),
        ),
        ("cut in the header", real[..100_000].to_vec()),
        ("cut in the tensors", real.clone()),
        (
            "tensor count 2^31",
            with(real.clone(), 8, &(1u64 << 31).to_le_bytes()),
        ),
        (
            "entry count 2^60",
            with(real.clone(), 16, &(1u64 << 60).to_le_bytes()),
        ),
        (
            "one entry too many",
            with(real.clone(), 16, &(real[16] as u64 + 1).to_le_bytes()),
        ),
        ("wrong value type", with(real.clone(), context - 4, &[99])),
        ("junk after the preamble", with(real, 24, &random[..4096])),
    ]
}

#[test]
fn damaged_models_are_refused_in_no_time() {
    let folder = tempfile();
    for (name, bytes) in cases() {
        let path = folder.join("model.gguf");
        std::fs::write(&path, bytes).expect("it writes");
        for message in [
            ToWorker::Inspect,
            ToWorker::Load(Load {
                n_ctx: 512,
                slots: 1,
                cells: 0,
                threads: 1,
                batch_threads: 1,
                kv: KvType::F16,
                flash_attention: true,
                gpu: None,
                projector: false,
                adapter: false,
                apart: false,
                prompt_lookup: false,
            }),
        ] {
            let mut worker = Client::start(path.to_str().expect("a plain path"));
            let start = Instant::now();
            worker.send(message);
            match worker.next() {
                FromWorker::Failed {
                    seq: None,
                    why: Failure::BadModel,
                    detail,
                } => {
                    assert!(detail.contains("at byte"), "{name}: {detail}");
                }
                other => panic!("{name}: {other:?}"),
            }
            assert!(
                start.elapsed() < Duration::from_secs(2),
                "{name}: {:?}",
                start.elapsed()
            );
        }
    }
    std::fs::remove_dir_all(folder).expect("it can be removed");
}

/// What only llama.cpp can judge still ends in a clean refusal.
#[test]
fn a_sound_header_over_a_wrong_model_is_refused_by_the_engine() {
    let folder = tempfile();
    let path = folder.join("model.gguf");
    let mut bytes = std::fs::read(model()).expect("the test model reads");
    let at = value_of(&bytes, "llama.block_count");
    bytes[at..at + 4].copy_from_slice(&31u32.to_le_bytes());
    std::fs::write(&path, bytes).expect("it writes");
    let mut worker = Client::start(path.to_str().expect("a plain path"));
    worker.send(ToWorker::Load(Load {
        n_ctx: 512,
        slots: 1,
        cells: 0,
        threads: 1,
        batch_threads: 1,
        kv: KvType::F16,
        flash_attention: true,
        gpu: None,
        projector: false,
        adapter: false,
        apart: false,
        prompt_lookup: false,
    }));
    let FromWorker::Failed {
        seq: None,
        why,
        detail,
    } = worker.next()
    else {
        panic!("a model without a layer was loaded")
    };
    assert_eq!(why, Failure::BadModel, "{detail}");
    std::fs::remove_dir_all(folder).expect("it can be removed");
}

fn tempfile() -> std::path::PathBuf {
    let unique = format!(
        "substrate-damaged-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    );
    let folder = std::env::temp_dir().join(unique);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}
