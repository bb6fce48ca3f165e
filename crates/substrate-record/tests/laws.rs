//! Laws of every record, whatever it says.

mod support;

use ciborium::Value;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use substrate_record::*;
use support::{key, lies, network, node};

fn id() -> impl Strategy<Value = RecordId> {
    any::<[u8; 32]>().prop_map(RecordId::from_bytes)
}

fn node_id() -> impl Strategy<Value = NodeId> {
    any::<[u8; 32]>().prop_map(NodeId::from_bytes)
}

fn hash() -> impl Strategy<Value = ContentHash> {
    any::<[u8; 32]>().prop_map(ContentHash::from_bytes)
}

fn commitment() -> impl Strategy<Value = Commitment> {
    any::<[u8; 32]>().prop_map(Commitment::from_bytes)
}

/// Text of any script, within the tightest bound there is.
fn text() -> impl Strategy<Value = String> {
    "\\PC{0,15}"
}

fn wall() -> impl Strategy<Value = WallTier> {
    use WallTier::*;
    prop::sample::select(vec![
        Basic,
        ProcessGpu,
        Process,
        Microvm,
        MicrovmEmulated,
        Tee,
    ])
}

prop_compose! {
    fn genesis()(
        name in text(), nonce in any::<[u8; 16]>(),
        constants in btree_map(any::<u64>(), any::<u64>(), 0..20),
        members in vec(node_id(), 0..20), witnesses in vec(node_id(), 0..5),
        registry_keys in prop::collection::btree_set(node_id(), 1..6),
        rules_hash in any::<[u8; 32]>(), k in any::<prop::sample::Index>(),
    ) -> Genesis {
        let registry_k = 1 + u32::try_from(k.index(registry_keys.len())).unwrap();
        let registry_keys = registry_keys.into_iter().collect();
        Genesis { name, nonce, constants, members, witnesses, registry_keys, registry_k, rules_hash }
    }
}

prop_compose! {
    fn hardware()(
        cpu in text(), cores in any::<u32>(), memory in any::<u64>(),
        gpus in vec((text(), any::<u64>()).prop_map(|(name, memory)| Gpu { name, memory }), 0..4),
        storage in any::<u64>(), bandwidth in option::of(any::<u64>()),
    ) -> Hardware {
        Hardware { cpu, cores, memory, gpus, storage, bandwidth }
    }
}

prop_compose! {
    fn offer()(
        entry in id(), engine_class in text(), loaded in any::<bool>(),
        prefill in any::<u64>(), decode in any::<u64>(),
    ) -> ModelOffer {
        ModelOffer { entry, engine_class, loaded, prefill, decode }
    }
}

prop_compose! {
    fn capability()(
        hardware in hardware(), models in vec(offer(), 0..6), free_memory in any::<u64>(),
        slots in any::<u32>(), queue in any::<u32>(), walls in vec(wall(), 0..6),
        tee in option::of(vec(any::<u8>(), 0..64)), build in text(), worker_sha256 in hash(),
    ) -> Capability {
        Capability { hardware, models, free_memory, slots, queue, walls, tee, build, worker_sha256 }
    }
}

fn file() -> impl Strategy<Value = ModelFile> {
    use FileRole::*;
    let role = prop::sample::select(vec![Weights, Projector, Adapter, Tokenizer]);
    (role, hash(), any::<u64>()).prop_map(|(role, sha256, size)| ModelFile { role, sha256, size })
}

prop_compose! {
    fn model_entry()(
        name in text(), files in vec(file(), 1..5), arch in text(), quant in text(),
        context in any::<u32>(), licence in text(), template_sha256 in option::of(hash()),
        sources in vec(text(), 0..4), base in option::of(id()),
        rates in option::of((any::<u64>(), any::<u64>())),
    ) -> ModelEntry {
        let reference_rates = rates.map(|(prefill, decode)| ReferenceRates { prefill, decode });
        ModelEntry {
            name, files, arch, quant, context, licence, template_sha256, sources, reference_rates,
            base,
        }
    }
}

