//! The store as its callers use it: on a real file, reopened, raced, rebuilt.

use std::sync::Barrier;

use substrate::invite::{Invite, InviteSecret, RedeemError, issue, pending, redeem, revoke};
use substrate::store::{Member, Page, PeerAddrs, Store, StoreError};
use substrate_record::{
    AnyRecord, ContentHash, FileRole, Genesis, ModelEntry, ModelFile, NetworkId, NodeId, Record,
    RecordType, SigningKey, Stream, Verified, rules_hash,
};

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn node(seed: u8) -> NodeId {
    NodeId::from_bytes(key(seed).verifying_key().to_bytes())
}

fn network(seed: u8) -> NetworkId {
    NetworkId::from_bytes([seed; 32])
}

fn body(name: &str) -> ModelEntry {
    ModelEntry {
        name: name.into(),
        files: vec![ModelFile {
            role: FileRole::Weights,
            sha256: ContentHash::of(name.as_bytes()),
            size: 1,
        }],
        arch: "llama".into(),
        quant: "Q4_1".into(),
        context: 8192,
        licence: "apache-2.0".into(),
        template_sha256: None,
        sources: Vec::new(),
        reference_rates: None,
        base: None,
    }
}

fn append(store: &Store, network: NetworkId, seed: u8, name: &str) -> AnyRecord {
    let sign = |place| {
        let mut record = Record::new(node(seed), 0, body(name));
        record.place = Some(place);
        Ok(AnyRecord::ModelEntry(record.sign(&key(seed), &network)?))
    };
    store
        .records(network)
        .append(node(seed), Stream::Registry, sign)
        .unwrap()
}

fn open() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store.redb")).unwrap();
    (folder, store)
}

#[test]
fn records_survive_a_restart_and_a_second_process_is_told() {
    let (folder, store) = open();
    let path = folder.path().join("store.redb");
    let first = append(&store, network(1), 1, "a");
    assert!(matches!(Store::open(&path), Err(StoreError::InUse)));
    drop(store);
    let store = Store::open(&path).unwrap();
    let records = store.records(network(1));
    assert_eq!(records.get(&first.id()).unwrap(), Some(first.clone()));
    assert_eq!(
        records.put(std::slice::from_ref(&first)).unwrap(),
        0,
        "a known record is no news"
    );
    assert_eq!(
        records.head(&node(1), Stream::Registry).unwrap(),
        Some((1, first.id()))
    );
}

#[test]
fn a_file_that_is_no_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    std::fs::write(&path, vec![7; 8192]).unwrap();
    assert!(Store::open(&path).is_err());
    assert_eq!(
        std::fs::read(&path).unwrap(),
        vec![7; 8192],
        "and left as it is"
    );
}

#[test]
fn a_store_whose_making_was_cut_short_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("store.new"), vec![0; 100]).unwrap();
    let store = Store::open(&folder.path().join("store.redb")).unwrap();
    append(&store, network(1), 1, "a");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn own_streams_never_fork_however_many_sign_at_once() {
    let (_folder, store) = open();
    let barrier = Barrier::new(8);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (store, barrier) = (&store, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for i in 0..10 {
                    append(store, network(1), 1, &format!("{thread}-{i}"));
                }
            });
        }
    });
    let chain = store
        .records(network(1))
        .stream(&node(1), Stream::Registry, 1, 1000)
        .unwrap();
    assert_eq!(chain.len(), 80);
    let mut before = None;
    for (at, record) in chain.iter().enumerate() {
        let AnyRecord::ModelEntry(entry) = record else {
            panic!("another type")
        };
        let place = entry.record().place.unwrap();
        assert_eq!((place.seq, place.prev), (at as u64 + 1, before));
        before = Some(entry.id());
    }
}

