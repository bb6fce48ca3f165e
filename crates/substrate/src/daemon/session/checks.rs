//! What the other side signed about an attempt, held against what this side knows of it.
//!
//! Invariant: pure; a record that passes is about this attempt and says nothing that did not happen here.
//! Absent by design: signatures. A `Verified` record has passed that door already.

use substrate_record::{
    Accept, Ack, Commitment, ContentHash, Half, JobManifest, ReceiptR, ReceiptVerdict, ReceiptW,
    Verified,
};

/// What is wrong with a record of the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is about something else, so it proves nothing here.
    #[error("{0}")]
    Foreign(&'static str),
    /// It is about this attempt and not true: worth keeping as its author's own word.
    #[error("{0}")]
    False(&'static str),
}

/// The worker's half, against what its requester asked and received.
///
/// # Errors
/// What is wrong with it, and whether it is worth keeping.
pub fn worker_half(
    manifest: &Verified<JobManifest>,
    accept: Option<&Verified<Accept>>,
    receipt: &Verified<ReceiptW>,
    received: &Received,
) -> Result<(), Fault> {
    let body = receipt.body();
    let accept = accept.ok_or(Fault::Foreign("a receipt before its Accept"))?;
    if receipt.author() != manifest.body().provider
        || body.manifest != manifest.id()
        || body.accept != accept.id()
    {
        return Err(Fault::Foreign("its receipt is for something else"));
    }
    if body.input_commitment != manifest.body().input_commitment {
        return Err(Fault::False("its receipt names another input"));
    }
    if body.n_out != received.tokens || body.n_in != accept.body().n_in {
        return Err(Fault::False("its receipt counts other tokens than came"));
    }
    if body.output_commitment != received.output {
        return Err(Fault::False("its receipt commits to another output"));
    }
    if Some(body.model_sha256) != received.weights {
        return Err(Fault::False("its receipt names other weights"));
    }
    Ok(())
}

/// What a requester has of an attempt.
pub struct Received {
    /// Own tokens of the attempt.
    pub tokens: u32,
    /// Commitment to resumed and own ids.
    pub output: Commitment,
    /// Weights by the entry asked for.
    pub weights: Option<ContentHash>,
}

/// A requester's Ack, against what its provider sent.
///
/// # Errors
/// What is wrong with it.
pub fn ack(
    manifest: &Verified<JobManifest>,
    accept: &Verified<Accept>,
    last: Option<&Verified<Ack>>,
    ack: &Verified<Ack>,
    sent: &Sent<'_>,
) -> Result<(), Fault> {
    let body = ack.body();
    if ack.author() != manifest.author()
        || body.manifest != manifest.id()
        || body.accept != accept.id()
    {
        return Err(Fault::Foreign("an Ack for something else"));
    }
    let (tokens, prefilled) =
        last.map_or((0, 0), |last| (last.body().tokens, last.body().prefilled));
    if body.tokens > sent.tokens || body.prefilled > sent.prefilled {
        return Err(Fault::False("an Ack for what was not sent"));
    }
    if body.tokens < tokens || body.prefilled < prefilled {
        return Err(Fault::False("an Ack that takes back an earlier one"));
    }
    if body.n_in != accept.body().n_in {
        return Err(Fault::False("an Ack that counts another prompt"));
    }
    if (sent.output)(body.tokens) != Some(body.output_commitment) {
        return Err(Fault::False("an Ack that commits to another output"));
    }
    Ok(())
}

/// What a provider has sent of an attempt.
pub struct Sent<'a> {
    /// Own tokens of the attempt.
    pub tokens: u32,
    /// The last `Prefilled`.
    pub prefilled: u32,
    /// Commitment to resumed and that many own ids.
    pub output: &'a dyn Fn(u32) -> Option<Commitment>,
}

/// The requester's half, against what its provider signed and sent.
///
/// # Errors
/// What is wrong with it.
pub fn requester_half(
    manifest: &Verified<JobManifest>,
    accept: &Verified<Accept>,
    receipt: Option<&Verified<ReceiptW>>,
    half: &Verified<ReceiptR>,
    sent: u32,
) -> Result<(), Fault> {
    let body = half.body();
    if half.author() != manifest.author() || body.manifest != manifest.id() {
        return Err(Fault::Foreign("a receipt for something else"));
    }
    let whole = match body.half {
        Half::ReceiptW(id) if receipt.is_some_and(|own| own.id() == id) => true,
        // A requester that left before our half reached it answers the Accept.
        Half::Accept(id) if id == accept.id() => false,
        _ => {
            return Err(Fault::Foreign(
                "a receipt that answers nothing of this attempt",
            ));
        }
    };
    let says_ok = body.verdict == ReceiptVerdict::Ok;
    if body.tokens > sent || (says_ok && (!whole || body.tokens != sent)) {
        return Err(Fault::False(
            "a receipt that counts other tokens than were sent",
        ));
    }
    Ok(())
}

