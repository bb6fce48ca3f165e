//! What a node may say in its Capability, and what is believed of it.

mod support;

use substrate_record::{
    Capability, ContentHash, Hardware, NetworkId, NodeId, Place, Record, SigningKey, Stream,
    Verified, WallTier,
};
use substrate_tee::{Binding, ClaimError, Evidence, EvidenceError, Policy, attested};

use support::{Judge, NOW, all, snp};

const NETWORK: NetworkId = NetworkId::from_bytes([1; 32]);

fn capability(walls: Vec<WallTier>, tee: Option<Vec<u8>>) -> Verified<Capability> {
    let key = SigningKey::from_bytes(&[7; 32]);
    let body = Capability {
        hardware: Hardware {
            cpu: "EPYC".to_owned(),
            cores: 8,
            memory: 1 << 34,
            gpus: Vec::new(),
            storage: 0,
            bandwidth: None,
        },
        models: Vec::new(),
        free_memory: 1 << 33,
        slots: 1,
        queue: 0,
        walls,
        tee,
        build: "test".to_owned(),
        worker_sha256: ContentHash::from_bytes([2; 32]),
    };
    let record = Record {
        author: NodeId::from_bytes(key.verifying_key().to_bytes()),
        place: Some(Place {
            stream: Stream::Cap,
            seq: 1,
            prev: None,
        }),
        epoch: 0,
        claimed_ms: 0,
        deps: Vec::new(),
        body,
    };
    record
        .sign(&key, &NETWORK)
        .expect("a well-formed capability")
}

fn check(capability: &Verified<Capability>, policy: &Policy) -> Result<(), ClaimError> {
    attested(capability, &NETWORK, policy, NOW).map(drop)
}

#[test]
fn a_claim_without_evidence_is_not_believed() {
    let policy = Judge::of(&snp()).policy;
    let claimed = capability(vec![WallTier::Process, WallTier::Tee], None);
    assert_eq!(check(&claimed, &policy), Err(ClaimError::NoEvidence));
    let garbage = capability(vec![WallTier::Tee], Some(vec![0xff; 300]));
    assert!(matches!(
        check(&garbage, &policy),
        Err(ClaimError::Evidence(EvidenceError::Cbor(_)))
    ));
}

#[test]
fn evidence_without_a_claim_is_not_looked_at() {
    let policy = Judge::of(&snp()).policy;
    let silent = capability(vec![WallTier::Process], Some(snp().encode().unwrap()));
    assert_eq!(check(&silent, &policy), Err(ClaimError::NotClaimed));
}

/// All that is published verifies, and is somebody else's: whoever shows it is not believed.
#[test]
fn a_published_report_makes_nobody_trusted() {
    for evidence in all() {
        let borrowed = capability(vec![WallTier::Tee], Some(evidence.encode().unwrap()));
        assert_eq!(
            check(&borrowed, &Judge::of(&evidence).policy),
            Err(ClaimError::Evidence(EvidenceError::Binding))
        );
        assert_eq!(
            check(&borrowed, &Policy::default()),
            Err(ClaimError::NothingAccepted)
        );
    }
}

/// With the binding written into the report, only the signature is in the way.
#[test]
fn a_report_rewritten_for_another_node_is_found_by_its_signature() {
    let author = capability(Vec::new(), None).author();
    let binding = Binding::of(&NETWORK, &author, &ContentHash::from_bytes([2; 32]));
    for mut evidence in all() {
        let at = match &mut evidence {
            Evidence::SevSnp(it) => &mut it.report[0x50..0x90],
            Evidence::Tdx(it) => {
                let begin = if it.signed.len() == 632 { 48 } else { 54 };
                &mut it.signed[begin + 520..begin + 584]
            }
        };
        at.copy_from_slice(binding.as_bytes());
        let policy = Judge::of(&evidence).policy;
        let rewritten = capability(vec![WallTier::Tee], Some(evidence.encode().unwrap()));
        assert_eq!(
            check(&rewritten, &policy),
            Err(ClaimError::Evidence(EvidenceError::ReportSignature))
        );
    }
}
