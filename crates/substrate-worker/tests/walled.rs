//! The static program behind the real wall.

mod support;

use std::path::PathBuf;
use std::process::Command;

use substrate_sandbox::launch::{Wall, WallSpec};
use substrate_sandbox::wire::{Failure, FromWorker, Image, Input, Load, Message, ToWorker};
use support::{Client, greedy, job, model, user};

/// Who the worker is when the tests run as root.
const NOBODY: u32 = 65_534;

fn program() -> PathBuf {
    let folder = std::env::var("SUBSTRATE_TEST_BIN")
        .expect("SUBSTRATE_TEST_BIN must name the folder of the static substrate-worker");
    PathBuf::from(folder).join("substrate-worker")
}

fn spec(model: impl Into<PathBuf>) -> WallSpec {
    let root = std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m));
    let become_uid = (root.ok() == Some(0)).then_some(NOBODY);
    WallSpec {
        become_uid,
        ..WallSpec::new(program(), model)
    }
}

#[test]
fn the_program_is_static() {
    let output = Command::new("readelf").arg("-dlh").arg(program()).output();
    let text = output.expect("readelf (binutils) is installed").stdout;
    let text = String::from_utf8_lossy(&text);
    assert!(!text.contains("NEEDED"), "it needs libraries:\n{text}");
    assert!(!text.contains("INTERP"), "it asks for a loader:\n{text}");
    assert!(
        text.contains("Type:                              DYN"),
        "it is not a static pie"
    );
}

#[test]
fn a_sealed_worker_answers() {
    let mut worker = Wall::spawn(spec(model())).expect("the wall stands");
    let mut client = Client::over(worker.take_pipe().expect("a pipe"));
    assert!(matches!(
        client.next(),
        FromWorker::Sealed {
            stage: 1,
            seccomp: true,
            ..
        }
    ));
    client.load(1024);
    client.prepare(job(
        1,
        &user("What is the capital of France?"),
        greedy(),
        16,
    ));
    client.send(ToWorker::Begin { seq: 1 });
    let (_, text, finished) = client.finish(1);
    assert!(String::from_utf8(text).is_ok_and(|text| !text.is_empty()));
    assert!(matches!(finished.finish, 1 | 2));
    client.prepare(job(2, &user("Tell a long story."), greedy(), 400));
    client.send(ToWorker::Begin { seq: 2 });
    while !matches!(client.next(), FromWorker::Tokens { .. }) {}
    client.send(ToWorker::Threads {
        decode: 1,
        batch: 1,
    });
    client.send(ToWorker::Cancel { seq: 2 });
    assert_eq!(client.finish(2).2.finish, 3);
    client.send(ToWorker::Shutdown);
    let exit = worker
        .wait_at_most(support::PATIENCE)
        .expect("it can be waited for");
    assert!(exit.is_some_and(|exit| !exit.is_violation()), "{exit:?}");
}

/// The real model's file with another chat template of the same length.
fn with_template(name: &str, template: &str) -> PathBuf {
    let mut bytes = std::fs::read(model()).expect("the test model reads");
    let key = b"tokenizer.chat_template";
    let at = bytes
        .windows(key.len())
        .position(|window| window == key)
        .expect("the key")
        + key.len();
    let length =
        u64::from_le_bytes(bytes[at + 4..at + 12].try_into().expect("eight bytes")) as usize;
    let padded = format!("{template:<length$}");
    assert_eq!(padded.len(), length, "the template is too long");
    bytes[at + 12..at + 12 + length].copy_from_slice(padded.as_bytes());
    let path = std::env::temp_dir().join(format!("substrate-{name}-{}.gguf", std::process::id()));
    std::fs::write(&path, bytes).expect("it writes");
    path
}

