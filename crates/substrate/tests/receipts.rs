//! Receipts from the store to a file and back: a job that failed over, both sides, every flipped byte.

use substrate::receipts::{self, ReceiptError, Role};
use substrate::store::{Records, Store, StoreError};
use substrate_record::export::AttemptVerdict;
use substrate_record::*;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn node(seed: u8) -> NodeId {
    NodeId::from_bytes(key(seed).verifying_key().to_bytes())
}

const REQUESTER: u8 = 2;
const FIRST: u8 = 3;
const SECOND: u8 = 4;
const JOB: JobId = JobId::from_bytes([0x11; 16]);

/// One side's store in one network.
struct Side {
    _folder: tempfile::TempDir,
    records: Records,
    genesis: Verified<Genesis>,
}

impl Side {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store.redb")).unwrap();
        let constants = Default::default();
        let body = Genesis {
            name: "orchard".into(),
            nonce: [5; 16],
            rules_hash: rules_hash(0, &constants),
            constants,
            members: vec![node(1)],
            witnesses: Vec::new(),
            registry_keys: vec![node(1)],
            registry_k: 1,
        };
        let genesis = Verified::<Genesis>::found(body, 0, &key(1)).unwrap();
        store.add_network(&genesis).unwrap();
        let records = store.records(genesis.network());
        Self {
            _folder: folder,
            records,
            genesis,
        }
    }

    fn put(&self, records: &[AnyRecord]) {
        self.records.put(records).unwrap();
    }

    fn signed<B: InNetwork>(&self, seed: u8, body: B) -> Verified<B> {
        Record::new(node(seed), 1_700_000_000_000, body)
            .after(None)
            .sign(&key(seed), self.records.network())
            .unwrap()
    }
}

/// A job's records: attempt 1 vanished after 256 tokens, attempt 2 finished it.
struct Job {
    entry: Verified<ModelEntry>,
    manifests: [Verified<JobManifest>; 2],
    accepts: [Verified<Accept>; 2],
    ack: Verified<Ack>,
    halves_r: [Verified<ReceiptR>; 2],
    half_w: Verified<ReceiptW>,
}

fn commitment(tokens: u32) -> Commitment {
    commit(
        &Salt::from_bytes([4; 32]),
        &output_bytes(&(0..tokens).collect::<Vec<_>>()),
    )
}

fn entry(side: &Side) -> Verified<ModelEntry> {
    let files = vec![ModelFile {
        role: FileRole::Weights,
        sha256: ContentHash::of(b"weights"),
        size: 7,
    }];
    side.signed(
        1,
        ModelEntry {
            name: "smollm2:135m".into(),
            files,
            arch: "llama".into(),
            quant: "Q4_1".into(),
            context: 8192,
            licence: "Apache-2.0".into(),
            template_sha256: None,
            sources: Vec::new(),
            reference_rates: None,
            base: None,
        },
    )
}

fn manifest(
    side: &Side,
    entry: &Verified<ModelEntry>,
    provider: u8,
    before: Option<&Verified<JobManifest>>,
) -> Verified<JobManifest> {
    let sampler = Sampler {
        temperature: 0,
        top_k: 0,
        top_p: 1_000_000,
        min_p: 0,
        typical_p: 1_000_000,
        repeat_last_n: 64,
        repeat: 1_000_000,
        presence: 0,
        frequency: 0,
        n: 1,
        top_logprobs: None,
    };
    let body = JobManifest {
        job: JOB,
        attempt: if before.is_some() { 2 } else { 1 },
        provider: node(provider),
        provider_session: SessionNonce::from_bytes([0x22; 16]),
        kind: JobKind::Generate,
        scope: Scope::Circle,
        entry: entry.id(),
        adapter: None,
        engine_class: String::new(),
        sampler,
        seed_commitment: commit(&Salt::from_bytes([1; 32]), b"seed"),
        max_tokens: 512,
        deadline_ms: 120_000,
        input_commitment: commit(&Salt::from_bytes([2; 32]), b"input"),
        wall: WallTier::Process,
        isolated: false,
        parents: before.map(Verified::id).into_iter().collect(),
        policy: Policy {
            rules_hash: [0; 32],
            audit_consent: false,
        },
        resume_tokens: if before.is_some() { 256 } else { 0 },
        resume_commitment: before.map(|_| commitment(256)),
    };
    side.signed(REQUESTER, body)
}

