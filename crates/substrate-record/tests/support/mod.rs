//! Fixed keys, one network and one record of every type for the tests to speak of.
//!
//! Invariant: everything here is the same bytes on every run.
#![allow(dead_code, reason = "each test program uses its own part")]

pub mod forge;
pub mod lies;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use substrate_record::*;

/// The key made of this seed byte.
pub fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub fn node(key: &SigningKey) -> NodeId {
    NodeId::from_bytes(key.verifying_key().to_bytes())
}

/// Founder and registry key.
pub fn founder() -> SigningKey {
    key(1)
}

pub fn requester() -> SigningKey {
    key(2)
}

pub fn provider() -> SigningKey {
    key(3)
}

/// A second provider, for failover.
pub fn successor() -> SigningKey {
    key(4)
}

pub fn genesis_body(name: &str) -> Genesis {
    let constants = BTreeMap::from([(1, 250_000), (2, 20_000), (300, 100_000)]);
    Genesis {
        name: name.to_owned(),
        nonce: [0x5a; 16],
        rules_hash: rules_hash(0, &constants),
        constants,
        members: vec![node(&founder()), node(&requester()), node(&provider())],
        witnesses: vec![node(&founder())],
        registry_keys: vec![node(&founder())],
        registry_k: 1,
    }
}

pub fn genesis() -> Verified<Genesis> {
    Verified::found(genesis_body("orchard"), 1_700_000_000_000, &founder()).expect("signs")
}

/// Another network of the same name.
pub fn other_genesis() -> Verified<Genesis> {
    let mut body = genesis_body("orchard");
    body.nonce = [0xa5; 16];
    Verified::found(body, 1_700_000_000_000, &founder()).expect("signs")
}

/// Computed once: every signature asks for it.
pub fn network() -> NetworkId {
    static NETWORK: OnceLock<NetworkId> = OnceLock::new();
    *NETWORK.get_or_init(|| genesis().network())
}

/// Signs a record of this author, first in its stream if it has one.
pub fn signed<B: InNetwork>(key: &SigningKey, body: B) -> Verified<B> {
    let record = Record::new(node(key), 1_700_000_001_000, body).after(None);
    record.sign(key, &network()).expect("signs")
}

pub fn capability() -> Capability {
    Capability {
        hardware: Hardware {
            cpu: "AMD Ryzen 7 5800X 8-Core Processor".to_owned(),
            cores: 8,
            memory: 32 << 30,
            gpus: vec![Gpu {
                name: "NVIDIA GeForce RTX 4090".to_owned(),
                memory: 24 << 30,
            }],
            storage: 500 << 30,
            bandwidth: Some(5_000_000),
        },
        models: vec![ModelOffer {
            entry: signed(&founder(), model_entry()).id(),
            engine_class: "llama.cpp/b4589/cpu/x86-64-v3".to_owned(),
            loaded: true,
            prefill: 412_000,
            decode: 61_500,
        }],
        free_memory: 9 << 30,
        slots: 2,
        queue: 0,
        walls: vec![WallTier::Basic],
        tee: None,
        build: "0.1.0".to_owned(),
        worker_sha256: ContentHash::of(b"worker"),
    }
}

pub fn model_entry() -> ModelEntry {
    ModelEntry {
        name: "smollm2:135m".to_owned(),
        files: vec![ModelFile {
            role: FileRole::Weights,
            sha256: ContentHash::of(b"weights"),
            size: 91_727_648,
        }],
        arch: "llama".to_owned(),
        quant: "Q4_1".to_owned(),
        context: 8192,
        licence: "Apache-2.0".to_owned(),
        template_sha256: Some(ContentHash::of(b"template")),
        sources: vec!["hf:HuggingFaceTB/SmolLM2-135M-Instruct-GGUF".to_owned()],
        reference_rates: Some(ReferenceRates {
            prefill: 9_000_000,
            decode: 700_000,
        }),
        base: None,
    }
}