#[test]
fn a_template_that_explodes_is_refused_with_a_word() {
    // Doubles a string 40 times: 200 steps, no output, a terabyte. Harmless in the trial runs.
    let bomb = "{% set n = namespace(x='xx') %}{% if messages[0].content == 'boom' %}\
        {% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}{% endif %}ok";
    let path = with_template("bomb", bomb);
    let mut worker = Wall::spawn(spec(&path)).expect("the wall stands");
    let mut client = Client::over(worker.take_pipe().expect("a pipe"));
    assert!(matches!(client.next(), FromWorker::Sealed { stage: 1, .. }));
    client.load(512);
    client.prepare(job(1, &user("fine"), greedy(), 1));
    client.send(ToWorker::Prepare(job(2, &user("boom"), greedy(), 1)));
    match client.next() {
        FromWorker::Failed {
            seq: Some(2), why, ..
        } => assert_eq!(why, Failure::BadTemplate),
        other => panic!("not refused: {other:?}"),
    }
    let exit = worker
        .wait_at_most(support::PATIENCE)
        .expect("it can be waited for");
    assert!(exit.is_some_and(|exit| !exit.is_violation()), "{exit:?}");
    std::fs::remove_file(path).expect("it can be removed");
}

#[test]
fn a_sealed_worker_sees_images_and_survives_a_broken_one() {
    let mut worker = Wall::spawn(WallSpec {
        projector: Some(support::projector().into()),
        ..spec(model())
    })
    .expect("the wall stands");
    let mut client = Client::over(worker.take_pipe().expect("a pipe"));
    assert!(matches!(client.next(), FromWorker::Sealed { stage: 1, .. }));
    let loaded = client.load_as(Load {
        projector: true,
        ..support::half(1024)
    });
    assert!(loaded.is_ok(), "{loaded:?}");
    let asked = |image: &[u8]| {
        let mut message = Message::new("user", "What is this?");
        message.images.push(Image {
            at: 0,
            bytes: image.to_vec(),
        });
        Input::chat(vec![message])
    };
    let cut = include_bytes!("images/cut.png");
    client.send(ToWorker::Prepare(job(1, &asked(cut), greedy(), 4)));
    assert!(matches!(
        client.next(),
        FromWorker::Failed { seq: Some(1), .. }
    ));
    let gradient = include_bytes!("images/gradient.png");
    client.prepare(job(2, &asked(gradient), greedy(), 8));
    client.send(ToWorker::Begin { seq: 2 });
    assert_eq!(client.finish(2).2.n_out, 8);
    client.send(ToWorker::Shutdown);
    let exit = worker
        .wait_at_most(support::PATIENCE)
        .expect("it can be waited for");
    assert!(exit.is_some_and(|exit| !exit.is_violation()), "{exit:?}");
}

#[test]
fn a_projector_or_an_adapter_that_is_not_there_is_missed_when_it_is_loaded() {
    for (projector, adapter) in [(true, false), (false, true)] {
        is_missed(projector, adapter);
    }
}

fn is_missed(projector: bool, adapter: bool) {
    let mut worker = Wall::spawn(spec(model())).expect("the wall stands");
    let mut client = Client::over(worker.take_pipe().expect("a pipe"));
    assert!(matches!(client.next(), FromWorker::Sealed { stage: 1, .. }));
    let loaded = client.load_as(Load {
        projector,
        adapter,
        ..support::half(512)
    });
    assert!(loaded.is_err());
}

#[test]
fn a_sealed_worker_answers_with_an_adapter() {
    let said = |adapter: bool| {
        let mut worker = Wall::spawn(WallSpec {
            adapter: adapter.then(|| support::adapter().into()),
            ..spec(model())
        })
        .expect("the wall stands");
        let mut client = Client::over(worker.take_pipe().expect("a pipe"));
        assert!(matches!(client.next(), FromWorker::Sealed { stage: 1, .. }));
        let load = Load {
            adapter,
            ..support::half(512)
        };
        client.load_as(load).expect("it loads");
        client.prepare(job(1, &user("What is this?"), greedy(), 24));
        client.send(ToWorker::Begin { seq: 1 });
        let (ids, ..) = client.finish(1);
        client.send(ToWorker::Shutdown);
        let exit = worker
            .wait_at_most(support::PATIENCE)
            .expect("it can be waited for");
        assert!(exit.is_some_and(|exit| !exit.is_violation()), "{exit:?}");
        ids
    };
    assert_ne!(said(true), said(false));
}
