//! The worker as the daemon sees it: messages in, messages out, the real model behind.

mod support;

use std::time::{Duration, Instant};

use substrate_sandbox::wire::{
    Failure, FromWorker, Input, KvType, Load, Message, Prepare, ToWorker,
};
use support::{Client, greedy, half, job, model, user};

const STORY: &str = "Write a long story about a robot who learns to paint.";

#[test]
fn a_job_is_prepared_begun_streamed_and_finished() {
    let mut worker = Client::start(&model());
    let facts = worker.load(1024);
    assert_eq!(
        (facts.arch.as_str(), facts.quant.as_str()),
        ("llama", "Q4_1")
    );
    assert_eq!(
        (facts.n_ctx, facts.n_ctx_train, facts.n_vocab),
        (1024, 8192, 49_152)
    );
    assert!(
        facts
            .template
            .is_some_and(|template| template.contains("im_start"))
    );
    let n_in = worker.prepare(job(
        1,
        &user("What is the capital of France?"),
        greedy(),
        24,
    ));
    assert!(n_in > 10);
    worker.send(ToWorker::Begin { seq: 1 });
    let (ids, text, finished) = worker.finish(1);
    let text = String::from_utf8(text).expect("UTF-8");
    assert!(!text.is_empty());
    assert_eq!(finished.n_out as usize, ids.len());
    assert!(matches!(finished.finish, 1 | 2));
    assert!(finished.prefill_us > 0 && finished.decode_us > 0 && finished.min_gap >= 0);
}

#[test]
fn a_cancel_ends_a_sequence_within_a_token() {
    let mut worker = Client::loaded(1024);
    worker.prepare(job(1, &user(STORY), greedy(), 500));
    worker.send(ToWorker::Begin { seq: 1 });
    while !matches!(worker.next(), FromWorker::Tokens { .. }) {}
    worker.send(ToWorker::Cancel { seq: 1 });
    let (ids, _, finished) = worker.finish(1);
    assert_eq!(finished.finish, 3);
    // One may have been in the pipe already, one may have been sampled while the cancel arrived.
    assert!(ids.len() <= 2, "{} tokens after the cancel", ids.len());
}

#[test]
fn a_cancel_stops_a_prefill_in_the_middle_of_a_chunk() {
    let mut worker = Client::loaded(4096);
    let long = "the quick brown fox jumps over the lazy dog ".repeat(300);
    let n_in = worker.prepare(job(1, &Input::text(long.as_str(), false), greedy(), 5));
    assert!(n_in > 2048);
    worker.send(ToWorker::Begin { seq: 1 });
    assert!(matches!(
        worker.next(),
        FromWorker::Prefilled { seq: 1, n: 512 }
    ));
    let start = Instant::now();
    worker.send(ToWorker::Cancel { seq: 1 });
    let (ids, _, finished) = worker.finish(1);
    assert_eq!((ids.len(), finished.finish), (0, 3));
    // A whole chunk of 512 takes 3 s on this kind of machine; one graph node a few milliseconds.
    assert!(
        start.elapsed() < Duration::from_millis(1500),
        "{:?}",
        start.elapsed()
    );
    // The next one starts clean.
    worker.prepare(job(2, &user("Say hello."), greedy(), 3));
    worker.send(ToWorker::Begin { seq: 2 });
    assert!(matches!(worker.finish(2).2.finish, 1 | 2));
}

#[test]
fn a_cancel_of_a_prepared_sequence_ends_it_unstarted() {
    let mut worker = Client::loaded(512);
    worker.prepare(job(9, &user("Hi"), greedy(), 5));
    worker.send(ToWorker::Cancel { seq: 9 });
    let (ids, text, finished) = worker.finish(9);
    assert_eq!(
        (ids.len(), text.len(), finished.finish, finished.n_out),
        (0, 0, 3, 0)
    );
    worker.send(ToWorker::Begin { seq: 9 });
    worker.send(ToWorker::Tokenize {
        seq: 10,
        text: "x".into(),
        special: false,
    });
    assert!(matches!(
        worker.next(),
        FromWorker::Tokenized { seq: 10, .. }
    ));
}