prop_compose! {
    fn sampler()(
        fractions in any::<[u64; 5]>(), top_k in any::<u32>(), repeat_last_n in any::<i32>(),
        penalties in any::<[i64; 2]>(), n in any::<u32>(), top_logprobs in option::of(any::<u32>()),
    ) -> Sampler {
        let [temperature, top_p, min_p, typical_p, repeat] = fractions;
        let [presence, frequency] = penalties;
        Sampler {
            temperature, top_k, top_p, min_p, typical_p, repeat_last_n, repeat, presence,
            frequency, n, top_logprobs,
        }
    }
}

prop_compose! {
    fn manifest()(
        ids in (any::<[u8; 16]>(), any::<[u8; 16]>(), node_id(), id()), adapter in option::of(id()),
        kind in prop::sample::select(vec![JobKind::Generate, JobKind::Embed]),
        scope in prop::sample::select(vec![Scope::Mine, Scope::Circle, Scope::Commons]),
        engine_class in text(), sampler in sampler(), commitments in [commitment(), commitment()],
        counts in any::<[u32; 2]>(), deadline_ms in any::<u64>(), wall in wall(),
        flags in any::<[bool; 2]>(), parents in vec(id(), 0..3), rules_hash in any::<[u8; 32]>(),
        resume in option::of((1..u32::MAX, commitment())),
    ) -> JobManifest {
        let (job, session, provider, entry) = ids;
        JobManifest {
            job: JobId::from_bytes(job), attempt: counts[0], provider,
            provider_session: SessionNonce::from_bytes(session), kind, scope, entry, adapter,
            engine_class, sampler, seed_commitment: commitments[0], max_tokens: counts[1],
            deadline_ms, input_commitment: commitments[1], wall, isolated: flags[0], parents,
            policy: Policy { rules_hash, audit_consent: flags[1] },
            resume_tokens: resume.map_or(0, |(tokens, _)| tokens),
            resume_commitment: resume.map(|(_, commitment)| commitment),
        }
    }
}

prop_compose! {
    fn accept()(
        manifest in id(), engine_class in text(), worker_sha256 in hash(), wall in wall(),
        n_in in any::<u32>(),
    ) -> Accept {
        Accept { manifest, engine_class, worker_sha256, wall, n_in }
    }
}

prop_compose! {
    fn ack()(
        manifest in id(), accept in id(), n_in in any::<u32>(), share in any::<u32>(),
        tokens in any::<u32>(), output_commitment in commitment(),
    ) -> Ack {
        Ack { manifest, accept, n_in, prefilled: share.min(n_in), tokens, output_commitment }
    }
}

prop_compose! {
    fn receipt_w()(
        ids in (id(), id(), hash()), commitments in [commitment(), commitment()],
        counts in any::<[u32; 2]>(), grant in option::of(id()), microcredits in any::<u64>(),
        last_ack in option::of(id()), timings in any::<[u64; 3]>(),
        finish in prop::sample::select(vec![Finish::Stop, Finish::Length, Finish::Cancelled, Finish::Failed]),
        audit in option::of(vec(any::<u8>(), 0..40)),
    ) -> ReceiptW {
        let [queue, prefill, decode] = timings;
        ReceiptW {
            manifest: ids.0, accept: ids.1, model_sha256: ids.2,
            input_commitment: commitments[0], output_commitment: commitments[1],
            n_in: counts[0], n_out: counts[1], grant, microcredits, last_ack, finish,
            timings_ms: Timings { queue, prefill, decode }, audit,
        }
    }
}

prop_compose! {
    fn receipt_r()(
        manifest in id(), tokens in any::<u32>(), reason in text(),
        half in prop_oneof![
            id().prop_map(Half::ReceiptW), id().prop_map(Half::Accept), Just(Half::Manifest),
        ],
        verdict in prop::sample::select(vec![ReceiptVerdict::Ok, ReceiptVerdict::Partial, ReceiptVerdict::Reject]),
    ) -> ReceiptR {
        ReceiptR { manifest, half, verdict, tokens, reason }
    }
}

/// Signs a body in an envelope of any content.
fn envelope() -> impl Strategy<Value = (u8, Option<(u64, RecordId)>, u64, u64, Vec<RecordId>)> {
    let before = option::of((1..u64::MAX - 1, id()));
    let author = 1..200u8;
    (author, before, any::<u64>(), any::<u64>(), vec(id(), 0..5))
}

