//! The laws of the folds: order, repetition and merging change nothing, and bounds hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use proptest::collection::vec;
use proptest::prelude::*;
use substrate_ledger::capacity::{MAX_IN_VIEW, TTL_MS};
use substrate_ledger::registry::{MAX_PER_DEVICE, MAX_STRANGERS};
use substrate_ledger::{CapacityView, Insertion, Registry, Sighting, Standing};
use substrate_record::*;

fn key(number: u16) -> SigningKey {
    let mut seed = [0; 32];
    seed[..2].copy_from_slice(&number.to_le_bytes());
    SigningKey::from_bytes(&seed)
}

fn node(number: u16) -> NodeId {
    NodeId::from_bytes(key(number).verifying_key().to_bytes())
}

/// A network with registry keys 0, 1, 2, of which two must sign.
fn genesis() -> &'static Verified<Genesis> {
    static GENESIS: OnceLock<Verified<Genesis>> = OnceLock::new();
    GENESIS.get_or_init(|| {
        let body = Genesis {
            name: "orchard".to_owned(),
            nonce: [1; 16],
            constants: BTreeMap::new(),
            members: Vec::new(),
            witnesses: Vec::new(),
            registry_keys: (0..3).map(node).collect(),
            registry_k: 2,
            rules_hash: rules_hash(0, &BTreeMap::new()),
        };
        Verified::found(body, 0, &key(0)).expect("signs")
    })
}

/// Signs a body as record number `seq` of its author's stream.
fn signed<B: InNetwork>(author: u16, seq: u64, body: B) -> Verified<B> {
    let before = (seq > 1).then(|| (seq - 1, genesis().id()));
    let record = Record::new(node(author), 0, body).after(before);
    record
        .sign(&key(author), &genesis().network())
        .expect("signs")
}

fn entry(author: u16, seq: u64, model: u8) -> Verified<ModelEntry> {
    let file = ModelFile {
        role: FileRole::Weights,
        sha256: ContentHash::of(&[model]),
        size: 1,
    };
    let body = ModelEntry {
        name: format!("model:{model}"),
        files: vec![file],
        arch: "llama".to_owned(),
        quant: "Q4_1".to_owned(),
        context: 2048,
        licence: "Apache-2.0".to_owned(),
        template_sha256: None,
        sources: Vec::new(),
        reference_rates: None,
        base: None,
    };
    signed(author, seq, body)
}

fn capability(author: u16, seq: u64, slots: u32) -> Verified<Capability> {
    let hardware = Hardware {
        cpu: String::new(),
        cores: 1,
        memory: 0,
        gpus: Vec::new(),
        storage: 0,
        bandwidth: None,
    };
    let body = Capability {
        hardware,
        models: Vec::new(),
        free_memory: 0,
        slots,
        queue: 0,
        walls: Vec::new(),
        tee: None,
        build: String::new(),
        worker_sha256: ContentHash::of(b""),
    };
    signed(author, seq, body)
}

fn registry(entries: &[Verified<ModelEntry>]) -> Registry {
    let mut registry = Registry::new(genesis());
    for entry in entries {
        registry.insert(entry.clone());
    }
    registry
}

fn view(sightings: &[(Verified<Capability>, u64)]) -> CapacityView {
    let mut view = CapacityView::new(7);
    view.pin(node(0));
    for (record, now_ms) in sightings {
        view.insert(record.clone(), *now_ms);
    }
    view
}

fn entries() -> impl Strategy<Value = Vec<Verified<ModelEntry>>> {
    vec(
        (0..5u16, 1..4u64, 0..3u8).prop_map(|(author, seq, model)| entry(author, seq, model)),
        0..12,
    )
}

