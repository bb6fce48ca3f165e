//! Exports: what they prove, and that nothing in them can change unnoticed.

#![allow(clippy::disallowed_methods, reason = "tests read the committed files")]

mod support;

use substrate_record::export::{Attempt, AttemptVerdict, Export, ExportError, Role, verify};
use substrate_record::*;
use support::*;

/// A job with every ending an attempt can have: refused, vanished, unanswered, complete.
fn job() -> Export {
    let mut attempts = vec![refused(), vanished(), unanswered(), complete()];
    for index in 1..attempts.len() {
        relink(&mut attempts, index);
    }
    Export {
        genesis: genesis(),
        entries: vec![signed(&founder(), model_entry())],
        attempts,
    }
}

/// Makes an attempt follow the one before it, and its records follow its manifest.
fn relink(attempts: &mut [Attempt], index: usize) {
    let before = &attempts[index - 1];
    let resumed = [0, 0, 256, 350][index];
    let mut body = attempts[index].manifest.body().clone();
    body.attempt = before.manifest.body().attempt + 1;
    body.parents = vec![before.manifest.id()];
    body.resume_tokens = resumed;
    body.resume_commitment = (resumed > 0).then(|| commit(&Salt::from_bytes([3; 32]), b"ids"));
    let manifest = signed(&requester(), body);
    attempts[index] = match index {
        1 => vanished_under(manifest),
        2 => unanswered_under(manifest),
        _ => complete_under(manifest),
    };
}

fn refused() -> Attempt {
    Attempt {
        manifest: manifest(),
        accept: None,
        acks: Vec::new(),
        receipt_w: None,
        receipt_r: None,
    }
}

fn vanished() -> Attempt {
    vanished_under(signed(&requester(), manifest_to(&provider(), 2)))
}

fn vanished_under(manifest: Verified<JobManifest>) -> Attempt {
    let accept = signed(&provider(), accept_of(&manifest));
    let receipt_r = ReceiptR {
        manifest: manifest.id(),
        half: Half::Accept(accept.id()),
        verdict: ReceiptVerdict::Partial,
        tokens: 256,
        reason: "the provider fell silent".to_owned(),
    };
    Attempt {
        acks: vec![signed(&requester(), ack_of(&accept, 37, 256))],
        accept: Some(accept),
        receipt_w: None,
        receipt_r: Some(signed(&requester(), receipt_r)),
        manifest,
    }
}

fn unanswered() -> Attempt {
    unanswered_under(signed(&requester(), manifest_to(&provider(), 3)))
}

fn unanswered_under(manifest: Verified<JobManifest>) -> Attempt {
    let accept = signed(&provider(), accept_of(&manifest));
    let receipt_w = receipt_w_of(&manifest, &accept);
    let acks = [(20, 0), (37, 0), (37, 94)];
    let acks = acks.map(|(prefilled, tokens)| ack_of(&accept, prefilled, tokens));
    Attempt {
        acks: acks.map(|ack| signed(&requester(), ack)).to_vec(),
        receipt_w: Some(signed(&provider(), receipt_w)),
        receipt_r: None,
        accept: Some(accept),
        manifest,
    }
}

fn complete() -> Attempt {
    complete_under(signed(&requester(), manifest_to(&successor(), 4)))
}

fn complete_under(manifest: Verified<JobManifest>) -> Attempt {
    let accept = signed(&successor(), accept_of(&manifest));
    let receipt_w = signed(&successor(), receipt_w_of(&manifest, &accept));
    let receipt_r = ReceiptR {
        manifest: manifest.id(),
        half: Half::ReceiptW(receipt_w.id()),
        verdict: ReceiptVerdict::Ok,
        tokens: 300,
        reason: String::new(),
    };
    Attempt {
        manifest,
        accept: Some(accept),
        acks: Vec::new(),
        receipt_w: Some(receipt_w),
        receipt_r: Some(signed(&requester(), receipt_r)),
    }
}

/// The same attempt with another requester half.
fn answered(mut attempt: Attempt, change: impl FnOnce(&mut ReceiptR)) -> Attempt {
    let half = attempt.receipt_r.as_ref().expect("there is one");
    let mut body = half.body().clone();
    change(&mut body);
    attempt.receipt_r = Some(signed(&requester(), body));
    attempt
}

fn lone(attempt: impl FnOnce(Verified<JobManifest>) -> Attempt, to: &SigningKey) -> Export {
    Export {
        genesis: genesis(),
        entries: vec![signed(&founder(), model_entry())],
        attempts: vec![attempt(signed(&requester(), manifest_to(to, 1)))],
    }
}

fn refusal(export: &Export) -> String {
    let error = verify(&export.encode()).expect_err("contradicts itself");
    error.to_string()
}