#[test]
fn networks_never_mix() {
    let (_folder, store) = open();
    let one = append(&store, network(1), 1, "a");
    assert!(store.records(network(2)).get(&one.id()).unwrap().is_none());
    assert!(store.records(network(2)).entries().unwrap().is_empty());
    assert_eq!(
        store
            .records(network(2))
            .head(&node(1), Stream::Registry)
            .unwrap(),
        None
    );
    assert_eq!(
        store
            .records(network(1))
            .entries_by_digest(&ContentHash::of(b"a"))
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn pages_cover_everything_once() {
    let (_folder, store) = open();
    let all: Vec<_> = (0..25)
        .map(|i| append(&store, network(1), 1, &i.to_string()).id())
        .collect();
    let records = store.records(network(1));
    let (mut seen, mut after) = (Vec::new(), 0);
    loop {
        let page = records
            .of_type(RecordType::ModelEntry, Page { after, limit: 7 })
            .unwrap();
        seen.extend(page.records.iter().map(AnyRecord::id));
        let Some(next) = page.next else { break };
        after = next;
    }
    assert_eq!(seen, all);
}

#[test]
fn indexes_are_rebuilt_from_the_records() {
    let (_folder, store) = open();
    for i in 0..5 {
        append(&store, network(1), 1, &i.to_string());
        append(&store, network(2), 2, &i.to_string());
    }
    let look = |store: &Store| {
        let records = store.records(network(1));
        let names: Vec<_> = records
            .entries()
            .unwrap()
            .iter()
            .map(|entry| entry.body().name.clone())
            .collect();
        (
            names,
            records.head(&node(1), Stream::Registry).unwrap(),
            records
                .entries_by_digest(&ContentHash::of(b"3"))
                .unwrap()
                .len(),
        )
    };
    let before = look(&store);
    let rebuilt = store.rebuild_indexes().unwrap();
    assert_eq!((rebuilt.records, rebuilt.broken), (10, 0));
    assert_eq!(look(&store), before);
    append(&store, network(1), 1, "after");
    assert_eq!(
        store
            .records(network(1))
            .head(&node(1), Stream::Registry)
            .unwrap()
            .unwrap()
            .0,
        6
    );
}

fn genesis(name: &str) -> Verified<Genesis> {
    let body = Genesis {
        name: name.into(),
        nonce: [1; 16],
        constants: Default::default(),
        members: vec![node(1)],
        witnesses: Vec::new(),
        registry_keys: vec![node(1)],
        registry_k: 1,
        rules_hash: rules_hash(0, &Default::default()),
    };
    Verified::<Genesis>::found(body, 0, &key(1)).unwrap()
}

#[test]
fn a_machine_is_in_one_network_it_knows() {
    let (_folder, store) = open();
    assert!(store.current_network().unwrap().is_none());
    let (home, away) = (genesis("home"), genesis("away"));
    assert!(matches!(
        store.set_current_network(&home.network()),
        Err(StoreError::UnknownNetwork(_))
    ));
    store.add_network(&home).unwrap();
    store.add_network(&away).unwrap();
    store.set_current_network(&away.network()).unwrap();
    assert_eq!(
        store.current_network().unwrap().unwrap().body().name,
        "away"
    );
    assert_eq!(store.networks().unwrap().len(), 2);
}

#[test]
fn circles_list_keys_and_keep_what_is_known_of_them() {
    let (_folder, store) = open();
    let here = network(1);
    let ann = Member {
        node: node(2),
        label: "ann".into(),
        addrs: vec!["/ip4/1.2.3.4/tcp/1".into()],
    };
    store.circle_add(&here, "family", &ann).unwrap();
    store
        .circle_add(
            &here,
            "family",
            &Member {
                label: String::new(),
                addrs: Vec::new(),
                ..ann.clone()
            },
        )
        .unwrap();
    store
        .circle_add(
            &here,
            "work",
            &Member {
                node: node(3),
                label: "bo".into(),
                addrs: Vec::new(),
            },
        )
        .unwrap();
    assert_eq!(store.circle(&here, "family").unwrap(), [ann]);
    assert_eq!(store.circles(&here).unwrap().len(), 2);
    assert_eq!(store.circle_members(&here).unwrap().len(), 2);
    assert!(store.circle_members(&network(2)).unwrap().is_empty());
    assert!(store.circle_remove(&here, "family", &node(2)).unwrap());
    assert!(!store.circle_remove(&here, "family", &node(2)).unwrap());
    assert!(matches!(
        store.circle(&here, "a/b"),
        Err(StoreError::BadCircleName { .. })
    ));
}

#[test]
fn peers_are_remembered_latest_first() {
    let (_folder, store) = open();
    for seed in 1..5 {
        let seen = PeerAddrs {
            addrs: vec![format!("/ip4/10.0.0.{seed}/tcp/1")],
            last_seen_ms: u64::from(seed),
        };
        store.save_peer(&network(1), &node(seed), &seen).unwrap();
    }
    let peers = store.peers(&network(1)).unwrap();
    assert_eq!(
        peers.iter().map(|(peer, _)| *peer).collect::<Vec<_>>(),
        [node(4), node(3), node(2), node(1)]
    );
    assert!(store.forget_peer(&network(1), &node(4)).unwrap());
    assert_eq!(store.peers(&network(1)).unwrap().len(), 3);
}

fn invite(circle: Option<&str>, expires_ms: u64) -> Invite {
    Invite {
        network: network(1),
        inviter: node(1),
        addrs: Vec::new(),
        secret: InviteSecret::draw(),
        expires_ms,
        circle: circle.map(Into::into),
    }
}

#[test]
fn of_two_that_redeem_one_invite_exactly_one_is_let_in() {
    let (_folder, store) = open();
    for _ in 0..20 {
        let invite = invite(Some("family"), 100);
        issue(&store, &invite, 1).unwrap();
        let barrier = Barrier::new(2);
        let admitted: Vec<bool> = std::thread::scope(|scope| {
            let race = |seed| {
                let (store, invite, barrier) = (&store, &invite, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    match redeem(store, &network(1), invite.secret.as_bytes(), node(seed), 50) {
                        Ok(redeemed) => redeemed.circle.as_deref() == Some("family"),
                        Err(RedeemError::Used) => false,
                        Err(error) => panic!("{error}"),
                    }
                })
            };
            let racers = [race(2), race(3)];
            racers.map(|racer| racer.join().unwrap()).to_vec()
        });
        assert_eq!(admitted.iter().filter(|admitted| **admitted).count(), 1);
        let listed = store.circle_members(&network(1)).unwrap();
        assert_eq!(listed.len(), 1);
        for member in listed {
            store.circle_remove(&network(1), "family", &member).unwrap();
        }
    }
}

#[test]
fn an_invite_ends_by_time_by_use_and_by_its_issuer() {
    let (_folder, store) = open();
    let open_at = |invite: &Invite, seed, now| {
        redeem(
            &store,
            &network(1),
            invite.secret.as_bytes(),
            node(seed),
            now,
        )
    };
    let timed = invite(None, 100);
    issue(&store, &timed, 1).unwrap();
    assert!(matches!(open_at(&timed, 2, 101), Err(RedeemError::Expired)));
    assert_eq!(open_at(&timed, 2, 100).unwrap().circle, None);
    assert_eq!(
        open_at(&timed, 2, 100).unwrap().circle,
        None,
        "its first answer may have been lost"
    );
    assert!(matches!(open_at(&timed, 3, 100), Err(RedeemError::Used)));
    let taken_back = invite(None, 100);
    issue(&store, &taken_back, 1).unwrap();
    let id = pending(&store, &network(1)).unwrap()[0].id;
    assert!(revoke(&store, &network(1), &id).unwrap());
    assert!(matches!(
        open_at(&taken_back, 2, 1),
        Err(RedeemError::Unknown)
    ));
    assert!(matches!(
        redeem(&store, &network(2), timed.secret.as_bytes(), node(2), 1),
        Err(RedeemError::Unknown)
    ));
}