/// What a `Prefilled` frame tells: prompt tokens only ever become more, and never more than there are.
///
/// # Errors
/// The count is impossible.
pub fn prefilled(accept: Option<&Verified<Accept>>, before: u32, n: u32) -> Result<(), Fault> {
    let accept = accept.ok_or(Fault::Foreign("prompt tokens before its Accept"))?;
    if n > accept.body().n_in {
        return Err(Fault::False("more prompt tokens read than there are"));
    }
    if n < before {
        return Err(Fault::False("prompt tokens that were read and are no more"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use substrate_record::{
        Body, Finish, InNetwork, JobId, JobKind, NetworkId, NodeId, Policy, Record, RecordId,
        Sampler, Scope, SessionNonce, SigningKey, Timings, WallTier,
    };

    use super::*;

    const ASKER: u8 = 1;
    const WORKER: u8 = 2;

    fn network() -> NetworkId {
        NetworkId::from_bytes([9; 32])
    }

    fn node(seed: u8) -> NodeId {
        NodeId::from_bytes(
            SigningKey::from_bytes(&[seed; 32])
                .verifying_key()
                .to_bytes(),
        )
    }

    fn sign<B: Body + InNetwork>(seed: u8, body: B) -> Verified<B> {
        Record::new(node(seed), 0, body)
            .after(None)
            .sign(&SigningKey::from_bytes(&[seed; 32]), &network())
            .expect("within bounds")
    }

    fn commitment(byte: u8) -> Commitment {
        Commitment::from_bytes([byte; 32])
    }

    fn manifest(job: u8) -> Verified<JobManifest> {
        let body = JobManifest {
            job: JobId::from_bytes([job; 16]),
            attempt: 1,
            provider: node(WORKER),
            provider_session: SessionNonce::from_bytes([0; 16]),
            kind: JobKind::Generate,
            scope: Scope::Commons,
            entry: RecordId::from_bytes([3; 32]),
            adapter: None,
            engine_class: String::new(),
            sampler: Sampler {
                temperature: 0,
                top_k: 0,
                top_p: 0,
                min_p: 0,
                typical_p: 0,
                repeat_last_n: 0,
                repeat: 0,
                presence: 0,
                frequency: 0,
                n: 1,
                top_logprobs: None,
            },
            seed_commitment: commitment(1),
            max_tokens: 100,
            deadline_ms: 1,
            input_commitment: commitment(2),
            wall: WallTier::Process,
            isolated: false,
            parents: Vec::new(),
            policy: Policy {
                rules_hash: [0; 32],
                audit_consent: false,
            },
            resume_tokens: 0,
            resume_commitment: None,
        };
        sign(ASKER, body)
    }

    fn accept(manifest: &Verified<JobManifest>) -> Verified<Accept> {
        let body = Accept {
            manifest: manifest.id(),
            engine_class: String::new(),
            worker_sha256: ContentHash::of(b""),
            wall: WallTier::Process,
            n_in: 10,
        };
        sign(WORKER, body)
    }

    fn receipt(seed: u8, body: ReceiptW) -> Verified<ReceiptW> {
        sign(seed, body)
    }

    fn whole(manifest: &Verified<JobManifest>, accept: &Verified<Accept>) -> ReceiptW {
        ReceiptW {
            manifest: manifest.id(),
            accept: accept.id(),
            model_sha256: ContentHash::of(b"weights"),
            input_commitment: commitment(2),
            output_commitment: commitment(40),
            n_in: 10,
            n_out: 40,
            grant: None,
            microcredits: 0,
            last_ack: None,
            finish: Finish::Stop,
            timings_ms: Timings {
                queue: 0,
                prefill: 0,
                decode: 0,
            },
            audit: None,
        }
    }

    #[test]
    fn a_false_worker_half_is_told_apart_from_one_of_another_attempt() {
        let (manifest, other) = (manifest(1), manifest(2));
        let accept = accept(&manifest);
        let check = |seed, change: &dyn Fn(&mut ReceiptW)| {
            let mut body = whole(&manifest, &accept);
            change(&mut body);
            let received = Received {
                tokens: 40,
                output: commitment(40),
                weights: Some(ContentHash::of(b"weights")),
            };
            worker_half(&manifest, Some(&accept), &receipt(seed, body), &received)
        };
        assert_eq!(check(WORKER, &|_| {}), Ok(()));
        let false_ones: [&dyn Fn(&mut ReceiptW); 5] = [
            &|body| body.output_commitment = commitment(41),
            &|body| body.input_commitment = commitment(3),
            &|body| body.n_out = 41,
            &|body| body.n_in = 11,
            &|body| body.model_sha256 = ContentHash::of(b"others"),
        ];
        for change in false_ones {
            assert!(matches!(check(WORKER, change), Err(Fault::False(_))));
        }
        let foreign = [
            check(ASKER, &|_| {}),
            check(WORKER, &|body| body.manifest = other.id()),
            check(WORKER, &|body| body.accept = other.id()),
        ];
        for verdict in foreign {
            assert!(matches!(verdict, Err(Fault::Foreign(_))), "{verdict:?}");
        }
    }

    #[test]
    fn an_ack_says_only_what_was_sent_and_takes_nothing_back() {
        let manifest = manifest(1);
        let accept = accept(&manifest);
        let signed = |seed, prefilled, tokens, n_in, output| {
            let body = Ack {
                manifest: manifest.id(),
                accept: accept.id(),
                n_in,
                prefilled,
                tokens,
                output_commitment: commitment(output),
            };
            sign(seed, body)
        };
        let last = signed(ASKER, 5, 20, 10, 20);
        let check = |record: Verified<Ack>| {
            let sent = Sent {
                tokens: 40,
                prefilled: 8,
                output: &|tokens| Some(commitment(tokens as u8)),
            };
            super::ack(&manifest, &accept, Some(&last), &record, &sent)
        };
        assert_eq!(check(signed(ASKER, 8, 40, 10, 40)), Ok(()));
        assert_eq!(check(signed(ASKER, 5, 20, 10, 20)), Ok(()));
        for (lie, what) in [
            (signed(ASKER, 8, 41, 10, 41), "more tokens than sent"),
            (signed(ASKER, 9, 40, 10, 40), "more prompt than told"),
            (signed(ASKER, 8, 19, 10, 19), "fewer tokens than before"),
            (signed(ASKER, 4, 40, 10, 40), "less prompt than before"),
            (signed(ASKER, 8, 40, 11, 40), "another prompt"),
            (signed(ASKER, 8, 40, 10, 39), "another output"),
            (signed(WORKER, 8, 40, 10, 40), "another author"),
        ] {
            assert!(check(lie).is_err(), "{what}");
        }
    }

    #[test]
    fn a_forged_requester_half_does_not_pass_for_an_answer() {
        let (manifest, other) = (manifest(1), manifest(2));
        let accept = accept(&manifest);
        let own = receipt(WORKER, whole(&manifest, &accept));
        let foreign = receipt(WORKER, whole(&other, &accept));
        let check = |seed, about: RecordId, half, verdict, tokens| {
            let body = ReceiptR {
                manifest: about,
                half,
                verdict,
                tokens,
                reason: String::new(),
            };
            let half = sign(seed, body);
            requester_half(&manifest, &accept, Some(&own), &half, 40)
        };
        use ReceiptVerdict::{Ok as Good, Partial, Reject};
        let (id, answers) = (manifest.id(), Half::ReceiptW(own.id()));
        assert_eq!(check(ASKER, id, answers, Good, 40), Ok(()));
        assert_eq!(check(ASKER, id, answers, Partial, 12), Ok(()));
        assert_eq!(check(ASKER, id, answers, Reject, 40), Ok(()));
        assert_eq!(
            check(ASKER, id, Half::Accept(accept.id()), Partial, 3),
            Ok(())
        );
        for (lie, what) in [
            (check(WORKER, id, answers, Good, 40), "another author"),
            (check(ASKER, other.id(), answers, Good, 40), "another job"),
            (
                check(ASKER, id, Half::ReceiptW(foreign.id()), Good, 40),
                "another half",
            ),
            (
                check(ASKER, id, Half::Accept(own.id()), Partial, 3),
                "another Accept",
            ),
            (check(ASKER, id, Half::Manifest, Partial, 0), "no half"),
            (
                check(ASKER, id, Half::Accept(accept.id()), Good, 40),
                "well without our half",
            ),
            (
                check(ASKER, id, answers, Good, 39),
                "well with fewer tokens",
            ),
            (check(ASKER, id, answers, Partial, 41), "more than was sent"),
        ] {
            assert!(lie.is_err(), "{what}");
        }
    }

    #[test]
    fn prompt_tokens_read_never_fall_and_never_pass_the_prompt() {
        let manifest = manifest(1);
        let accept = accept(&manifest);
        assert_eq!(prefilled(Some(&accept), 4, 10), Ok(()));
        assert_eq!(prefilled(Some(&accept), 10, 10), Ok(()));
        assert!(prefilled(Some(&accept), 4, 11).is_err());
        assert!(prefilled(Some(&accept), 5, 4).is_err());
        assert!(prefilled(None, 0, 1).is_err());
    }
}
