//! Capabilities: what is passed on, and what is said.

use std::collections::BTreeMap;

use expect_test::expect;
use substrate_ledger::registry::Standing;
use substrate_node::{Action, Config, Event, Lending, LendingTerms, Node, OwnModel, Timestamp};
use substrate_record::{MAX_OFFERS, NodeId, RecordId, Scope, SessionNonce, WallTier};

use crate::harness::check;

#[test]
fn news_is_passed_on_once() {
    check(
        "gossip S m
        gossip S m seq=1
        +3000
        gossip S m seq=9 by=T
        +3000
        gossip S m seq=4
        gossip O m",
        expect![[r#"
            gossip S m
                forward
            gossip S m seq=1
                drop: Stale
            +3000
            gossip S m seq=9 by=T
                forward
            +3000
            gossip S m seq=4
                drop: Stale
            gossip O m
                drop: Own
        "#]],
    );
}

#[test]
fn who_speaks_too_often_is_not_passed_on() {
    check(
        "gossip S m
        +1000
        gossip S m
        +1500
        gossip S m",
        expect![[r#"
            gossip S m
                forward
            +1000
            gossip S m
                drop: TooOften
            +1500
            gossip S m
                forward
        "#]],
    );
}

#[test]
fn a_daemon_that_was_started_anew_is_told_what_there_is() {
    check(
        "lend circle 1
        own m
        +6000
        peer C
        +6000
        peer C
        +6000
        restarted C
        +6000",
        expect![[r#"
            lend circle 1
            own m
            +6000
                1: publish to circle: [m] slots 1 queue 0
            peer C
            +6000
                8000: publish to circle: [m] slots 1 queue 0
            peer C
            +6000
            restarted C
            +6000
                20000: publish to circle: [m] slots 1 queue 0
        "#]],
    );
}

#[test]
fn what_was_sent_to_me_alone_is_kept_to_myself() {
    check(
        "direct C c
        direct D m by=C
        submit j1 circle entry=c",
        expect![[r#"
            direct C c
            direct D m by=C
            submit j1 circle entry=c
                offer C j1#1 c circle
                tell j1: 0 ahead, 0 ms, asking node C
        "#]],
    );
}

#[test]
fn a_capability_lives_ten_minutes() {
    check(
        "gossip S m
        +590000
        submit j1 commons deadline=1000
        +11000
        submit j2 commons",
        expect![[r#"
            gossip S m
                forward
            +590000
            submit j1 commons deadline=1000
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            +11000
                591000: close S j1#1 0 tokens: Deadline
                591000: fail j1: the deadline passed after 1 attempts: asking node f80cccdc
            submit j2 commons
                tell j2: 0 ahead, 0 ms, no node in scope can answer with this model right now
        "#]],
    );
}

#[test]
fn a_node_that_lends_nothing_says_nothing() {
    check(
        "own m
        +200000",
        expect![[r#"
            own m
            +200000
        "#]],
    );
}

#[test]
fn own_entries_go_to_the_circle_only_and_last() {
    check(
        "own m d
        lend commons 2
        +5000",
        expect![[r#"
            own m d
            lend commons 2
            +5000
                1: publish to all: [m] slots 2 queue 0
                1: publish to circle: [d m] slots 2 queue 0
        "#]],
    );
}

#[test]
fn changes_are_published_at_most_every_5_s_and_the_end_of_lending_once() {
    check(
        "own m
        lend commons 2
        +1000
        lend commons 1
        +4001
        +1
        lend off
        +5000
        +60000",
        expect![[r#"
            own m
            lend commons 2
            +1000
                1: publish to all: [m] slots 2 queue 0
                1: publish to circle: [m] slots 2 queue 0
            lend commons 1
            +4001
                5001: publish to all: [m] slots 1 queue 0
                5001: publish to circle: [m] slots 1 queue 0
            +1
            lend off
            +5000
                10001: publish to all: [] slots 0 queue 0
                10001: publish to circle: [] slots 0 queue 0
            +60000
        "#]],
    );
}

#[test]
fn more_models_than_a_record_holds_are_not_all_named() {
    let own = NodeId::from_bytes([1; 32]);
    let config = Config {
        own,
        session: SessionNonce::from_bytes([1; 16]),
        slots: 1,
        own_list: 1,
        walls: vec![WallTier::Process],
        isolated: false,
    };
    let mut node = Node::new(config, 1);
    let entries = (0..=MAX_OFFERS).map(|i| {
        let byte = u8::try_from(i).expect("few");
        RecordId::from_bytes([byte; 32])
    });
    let model = |entry| OwnModel {
        entry,
        engine_class: "llama.cpp/b4589/cpu/x86-64-v3".to_owned(),
        loaded: false,
        prefill: 1,
        decode: 1,
        load_ms: 1,
    };
    let standings: BTreeMap<_, _> = entries
        .clone()
        .map(|entry| (entry, Standing::Commons))
        .collect();
    let terms = LendingTerms {
        widest: Scope::Commons,
        slots: 1,
        only_nodes: Vec::new(),
        refused_nodes: Vec::new(),
        refused_entries: Vec::new(),
        refused_kinds: Vec::new(),
    };
    let mut actions = Vec::new();
    for event in [
        Event::RegistryChanged(standings),
        Event::OwnModelsChanged(entries.map(model).collect()),
        Event::LendingChanged(Lending::On(terms)),
        Event::Tick,
    ] {
        let now = Timestamp(actions.len() as u64 + 1);
        actions.extend(node.handle(now, event));
    }
    actions.extend(node.handle(Timestamp(60_000), Event::Tick));
    let published = actions.iter().filter_map(|action| match action {
        Action::Publish { models, .. } => Some(models.len()),
        _ => None,
    });
    assert_eq!(published.max(), Some(MAX_OFFERS));
}
