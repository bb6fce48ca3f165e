//! Laws of the frame codecs: what is encoded comes back, and no bytes make a decoder panic or lie.

use proptest::collection::vec;
use proptest::prelude::*;
use substrate_mesh::entries::EntriesFrame;
use substrate_mesh::hello::{Hello, HelloFrame};
use substrate_mesh::input::InputHeader;
use substrate_mesh::job::{JobFrame, RefusalCode};
use substrate_mesh::join::{JoinFrame, JoinRefusal};
use substrate_mesh::token::{Alternative, TokenLogprob};
use substrate_mesh::{HelloMismatch, MAX_FRAME, PAD_TO};
use substrate_record::{NetworkId, NodeId, RecordId, Salt, SessionNonce};

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..=max)
}

fn alternative() -> impl Strategy<Value = Alternative> {
    (any::<u32>(), any::<i32>(), bytes(20)).prop_map(|(id, logprob, bytes)| Alternative {
        id,
        logprob,
        bytes,
    })
}

fn logprob() -> impl Strategy<Value = TokenLogprob> {
    (
        any::<u32>(),
        any::<i32>(),
        bytes(20),
        vec(alternative(), 0..=20),
    )
        .prop_map(|(id, logprob, bytes, top)| TokenLogprob {
            id,
            logprob,
            bytes,
            top,
        })
}

fn token() -> impl Strategy<Value = JobFrame> {
    let plain =
        (vec(any::<u32>(), 0..=256), bytes(2_000)).prop_map(|(ids, bytes)| JobFrame::Token {
            ids,
            bytes,
            logprobs: vec![],
        });
    let scored =
        (vec(logprob(), 1..=40), bytes(500)).prop_map(|(logprobs, bytes)| JobFrame::Token {
            ids: logprobs.iter().map(|entry| entry.id).collect(),
            bytes,
            logprobs,
        });
    prop_oneof![plain, scored]
}

fn header() -> impl Strategy<Value = JobFrame> {
    let salt = || any::<[u8; 32]>().prop_map(Salt::from_bytes);
    let seed = prop_oneof![vec(any::<u8>(), 8), vec(any::<u8>(), 32)];
    (
        salt(),
        salt(),
        salt(),
        salt(),
        seed,
        1..4_000_000u32,
        0..1_000_000u32,
        proptest::option::of(any::<[u8; 16]>()),
    )
        .prop_map(
            |(
                seed_salt,
                input_salt,
                resume_salt,
                output_salt,
                seed,
                input_len,
                resume_len,
                partition,
            )| {
                JobFrame::InputHeader(InputHeader {
                    partition,
                    seed_salt,
                    input_salt,
                    resume_salt,
                    output_salt,
                    seed,
                    input_len,
                    resume_len,
                })
            },
        )
}

fn job() -> impl Strategy<Value = JobFrame> {
    let record = || bytes(16 * 1024);
    prop_oneof![
        record().prop_map(|manifest| JobFrame::Offer { manifest }),
        (any::<u32>(), any::<u64>(), "[ -~é]{0,100}").prop_map(
            |(position, expected_wait_ms, why)| JobFrame::Queued {
                position,
                expected_wait_ms,
                why
            }
        ),
        Just(JobFrame::Ready),
        header(),
        vec(any::<u8>(), 1..=60 * 1024).prop_map(|chunk| JobFrame::Input { chunk }),
        record().prop_map(|accept| JobFrame::Started { accept }),
        record().prop_map(|bytes| JobFrame::Ack { bytes }),
        any::<u32>().prop_map(|n| JobFrame::Prefilled { n }),
        token(),
        Just(JobFrame::Cancel),
        (record(), bytes(32 * 1024)).prop_map(|(receipt_w, fingerprints)| JobFrame::Finished {
            receipt_w,
            fingerprints
        }),
        record().prop_map(|bytes| JobFrame::ReceiptR { bytes }),
        Just(JobFrame::Stored),
        (
            proptest::sample::select(RefusalCode::ALL.to_vec()),
            any::<u64>(),
            "[a-z ]{0,256}"
        )
            .prop_map(|(why, retry_after_ms, detail)| JobFrame::Refused {
                why,
                retry_after_ms,
                detail
            }),
        Just(JobFrame::Heartbeat),
        (any::<[u8; 32]>(), any::<u32>()).prop_map(|(manifest, n)| JobFrame::Resume {
            manifest: RecordId::from_bytes(manifest),
            n
        }),
    ]
}