fn job(side: &Side) -> Job {
    let entry = entry(side);
    let first = manifest(side, &entry, FIRST, None);
    let second = manifest(side, &entry, SECOND, Some(&first));
    let accept = |provider, manifest: &Verified<JobManifest>| {
        let body = Accept {
            manifest: manifest.id(),
            engine_class: "llama.cpp/b1/cpu/x86-64-v3".into(),
            worker_sha256: ContentHash::of(b"worker"),
            wall: WallTier::Process,
            n_in: 37,
        };
        side.signed(provider, body)
    };
    let accepts = [accept(FIRST, &first), accept(SECOND, &second)];
    let ack = Ack {
        manifest: first.id(),
        accept: accepts[0].id(),
        n_in: 37,
        prefilled: 37,
        tokens: 256,
        output_commitment: commitment(256),
    };
    let ack = side.signed(REQUESTER, ack);
    let half_w = ReceiptW {
        manifest: second.id(),
        accept: accepts[1].id(),
        model_sha256: ContentHash::of(b"weights"),
        input_commitment: second.body().input_commitment,
        output_commitment: commitment(300),
        n_in: 37,
        n_out: 44,
        grant: None,
        microcredits: 0,
        last_ack: None,
        finish: Finish::Stop,
        timings_ms: Timings {
            queue: 1,
            prefill: 2,
            decode: 3,
        },
        audit: None,
    };
    let half_w = side.signed(SECOND, half_w);
    let half = |manifest: &Verified<JobManifest>, half, verdict, tokens| {
        side.signed(
            REQUESTER,
            ReceiptR {
                manifest: manifest.id(),
                half,
                verdict,
                tokens,
                reason: String::new(),
            },
        )
    };
    let halves_r = [
        half(
            &first,
            Half::Accept(accepts[0].id()),
            ReceiptVerdict::Partial,
            256,
        ),
        half(&second, Half::ReceiptW(half_w.id()), ReceiptVerdict::Ok, 44),
    ];
    Job {
        entry,
        manifests: [first, second],
        accepts,
        ack,
        halves_r,
        half_w,
    }
}

impl Job {
    fn first_attempt(&self) -> Vec<AnyRecord> {
        vec![
            AnyRecord::ReceiptR(self.halves_r[0].clone()),
            AnyRecord::Ack(self.ack.clone()),
            AnyRecord::Accept(self.accepts[0].clone()),
            AnyRecord::JobManifest(self.manifests[0].clone()),
        ]
    }

    fn second_attempt(&self) -> Vec<AnyRecord> {
        vec![
            AnyRecord::JobManifest(self.manifests[1].clone()),
            AnyRecord::Accept(self.accepts[1].clone()),
            AnyRecord::ReceiptW(self.half_w.clone()),
            AnyRecord::ReceiptR(self.halves_r[1].clone()),
        ]
    }
}

fn requester() -> Side {
    let side = Side::new();
    let job = job(&side);
    side.put(&[AnyRecord::ModelEntry(job.entry.clone())]);
    side.put(&job.first_attempt());
    side.put(&job.second_attempt());
    side
}

#[test]
fn the_list_tells_each_attempt_from_this_nodes_side() {
    let side = requester();
    let page = receipts::list(&side.records, &node(REQUESTER), None, 10).unwrap();
    let rows: Vec<_> = page
        .rows
        .iter()
        .map(|row| {
            (
                row.attempt,
                row.role,
                row.other,
                row.tokens,
                row.verdict.as_str(),
                row.model.as_str(),
            )
        })
        .collect();
    assert_eq!(
        rows,
        [
            (
                1,
                Role::Requested,
                node(FIRST),
                256,
                "accepted, then vanished",
                "smollm2:135m"
            ),
            (
                2,
                Role::Requested,
                node(SECOND),
                44,
                "both halves",
                "smollm2:135m"
            ),
        ]
    );
    assert_eq!(page.next, None);
    let served = receipts::list(&side.records, &node(SECOND), None, 10).unwrap();
    assert_eq!(
        (served.rows[1].role, served.rows[1].other),
        (Role::Served, node(REQUESTER))
    );
}