fn round_trip<B: InNetwork + Clone + PartialEq + std::fmt::Debug>(
    body: &B,
    envelope: (u8, Option<(u64, RecordId)>, u64, u64, Vec<RecordId>),
) -> Result<(), TestCaseError> {
    let (author, before, epoch, claimed_ms, deps) = envelope;
    let key = key(author);
    let mut record = Record::new(node(&key), claimed_ms, body.clone()).after(before);
    record.epoch = epoch;
    record.deps = deps;
    let signed = record
        .clone()
        .sign(&key, &network())
        .expect("within its bounds");
    prop_assert_eq!(signed.record(), &record);
    let decoded = Signed::<B>::decode(signed.bytes()).expect("canonical");
    prop_assert_eq!(decoded.id(), signed.id());
    let verified = decoded.verify(&network()).expect("authentic");
    prop_assert_eq!(&verified, &signed);
    let any = AnyRecord::open(signed.bytes(), &network()).expect("of a known type");
    prop_assert_eq!((any.id(), any.record_type()), (signed.id(), B::TYPE));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_genesis_comes_back_as_it_was_signed(body in genesis(), claimed_ms: u64) {
        let signed = Verified::found(body.clone(), claimed_ms, &key(1)).expect("within its bounds");
        let back = Signed::<Genesis>::decode(signed.bytes()).expect("canonical");
        let back = back.verify_genesis().expect("authentic");
        prop_assert_eq!(back.body(), &body);
        prop_assert_eq!(back.network(), signed.network());
    }

    #[test]
    fn a_capability_comes_back(body in capability(), envelope in envelope()) { round_trip(&body, envelope)?; }

    #[test]
    fn a_model_entry_comes_back(body in model_entry(), envelope in envelope()) { round_trip(&body, envelope)?; }

    #[test]
    fn a_manifest_comes_back(body in manifest(), envelope in envelope()) { round_trip(&body, envelope)?; }

    #[test]
    fn an_accept_comes_back(body in accept(), envelope in envelope()) { round_trip(&body, envelope)?; }

    #[test]
    fn an_ack_comes_back(body in ack(), envelope in envelope()) { round_trip(&body, envelope)?; }

    #[test]
    fn a_worker_half_comes_back(body in receipt_w(), envelope in envelope()) { round_trip(&body, envelope)?; }

    #[test]
    fn a_requester_half_comes_back(body in receipt_r(), envelope in envelope()) { round_trip(&body, envelope)?; }

    #[test]
    fn what_is_not_canonical_is_not_decoded(bytes in near_a_record()) {
        if let Ok(value) = cbor::decode(&bytes, cbor::MAX_DEPTH) {
            prop_assert_eq!(cbor::encode(&value), bytes);
        }
    }

    #[test]
    fn opening_arbitrary_bytes_refuses(bytes in vec(any::<u8>(), 0..600)) {
        prop_assert!(AnyRecord::open(&bytes, &network()).is_err());
    }

    #[test]
    fn opening_a_spliced_record_refuses_or_gives_its_own_bytes(bytes in near_a_record()) {
        if let Ok(record) = AnyRecord::open(&bytes, &network()) {
            prop_assert_eq!(record.bytes(), &bytes[..]);
        }
    }

    #[test]
    fn what_is_decoded_encodes_to_the_same_bytes(items in value()) {
        let bytes = cbor::encode(&items);
        match cbor::decode(&bytes, cbor::MAX_DEPTH) {
            Ok(value) => prop_assert_eq!(cbor::encode(&value), bytes),
            Err(error) => prop_assert!(error.offset <= bytes.len()),
        }
    }
}

/// Any value the CBOR library can hold, floats, tags and unsorted maps included.
#[allow(clippy::disallowed_types, reason = "a float is what must be refused")]
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::Float),
        any::<bool>().prop_map(Value::Bool),
        Just(Value::Null),
        vec(any::<u8>(), 0..30).prop_map(Value::Bytes),
        text().prop_map(Value::Text),
    ];
    leaf.prop_recursive(8, 32, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::Array),
            vec((inner.clone(), inner.clone()), 0..4).prop_map(Value::Map),
            (any::<u64>(), inner).prop_map(|(tag, inner)| Value::Tag(tag, Box::new(inner))),
        ]
    })
}