fn join() -> impl Strategy<Value = JoinFrame> {
    prop_oneof![
        any::<[u8; 16]>().prop_map(|secret| JoinFrame::Hello { secret }),
        (
            bytes(16 * 1024),
            vec(any::<[u8; 32]>().prop_map(NodeId::from_bytes), 0..50)
        )
            .prop_map(|(genesis, members)| JoinFrame::Welcome { genesis, members }),
        vec(bytes(600), 0..60).prop_map(|records| JoinFrame::Entries { records }),
        any::<u32>().prop_map(|entries| JoinFrame::Done { entries }),
        Just(JoinFrame::Refused {
            why: JoinRefusal::Expired
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_job_frame_comes_back_and_fills_its_blocks(frame in job()) {
        let payload = frame.encode().unwrap();
        prop_assert_eq!((payload.len() + 4) % PAD_TO, 0);
        prop_assert!(payload.len() + 4 <= MAX_FRAME);
        prop_assert_eq!(JobFrame::decode(&payload).unwrap(), frame);
    }

    #[test]
    fn a_join_frame_comes_back(frame in join()) {
        prop_assert_eq!(JoinFrame::decode(&frame.encode().unwrap()).unwrap(), frame);
    }

    #[test]
    fn random_bytes_are_no_frame(bytes in bytes(2_000)) {
        // Whatever decodes must be the one spelling of itself.
        if let Ok(frame) = JobFrame::decode(&bytes) {
            prop_assert_eq!(frame.encode().unwrap(), bytes.clone());
        }
        if let Ok(frame) = JoinFrame::decode(&bytes) {
            prop_assert_eq!(frame.encode().unwrap(), bytes.clone());
        }
        if let Ok(frame) = HelloFrame::decode(&bytes) {
            prop_assert_eq!(frame.encode().unwrap(), bytes.clone());
        }
        if let Ok(frame) = EntriesFrame::decode(&bytes) {
            prop_assert_eq!(frame.encode().unwrap(), bytes);
        }
    }

    #[test]
    fn one_changed_byte_is_refused_or_is_another_frame(frame in job(), at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let mut payload = frame.encode().unwrap();
        let at = at.index(payload.len());
        payload[at] ^= 1 << bit;
        if let Ok(other) = JobFrame::decode(&payload) {
            prop_assert_ne!(&other, &frame);
            prop_assert_eq!(other.encode().unwrap(), payload);
        }
    }

    #[test]
    fn a_frame_cut_short_is_refused(frame in job(), at in any::<prop::sample::Index>()) {
        let payload = frame.encode().unwrap();
        prop_assert!(JobFrame::decode(&payload[..at.index(payload.len())]).is_err());
    }
}

#[test]
fn what_is_out_of_bounds_is_refused() {
    let refused = [
        JobFrame::Input { chunk: vec![] },
        JobFrame::Input {
            chunk: vec![0; 60 * 1024 + 1],
        },
        JobFrame::Offer {
            manifest: vec![0; 16 * 1024 + 1],
        },
        JobFrame::Token {
            ids: vec![0; 257],
            bytes: vec![],
            logprobs: vec![],
        },
        JobFrame::Refused {
            why: RefusalCode::Draining,
            retry_after_ms: 0,
            detail: "x".repeat(257),
        },
    ];
    for frame in refused {
        let outcome = frame
            .encode()
            .and_then(|payload| JobFrame::decode(&payload));
        assert!(outcome.is_err(), "{frame:?}");
    }
    assert!(
        JobFrame::Input {
            chunk: vec![0; MAX_FRAME]
        }
        .encode()
        .is_err()
    );
}

#[test]
fn logprobs_must_be_those_of_the_ids() {
    let entry = TokenLogprob {
        id: 5,
        logprob: -1,
        bytes: vec![],
        top: vec![],
    };
    let frame = JobFrame::Token {
        ids: vec![6],
        bytes: vec![],
        logprobs: vec![entry],
    };
    assert!(JobFrame::decode(&frame.encode().unwrap()).is_err());
}

#[test]
fn nothing_of_a_prompt_or_an_answer_can_be_printed() {
    let secret = "sesame";
    let token = JobFrame::Token {
        ids: vec![1],
        bytes: secret.into(),
        logprobs: vec![],
    };
    let input = JobFrame::Input {
        chunk: secret.into(),
    };
    for frame in [token, input] {
        let shown = format!("{frame:?} {frame:#?}");
        assert!(!shown.contains(secret) && !shown.contains("115"), "{shown}");
    }
}

/// Every line of `vectors.txt`, made by another encoder, as bytes.
fn vectors() -> Vec<(String, Vec<u8>)> {
    let lines = include_str!("vectors.txt")
        .lines()
        .filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let [name, len, hex] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let digits: Vec<char> = hex.chars().collect();
            let byte = |pair: &[char]| u8::from_str_radix(&String::from_iter(pair), 16).unwrap();
            let mut payload: Vec<u8> = digits.chunks(2).map(byte).collect();
            payload.resize(len.parse().unwrap(), 0);
            (name.to_owned(), payload)
        })
        .collect()
}

fn expected(name: &str) -> Vec<u8> {
    let hello = |rules| HelloFrame::Hello {
        hello: Hello {
            network: NetworkId::from_bytes([1; 32]),
            rules,
            version: "0.1.0".into(),
            build: "dev".into(),
            session: SessionNonce::from_bytes([3; 16]),
        },
        echo: 1_000,
    };
    let entry = |id, logprob, bytes: &[u8], top| TokenLogprob {
        id,
        logprob,
        bytes: bytes.to_vec(),
        top,
    };
    let alternative = Alternative {
        id: 2,
        logprob: -131_072,
        bytes: b"a".to_vec(),
    };
    match name {
        "hello" => hello(Some([2; 32])).encode(),
        "hello of a joiner" => hello(None).encode(),
        "welcome" => HelloFrame::Welcome {
            echo: 1_000,
            wall_ms: 1_780_000_000_000,
        }
        .encode(),
        "refused: other network" => {
            let theirs = NetworkId::from_bytes([4; 32]);
            HelloFrame::Refused {
                why: HelloMismatch::OtherNetwork { theirs },
            }
            .encode()
        }
        "refused: other rules" => HelloFrame::Refused {
            why: HelloMismatch::OtherRules,
        }
        .encode(),
        "job ready" => JobFrame::Ready.encode(),
        "job token" => JobFrame::Token {
            ids: vec![1, 70_000],
            bytes: b"hi".to_vec(),
            logprobs: vec![
                entry(1, -65_536, b"h", vec![alternative]),
                entry(70_000, 0, b"i", vec![]),
            ],
        }
        .encode(),
        "job refused" => JobFrame::Refused {
            why: RefusalCode::QueueFull,
            retry_after_ms: 2_000,
            detail: "queue is full".into(),
        }
        .encode(),
        "job resume" => JobFrame::Resume {
            manifest: RecordId::from_bytes([5; 32]),
            n: 17,
        }
        .encode(),
        "job input, 25 bytes short of the block" => JobFrame::Input {
            chunk: vec![0; 256 - 25 - 4 - 6],
        }
        .encode(),
        "join hello" => JoinFrame::Hello { secret: [6; 16] }.encode(),
        "entries done" => EntriesFrame::Done { entries: 3 }.encode(),
        unknown => panic!("no vector is called {unknown}"),
    }
    .unwrap()
}

#[test]
fn a_second_encoder_makes_the_same_bytes() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 12);
    for (name, payload) in vectors {
        assert_eq!(expected(&name), payload, "{name}");
    }
}