#[test]
fn a_paused_sequence_waits_and_goes_on() {
    let mut worker = Client::start(&model());
    worker.load_slots(512, 2, 1024);
    worker.prepare(job(1, &user(STORY), greedy(), 30));
    worker.send(ToWorker::Begin { seq: 1 });
    while !matches!(worker.next(), FromWorker::Tokens { .. }) {}
    worker.send(ToWorker::Pause { seq: 1 });
    worker.send(ToWorker::Tokenize {
        seq: 9,
        text: "a b".into(),
        special: false,
    });
    let mut before = 1;
    while !matches!(worker.next(), FromWorker::Tokenized { seq: 9, .. }) {
        before += 1;
    }
    assert!(before < 29, "paused too late to tell");
    // Another answer is the clock: while it is made, the paused one says nothing.
    worker.prepare(job(2, &user(STORY), greedy(), 20));
    worker.send(ToWorker::Begin { seq: 2 });
    assert!(
        worker.finish(2).2.n_out > 0,
        "`finish` accepts no frame of another"
    );
    worker.send(ToWorker::Resume { seq: 1 });
    let (ids, _, finished) = worker.finish(1);
    assert_eq!((ids.len() + before, finished.n_out), (30, 30));
}

#[test]
fn sequences_run_in_the_order_they_are_begun() {
    let mut worker = Client::loaded(512);
    worker.prepare(job(1, &user("One?"), greedy(), 8));
    worker.prepare(job(2, &user("Two?"), greedy(), 8));
    worker.send(ToWorker::Begin { seq: 2 });
    worker.send(ToWorker::Begin { seq: 1 });
    let second = worker.finish(2);
    let first = worker.finish(1);
    assert!(second.2.n_out > 0 && first.2.n_out > 0);
}

