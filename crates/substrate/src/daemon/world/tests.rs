//! Whose entries count, and how far they travel.

use substrate_record::{ContentHash, FileRole, ModelFile, NetworkId, Record, SigningKey};

use super::*;
use crate::daemon::testing::{Machine, until};
use crate::door::Call;
use crate::keys::{RegistryKey, genesis_of_network};
use crate::store::Member;

fn entry(key: &SigningKey, name: &str, network: &NetworkId) -> Verified<ModelEntry> {
    let body = ModelEntry {
        name: name.to_owned(),
        files: vec![ModelFile {
            role: FileRole::Weights,
            sha256: ContentHash::of(name.as_bytes()),
            size: 1,
        }],
        arch: "llama".to_owned(),
        quant: "Q4_1".to_owned(),
        context: 8,
        licence: String::new(),
        template_sha256: None,
        sources: Vec::new(),
        reference_rates: None,
        base: None,
    };
    let author = NodeId::from_bytes(key.verifying_key().to_bytes());
    let record = Record::new(author, 0, body).after(None);
    record.sign(key, network).expect("within bounds")
}

fn stranger(seed: u8) -> (SigningKey, NodeId) {
    let key = SigningKey::from_bytes(&[seed; 32]);
    let node = NodeId::from_bytes(key.verifying_key().to_bytes());
    (key, node)
}

fn list(machine: &Machine, network: &NetworkId, node: NodeId) {
    let member = Member {
        node,
        label: "friend".to_owned(),
        addrs: Vec::new(),
    };
    machine
        .store
        .circle_add(network, "friends", &member)
        .expect("stored");
}

#[tokio::test]
async fn a_strangers_entries_are_neither_used_nor_stored_until_it_is_listed() {
    let (machine, registry) = (Machine::new(), RegistryKey::generate());
    let genesis = genesis_of_network(&machine.device, &registry, "ours");
    machine.enter(&genesis);
    let network = genesis.network();
    let (mut ready, context) = machine.life(Vec::new()).await;
    let life = ready.life();
    let (key, node) = stranger(1);
    let (_, messenger) = stranger(2);
    let own = entry(&key, "model:own", &network);
    let approved = entry(registry.signing(), "model:approved", &network);
    life.peers.insert(
        node,
        Peer {
            session: substrate_record::SessionNonce::from_bytes([0; 16]),
            skew_ms: 0,
            build: String::new(),
            outbound: false,
        },
    );
    life.on_direct(node, vec![AnyRecord::ModelEntry(own.clone())]);
    life.on_direct(messenger, vec![AnyRecord::ModelEntry(own.clone())]);
    life.on_direct(messenger, vec![AnyRecord::ModelEntry(approved.clone())]);
    assert!(life.shelf.entry(&own.id()).is_none());
    assert!(life.shelf.named("model:own").is_empty());
    assert_eq!(life.shelf.named("model:approved"), [approved.id()]);
    list(&machine, &network, node);
    life.tell_circle();
    assert_eq!(
        life.shelf.named("model:own"),
        [own.id()],
        "it was held back"
    );
    let stored = until("both are stored", async || {
        let stored = context.desk.records.entries().expect("readable");
        (stored.len() == 2).then_some(stored)
    })
    .await;
    assert!(
        stored
            .iter()
            .all(|entry| *entry == own || *entry == approved)
    );
}

#[tokio::test]
async fn a_circles_entry_does_not_take_a_name_from_the_registrys() {
    let (machine, registry) = (Machine::new(), RegistryKey::generate());
    let genesis = genesis_of_network(&machine.device, &registry, "ours");
    machine.enter(&genesis);
    let network = genesis.network();
    // Whichever of the two has the smaller id: try some.
    for seed in 1..9 {
        let (key, node) = stranger(seed);
        list(&machine, &network, node);
        let (mut ready, _) = machine.life(Vec::new()).await;
        let life = ready.life();
        let theirs = entry(&key, "model:1b", &network);
        let mut body = theirs.body().clone();
        body.files[0].sha256 = ContentHash::of(b"other weights");
        let record = Record::new(registry.node(), 0, body).after(None);
        let approved = record.sign(registry.signing(), &network).expect("signs");
        life.on_direct(node, vec![AnyRecord::ModelEntry(theirs)]);
        life.on_direct(node, vec![AnyRecord::ModelEntry(approved.clone())]);
        assert_eq!(life.shelf.named("model:1b"), [approved.id()]);
    }
}

#[tokio::test]
async fn a_registry_entry_reaches_a_node_two_hops_away() {
    let registry = RegistryKey::generate();
    let machines = [Machine::new(), Machine::new(), Machine::new()];
    let genesis = genesis_of_network(&machines[0].device, &registry, "ours");
    for machine in &machines {
        machine.enter(&genesis);
    }
    let mut line = Vec::new();
    let mut before = Vec::new();
    for machine in &machines {
        let (door, context) = machine.run(before).await;
        before = until("it listens", async || {
            let listens = context.mesh.listen_addrs().await;
            (!listens.is_empty()).then_some(listens)
        })
        .await;
        line.push((door, context));
    }
    for (at, wanted) in [(0, 1), (1, 2), (2, 1)] {
        until("the line stands", async || {
            (line[at].1.mesh.peers().await.len() == wanted).then_some(())
        })
        .await;
    }
    let new = entry(registry.signing(), "model:new", &genesis.network());
    let (door, context) = &line[0];
    let put = context.put(vec![AnyRecord::ModelEntry(new.clone())]);
    put.await.expect("stored");
    let facts = crate::models::catalogue::LocalFacts::default();
    let name = "model:new".parse().expect("a name");
    let bound = context.desk.catalogue.bind(&name, &new, &facts, None, 1);
    bound.expect("bound");
    door.call(|reply| Call::ModelsChanged { reply })
        .await
        .expect("it lives");
    for (_, context) in &line[1..] {
        until("the entry arrives", async || {
            let stored = context.desk.records.entry(&new.id());
            stored.expect("readable")
        })
        .await;
    }
}
