//! A hundred nodes in a storm of deaths, lies, losses and cuts, and a hundred thousand `mine` jobs: what must hold, holds;
//! and with something broken on purpose, the rules say so.

use substrate_node::sim::{Flaw, Plan, Rule, run};

fn storm(seed: u64) {
    let figures = run(&Plan::storm(seed)).unwrap_or_else(|broken| panic!("{broken}"));
    println!("seed {seed}: {figures:?}");
    assert_eq!(figures.leaks, 0);
    assert_eq!(figures.finished, figures.jobs);
    assert!(
        figures.moved > 0 && figures.resumed > 0 && figures.refused > 0,
        "nothing was tried: {figures:?}"
    );
    assert!(figures.converged_ms.is_some_and(|ms| ms <= 120_000));
}

#[test]
fn a_hundred_nodes_lose_nothing_leak_nothing_and_converge_seed_1() {
    storm(1);
}

#[test]
fn a_hundred_nodes_lose_nothing_leak_nothing_and_converge_seed_2() {
    storm(2);
}

#[test]
fn a_hundred_nodes_lose_nothing_leak_nothing_and_converge_seed_3() {
    storm(3);
}

#[test]
fn of_a_hundred_thousand_mine_jobs_none_leaves_its_machine() {
    let figures = run(&Plan::mine(1)).unwrap_or_else(|broken| panic!("{broken}"));
    println!("{figures:?}");
    assert_eq!(figures.leaks, 0);
    assert_eq!(figures.finished, figures.jobs);
    assert!(figures.jobs >= 100_000);
    assert!(
        figures.moved > 100,
        "failover was hardly tried: {}",
        figures.moved
    );
}

#[test]
fn a_seed_replays_exactly_and_another_differs() {
    let short = |seed| {
        run(&Plan {
            jobs: 300,
            span_ms: 60_000,
            partition: None,
            ..Plan::storm(seed)
        })
    };
    let (first, again, other) = (short(7), short(7), short(8));
    assert_eq!(first, again);
    assert_ne!(
        first.map(|figures| figures.trace),
        other.map(|figures| figures.trace)
    );
}

#[track_caller]
fn a_flaw_is_caught(flaw: Flaw, rules: &[Rule]) {
    // Short enough that capabilities outlive it: what is not heard again is missing, not yet expired.
    let plan = Plan {
        flaw: Some(flaw),
        jobs: 1_000,
        span_ms: 200_000,
        partition: Some((60_000, 120_000)),
        ..Plan::storm(1)
    };
    let broken = run(&plan).expect_err("the flaw went unnoticed");
    assert!(
        rules.contains(&broken.rule),
        "{flaw:?} was caught as {broken}"
    );
}

#[test]
fn a_widened_scope_is_caught() {
    a_flaw_is_caught(Flaw::ScopeWidened, &[Rule::ScopeHeld]);
}

#[test]
fn a_node_deaf_to_failures_is_caught() {
    a_flaw_is_caught(Flaw::FailoverDeaf, &[Rule::NoneLost, Rule::NewsInTime]);
}

#[test]
fn an_unseen_replay_is_caught() {
    a_flaw_is_caught(Flaw::ReplayUnseen, &[Rule::RunOnce]);
}

#[test]
fn a_receipt_settled_late_is_caught() {
    a_flaw_is_caught(
        Flaw::LateSettled,
        &[Rule::RunOnce, Rule::WholeAnswer, Rule::OneAttempt],
    );
}

#[test]
fn silence_after_a_partition_is_caught() {
    a_flaw_is_caught(Flaw::GossipMute, &[Rule::Converged]);
}

#[test]
fn work_begun_for_nobody_is_caught() {
    a_flaw_is_caught(Flaw::StartUnasked, &[Rule::NotUnasked]);
}