fn sightings() -> impl Strategy<Value = Vec<(Verified<Capability>, u64)>> {
    let record = (0..6u16, 1..4u64, 0..2u32);
    let record = record.prop_map(|(author, seq, slots)| capability(author, seq, slots));
    vec((record, 0..1000u64), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_registry_does_not_depend_on_order_or_repetition(
        (entries, shuffled) in entries().prop_flat_map(|entries| {
            let twice = [entries.clone(), entries.clone()].concat();
            (Just(entries), Just(twice).prop_shuffle())
        }),
    ) {
        prop_assert_eq!(registry(&entries), registry(&shuffled));
    }

    #[test]
    fn registries_merge_like_sets(a in entries(), b in entries(), c in entries()) {
        let [a, b, c] = [registry(&a), registry(&b), registry(&c)];
        let merged = |left: &Registry, right: &Registry| {
            let mut left = left.clone();
            left.merge(right);
            left
        };
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
        prop_assert_eq!(merged(&a, &a), a.clone());
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
    }

    #[test]
    fn an_entry_is_of_the_commons_exactly_with_two_registry_keys(entries in entries()) {
        let registry = registry(&entries);
        for entry in &entries {
            let equal = entries.iter().filter(|other| other.body() == entry.body());
            let registry_keys: BTreeSet<NodeId> = (0..3).map(node).collect();
            let signers: BTreeSet<NodeId> = equal.map(Verified::author).collect();
            let expected = match signers.intersection(&registry_keys).count() {
                0 | 1 => Standing::Device(entry.author()),
                _ => Standing::Commons,
            };
            prop_assert_eq!(registry.standing(&entry.id()), Some(expected));
        }
    }

    #[test]
    fn a_view_does_not_depend_on_order_or_repetition(
        (sightings, shuffled) in sightings().prop_flat_map(|sightings| {
            let twice = [sightings.clone(), sightings.clone()].concat();
            (Just(sightings), Just(twice).prop_shuffle())
        }),
    ) {
        prop_assert_eq!(view(&sightings), view(&shuffled));
    }

    #[test]
    fn views_merge_like_sets(
        a in sightings(), b in sightings(), c in sightings(), expire_a: bool, expire_b: bool,
    ) {
        let [mut a, mut b, c] = [view(&a), view(&b), view(&c)];
        if expire_a { a.expire(500 + TTL_MS); }
        if expire_b { b.expire(700 + TTL_MS); }
        let merged = |left: &CapacityView, right: &CapacityView| {
            let mut left = left.clone();
            left.merge(right);
            left
        };
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
        prop_assert_eq!(merged(&a, &a), a.clone());
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
    }

    #[test]
    fn the_highest_sequence_wins(sightings in sightings()) {
        let view = view(&sightings);
        for (record, _) in &sightings {
            let of_author = sightings.iter().filter(|(other, _)| other.author() == record.author());
            let highest = of_author.map(|(other, _)| other.record().place.unwrap().seq).max();
            let held = view.get(&record.author()).expect("in view");
            prop_assert_eq!(Some(held.record().place.unwrap().seq), highest);
        }
    }
}

#[test]
fn a_crowd_leaves_the_same_view_in_any_order() {
    let crowd: Vec<_> = (0..200)
        .map(|author| (capability(author, 1, 0), 0))
        .collect();
    let forwards = view(&crowd);
    let backwards: Vec<_> = crowd.iter().rev().cloned().collect();
    assert_eq!(forwards, view(&backwards));
    assert_eq!(forwards.len(), MAX_IN_VIEW);
    assert!(
        forwards.get(&node(0)).is_some(),
        "the pinned node was crowded out"
    );
    let mut other_seed = CapacityView::new(8);
    for (record, now_ms) in &crowd {
        other_seed.insert(record.clone(), *now_ms);
    }
    let authors = |view: &CapacityView| view.iter().map(Verified::author).collect::<Vec<_>>();
    assert_ne!(authors(&forwards), authors(&other_seed));
}

#[test]
fn a_capability_lives_from_its_first_sight_for_its_ttl() {
    let mut view = CapacityView::new(0);
    assert_eq!(view.insert(capability(1, 5, 0), 1_000), Sighting::New);
    assert_eq!(view.insert(capability(1, 5, 0), 300_000), Sighting::Known);
    assert!(view.expire(1_000 + TTL_MS - 1).is_empty());
    assert_eq!(view.expire(1_000 + TTL_MS), [node(1)]);
    assert!(view.is_empty());
}

#[test]
fn an_expired_capability_does_not_come_back() {
    let mut view = CapacityView::new(0);
    view.insert(capability(1, 5, 0), 0);
    view.expire(TTL_MS);
    assert_eq!(view.insert(capability(1, 5, 0), TTL_MS), Sighting::Stale);
    assert_eq!(view.insert(capability(1, 4, 0), TTL_MS), Sighting::Stale);
    assert!(view.is_empty());
    assert_eq!(view.insert(capability(1, 6, 0), TTL_MS), Sighting::New);
    assert_eq!(view.insert(capability(1, 5, 0), TTL_MS), Sighting::Stale);
}

#[test]
fn an_older_word_does_not_replace_a_newer_one() {
    let mut view = CapacityView::new(0);
    assert_eq!(view.insert(capability(1, 2, 3), 0), Sighting::New);
    assert_eq!(view.insert(capability(1, 1, 9), 1), Sighting::Stale);
    assert_eq!(view.insert(capability(1, 3, 4), 2), Sighting::Newer);
    assert_eq!(view.get(&node(1)).map(|held| held.body().slots), Some(4));
}

#[test]
fn an_author_cannot_fill_the_registry() {
    let mut registry = Registry::new(genesis());
    let newest = MAX_PER_DEVICE as u64 + 5;
    for seq in 1..=newest {
        registry.insert(entry(9, seq, 0));
    }
    assert_eq!(registry.len(), MAX_PER_DEVICE);
    assert_eq!(registry.insert(entry(9, 1, 0)), Insertion::Crowded);
    assert!(registry.get(&entry(9, newest, 0).id()).is_some());
}

#[test]
fn what_is_held_is_not_pushed_out_by_newer_entries_in_any_order() {
    let held = [1, 7].map(|seq| entry(9, seq, 0).id());
    let newest = MAX_PER_DEVICE as u64 + 20;
    let all: Vec<_> = (1..=newest).map(|seq| entry(9, seq, 0)).collect();
    let insert = |entries: &mut dyn Iterator<Item = &Verified<ModelEntry>>| {
        let mut registry = Registry::new(genesis());
        registry.set_held(held);
        for entry in entries {
            registry.insert(entry.clone());
        }
        registry
    };
    let forwards = insert(&mut all.iter());
    assert_eq!(forwards, insert(&mut all.iter().rev()));
    assert_eq!(forwards.len(), MAX_PER_DEVICE);
    for id in &held {
        assert!(forwards.standing(id).is_some(), "it was pushed out");
    }
    // The oldest that nobody holds are gone, no others.
    let gone = |seq: u64| forwards.get(&all[seq as usize - 1].id()).is_none();
    let oldest = newest - MAX_PER_DEVICE as u64 + 2;
    let expected = |seq: &u64| *seq <= oldest && ![1, 7].contains(seq);
    assert!((1..=newest).all(|seq| gone(seq) == expected(&seq)));
    // Held no longer, it is as old as any.
    let mut registry = forwards;
    registry.set_held([]);
    assert!(registry.insert(entry(9, newest + 1, 0)) == Insertion::New);
    assert!(registry.get(&held[0]).is_none());
}

#[test]
fn strangers_cannot_fill_the_registry_or_push_out_whom_it_knows() {
    let mut registry = Registry::new(genesis());
    registry.pin(node(3));
    for author in 0..100 {
        registry.insert(entry(author, 1, 0));
    }
    assert_eq!(registry.len(), 3 + 1 + MAX_STRANGERS);
    for author in 0..4 {
        assert!(registry.get(&entry(author, 1, 0).id()).is_some());
    }
}

#[test]
fn an_author_no_longer_pinned_is_a_stranger_again() {
    let mut registry = Registry::new(genesis());
    registry.set_pinned([node(3)]);
    for author in 3..=(3 + MAX_STRANGERS as u16) {
        registry.insert(entry(author, 1, 0));
    }
    assert!(registry.keeps(&node(3)) && registry.keeps(&node(0)) && !registry.keeps(&node(4)));
    assert_eq!(registry.len(), 1 + MAX_STRANGERS);
    registry.set_pinned([]);
    assert_eq!(registry.len(), MAX_STRANGERS);
    assert!(!registry.keeps(&node(3)));
}

#[test]
fn entries_are_found_by_name_and_by_digest() {
    let registry = registry(&[entry(5, 1, 1), entry(6, 1, 1), entry(5, 2, 2)]);
    assert_eq!(registry.by_name("model:1").count(), 2);
    assert_eq!(registry.by_name("model:3").count(), 0);
    assert_eq!(registry.by_digest(&ContentHash::of(&[2])).count(), 1);
    assert_eq!(registry.equals(&entry(5, 1, 1).id()).count(), 2);
}