#[test]
fn every_ending_of_an_attempt_has_its_verdict() {
    let report = verify(&job().encode()).expect("proves something");
    assert_eq!(report.network, network());
    assert_eq!(report.requester, node(&requester()));
    let lines: Vec<String> = report
        .attempts
        .iter()
        .map(|attempt| {
            format!(
                "{} {}: {}, from {}, {} counted, {:?} claimed",
                attempt.attempt,
                attempt.provider.short(),
                attempt.verdict,
                attempt.resumed,
                attempt.tokens,
                attempt.claimed
            )
        })
        .collect();
    expect_test::expect![[r#"
        1 ed4928c6: never accepted, from 0, 0 counted, None claimed
        2 ed4928c6: accepted, then vanished, from 0, 256 counted, None claimed
        3 ed4928c6: worker half only, from 256, 94 counted, Some(300) claimed
        4 ca93ac17: both halves, from 350, 300 counted, Some(300) claimed"#]]
    .assert_eq(&lines.join("\n"));
}

/// Committed, so that a file exported today is still readable when the code has changed. Written
/// like the golden vectors, with `SUBSTRATE_WRITE_VECTORS=1`.
#[test]
fn the_golden_export_keeps_its_bytes() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/exports/every-ending.hex"
    );
    let digits = hex::encode(job().encode());
    if std::env::var_os("SUBSTRATE_WRITE_VECTORS").is_some() {
        std::fs::write(path, digits.clone() + "\n").expect("golden export");
    }
    let golden = std::fs::read_to_string(path).expect("golden export");
    assert_eq!(golden.trim(), digits);
}

#[test]
fn a_file_reads_back_as_it_was_written() {
    let export = job();
    assert_eq!(Export::decode(&export.encode()), Ok(export));
}

#[test]
fn a_late_worker_half_counts_to_the_last_ack() {
    let mut attempt = vanished_under(signed(&requester(), manifest_to(&provider(), 1)));
    let accept = attempt.accept.clone().expect("there is one");
    attempt.receipt_w = Some(signed(
        &provider(),
        receipt_w_of(&attempt.manifest, &accept),
    ));
    let export = Export {
        attempts: vec![attempt],
        ..lone(complete_under, &successor())
    };
    let report = verify(&export.encode()).expect("fits");
    let attempt = &report.attempts[0];
    assert_eq!(attempt.verdict, AttemptVerdict::WorkerHalfOnly);
    assert_eq!((attempt.claimed, attempt.tokens), (Some(300), 256));
}

#[test]
fn no_bit_of_an_export_can_change() {
    let bytes = lone(complete_under, &successor()).encode();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(verify(&changed).is_err(), "byte {at} changed unnoticed");
    }
}

#[test]
fn a_changed_record_is_named_with_its_place() {
    let export = job();
    let mut bytes = export.encode();
    let half = export.attempts[3].receipt_w.as_ref().expect("there is one");
    let start = bytes
        .windows(half.bytes().len())
        .position(|window| window == half.bytes())
        .expect("it is in the file");
    bytes[start + half.bytes().len() - 1] ^= 1;
    let Err(ExportError::Record { at, .. }) = verify(&bytes) else {
        panic!("a changed signature went unnoticed");
    };
    assert_eq!(
        (at.attempt, at.record, at.offset),
        (Some(3), Role::ReceiptW, start)
    );
    assert!(
        verify(&bytes)
            .unwrap_err()
            .to_string()
            .starts_with("attempt 4, worker half at byte ")
    );
}

#[test]
fn a_truncated_or_longer_file_is_refused() {
    let bytes = lone(complete_under, &successor()).encode();
    for length in 0..bytes.len() {
        assert!(verify(&bytes[..length]).is_err(), "cut at {length}");
    }
    assert!(verify(&[&bytes[..], &[0]].concat()).is_err());
}

#[test]
fn records_of_another_network_do_not_fit() {
    let export = Export {
        genesis: other_genesis(),
        ..lone(complete_under, &successor())
    };
    let at = refusal(&export);
    assert!(at.starts_with("model entry 1 at byte "), "{at}");
}

