//! Vectors of texts with a real model: the published ones, in any company, and none for what cannot be read.
//!
//! `minilm/vectors.f32` was made once by sentence-transformers (tests/models/golden_vectors.py) of `minilm/texts.json`
//! (tests/models/embedding_texts.py).

mod support;

use std::collections::BTreeMap;

use substrate_sandbox::wire::{
    Failure, Finished, FromWorker, INITIAL_GRANT, Input, KvType, Load, Prepare, ToWorker,
};
use support::{Client, greedy, job, user};

/// What the issue of embeddings asks for, and less than which no rounding of floats explains.
const SAME: f64 = 0.9999;
/// Components of the model's vectors.
const LENGTH: usize = 384;

fn model() -> String {
    std::env::var("SUBSTRATE_TEST_VECTORS")
        .expect("SUBSTRATE_TEST_VECTORS must name all-MiniLM-L6-v2.F32.gguf")
}

fn loaded(n_ctx: u32) -> Client {
    let mut client = Client::start(&model());
    client.load(n_ctx);
    client
}

fn texts(texts: &[&str], truncate: bool) -> Input {
    Input::texts(
        texts.iter().map(|&text| text.to_owned()).collect(),
        truncate,
    )
}

fn request(seq: u64, input: &Input) -> Prepare {
    job(seq, input, greedy(), u32::MAX)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (components, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    components.iter().copied().map(f32::from_le_bytes).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The rows of one request, each granted as it comes.
fn rows(client: &mut Client, seq: u64) -> (Vec<Vec<f32>>, Finished) {
    let mut rows = Vec::new();
    loop {
        match client.next() {
            FromWorker::Row {
                seq: of,
                row,
                bytes,
            } if of == seq => {
                assert_eq!(row as usize, rows.len());
                client.send(ToWorker::Grant { seq, frames: 1 });
                rows.push(floats(&bytes));
            }
            FromWorker::Finished(finished) if finished.seq == seq => return (rows, finished),
            other => panic!("unexpected: {other:?}"),
        }
    }
}

fn embed(client: &mut Client, seq: u64, input: &Input) -> Vec<Vec<f32>> {
    client.prepare(request(seq, input));
    client.send(ToWorker::Begin { seq });
    rows(client, seq).0
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    let list: Vec<String> =
        serde_json::from_str(include_str!("minilm/texts.json")).expect("a list");
    let golden = floats(include_bytes!("minilm/vectors.f32"));
    assert_eq!((list.len(), golden.len()), (500, 500 * LENGTH));
    let mut client = loaded(0);
    let input = Input::texts(list.clone(), true);
    let n_in = client.prepare(request(1, &input));
    client.send(ToWorker::Begin { seq: 1 });
    let (rows, finished) = rows(&mut client, 1);
    assert_eq!((rows.len(), finished.n_out, finished.finish), (500, 500, 1));
    assert_eq!((finished.prefilled, finished.reused), (n_in, 0));
    let mut worst = (1.0, 0);
    let mut apart = Vec::new();
    for (at, (row, golden)) in rows.iter().zip(golden.chunks(LENGTH)).enumerate() {
        let length: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
        assert!((length - 1.0).abs() < 1e-5, "text {at} has length {length}");
        let same = cosine(row, golden);
        if same < worst.0 {
            worst = (same, at);
        }
        if same < SAME {
            apart.push(format!("{at} {same:.6} {:?}", list[at]));
        }
    }
    println!(
        "500 texts: the least cosine is {:.7}, of text {}",
        worst.0, worst.1
    );
    assert!(apart.is_empty(), "{} texts: {apart:#?}", apart.len());
}

#[test]
fn company_does_not_change_a_vector_and_nobody_waits_for_a_long_list() {
    let mut client = loaded(0);
    let alone = embed(&mut client, 1, &texts(&["A short question."], false));
    let many: Vec<String> = (0..300)
        .map(|n| format!("Line {n} of a list that takes a while."))
        .collect();
    client.prepare(request(2, &Input::texts(many, false)));
    client.send(ToWorker::Begin { seq: 2 });
    client.send(ToWorker::Grant {
        seq: 2,
        frames: 300,
    });
    client.send(ToWorker::Prepare(request(
        3,
        &texts(&["A short question."], false),
    )));
    client.send(ToWorker::Begin { seq: 3 });
    let (mut before, mut beside) = (0, None);
    let mut ended = BTreeMap::new();
    while ended.len() < 2 {
        match client.next() {
            FromWorker::Prepared { seq: 3, .. } => {}
            FromWorker::Row { seq: 2, .. } => before += usize::from(beside.is_none()),
            FromWorker::Row { seq: 3, bytes, .. } => beside = Some(floats(&bytes)),
            FromWorker::Finished(finished) => drop(ended.insert(finished.seq, finished.n_out)),
            other => panic!("unexpected: {other:?}"),
        }
    }
    let beside = beside.expect("a row");
    assert!(cosine(&beside, &alone[0]) > 1.0 - 1e-6);
    assert!(
        before < 300,
        "the short request waited for all {before} rows"
    );
    assert_eq!(ended, BTreeMap::from([(2, 300), (3, 1)]));
}

#[test]
fn a_reader_that_is_slow_stops_its_own_request_only() {
    let mut client = loaded(0);
    let many: Vec<String> = (0..100).map(|n| format!("Row {n}.")).collect();
    client.prepare(request(1, &Input::texts(many, false)));
    client.send(ToWorker::Begin { seq: 1 });
    for row in 0..INITIAL_GRANT {
        assert!(matches!(client.next(), FromWorker::Row { seq: 1, row: of, .. } if of == row));
    }
    // Nothing more comes of it, however much is done for another.
    let other = embed(&mut client, 2, &texts(&["Somebody else."; 40], false));
    assert_eq!(other.len(), 40);
    client.send(ToWorker::Cancel { seq: 1 });
    match client.next() {
        FromWorker::Finished(finished) => {
            assert_eq!(
                (finished.seq, finished.finish, finished.n_out),
                (1, 3, INITIAL_GRANT)
            );
        }
        other => panic!("unexpected: {other:?}"),
    }
}

#[test]
fn a_text_over_the_context_is_refused_or_cut_as_asked() {
    let mut client = loaded(64);
    let long = "harbour ".repeat(200);
    let refused = |client: &mut Client, input: &Input| {
        client.send(ToWorker::Prepare(request(1, input)));
        match client.next() {
            FromWorker::Failed {
                seq: Some(1),
                why,
                detail,
            } => (why, detail),
            other => panic!("unexpected: {other:?}"),
        }
    };
    let (why, detail) = refused(&mut client, &texts(&["short", &long], false));
    assert_eq!(
        why,
        Failure::ContextOverflow {
            used: 202,
            limit: 64
        }
    );
    assert_eq!(detail, "a text has 202 tokens, and 64 are read at most");
    let cut = embed(&mut client, 2, &texts(&[&long], true));
    let fits = embed(&mut client, 3, &texts(&[&"harbour ".repeat(62)], false));
    assert!(
        cosine(&cut[0], &fits[0]) > 1.0 - 1e-9,
        "cut before what the model wants at the end"
    );
    let (why, detail) = refused(&mut client, &user("Hello?"));
    assert_eq!(why, Failure::Unsupported);
    assert_eq!(
        detail,
        "this model makes vectors of texts, and answers no prompts"
    );
    let mut resumed = request(1, &texts(&["a"], false));
    resumed.resume = vec![0];
    client.send(ToWorker::Prepare(resumed));
    assert!(matches!(
        client.next(),
        FromWorker::Failed {
            why: Failure::BadInput,
            ..
        }
    ));
}

#[test]
fn a_model_that_answers_makes_no_vectors() {
    let mut client = Client::loaded(256);
    client.send(ToWorker::Prepare(request(1, &texts(&["a"], false))));
    match client.next() {
        FromWorker::Failed {
            seq: Some(1),
            why,
            detail,
        } => {
            assert_eq!(why, Failure::Unsupported);
            assert_eq!(
                detail,
                "this model answers prompts, and makes no vectors of texts"
            );
        }
        other => panic!("unexpected: {other:?}"),
    }
}

#[test]
fn a_worker_for_vectors_measures_itself_and_says_what_it_has_not() {
    let mut client = Client::start(&model());
    client.send(ToWorker::Load(Load {
        n_ctx: 0,
        slots: 4,
        cells: 0,
        threads: 2,
        batch_threads: 2,
        kv: KvType::F16,
        flash_attention: true,
        gpu: None,
        projector: false,
        adapter: false,
        apart: false,
        prompt_lookup: false,
    }));
    assert!(matches!(client.next(), FromWorker::Sealed { stage: 2, .. }));
    let FromWorker::Loaded(facts) = client.next() else {
        panic!("not loaded");
    };
    assert_eq!(
        (facts.arch.as_str(), facts.quant.as_str(), facts.n_ctx),
        ("bert", "F32", 512)
    );
    client.send(ToWorker::Bench {
        seq: 1,
        prefill: 96,
        decode: 16,
    });
    assert!(
        matches!(client.next(), FromWorker::Benched { seq: 1, prefill, decode } if prefill > 0 && prefill == decode)
    );
    client.send(ToWorker::Detokenize {
        seq: 2,
        ids: vec![5],
    });
    assert!(matches!(
        client.next(),
        FromWorker::Failed {
            seq: Some(2),
            why: Failure::Unsupported,
            ..
        }
    ));
}