fn refusal(worker: &mut Client, job: Prepare) -> (Failure, String) {
    let asked = job.seq;
    worker.send(ToWorker::Prepare(job));
    match worker.next() {
        FromWorker::Failed { seq, why, detail } => {
            assert_eq!(seq, Some(asked));
            (why, detail)
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn bad_jobs_are_refused_and_the_worker_lives() {
    let mut worker = Client::loaded(512);
    let long = Input::text("word ".repeat(600), false);
    let (why, _) = refusal(&mut worker, job(1, &long, greedy(), 1));
    assert!(
        matches!(
            why,
            Failure::ContextOverflow {
                used: 500..,
                limit: 512
            }
        ),
        "{why:?}"
    );

    let garbage = Prepare {
        input: vec![0xff; 9],
        ..job(2, &user("x"), greedy(), 1)
    };
    assert_eq!(refusal(&mut worker, garbage).0, Failure::BadInput);

    let biased = Input {
        logit_bias: vec![(49_152, 1)],
        ..user("x")
    };
    let (why, detail) = refusal(&mut worker, job(3, &biased, greedy(), 1));
    assert_eq!(why, Failure::BadInput);
    assert!(detail.contains("49152"), "{detail}");

    let foreign = Prepare {
        resume: vec![u32::MAX],
        ..job(4, &user("x"), greedy(), 9)
    };
    assert_eq!(refusal(&mut worker, foreign).0, Failure::BadInput);

    let tools = Input {
        tools: Some("[".into()),
        ..user("x")
    };
    assert_eq!(
        refusal(&mut worker, job(5, &tools, greedy(), 1)).0,
        Failure::BadInput
    );

    let schema = Input {
        schema: Some("{".into()),
        ..user("x")
    };
    assert_eq!(
        refusal(&mut worker, job(6, &schema, greedy(), 1)).0,
        Failure::BadInput
    );

    worker.prepare(job(7, &user("x"), greedy(), 1));
    let (why, detail) = refusal(&mut worker, job(7, &user("x"), greedy(), 1));
    assert_eq!(
        (why, detail.as_str()),
        (Failure::BadInput, "the sequence id is in use")
    );
    worker.send(ToWorker::Begin { seq: 7 });
    assert_eq!(worker.finish(7).2.finish, 2);
}

#[test]
fn text_is_tokenized_detokenized_and_rendered() {
    let mut worker = Client::loaded(512);
    let text = "naïve 🦀 <|im_end|>";
    worker.send(ToWorker::Tokenize {
        seq: 1,
        text: text.into(),
        special: true,
    });
    let FromWorker::Tokenized { seq: 1, ids } = worker.next() else {
        panic!("no ids")
    };
    worker.send(ToWorker::Detokenize { seq: 2, ids });
    let FromWorker::Detokenized { seq: 2, bytes } = worker.next() else {
        panic!("no bytes")
    };
    assert_eq!(bytes, text.as_bytes());
    let input = Input::chat(vec![Message::new("system", "S"), Message::new("user", "U")]);
    let input = input.to_cbor_bytes().expect("a sound input");
    worker.send(ToWorker::Render { seq: 3, input });
    let FromWorker::Rendered { seq: 3, text } = worker.next() else {
        panic!("no text")
    };
    let expected =
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(text, expected);
    worker.send(ToWorker::Detokenize {
        seq: 4,
        ids: vec![49_152],
    });
    assert!(matches!(
        worker.next(),
        FromWorker::Failed { seq: Some(4), .. }
    ));
}

#[test]
fn throughput_is_measured() {
    let mut worker = Client::loaded(512);
    worker.send(ToWorker::Bench {
        seq: 5,
        prefill: 64,
        decode: 4,
    });
    let FromWorker::Benched {
        seq: 5,
        prefill,
        decode,
    } = worker.next()
    else {
        panic!("no rates")
    };
    assert!(prefill > 1000 && decode > 100, "{prefill} {decode}");
}

#[test]
fn a_header_is_inspected_without_loading() {
    let mut worker = Client::start(&model());
    worker.send(ToWorker::Inspect);
    let FromWorker::Inspected(facts) = worker.next() else {
        panic!("not inspected")
    };
    assert_eq!(
        (facts.arch.as_str(), facts.quant.as_str(), facts.n_ctx),
        ("llama", "Q4_1", 0)
    );
    assert_eq!((facts.n_vocab, facts.size), (49_152, 98_362_432));
    assert!(facts.n_params > 134_000_000 && facts.n_params < 136_000_000);
    worker.send(ToWorker::Prepare(job(1, &user("x"), greedy(), 1)));
    assert!(matches!(
        worker.next(),
        FromWorker::Failed {
            seq: None,
            why: Failure::BadInput,
            ..
        }
    ));
    assert!(worker.load(512).n_params == facts.n_params);
}

#[test]
fn a_quantised_cache_answers_and_rounds_otherwise() {
    let answer = |kv, flash_attention| {
        let mut worker = Client::start(&model());
        let load = Load {
            kv,
            flash_attention,
            ..half(512)
        };
        worker.load_as(load).expect("it loads");
        worker.prepare(job(
            1,
            &user("What is the capital of France?"),
            greedy(),
            12,
        ));
        worker.send(ToWorker::Begin { seq: 1 });
        let (ids, text, finished) = worker.finish(1);
        assert!(!ids.is_empty() && !text.is_empty());
        (finished.min_gap, String::from_utf8(text).expect("UTF-8"))
    };
    let plain = answer(KvType::F16, true);
    for (kv, flash_attention) in [
        (KvType::Q8_0, true),
        (KvType::Q4_0, true),
        (KvType::F16, false),
    ] {
        let other = answer(kv, flash_attention);
        // The reason why these are part of the engine's class.
        assert_ne!(other.0, plain.0, "{kv:?}, {flash_attention}: {}", other.1);
    }
}

#[test]
fn a_quantised_cache_is_refused_without_flash_attention() {
    let mut worker = Client::start(&model());
    let load = Load {
        kv: KvType::Q8_0,
        flash_attention: false,
        ..half(512)
    };
    let (why, detail) = worker.load_as(load).expect_err("it cannot be read");
    assert_eq!(why, Failure::Unsupported);
    assert!(
        detail.contains("q8_0") && detail.contains("flash attention"),
        "{detail}"
    );
}

#[test]
fn a_header_tells_the_shape_that_memory_is_reckoned_from() {
    let mut worker = Client::start(&model());
    worker.send(ToWorker::Inspect);
    let FromWorker::Inspected(facts) = worker.next() else {
        panic!("not inspected");
    };
    let shape = facts.shape;
    assert_eq!((shape.layers, shape.embedding), (30, 576));
    assert_eq!((shape.heads, shape.feed_forward), (9, 1536));
    assert_eq!((shape.key_length, shape.value_length), (64, 64));
    assert_eq!((shape.keys, shape.values), (30 * 3 * 64, 30 * 3 * 64));
    assert_eq!(shape.layer_bytes.len(), 30);
    let tensors = shape.rest_bytes + shape.layer_bytes.iter().sum::<u64>();
    // The rest of the file is its header.
    assert!(
        tensors < facts.size && facts.size - tensors < 4 << 20,
        "{tensors}"
    );
    assert_eq!((shape.window, shape.state, shape.repacked), (0, 0, 0));
}