#[test]
fn records_that_contradict_each_other_are_refused() {
    let base = lone(complete_under, &successor());
    let with = |change: fn(&mut Attempt)| {
        let mut export = base.clone();
        change(&mut export.attempts[0]);
        let refusal = refusal(&export);
        let (place, what) = refusal.split_once(" at byte ").expect("names its byte");
        let what = what.split_once(": ").expect("says what").1;
        format!("{place}: {what}")
    };
    let refusals = [
        with(|attempt| attempt.accept = None),
        with(|attempt| {
            let body = attempt.accept.as_ref().unwrap().body().clone();
            attempt.accept = Some(signed(&provider(), body));
        }),
        with(|attempt| {
            let mut body = attempt.accept.as_ref().unwrap().body().clone();
            body.wall = WallTier::Tee;
            attempt.accept = Some(signed(&successor(), body));
        }),
        with(|attempt| {
            let mut body = attempt.receipt_w.as_ref().unwrap().body().clone();
            body.n_out = 513;
            attempt.receipt_w = Some(signed(&successor(), body));
        }),
        with(|attempt| {
            let mut body = attempt.receipt_w.as_ref().unwrap().body().clone();
            body.model_sha256 = ContentHash::of(b"other weights");
            attempt.receipt_w = Some(signed(&successor(), body));
        }),
        with(|attempt| {
            let mut body = attempt.receipt_w.as_ref().unwrap().body().clone();
            body.input_commitment = commit(&Salt::from_bytes([9; 32]), b"");
            attempt.receipt_w = Some(signed(&successor(), body));
        }),
        with(|attempt| {
            let mut body = attempt.receipt_w.as_ref().unwrap().body().clone();
            body.manifest = body.accept;
            attempt.receipt_w = Some(signed(&successor(), body));
        }),
        with(|attempt| {
            let body = attempt.receipt_r.as_ref().unwrap().body().clone();
            attempt.receipt_r = Some(signed(&successor(), body));
        }),
        with(|attempt| {
            *attempt = answered(attempt.clone(), |half| {
                half.half = Half::ReceiptW(half.manifest)
            });
        }),
        with(|attempt| {
            let accept = attempt.accept.clone().unwrap();
            let acks = [(37, 200), (37, 100)];
            let acks = acks.map(|(prefilled, tokens)| ack_of(&accept, prefilled, tokens));
            attempt.acks = acks.map(|ack| signed(&requester(), ack)).to_vec();
        }),
        with(|attempt| {
            let mut body = attempt.manifest.body().clone();
            body.resume_tokens = 7;
            body.resume_commitment = Some(body.input_commitment);
            attempt.manifest = signed(&requester(), body);
        }),
        with(|attempt| {
            let mut body = attempt.manifest.body().clone();
            body.entry = attempt.manifest.id();
            attempt.manifest = signed(&requester(), body);
        }),
    ];
    expect_test::expect![[r#"
        attempt 1, worker half: it is a receipt for an attempt without an accept
        attempt 1, accept: another node than the provider signed it
        attempt 1, accept: its wall is weaker than demanded
        attempt 1, worker half: it claims more tokens than were asked for
        attempt 1, worker half: its model is not the entry's
        attempt 1, worker half: its input is not the manifest's
        attempt 1, worker half: it is about another attempt
        attempt 1, requester half: another node than the requester signed it
        attempt 1, requester half: it answers a record that is not in this attempt
        attempt 1, ack 2: it takes back an earlier ack
        attempt 1, manifest: it goes on from tokens of no attempt before it
        model entry 1: no manifest names this model entry or an equal one"#]]
    .assert_eq(&refusals.join("\n"));
}

#[test]
fn attempts_that_do_not_follow_each_other_are_refused() {
    let with = |change: fn(&mut JobManifest)| {
        let mut export = job();
        export.attempts.truncate(2);
        let mut body = export.attempts[1].manifest.body().clone();
        change(&mut body);
        export.attempts[1] = Attempt {
            manifest: signed(&requester(), body),
            ..refused()
        };
        let refusal = refusal(&export);
        refusal.split_once(": ").expect("says what").1.to_owned()
    };
    let refusals = [
        with(|manifest| manifest.job = JobId::from_bytes([0; 16])),
        with(|manifest| manifest.scope = Scope::Commons),
        with(|manifest| manifest.attempt = 1),
        with(|manifest| {
            manifest.attempt += 1;
            manifest.parents.clear();
        }),
        with(|manifest| manifest.parents.clear()),
        with(|manifest| {
            manifest.resume_tokens = 1;
            manifest.resume_commitment = Some(manifest.input_commitment);
        }),
    ];
    expect_test::expect![[r#"
        it is about another job
        it has a wider scope than the attempt before
        attempts are not numbered in sequence
        it names no attempt before it
        its parent is not the attempt before
        it goes on from tokens nobody received"#]]
    .assert_eq(&refusals.join("\n"));
}

/// A provider holds only its own attempts of a job, which may be neither the first nor all.
#[test]
fn a_provider_exports_the_attempts_it_saw() {
    let whole = job();
    let of = |numbers: &[usize]| {
        let attempts = numbers.iter().map(|index| whole.attempts[*index].clone());
        let export = Export {
            attempts: attempts.collect(),
            ..whole.clone()
        };
        let report = verify(&export.encode()).expect("fits");
        let unseen = report.attempts.iter().map(|attempt| attempt.follows_unseen);
        unseen.collect::<Vec<_>>()
    };
    assert_eq!(of(&[0, 1, 2, 3]), [false; 4]);
    assert_eq!(of(&[3]), [true]);
    assert_eq!(of(&[1, 3]), [true, true]);
    assert_eq!(of(&[0, 2, 3]), [false, true, false]);
}