/// A golden vector with some bytes cut out and others put in.
fn near_a_record() -> impl Strategy<Value = Vec<u8>> {
    let vectors: Vec<_> = lies::all().into_iter().map(|vector| vector.bytes).collect();
    let vectors: Vec<_> = vectors
        .into_iter()
        .filter(|bytes| bytes.len() < 2000)
        .collect();
    let splice = (
        any::<prop::sample::Index>(),
        0..4usize,
        vec(any::<u8>(), 0..4),
    );
    (prop::sample::select(vectors), vec(splice, 0..3)).prop_map(|(mut bytes, splices)| {
        for (at, cut, put) in splices {
            let at = at.index(bytes.len() + 1);
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, put);
        }
        bytes
    })
}

#[test]
fn no_byte_of_a_record_can_change() {
    let honest = lies::all()
        .into_iter()
        .filter(|vector| vector.name.starts_with("good-"));
    for vector in honest {
        for at in 0..vector.bytes.len() {
            let mut bytes = vector.bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            let opened = AnyRecord::open(&bytes, &network());
            assert!(
                opened.is_err(),
                "{}: byte {at} changed unnoticed",
                vector.name
            );
        }
    }
}

#[test]
fn a_record_of_another_type_is_not_the_one_asked_for() {
    let accept = support::accept();
    let error = Signed::<Ack>::decode(accept.bytes()).expect_err("not an Ack");
    assert_eq!(error.to_string(), "expected record type Ack, found Accept");
}

#[test]
fn nobody_signs_for_another() {
    let record = Record::new(node(&key(9)), 0, support::accept().body().clone());
    let error = record.sign(&key(8), &network()).expect_err("another key");
    assert!(matches!(error, SignError::OtherAuthor { .. }));
}

#[test]
fn nobody_signs_what_readers_would_refuse() {
    let mut body = support::capability();
    body.models = vec![body.models[0].clone(); 65];
    let record = Record::new(node(&key(3)), 0, body).after(None);
    let error = record
        .sign(&key(3), &network())
        .expect_err("too many models");
    expect_test::expect!["Capability.models: more than 64 items"].assert_eq(&source_of(&error));
}

fn source_of(error: &SignError) -> String {
    std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default()
}

#[test]
fn a_salt_does_not_show_in_logs() {
    let salt = Salt::from_bytes([7; 32]);
    assert_eq!(format!("{salt:?}"), "Salt(..)");
}

#[test]
fn identities_read_back_from_their_text() {
    let id = NodeId::from_bytes([0xab; 32]);
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_eq!(id.short(), "abababab");
    assert!("abab".parse::<NodeId>().is_err());
    assert!("zz".repeat(32).parse::<NodeId>().is_err());
}

#[test]
fn walls_satisfy_what_design_says() {
    use WallTier::*;
    let tiers = [Basic, ProcessGpu, Process, Microvm, MicrovmEmulated, Tee];
    let table: Vec<String> = tiers
        .iter()
        .map(|wall| {
            let yes = tiers.iter().map(|demand| match wall.satisfies(*demand) {
                true => 'x',
                false => '.',
            });
            yes.collect()
        })
        .collect();
    assert_eq!(
        table,
        ["x.....", "xx....", "xxx...", "xxxx..", "....x.", ".....x"]
    );
}

#[test]
fn commitments_seeds_and_output_bytes_are_fixed() {
    let salt = Salt::from_bytes([0; 32]);
    expect_test::expect!["a41de667c15557cbd8acdd71ef0fef5dc73561374baed8330f8adb0e1424cd62"]
        .assert_eq(&commit(&salt, b"hello").to_string());
    expect_test::expect!["c06f8a9477e931bf2e783fb5b74e3a35e4af62c30429e5468bd1143b07a26a84"]
        .assert_eq(&hex::encode(seed_for_choice(&42i64.to_le_bytes(), 1)));
    expect_test::expect!["0000000102030405"]
        .assert_eq(&hex::encode(output_bytes(&[1, 0x0203_0405])));
    let constants = std::collections::BTreeMap::from([(1, 250_000), (300, 7)]);
    expect_test::expect!["49180938fd32155e35969d3d8321ed189287346d1ccc8a3e1128981702b62ffb"]
        .assert_eq(&hex::encode(rules_hash(0, &constants)));
}
