//! LoRA adapters: what a model says through one is what llama.cpp's server says, and what is none, is broken or is for
//! another model is refused.
//!
//! `adapters/make.py` makes the golden answers. The adapter's weights are drawn by chance: that it says something else than
//! the model alone, and the same to the last token, is what matters.

mod support;

use serde_json::Value as Json;
use substrate_sandbox::wire::{Failure, Load, ToWorker};
use substrate_worker::engine::{self, Engine, LoadOptions};
use substrate_worker::ffi::Interrupt;
use substrate_worker::near_tie::NEAR_TIE;
use support::{Client, adapter, engine_with, greedy, half, job, model, projector, run, user};

/// What the golden answers were limited to.
const GOLDEN_TOKENS: u32 = 24;

fn adapted(path: &str) -> Result<Engine, substrate_worker::refusal::Refusal> {
    // As the golden files were made: plain attention rounds alike in every build.
    let options = LoadOptions {
        n_ctx: 1024,
        flash_attention: false,
        adapter: Some(path.to_owned()),
        ..LoadOptions::default()
    };
    Engine::load(&model(), &options, Interrupt::default())
}

#[test]
fn what_is_said_is_what_llama_cpps_server_says_up_to_near_ties() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/adapters/answers.json");
    let text = std::fs::read_to_string(golden).expect("a golden file");
    let cases: Vec<Json> = serde_json::from_str(&text).expect("JSON");
    let mut with = adapted(&adapter()).expect("model and adapter load");
    let mut without = engine_with(1024, false);
    let (mut equal, mut others) = (0, 0);
    for (seq, case) in cases.iter().enumerate() {
        let prompt = case["prompt"].as_str().expect("a prompt");
        let job = job(seq as u64, &user(prompt), greedy(), GOLDEN_TOKENS);
        let answer = run(&mut with, &job);
        let ids = case["ids"].as_array().expect("ids");
        let expected: Vec<u64> = ids.iter().filter_map(Json::as_u64).collect();
        let said = answer.ids.iter().map(|id| u64::from(*id));
        let shared = expected
            .iter()
            .zip(said)
            .take_while(|(a, b)| **a == *b)
            .count();
        if shared == expected.len() {
            equal += 1;
        } else {
            let gap = answer.gaps[shared];
            assert!(gap <= NEAR_TIE, "{prompt}: differs at {shared}, gap {gap}");
        }
        others += usize::from(run(&mut without, &job).ids != answer.ids);
    }
    println!(
        "equal to llama.cpp's server: {equal} of {}; {others} are not what the model says alone",
        cases.len()
    );
    assert!(equal * 2 >= cases.len(), "{equal} of {}", cases.len());
    assert!(others * 2 >= cases.len(), "{others} of {}", cases.len());
}

#[test]
fn what_is_no_adapter_for_the_model_is_refused() {
    let bytes = std::fs::read(adapter()).expect("the adapter");
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path.to_str().expect("a plain path").to_owned()
    };
    let cut = write("cut.gguf", &bytes[..bytes.len() / 2]);
    // The same length, another architecture.
    let at = bytes
        .windows(5)
        .position(|window| window == b"llama")
        .expect("the architecture");
    let mut other = bytes.clone();
    other[at..at + 5].copy_from_slice(b"qwen2");
    let other = write("other.gguf", &other);
    // A tensor that the model has not.
    let at = bytes
        .windows(6)
        .position(|window| window == b"blk.0.")
        .expect("a tensor");
    let mut astray = bytes.clone();
    astray[at..at + 6].copy_from_slice(b"blk.x.");
    let astray = write("astray.gguf", &astray);
    for (path, why) in [
        (model(), "the adapter's file is none"),
        (projector(), "the adapter's file is none"),
        (cut, "the tensors"),
        (other, "architecture qwen2, and this one is of llama"),
        (astray, "the engine refused the adapter"),
        (write("rubbish.gguf", b"rubbish"), "magic"),
    ] {
        let refusal = adapted(&path).err().expect("it is refused");
        assert_eq!(refusal.why, Failure::BadModel, "{}", refusal.detail);
        assert!(refusal.detail.contains(why), "{why}: {}", refusal.detail);
    }
}

#[test]
fn an_adapter_is_told_from_a_model() {
    assert!(engine::inspect(&adapter()).expect("a header").is_adapter);
    assert!(!engine::inspect(&model()).expect("a header").is_adapter);
}

#[test]
fn over_the_pipe_an_adapter_is_laid_over_the_model() {
    let said = |adapter| {
        let mut client = Client::start(&model());
        let load = Load {
            adapter,
            ..half(512)
        };
        client.load_as(load).expect("it loads");
        client.prepare(job(1, &user("What is this?"), greedy(), GOLDEN_TOKENS));
        client.send(ToWorker::Begin { seq: 1 });
        client.finish(1).0
    };
    assert_ne!(said(true), said(false));
}