pub fn sampler() -> Sampler {
    Sampler {
        temperature: 700_000,
        top_k: 40,
        top_p: 950_000,
        min_p: 50_000,
        typical_p: 1_000_000,
        repeat_last_n: -1,
        repeat: 1_100_000,
        presence: 0,
        frequency: -250_000,
        n: 1,
        top_logprobs: None,
    }
}

pub fn manifest_to(provider: &SigningKey, attempt: u32) -> JobManifest {
    JobManifest {
        job: JobId::from_bytes([0x11; 16]),
        attempt,
        provider: node(provider),
        provider_session: SessionNonce::from_bytes([0x22; 16]),
        kind: JobKind::Generate,
        scope: Scope::Circle,
        entry: signed(&founder(), model_entry()).id(),
        adapter: None,
        engine_class: String::new(),
        sampler: sampler(),
        seed_commitment: commit(&Salt::from_bytes([1; 32]), b"seed"),
        max_tokens: 512,
        deadline_ms: 120_000,
        input_commitment: commit(&Salt::from_bytes([2; 32]), b"input"),
        wall: WallTier::Basic,
        isolated: false,
        parents: Vec::new(),
        policy: Policy {
            rules_hash: genesis().body().rules_hash,
            audit_consent: false,
        },
        resume_tokens: 0,
        resume_commitment: None,
    }
}

pub fn manifest() -> Verified<JobManifest> {
    signed(&requester(), manifest_to(&provider(), 1))
}

pub fn accept_of(manifest: &Verified<JobManifest>) -> Accept {
    Accept {
        manifest: manifest.id(),
        engine_class: "llama.cpp/b4589/cpu/x86-64-v3".to_owned(),
        worker_sha256: ContentHash::of(b"worker"),
        wall: WallTier::Basic,
        n_in: 37,
    }
}

/// Signed once: most lies begin as this record.
pub fn accept() -> Verified<Accept> {
    static ACCEPT: OnceLock<Verified<Accept>> = OnceLock::new();
    let accept = ACCEPT.get_or_init(|| signed(&provider(), accept_of(&manifest())));
    accept.clone()
}

pub fn ack_of(accept: &Verified<Accept>, prefilled: u32, tokens: u32) -> Ack {
    let ids: Vec<u32> = (0..tokens).collect();
    Ack {
        manifest: accept.body().manifest,
        accept: accept.id(),
        n_in: accept.body().n_in,
        prefilled,
        tokens,
        output_commitment: commit(&Salt::from_bytes([4; 32]), &output_bytes(&ids)),
    }
}

pub fn ack() -> Verified<Ack> {
    signed(&requester(), ack_of(&accept(), 37, 256))
}

pub fn receipt_w_of(manifest: &Verified<JobManifest>, accept: &Verified<Accept>) -> ReceiptW {
    let ids: Vec<u32> = (0..300).collect();
    ReceiptW {
        manifest: manifest.id(),
        accept: accept.id(),
        model_sha256: ContentHash::of(b"weights"),
        input_commitment: manifest.body().input_commitment,
        output_commitment: commit(&Salt::from_bytes([4; 32]), &output_bytes(&ids)),
        n_in: accept.body().n_in,
        n_out: 300,
        grant: None,
        microcredits: 0,
        last_ack: None,
        finish: Finish::Stop,
        timings_ms: Timings {
            queue: 12,
            prefill: 89,
            decode: 4_871,
        },
        audit: None,
    }
}

pub fn receipt_w() -> Verified<ReceiptW> {
    let mut body = receipt_w_of(&manifest(), &accept());
    body.last_ack = Some(ack().id());
    signed(&provider(), body)
}

pub fn receipt_r() -> Verified<ReceiptR> {
    let receipt_w = receipt_w();
    let body = ReceiptR {
        manifest: receipt_w.body().manifest,
        half: Half::ReceiptW(receipt_w.id()),
        verdict: ReceiptVerdict::Ok,
        tokens: 300,
        reason: String::new(),
    };
    signed(&requester(), body)
}
