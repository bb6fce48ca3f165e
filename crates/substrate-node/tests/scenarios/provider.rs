//! The provider's transitions.

use crate::harness::check;
use expect_test::expect;

#[test]
fn an_offer_becomes_an_answer() {
    check(
        "own m
        lend commons 2
        offer S j1#1 commons
        from S j1#1 input
        from S j1#1 begun
        from S j1#1 made 16
        from S j1#1 done 20",
        expect![[r#"
            own m
            lend commons 2
            offer S j1#1 commons
                reply S j1#1: ready
            from S j1#1 input
                run S j1#1 m
            from S j1#1 begun
            from S j1#1 made 16
            from S j1#1 done 20
        "#]],
    );
}

#[test]
fn a_model_that_is_not_loaded_is_loaded_while_the_input_travels() {
    check(
        "own m cold
        lend commons 2
        offer S j1#1 commons",
        expect![[r#"
            own m cold
            lend commons 2
            offer S j1#1 commons
                reply S j1#1: ready
                load m
        "#]],
    );
}

#[test]
fn nothing_is_loaded_ahead_for_a_job_that_wants_a_worker_of_its_own() {
    check(
        "own m cold
        lend commons 2
        offer S j1#1 commons isolated
        from S j1#1 input",
        expect![[r#"
            own m cold
            lend commons 2
            offer S j1#1 commons isolated
                reply S j1#1: ready
            from S j1#1 input
                run S j1#1 m alone
        "#]],
    );
}

#[test]
fn nothing_is_loaded_ahead_for_a_job_that_gets_a_machine() {
    check(
        "own m cold
        walls process microvm
        lend commons 2
        offer S j1#1 commons wall=microvm",
        expect![[r#"
            own m cold
            walls process microvm
            lend commons 2
            offer S j1#1 commons wall=microvm
                reply S j1#1: ready
        "#]],
    );
}

#[test]
fn lending_off_means_no_job_of_others_and_all_of_ones_own() {
    check(
        "own m
        offer S j1#1 commons
        offer C j2#1 circle
        offer O j3#1 mine",
        expect![[r#"
            own m
            offer S j1#1 commons
                reply S j1#1: refused LendingOff, again in 30000
            offer C j2#1 circle
                reply C j2#1: refused LendingOff, again in 30000
            offer O j3#1 mine
                reply O j3#1: ready
        "#]],
    );
}

#[test]
fn scope_lies_are_refused() {
    check(
        "own m d
        lend commons 2
        offer S j1#1 mine
        offer S j2#1 circle
        offer C j3#1 mine
        offer C j4#1 circle entry=d
        offer S j5#1 commons entry=d",
        expect![[r#"
            own m d
            lend commons 2
            offer S j1#1 mine
                reply S j1#1: refused OutOfScope, again in 30000
            offer S j2#1 circle
                reply S j2#1: refused OutOfScope, again in 30000
            offer C j3#1 mine
                reply C j3#1: refused OutOfScope, again in 30000
            offer C j4#1 circle entry=d
                reply C j4#1: ready
            offer S j5#1 commons entry=d
                reply S j5#1: refused EntryNotValid, again in 30000
        "#]],
    );
}

#[test]
fn lending_to_the_circle_is_not_lending_to_strangers() {
    check(
        "own m
        lend circle 2
        offer S j1#1 commons
        offer C j2#1 circle
        offer C j3#1 commons",
        expect![[r#"
            own m
            lend circle 2
            offer S j1#1 commons
                reply S j1#1: refused LendingOff, again in 30000
            offer C j2#1 circle
                reply C j2#1: ready
            offer C j3#1 commons
                reply C j3#1: 0 ahead, 5000 ms, your other jobs are still running here
        "#]],
    );
}

#[test]
fn what_is_not_held_not_walled_or_not_wanted_is_refused() {
    check(
        "own d
        lend commons 2 not=T
        offer S j1#1 commons
        own m
        offer S j2#1 commons wall=microvm
        offer T j3#1 commons
        offer S j4#1 commons deadline=0",
        expect![[r#"
            own d
            lend commons 2 not=T
            offer S j1#1 commons
                reply S j1#1: refused UnknownEntry, again in 30000
            own m
            offer S j2#1 commons wall=microvm
                reply S j2#1: refused WallUnmet, again in 30000
            offer T j3#1 commons
                reply T j3#1: refused OwnerRefuses, again in 30000
            offer S j4#1 commons deadline=0
                reply S j4#1: refused DeadlinePassed, again in 30000
        "#]],
    );
}

#[test]
fn an_owner_who_lists_requesters_lends_to_no_other() {
    check(
        "own m
        lend commons 2 only=C only=S only=T not=T
        offer S j1#1 commons
        from S j1#1 input
        offer U j2#1 commons
        offer T j3#1 commons
        offer D j4#1 circle
        offer C j5#1 circle
        lend commons 2 only=C",
        expect![[r#"
            own m
            lend commons 2 only=C only=S only=T not=T
            offer S j1#1 commons
                reply S j1#1: ready
            from S j1#1 input
                run S j1#1 m
            offer U j2#1 commons
                reply U j2#1: refused OwnerRefuses, again in 30000
            offer T j3#1 commons
                reply T j3#1: refused OwnerRefuses, again in 30000
            offer D j4#1 circle
                reply D j4#1: refused OwnerRefuses, again in 30000
            offer C j5#1 circle
                reply C j5#1: ready
            lend commons 2 only=C
                stop S j1#1: OwnerTookBack
        "#]],
    );
}

#[test]
fn a_replayed_manifest_is_refused_even_long_after() {
    check(
        "own m
        lend commons 2
        offer S j1#1 commons manifest=5
        from S j1#1 cancels
        +60000
        offer S j1#1 commons manifest=5
        offer S j2#1 commons manifest=5",
        expect![[r#"
            own m
            lend commons 2
            offer S j1#1 commons manifest=5
                reply S j1#1: ready
            from S j1#1 cancels
                stop S j1#1: Cancelled
            +60000
                1: publish to all: [m] slots 2 queue 0
                1: publish to circle: [m] slots 2 queue 0
            offer S j1#1 commons manifest=5
                reply S j1#1: refused Replayed, again in 30000
            offer S j2#1 commons manifest=5
                reply S j2#1: refused Replayed, again in 30000
        "#]],
    );
}

#[test]
fn a_manifest_of_an_earlier_session_is_refused() {
    check(
        "own m
        lend commons 2
        offer S j1#1 commons session=8
        renewed
        offer S j2#1 commons session=1
        offer S j3#1 commons session=9",
        expect![[r#"
            own m
            lend commons 2
            offer S j1#1 commons session=8
                reply S j1#1: refused WrongSession, again in 5000
            renewed
            offer S j2#1 commons session=1
                reply S j2#1: refused WrongSession, again in 5000
            offer S j3#1 commons session=9
                reply S j3#1: ready
        "#]],
    );
}

#[test]
fn the_queue_tells_everyone_where_they_stand() {
    check(
        "own m
        lend commons 2
        offer S j1#1 commons
        offer T j2#1 commons
        offer U j3#1 commons
        offer V j4#1 commons
        from S j1#1 input
        from S j1#1 begun
        from S j1#1 done 10
        +1000
        from T j2#1 beats
        from U j3#1 beats
        from V j4#1 beats
        +1000",
        expect![[r#"
            own m
            lend commons 2
            offer S j1#1 commons
                reply S j1#1: ready
            offer T j2#1 commons
                reply T j2#1: ready
            offer U j3#1 commons
                reply U j3#1: 0 ahead, 10000 ms, all slots are taken
            offer V j4#1 commons
                reply V j4#1: 1 ahead, 15000 ms, all slots are taken
            from S j1#1 input
                run S j1#1 m
            from S j1#1 begun
            from S j1#1 done 10
                reply U j3#1: ready
            +1000
                1: publish to all: [m] slots 2 queue 1
                1: publish to circle: [m] slots 2 queue 1
                250: reply V j4#1: 0 ahead, 10000 ms, all slots are taken
            from T j2#1 beats
            from U j3#1 beats
            from V j4#1 beats
            +1000
                2000: reply V j4#1: 0 ahead, 10000 ms, all slots are taken
        "#]],
    );
}

#[test]
fn one_identity_waits_with_at_most_sixteen_jobs() {
    let mut script = String::from("own m\nlend commons 1\n");
    for n in 1..=18 {
        script += &format!("offer S j{n}#1 commons\n");
    }
    let mut table = crate::harness::Table::new(1);
    table.play(&script);
    let last: Vec<_> = table.text.lines().rev().take(1).collect();
    expect!["    reply S j18#1: refused IdentityLimit, again in 3000"].assert_eq(last[0]);
    assert_eq!(table.node.queue_len(), 16);
}

#[test]
fn a_full_queue_refuses() {
    let mut table = crate::harness::Table::new(1);
    table.play("own m\nlend commons 1");
    for n in 0..130 {
        let identity = char::from(b'P' + n / 16);
        table.text.clear();
        table.play(&format!("offer {identity} j{}#1 commons", n + 1));
    }
    expect![[r#"
        offer X j130#1 commons
            reply X j130#1: refused QueueFull, again in 3000
    "#]]
    .assert_eq(&table.text);
    assert_eq!(table.node.queue_len(), 128);
}

#[test]
fn one_identity_cannot_hold_every_slot() {
    check(
        "own m
        lend commons 2
        offer S j1#1 commons
        offer S j2#1 commons
        offer T j3#1 commons",
        expect![[r#"
            own m
            lend commons 2
            offer S j1#1 commons
                reply S j1#1: ready
            offer S j2#1 commons
                reply S j2#1: 0 ahead, 5000 ms, your other jobs are still running here
            offer T j3#1 commons
                reply T j3#1: ready
        "#]],
    );
}

#[test]
fn the_owners_jobs_go_first() {
    check(
        "own m
        lend commons 2
        offer S j1#1 commons
        offer T j2#1 commons
        offer U j3#1 commons
        offer O j4#1 mine
        from S j1#1 cancels",
        expect![[r#"
            own m
            lend commons 2
            offer S j1#1 commons
                reply S j1#1: ready
            offer T j2#1 commons
                reply T j2#1: ready
            offer U j3#1 commons
                reply U j3#1: 0 ahead, 10000 ms, all slots are taken
            offer O j4#1 mine
                reply O j4#1: 0 ahead, 10000 ms, all slots are taken
            from S j1#1 cancels
                stop S j1#1: Cancelled
                reply O j4#1: ready
        "#]],
    );
}

#[test]
fn a_slot_without_input_is_given_to_the_next() {
    check(
        "own m
        lend commons 1
        offer S j1#1 commons
        offer T j2#1 commons
        from S j1#1 beats and from T j2#1 beats for 10000",
        expect![[r#"
            own m
            lend commons 1
            offer S j1#1 commons
                reply S j1#1: ready
            offer T j2#1 commons
                reply T j2#1: 0 ahead, 5000 ms, all slots are taken
            from S j1#1 beats and from T j2#1 beats for 10000
                1: publish to all: [m] slots 1 queue 1
                1: publish to circle: [m] slots 1 queue 1
                2000: reply T j2#1: 0 ahead, 5000 ms, all slots are taken
                4000: reply T j2#1: 0 ahead, 5000 ms, all slots are taken
                6000: reply T j2#1: 0 ahead, 5000 ms, all slots are taken
                8000: reply T j2#1: 0 ahead, 5000 ms, all slots are taken
                10000: reply S j1#1: refused LeaseExpired, again in 3000
                10000: reply T j2#1: ready
        "#]],
    );
}

#[test]
fn an_answer_that_stands_still_for_its_lease_gives_up_its_slot() {
    check(
        "own m
        lend commons 1
        offer S j1#1 commons
        from S j1#1 input
        from S j1#1 begun
        from S j1#1 beats for 100000
        from S j1#1 made 1
        from S j1#1 beats for 120000",
        expect![[r#"
            own m
            lend commons 1
            offer S j1#1 commons
                reply S j1#1: ready
            from S j1#1 input
                run S j1#1 m
            from S j1#1 begun
            from S j1#1 beats for 100000
                1: publish to all: [m] slots 1 queue 0
                1: publish to circle: [m] slots 1 queue 0
                63846: publish to all: [m] slots 1 queue 0
                63846: publish to circle: [m] slots 1 queue 0
            from S j1#1 made 1
            from S j1#1 beats for 120000
                127273: publish to all: [m] slots 1 queue 0
                127273: publish to circle: [m] slots 1 queue 0
                191532: publish to all: [m] slots 1 queue 0
                191532: publish to circle: [m] slots 1 queue 0
                220000: stop S j1#1: LeaseExpired
        "#]],
    );
}

#[test]
fn a_requester_gone_before_accept_starts_nothing() {
    check(
        "own m
        lend commons 2
        offer S j1#1 commons
        from S j1#1 breaks
        offer S j2#1 commons
        from S j2#1 input
        from S j2#1 breaks
        from S j2#1 begun
        offer S j3#1 commons
        +1800",
        expect![[r#"
            own m
            lend commons 2
            offer S j1#1 commons
                reply S j1#1: ready
            from S j1#1 breaks
                stop S j1#1: RequesterGone
            offer S j2#1 commons
                reply S j2#1: ready
            from S j2#1 input
                run S j2#1 m
            from S j2#1 breaks
                stop S j2#1: RequesterGone
            from S j2#1 begun
            offer S j3#1 commons
                reply S j3#1: ready
            +1800
                1: publish to all: [m] slots 2 queue 0
                1: publish to circle: [m] slots 2 queue 0
                1800: stop S j3#1: RequesterGone
        "#]],
    );
}

#[test]
fn a_requester_gone_after_accept_is_waited_for_ten_seconds() {
    check(
        "own m
        lend commons 2
        offer S j1#1 commons
        from S j1#1 input
        from S j1#1 begun
        from S j1#1 breaks
        +9999
        from S j1#1 resumes
        from S j1#1 breaks
        +10000
        from S j1#1 resumes",
        expect![[r#"
            own m
            lend commons 2
            offer S j1#1 commons
                reply S j1#1: ready
            from S j1#1 input
                run S j1#1 m
            from S j1#1 begun
            from S j1#1 breaks
                pause S j1#1
            +9999
                1: publish to all: [m] slots 2 queue 0
                1: publish to circle: [m] slots 2 queue 0
            from S j1#1 resumes
                go on S j1#1
            from S j1#1 breaks
                pause S j1#1
            +10000
                19999: stop S j1#1: RequesterGone
            from S j1#1 resumes
                stop S j1#1: RequesterGone
        "#]],
    );
}

#[test]
fn cancel_in_each_state() {
    check(
        "own m
        lend commons 2
        offer S j1#1 commons
        offer T j2#1 commons
        offer U j3#1 commons
        from U j3#1 cancels
        from S j1#1 cancels
        from T j2#1 input
        from T j2#1 cancels
        offer S j4#1 commons
        from S j4#1 input
        from S j4#1 begun
        from S j4#1 cancels
        offer S j5#1 commons
        from S j5#1 input
        from S j5#1 begun
        from S j5#1 breaks
        from S j5#1 cancels
        from S j5#1 cancels",
        expect![[r#"
            own m
            lend commons 2
            offer S j1#1 commons
                reply S j1#1: ready
            offer T j2#1 commons
                reply T j2#1: ready
            offer U j3#1 commons
                reply U j3#1: 0 ahead, 10000 ms, all slots are taken
            from U j3#1 cancels
                stop U j3#1: Cancelled
            from S j1#1 cancels
                stop S j1#1: Cancelled
            from T j2#1 input
                run T j2#1 m
            from T j2#1 cancels
                stop T j2#1: Cancelled
            offer S j4#1 commons
                reply S j4#1: ready
            from S j4#1 input
                run S j4#1 m
            from S j4#1 begun
            from S j4#1 cancels
                stop S j4#1: Cancelled
            offer S j5#1 commons
                reply S j5#1: ready
            from S j5#1 input
                run S j5#1 m
            from S j5#1 begun
            from S j5#1 breaks
                pause S j5#1
            from S j5#1 cancels
                stop S j5#1: Cancelled
            from S j5#1 cancels
        "#]],
    );
}

#[test]
fn a_worker_that_cannot_begin_refuses_and_one_that_crashes_stops() {
    check(
        "own m
        lend commons 2
        offer S j1#1 commons
        from S j1#1 input
        from S j1#1 overflowed
        offer S j2#1 commons
        from S j2#1 input
        from S j2#1 crashed
        offer S j3#1 commons
        from S j3#1 input
        from S j3#1 begun
        from S j3#1 crashed",
        expect![[r#"
            own m
            lend commons 2
            offer S j1#1 commons
                reply S j1#1: ready
            from S j1#1 input
                run S j1#1 m
            from S j1#1 overflowed
                reply S j1#1: refused ContextOverflow, again in 30000
            offer S j2#1 commons
                reply S j2#1: ready
            from S j2#1 input
                run S j2#1 m
            from S j2#1 crashed
                reply S j2#1: refused WorkerFailed, again in 5000
            offer S j3#1 commons
                reply S j3#1: ready
            from S j3#1 input
                run S j3#1 m
            from S j3#1 begun
            from S j3#1 crashed
                stop S j3#1: WorkerFailed
        "#]],
    );
}

#[test]
fn the_owner_takes_the_machine_back() {
    check(
        "own m
        lend commons 2
        offer S j1#1 commons
        from S j1#1 input
        from S j1#1 begun
        offer T j2#1 commons
        offer U j3#1 commons
        lend off",
        expect![[r#"
            own m
            lend commons 2
            offer S j1#1 commons
                reply S j1#1: ready
            from S j1#1 input
                run S j1#1 m
            from S j1#1 begun
            offer T j2#1 commons
                reply T j2#1: ready
            offer U j3#1 commons
                reply U j3#1: 0 ahead, 10000 ms, all slots are taken
            lend off
                stop S j1#1: OwnerTookBack
                reply T j2#1: refused LendingOff, again in 30000
                reply U j3#1: refused LendingOff, again in 30000
        "#]],
    );
}

#[test]
fn a_draining_node_lets_run_what_runs() {
    check(
        "own m
        lend commons 2
        offer S j1#1 commons
        from S j1#1 input
        from S j1#1 begun
        offer T j2#1 commons
        drain
        offer U j3#1 commons
        from S j1#1 done 12",
        expect![[r#"
            own m
            lend commons 2
            offer S j1#1 commons
                reply S j1#1: ready
            from S j1#1 input
                run S j1#1 m
            from S j1#1 begun
            offer T j2#1 commons
                reply T j2#1: ready
            drain
                reply T j2#1: refused Draining, again in 30000
            offer U j3#1 commons
                reply U j3#1: refused Draining, again in 30000
            from S j1#1 done 12
        "#]],
    );
}

#[test]
fn a_deadline_ends_the_wait_for_the_first_token() {
    check(
        "own m
        lend commons 1
        offer S j1#1 commons deadline=1000
        from S j1#1 input
        from S j1#1 begun
        offer T j2#1 commons deadline=500
        +1000",
        expect![[r#"
            own m
            lend commons 1
            offer S j1#1 commons deadline=1000
                reply S j1#1: ready
            from S j1#1 input
                run S j1#1 m
            from S j1#1 begun
            offer T j2#1 commons deadline=500
                reply T j2#1: 0 ahead, 5000 ms, all slots are taken
            +1000
                1: publish to all: [m] slots 1 queue 1
                1: publish to circle: [m] slots 1 queue 1
                500: reply T j2#1: refused DeadlinePassed, again in 30000
                1000: stop S j1#1: Deadline
        "#]],
    );
}

#[test]
fn work_that_gets_on_outlives_the_deadline() {
    check(
        "own m
        lend commons 1
        offer S j1#1 commons deadline=1000
        from S j1#1 input
        from S j1#1 begun
        from S j1#1 made 1
        +1700
        from S j1#1 beats
        +1700
        from S j1#1 done 12",
        expect![[r#"
            own m
            lend commons 1
            offer S j1#1 commons deadline=1000
                reply S j1#1: ready
            from S j1#1 input
                run S j1#1 m
            from S j1#1 begun
            from S j1#1 made 1
            +1700
                1: publish to all: [m] slots 1 queue 0
                1: publish to circle: [m] slots 1 queue 0
            from S j1#1 beats
            +1700
            from S j1#1 done 12
        "#]],
    );
}

#[test]
fn a_later_attempt_supersedes_an_earlier_one() {
    check(
        "own m
        lend commons 2
        offer S j1#1 commons
        from S j1#1 input
        offer S j1#2 commons
        offer S j1#1 commons",
        expect![[r#"
            own m
            lend commons 2
            offer S j1#1 commons
                reply S j1#1: ready
            from S j1#1 input
                run S j1#1 m
            offer S j1#2 commons
                stop S j1#1: Superseded
                reply S j1#2: ready
            offer S j1#1 commons
                reply S j1#1: refused Replayed, again in 30000
        "#]],
    );
}

#[test]
fn a_wall_that_did_not_hold_is_offered_no_more() {
    check(
        "own m
        lend commons 2
        walls
        offer S j1#1 commons
        walls process
        offer S j2#1 commons",
        expect![[r#"
            own m
            lend commons 2
            walls
            offer S j1#1 commons
                reply S j1#1: refused WallUnmet, again in 30000
            walls process
            offer S j2#1 commons
                reply S j2#1: ready
        "#]],
    );
}