#[test]
fn a_job_is_told_and_exported_as_an_outsider_would_check_it() {
    let side = requester();
    let story = receipts::show(&side.records, &JOB).unwrap();
    let verdicts: Vec<_> = story
        .report
        .attempts
        .iter()
        .map(|attempt| (attempt.verdict, attempt.tokens))
        .collect();
    assert_eq!(
        verdicts,
        [
            (AttemptVerdict::AcceptedThenVanished, 256),
            (AttemptVerdict::BothHalves, 44)
        ]
    );
    assert!(
        story.lines[3].contains("accepted, then vanished: 256 tokens")
            && story.lines[3].contains("requester's word only"),
        "{:?}",
        story.lines
    );
    assert!(
        story.lines[4].contains("both halves: 44 tokens")
            && story.lines[4].contains("going on from token 256"),
        "{:?}",
        story.lines
    );
    let file = receipts::export(&side.records, &side.genesis, &JOB).unwrap();
    assert_eq!(receipts::verify(&file).unwrap().lines, story.lines);
    let absent =
        receipts::export(&side.records, &side.genesis, &JobId::from_bytes([9; 16])).unwrap_err();
    assert!(
        matches!(absent, ReceiptError::UnknownJob { .. }),
        "{absent}"
    );
}

#[test]
fn any_flipped_byte_is_found_and_its_place_is_told() {
    let side = requester();
    let file = receipts::export(&side.records, &side.genesis, &JOB).unwrap();
    let mut in_attempts = 0;
    // A prime step visits every record and every kind of field.
    for at in (0..file.len()).step_by(7) {
        let mut flipped = file.clone();
        flipped[at] ^= 1;
        let failure = receipts::verify(&flipped)
            .err()
            .unwrap_or_else(|| panic!("byte {at} went unnoticed"));
        if let (Some(attempt), Some(offset)) = (failure.attempt, failure.offset) {
            in_attempts += 1;
            assert!(
                offset <= at + 16 && (1..=2).contains(&attempt),
                "byte {at}: {failure}"
            );
            assert!(
                failure.what.contains(&format!("attempt {attempt}")),
                "{failure}"
            );
        }
    }
    assert!(
        in_attempts > 100,
        "{in_attempts} faults were placed in an attempt"
    );
}

#[test]
fn each_provider_proves_its_own_attempt_alone() {
    let scratch = Side::new();
    let job = job(&scratch);
    for (records, unseen) in [(job.first_attempt(), false), (job.second_attempt(), true)] {
        let side = Side::new();
        side.put(&[AnyRecord::ModelEntry(job.entry.clone())]);
        side.put(&records);
        let file = receipts::export(&side.records, &side.genesis, &JOB).unwrap();
        let proven = receipts::verify(&file).unwrap();
        assert_eq!(proven.report.attempts.len(), 1);
        let told = proven.lines[3].contains("not in this file");
        assert_eq!(told, unseen, "{:?}", proven.lines);
    }
}

#[test]
fn without_the_entry_nothing_is_proven() {
    let side = Side::new();
    let job = job(&side);
    side.put(&job.second_attempt());
    let error = receipts::export(&side.records, &side.genesis, &JOB).unwrap_err();
    assert!(matches!(error, ReceiptError::NoEntry(_)), "{error}");
}

#[test]
fn a_receipt_without_its_manifest_is_not_stored() {
    let side = Side::new();
    let job = job(&side);
    let orphan = AnyRecord::ReceiptW(job.half_w.clone());
    let error = side.records.put(std::slice::from_ref(&orphan)).unwrap_err();
    assert!(
        matches!(error, StoreError::UnknownManifest { .. }),
        "{error}"
    );
    assert!(!side.records.contains(&orphan.id()).unwrap());
}

#[test]
fn a_records_network_of_the_same_name_is_another_network() {
    let side = requester();
    let bytes = side.records.job(&JOB).unwrap()[0].bytes().to_vec();
    let other = NetworkId::from_bytes([7; 32]);
    assert!(AnyRecord::open(&bytes, &other).is_err());
}

#[test]
fn pages_of_jobs_run_backwards() {
    let side = requester();
    let page = side.records.jobs(None, 1).unwrap();
    assert_eq!(page.jobs.len(), 1);
    assert_eq!(page.jobs[0].1, JOB);
    assert_eq!(side.records.jobs(Some(page.jobs[0].0), 1).unwrap().jobs, []);
}
