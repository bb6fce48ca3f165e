//! The requester's transitions.

use crate::harness::check;
use expect_test::expect;

#[test]
fn an_own_job_runs_on_the_own_machine_by_the_same_messages() {
    check(
        "own m
        submit j1 mine
        offer O j1#1 mine
        O j1#1 ready
        from O j1#1 input
        from O j1#1 begun
        O j1#1 started
        from O j1#1 made 16
        O j1#1 tokens 16
        from O j1#1 done 20
        O j1#1 finishes 20
        stored O j1#1",
        expect![[r#"
            own m
            submit j1 mine
                offer O j1#1 m mine
                tell j1: 0 ahead, 0 ms, asking node O
            offer O j1#1 mine
                reply O j1#1: ready
            O j1#1 ready
                tell j1: 0 ahead, 0 ms, node O is preparing
            from O j1#1 input
                run O j1#1 m
            from O j1#1 begun
            O j1#1 started
                tell started O j1#1 9 in
            from O j1#1 made 16
            O j1#1 tokens 16
            from O j1#1 done 20
            O j1#1 finishes 20
                settle O j1#1 20 tokens
            stored O j1#1
                finish j1
        "#]],
    );
}

#[test]
fn a_job_that_demands_a_trusted_environment_goes_only_where_its_evidence_was_believed() {
    check(
        "peer S
        peer T
        gossip S m speed=1000 tee=claimed
        submit j1 commons tee
        submit j2 commons
        +3000
        gossip T m speed=1 tee=believed",
        expect![[r#"
            peer S
            peer T
            gossip S m speed=1000 tee=claimed
                forward
            submit j1 commons tee
                tell j1: 0 ahead, 0 ms, no node in scope can answer with this model right now
            submit j2 commons
                offer S j2#1 m commons
                tell j2: 0 ahead, 0 ms, asking node S
            +3000
                1800: close S j2#1 0 tokens: Lost
                1800: tell j2: 1 ahead, 0 ms, every node that could answer is busy or out of reach
                2000: tell j1: 0 ahead, 0 ms, no node in scope can answer with this model right now
                2800: offer S j2#2 m commons after #1
                2800: tell j2: 0 ahead, 0 ms, asking node S
            gossip T m speed=1 tee=believed
                forward
                offer T j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node T
        "#]],
    );
}

#[test]
fn what_a_later_word_says_does_not_rest_on_an_earlier_ones_evidence() {
    check(
        "peer S
        gossip S m tee=believed
        +3000
        gossip S m tee=claimed
        submit j1 commons tee
        +3000
        gossip S m tee=believed",
        expect![[r#"
            peer S
            gossip S m tee=believed
                forward
            +3000
            gossip S m tee=claimed
                forward
            submit j1 commons tee
                tell j1: 0 ahead, 0 ms, no node in scope can answer with this model right now
            +3000
                5000: tell j1: 0 ahead, 0 ms, no node in scope can answer with this model right now
            gossip S m tee=believed
                forward
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
        "#]],
    );
}

#[test]
fn a_mine_job_waits_for_the_own_model_however_fast_strangers_and_friends_are() {
    check(
        "peer S
        peer C
        gossip S m speed=1000
        direct C m speed=1000
        submit j1 mine
        +4000
        own m",
        expect![[r#"
            peer S
            peer C
            gossip S m speed=1000
                forward
            direct C m speed=1000
            submit j1 mine
                tell j1: 0 ahead, 0 ms, no node in scope can answer with this model right now
            +4000
                2000: tell j1: 0 ahead, 0 ms, no node in scope can answer with this model right now
                4000: tell j1: 0 ahead, 0 ms, no node in scope can answer with this model right now
            own m
                offer O j1#1 m mine
                tell j1: 0 ahead, 0 ms, asking node O
        "#]],
    );
}

#[test]
fn a_circle_job_goes_to_a_friend_never_to_a_faster_stranger() {
    check(
        "peer S
        peer C
        gossip S m speed=1000
        direct C m speed=2
        submit j1 circle",
        expect![[r#"
            peer S
            peer C
            gossip S m speed=1000
                forward
            direct C m speed=2
            submit j1 circle
                offer C j1#1 m circle
                tell j1: 0 ahead, 0 ms, asking node C
        "#]],
    );
}

#[test]
fn a_commons_job_may_go_to_a_stranger() {
    check(
        "peer S
        gossip S m
        submit j1 commons",
        expect![[r#"
            peer S
            gossip S m
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
        "#]],
    );
}

#[test]
fn the_own_machine_wins_ties_and_loses_to_the_much_faster() {
    check(
        "own m
        peer S
        gossip S m speed=10
        submit j1 commons
        gossip S m speed=100
        +3000
        gossip S m speed=100
        submit j2 commons",
        expect![[r#"
            own m
            peer S
            gossip S m speed=10
                forward
            submit j1 commons
                offer O j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node O
            gossip S m speed=100
                drop: TooOften
            +3000
                2000: tell j1: 0 ahead, 0 ms, asking node O
            gossip S m speed=100
                forward
            submit j2 commons
                offer S j2#1 m commons
                tell j2: 0 ahead, 0 ms, asking node S
        "#]],
    );
}

#[test]
fn an_entry_vouched_for_only_by_the_own_device_narrows_the_scope_it_never_widens() {
    check(
        "own d
        submit j1 commons entry=d
        submit j2 mine entry=x",
        expect![[r#"
            own d
            submit j1 commons entry=d
                offer O j1#1 d circle
                tell j1: 0 ahead, 0 ms, asking node O
            submit j2 mine entry=x
                fail j2: the model is not approved in the job's scope
        "#]],
    );
}

#[test]
fn a_place_outside_the_scope_is_refused_at_once() {
    check(
        "submit j1 mine elsewhere
        submit j2 circle at=S",
        expect![[r#"
            submit j1 mine elsewhere
                fail j1: the place asked for lies outside the job's scope
            submit j2 circle at=S
                fail j2: the place asked for lies outside the job's scope
        "#]],
    );
}

#[test]
fn silence_for_1800_ms_moves_the_answer_on() {
    check(
        "peer S
        peer T
        gossip S m speed=100
        submit j1 commons
        S j1#1 ready
        S j1#1 started
        S j1#1 tokens 40
        gossip T m
        +1799
        +1",
        expect![[r#"
            peer S
            peer T
            gossip S m speed=100
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 ready
                tell j1: 0 ahead, 0 ms, node S is preparing
            S j1#1 started
                tell started S j1#1 9 in
            S j1#1 tokens 40
            gossip T m
                forward
            +1799
            +1
                1800: close S j1#1 40 tokens: Lost
                1800: tell j1 left S after 40: Vanished
                1800: offer T j1#2 m commons resuming 40 after #1
                1800: tell j1: 0 ahead, 0 ms, asking node T
        "#]],
    );
}

#[test]
fn heartbeats_keep_a_slow_node() {
    check(
        "peer S
        gossip S m
        submit j1 commons
        S j1#1 ready
        S j1#1 started
        +1500
        S j1#1 beats
        +1500
        S j1#1 beats
        +1500",
        expect![[r#"
            peer S
            gossip S m
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 ready
                tell j1: 0 ahead, 0 ms, node S is preparing
            S j1#1 started
                tell started S j1#1 9 in
            +1500
            S j1#1 beats
            +1500
            S j1#1 beats
            +1500
        "#]],
    );
}

#[test]
fn a_broken_stream_is_resumed_within_its_window_at_the_same_node() {
    check(
        "peer S
        gossip S m
        submit j1 commons
        S j1#1 ready
        S j1#1 started
        S j1#1 tokens 40
        S j1#1 breaks
        +500
        S j1#1 resumes
        S j1#1 tokens 60
        S j1#1 finishes 60
        stored S j1#1",
        expect![[r#"
            peer S
            gossip S m
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 ready
                tell j1: 0 ahead, 0 ms, node S is preparing
            S j1#1 started
                tell started S j1#1 9 in
            S j1#1 tokens 40
            S j1#1 breaks
                resume S j1#1
            +500
            S j1#1 resumes
            S j1#1 tokens 60
            S j1#1 finishes 60
                settle S j1#1 60 tokens
            stored S j1#1
                finish j1
        "#]],
    );
}

#[test]
fn a_stream_not_resumed_within_1800_ms_fails_over() {
    check(
        "peer S
        peer T
        gossip S m speed=100
        submit j1 commons
        S j1#1 ready
        S j1#1 started
        S j1#1 tokens 40
        gossip T m
        S j1#1 breaks
        +1800",
        expect![[r#"
            peer S
            peer T
            gossip S m speed=100
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 ready
                tell j1: 0 ahead, 0 ms, node S is preparing
            S j1#1 started
                tell started S j1#1 9 in
            S j1#1 tokens 40
            gossip T m
                forward
            S j1#1 breaks
                resume S j1#1
            +1800
                1800: close S j1#1 40 tokens: Lost
                1800: tell j1 left S after 40: Vanished
                1800: offer T j1#2 m commons resuming 40 after #1
                1800: tell j1: 0 ahead, 0 ms, asking node T
        "#]],
    );
}

#[test]
fn a_failed_resume_fails_over_at_once_with_the_connection_or_without() {
    check(
        "peer S
        peer T
        peer U
        gossip S m speed=100
        submit j1 commons
        S j1#1 ready
        S j1#1 started
        S j1#1 tokens 40
        gossip T m
        S j1#1 breaks
        S j1#1 cannot-resume
        T j1#2 ready
        T j1#2 started
        T j1#2 tokens 10
        gossip U m
        T j1#2 cut-off
        T j1#2 cannot-resume",
        expect![[r#"
            peer S
            peer T
            peer U
            gossip S m speed=100
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 ready
                tell j1: 0 ahead, 0 ms, node S is preparing
            S j1#1 started
                tell started S j1#1 9 in
            S j1#1 tokens 40
            gossip T m
                forward
            S j1#1 breaks
                resume S j1#1
            S j1#1 cannot-resume
                close S j1#1 40 tokens: Lost
                tell j1 left S after 40: Vanished
                offer T j1#2 m commons resuming 40 after #1
                tell j1: 0 ahead, 0 ms, asking node T
            T j1#2 ready
                tell j1: 0 ahead, 0 ms, node T is preparing
            T j1#2 started
                tell started T j1#2 9 in
            T j1#2 tokens 10
            gossip U m
                forward
            T j1#2 cut-off
                resume T j1#2
            T j1#2 cannot-resume
                close T j1#2 10 tokens: Lost
                tell j1 left T after 50: Vanished
                offer U j1#3 m commons resuming 50 after #2
                tell j1: 0 ahead, 0 ms, asking node U
        "#]],
    );
}

#[test]
fn a_connection_that_is_made_again_in_time_goes_on_at_the_same_node() {
    check(
        "peer S
        peer T
        gossip S m speed=100
        submit j1 commons
        S j1#1 ready
        S j1#1 started
        S j1#1 tokens 40
        gossip T m
        gone S
        S j1#1 cut-off
        +500
        peer S
        S j1#1 resumes
        S j1#1 tokens 60
        gone S
        +1800",
        expect![[r#"
            peer S
            peer T
            gossip S m speed=100
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 ready
                tell j1: 0 ahead, 0 ms, node S is preparing
            S j1#1 started
                tell started S j1#1 9 in
            S j1#1 tokens 40
            gossip T m
                forward
            gone S
                resume S j1#1
            S j1#1 cut-off
            +500
            peer S
            S j1#1 resumes
            S j1#1 tokens 60
            gone S
                resume S j1#1
            +1800
                2300: close S j1#1 60 tokens: Lost
                2300: tell j1 left S after 60: Vanished
                2300: offer T j1#2 m commons resuming 60 after #1
                2300: tell j1: 0 ahead, 0 ms, asking node T
        "#]],
    );
}

#[test]
fn a_provider_dying_before_accept_is_simply_replaced() {
    check(
        "peer S
        peer T
        gossip S m speed=100
        submit j1 commons
        S j1#1 queued 3 9000
        gossip T m
        gone S",
        expect![[r#"
            peer S
            peer T
            gossip S m speed=100
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 queued 3 9000
                tell j1: 3 ahead, 9000 ms, in the queue of node S
            gossip T m
                forward
            gone S
                close S j1#1 0 tokens: Lost
                offer T j1#2 m commons after #1
                tell j1: 0 ahead, 0 ms, asking node T
        "#]],
    );
}

#[test]
fn late_messages_of_an_old_attempt_change_nothing() {
    check(
        "peer S
        peer T
        gossip S m speed=100
        submit j1 commons
        S j1#1 ready
        S j1#1 started
        S j1#1 tokens 40
        gossip T m
        S j1#1 cut-off
        S j1#1 cannot-resume
        S j1#1 tokens 90
        S j1#1 finishes 100
        S j1#1 refuses full 100
        S j1#1 cut-off
        stored S j1#1
        T j1#1 finishes 100
        T j1#2 ready
        T j1#2 started
        T j1#2 finishes 60
        T j1#2 finishes 60
        stored T j1#2
        stored T j1#2",
        expect![[r#"
            peer S
            peer T
            gossip S m speed=100
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 ready
                tell j1: 0 ahead, 0 ms, node S is preparing
            S j1#1 started
                tell started S j1#1 9 in
            S j1#1 tokens 40
            gossip T m
                forward
            S j1#1 cut-off
                resume S j1#1
            S j1#1 cannot-resume
                close S j1#1 40 tokens: Lost
                tell j1 left S after 40: Vanished
                offer T j1#2 m commons resuming 40 after #1
                tell j1: 0 ahead, 0 ms, asking node T
            S j1#1 tokens 90
            S j1#1 finishes 100
            S j1#1 refuses full 100
            S j1#1 cut-off
            stored S j1#1
            T j1#1 finishes 100
            T j1#2 ready
                tell j1: 0 ahead, 0 ms, node T is preparing
            T j1#2 started
                tell started T j1#2 9 in
            T j1#2 finishes 60
                settle T j1#2 60 tokens
            T j1#2 finishes 60
            stored T j1#2
                finish j1
            stored T j1#2
        "#]],
    );
}

#[test]
fn one_node_may_refuse_the_daemon_keeps_the_job() {
    check(
        "peer S
        gossip S m
        submit j1 commons
        S j1#1 refuses full 700
        +699
        +1",
        expect![[r#"
            peer S
            gossip S m
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 refuses full 700
                close S j1#1 0 tokens: Refused
                tell j1: 0 ahead, 0 ms, every node that could answer is busy or out of reach
            +699
            +1
                700: offer S j1#2 m commons after #1
                700: tell j1: 0 ahead, 0 ms, asking node S
        "#]],
    );
}

#[test]
fn a_refused_job_goes_to_the_next_node() {
    check(
        "peer S
        peer T
        gossip S m speed=100
        submit j1 commons
        gossip T m
        S j1#1 refuses full 3000",
        expect![[r#"
            peer S
            peer T
            gossip S m speed=100
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            gossip T m
                forward
            S j1#1 refuses full 3000
                close S j1#1 0 tokens: Refused
                offer T j1#2 m commons after #1
                tell j1: 0 ahead, 0 ms, asking node T
        "#]],
    );
}

#[test]
fn a_strangers_word_that_the_job_is_at_fault_needs_a_second_one() {
    check(
        "peer S
        peer T
        gossip S m speed=100
        submit j1 commons
        gossip T m
        S j1#1 refuses context 3000
        T j1#2 refuses context 3000",
        expect![[r#"
            peer S
            peer T
            gossip S m speed=100
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            gossip T m
                forward
            S j1#1 refuses context 3000
                close S j1#1 0 tokens: Refused
                offer T j1#2 m commons after #1
                tell j1: 0 ahead, 0 ms, asking node T
            T j1#2 refuses context 3000
                close T j1#2 0 tokens: Refused
                fail j1: prompt and answer do not fit the context
        "#]],
    );
}

#[test]
fn a_cheat_is_left_and_not_asked_again() {
    check(
        "peer S
        gossip S m
        submit j1 commons deadline=700000
        S j1#1 ready
        S j1#1 started
        S j1#1 tokens 5
        S j1#1 cheats
        +1000
        submit j2 commons",
        expect![[r#"
            peer S
            gossip S m
                forward
            submit j1 commons deadline=700000
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 ready
                tell j1: 0 ahead, 0 ms, node S is preparing
            S j1#1 started
                tell started S j1#1 9 in
            S j1#1 tokens 5
            S j1#1 cheats
                close S j1#1 5 tokens: Misbehaved
                tell j1 left S after 5: Misbehaved
                tell j1: 0 ahead, 0 ms, every node that could answer is busy or out of reach
            +1000
            submit j2 commons
                tell j2: 1 ahead, 0 ms, every node that could answer is busy or out of reach
        "#]],
    );
}

#[test]
fn this_machine_does_not_shun_itself_for_what_one_of_its_workers_did() {
    check(
        "own m d
        submit j1 mine
        O j1#1 ready
        O j1#1 started
        O j1#1 cheats
        cancel j1
        submit j2 mine entry=d
        O j2#1 refuses worker 5000
        submit j3 mine",
        expect![[r#"
            own m d
            submit j1 mine
                offer O j1#1 m mine
                tell j1: 0 ahead, 0 ms, asking node O
            O j1#1 ready
                tell j1: 0 ahead, 0 ms, node O is preparing
            O j1#1 started
                tell started O j1#1 9 in
            O j1#1 cheats
                close O j1#1 0 tokens: Misbehaved
                tell j1 left O after 0: Misbehaved
                tell j1: 0 ahead, 0 ms, every node that could answer is busy or out of reach
            cancel j1
                fail j1: the job was cancelled
            submit j2 mine entry=d
                offer O j2#1 d mine
                tell j2: 0 ahead, 0 ms, asking node O
            O j2#1 refuses worker 5000
                close O j2#1 0 tokens: Refused
                tell j2: 0 ahead, 0 ms, every node that could answer is busy or out of reach
            submit j3 mine
                offer O j3#1 m mine
                tell j3: 0 ahead, 0 ms, asking node O
        "#]],
    );
}

#[test]
fn more_tokens_than_asked_for_is_cheating() {
    check(
        "peer S
        gossip S m
        submit j1 commons
        S j1#1 ready
        S j1#1 started
        S j1#1 tokens 101",
        expect![[r#"
            peer S
            gossip S m
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 ready
                tell j1: 0 ahead, 0 ms, node S is preparing
            S j1#1 started
                tell started S j1#1 9 in
            S j1#1 tokens 101
                close S j1#1 0 tokens: Misbehaved
                tell j1 left S after 0: Misbehaved
                tell j1: 0 ahead, 0 ms, every node that could answer is busy or out of reach
        "#]],
    );
}

#[test]
fn a_node_that_gives_the_job_back_is_replaced() {
    check(
        "peer S
        peer T
        gossip S m speed=100
        submit j1 commons
        S j1#1 ready
        S j1#1 started
        gossip T m
        S j1#1 gives-up 30",
        expect![[r#"
            peer S
            peer T
            gossip S m speed=100
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 ready
                tell j1: 0 ahead, 0 ms, node S is preparing
            S j1#1 started
                tell started S j1#1 9 in
            gossip T m
                forward
            S j1#1 gives-up 30
                close S j1#1 30 tokens: GaveUp
                tell j1 left S after 30: GaveUp
                offer T j1#2 m commons resuming 30 after #1
                tell j1: 0 ahead, 0 ms, asking node T
        "#]],
    );
}

#[test]
fn a_node_that_vanishes_after_the_last_token_costs_nothing() {
    check(
        "peer S
        gossip S m
        submit j1 commons
        S j1#1 ready
        S j1#1 started
        S j1#1 tokens 100
        S j1#1 cut-off
        S j1#1 cannot-resume",
        expect![[r#"
            peer S
            gossip S m
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 ready
                tell j1: 0 ahead, 0 ms, node S is preparing
            S j1#1 started
                tell started S j1#1 9 in
            S j1#1 tokens 100
            S j1#1 cut-off
                resume S j1#1
            S j1#1 cannot-resume
                close S j1#1 100 tokens: Lost
                finish j1
        "#]],
    );
}

#[test]
fn an_offer_without_any_answer_is_given_up() {
    check(
        "gossip S m
        submit j1 commons
        +5000",
        expect![[r#"
            gossip S m
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            +5000
                2000: tell j1: 0 ahead, 0 ms, asking node S
                4000: tell j1: 0 ahead, 0 ms, asking node S
                5000: close S j1#1 0 tokens: Stalled
                5000: tell j1: 0 ahead, 0 ms, every node that could answer is busy or out of reach
        "#]],
    );
}

#[test]
fn a_peer_that_heartbeats_and_gets_nowhere_is_left() {
    check(
        "peer S
        gossip S m speed=1000
        submit j1 commons
        S j1#1 ready
        S j1#1 started
        S j1#1 beats for 21000",
        expect![[r#"
            peer S
            gossip S m speed=1000
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 ready
                tell j1: 0 ahead, 0 ms, node S is preparing
            S j1#1 started
                tell started S j1#1 9 in
            S j1#1 beats for 21000
                20612: close S j1#1 0 tokens: Stalled
                20612: tell j1 left S after 0: Stalled
                20612: tell j1: 0 ahead, 0 ms, every node that could answer is busy or out of reach
        "#]],
    );
}

#[test]
fn a_peer_that_claims_no_speed_is_left_when_the_lease_of_an_honest_one_has_ended() {
    check(
        "peer S
        gossip S m speed=0
        submit j1 commons
        S j1#1 ready
        S j1#1 started
        S j1#1 tokens 1
        S j1#1 beats for 141000",
        expect![[r#"
            peer S
            gossip S m speed=0
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 ready
                tell j1: 0 ahead, 0 ms, node S is preparing
            S j1#1 started
                tell started S j1#1 9 in
            S j1#1 tokens 1
            S j1#1 beats for 141000
                140000: close S j1#1 1 tokens: Stalled
                140000: tell j1 left S after 1: Stalled
                140000: tell j1: 0 ahead, 0 ms, every node that could answer is busy or out of reach
                141000: offer S j1#2 m commons resuming 1 after #1
                141000: tell j1: 0 ahead, 0 ms, asking node S
        "#]],
    );
}

#[test]
fn patience_in_a_queue_ends_at_twice_what_was_promised_and_30_s() {
    check(
        "peer S
        gossip S m speed=100
        submit j1 commons
        S j1#1 queued 3 1000
        gossip T m
        S j1#1 beats for 32500",
        expect![[r#"
            peer S
            gossip S m speed=100
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 queued 3 1000
                tell j1: 3 ahead, 1000 ms, in the queue of node S
            gossip T m
                forward
            S j1#1 beats for 32500
                2000: tell j1: 3 ahead, 0 ms, in the queue of node S
                4000: tell j1: 3 ahead, 0 ms, in the queue of node S
                6000: tell j1: 3 ahead, 0 ms, in the queue of node S
                8000: tell j1: 3 ahead, 0 ms, in the queue of node S
                10000: tell j1: 3 ahead, 0 ms, in the queue of node S
                12000: tell j1: 3 ahead, 0 ms, in the queue of node S
                14000: tell j1: 3 ahead, 0 ms, in the queue of node S
                16000: tell j1: 3 ahead, 0 ms, in the queue of node S
                18000: tell j1: 3 ahead, 0 ms, in the queue of node S
                20000: tell j1: 3 ahead, 0 ms, in the queue of node S
                22000: tell j1: 3 ahead, 0 ms, in the queue of node S
                24000: tell j1: 3 ahead, 0 ms, in the queue of node S
                26000: tell j1: 3 ahead, 0 ms, in the queue of node S
                28000: tell j1: 3 ahead, 0 ms, in the queue of node S
                30000: tell j1: 3 ahead, 0 ms, in the queue of node S
                32000: close S j1#1 0 tokens: Stalled
                32000: offer T j1#2 m commons after #1
                32000: tell j1: 0 ahead, 0 ms, asking node T
        "#]],
    );
}

#[test]
fn cancel_while_waiting() {
    check(
        "submit j1 commons
        cancel j1
        cancel j1",
        expect![[r#"
            submit j1 commons
                tell j1: 0 ahead, 0 ms, no node in scope can answer with this model right now
            cancel j1
                fail j1: the job was cancelled
            cancel j1
        "#]],
    );
}

#[test]
fn cancel_while_offered_queued_preparing_running_resuming() {
    check(
        "peer S
        gossip S m slots=9
        submit j1 commons
        cancel j1
        submit j2 commons
        S j2#1 queued 1 100
        cancel j2
        submit j3 commons
        S j3#1 ready
        cancel j3
        submit j4 commons
        S j4#1 ready
        S j4#1 started
        S j4#1 tokens 7
        cancel j4
        submit j5 commons
        S j5#1 ready
        S j5#1 started
        S j5#1 tokens 7
        S j5#1 breaks
        cancel j5",
        expect![[r#"
            peer S
            gossip S m slots=9
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            cancel j1
                close S j1#1 0 tokens: Cancelled
                fail j1: the job was cancelled
            submit j2 commons
                offer S j2#1 m commons
                tell j2: 0 ahead, 0 ms, asking node S
            S j2#1 queued 1 100
                tell j2: 1 ahead, 100 ms, in the queue of node S
            cancel j2
                close S j2#1 0 tokens: Cancelled
                fail j2: the job was cancelled
            submit j3 commons
                offer S j3#1 m commons
                tell j3: 0 ahead, 0 ms, asking node S
            S j3#1 ready
                tell j3: 0 ahead, 0 ms, node S is preparing
            cancel j3
                close S j3#1 0 tokens: Cancelled
                fail j3: the job was cancelled
            submit j4 commons
                offer S j4#1 m commons
                tell j4: 0 ahead, 0 ms, asking node S
            S j4#1 ready
                tell j4: 0 ahead, 0 ms, node S is preparing
            S j4#1 started
                tell started S j4#1 9 in
            S j4#1 tokens 7
            cancel j4
                close S j4#1 7 tokens: Cancelled
                fail j4: the job was cancelled
            submit j5 commons
                offer S j5#1 m commons
                tell j5: 0 ahead, 0 ms, asking node S
            S j5#1 ready
                tell j5: 0 ahead, 0 ms, node S is preparing
            S j5#1 started
                tell started S j5#1 9 in
            S j5#1 tokens 7
            S j5#1 breaks
                resume S j5#1
            cancel j5
                close S j5#1 7 tokens: Cancelled
                fail j5: the job was cancelled
        "#]],
    );
}

#[test]
fn cancel_comes_too_late_for_a_whole_answer() {
    check(
        "peer S
        gossip S m
        submit j1 commons
        S j1#1 ready
        S j1#1 started
        S j1#1 finishes 50
        cancel j1
        stored S j1#1",
        expect![[r#"
            peer S
            gossip S m
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 ready
                tell j1: 0 ahead, 0 ms, node S is preparing
            S j1#1 started
                tell started S j1#1 9 in
            S j1#1 finishes 50
                settle S j1#1 50 tokens
            cancel j1
            stored S j1#1
                finish j1
        "#]],
    );
}

#[test]
fn a_store_that_hangs_does_not_keep_the_answer() {
    check(
        "peer S
        gossip S m
        submit j1 commons
        S j1#1 ready
        S j1#1 started
        S j1#1 finishes 50
        +10000",
        expect![[r#"
            peer S
            gossip S m
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 ready
                tell j1: 0 ahead, 0 ms, node S is preparing
            S j1#1 started
                tell started S j1#1 9 in
            S j1#1 finishes 50
                settle S j1#1 50 tokens
            +10000
                10000: finish j1
        "#]],
    );
}

#[test]
fn the_deadline_ends_a_wait_for_the_first_token() {
    check(
        "submit j1 commons deadline=1000
        +1000
        peer S
        gossip S m
        submit j2 commons deadline=1000
        S j2#1 ready
        S j2#1 started
        +1000",
        expect![[r#"
            submit j1 commons deadline=1000
                tell j1: 0 ahead, 0 ms, no node in scope can answer with this model right now
            +1000
                1000: fail j1: the deadline passed after 0 attempts: no node in scope can answer with this model right now
            peer S
            gossip S m
                forward
            submit j2 commons deadline=1000
                offer S j2#1 m commons
                tell j2: 0 ahead, 0 ms, asking node S
            S j2#1 ready
                tell j2: 0 ahead, 0 ms, node S is preparing
            S j2#1 started
                tell started S j2#1 9 in
            +1000
                2000: close S j2#1 0 tokens: Deadline
                2000: fail j2: the deadline passed after 1 attempts: node f80cccdc was answering
        "#]],
    );
}

#[test]
fn text_that_flows_is_not_cut_by_the_deadline_but_silence_is() {
    check(
        "peer S
        gossip S m
        submit j1 commons deadline=1500
        S j1#1 ready
        S j1#1 started
        +1400
        S j1#1 tokens 3
        +1400
        S j1#1 beats
        +1400
        S j1#1 tokens 4
        +1000
        S j1#1 cut-off
        +2000",
        expect![[r#"
            peer S
            gossip S m
                forward
            submit j1 commons deadline=1500
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 ready
                tell j1: 0 ahead, 0 ms, node S is preparing
            S j1#1 started
                tell started S j1#1 9 in
            +1400
            S j1#1 tokens 3
            +1400
            S j1#1 beats
            +1400
            S j1#1 tokens 4
            +1000
            S j1#1 cut-off
                resume S j1#1
            +2000
                5700: close S j1#1 4 tokens: Deadline
                5700: fail j1: the deadline passed after 1 attempts: node f80cccdc was answering
        "#]],
    );
}

#[test]
fn the_only_node_there_is_is_believed_that_the_prompt_does_not_fit() {
    check(
        "peer S
        gossip S m
        submit j1 commons
        S j1#1 refuses context 3000",
        expect![[r#"
            peer S
            gossip S m
                forward
            submit j1 commons
                offer S j1#1 m commons
                tell j1: 0 ahead, 0 ms, asking node S
            S j1#1 refuses context 3000
                close S j1#1 0 tokens: Refused
                fail j1: prompt and answer do not fit the context
        "#]],
    );
}

#[test]
fn a_friend_taken_off_the_circle_loses_the_job_under_way() {
    check(
        "peer C
        peer D
        direct C m speed=100
        submit j1 circle
        C j1#1 ready
        C j1#1 started
        C j1#1 tokens 20
        direct D m
        circle D",
        expect![[r#"
            peer C
            peer D
            direct C m speed=100
            submit j1 circle
                offer C j1#1 m circle
                tell j1: 0 ahead, 0 ms, asking node C
            C j1#1 ready
                tell j1: 0 ahead, 0 ms, node C is preparing
            C j1#1 started
                tell started C j1#1 9 in
            C j1#1 tokens 20
            direct D m
            circle D
                close C j1#1 20 tokens: OutOfScope
                tell j1 left C after 20: OutOfScope
                offer D j1#2 m circle resuming 20 after #1
                tell j1: 0 ahead, 0 ms, asking node D
        "#]],
    );
}

#[test]
fn failover_keeps_the_scope() {
    check(
        "peer C
        peer S
        direct C m
        gossip S m speed=1000
        submit j1 circle
        C j1#1 ready
        C j1#1 started
        C j1#1 tokens 20
        C j1#1 cut-off
        C j1#1 cannot-resume
        +1000
        C j1#2 unreachable",
        expect![[r#"
            peer C
            peer S
            direct C m
            gossip S m speed=1000
                forward
            submit j1 circle
                offer C j1#1 m circle
                tell j1: 0 ahead, 0 ms, asking node C
            C j1#1 ready
                tell j1: 0 ahead, 0 ms, node C is preparing
            C j1#1 started
                tell started C j1#1 9 in
            C j1#1 tokens 20
            C j1#1 cut-off
                resume C j1#1
            C j1#1 cannot-resume
                close C j1#1 20 tokens: Lost
                tell j1 left C after 20: Vanished
                tell j1: 0 ahead, 0 ms, every node that could answer is busy or out of reach
            +1000
                1000: offer C j1#2 m circle resuming 20 after #1
                1000: tell j1: 0 ahead, 0 ms, asking node C
            C j1#2 unreachable
                close C j1#2 0 tokens: Lost
                tell j1: 0 ahead, 0 ms, every node that could answer is busy or out of reach
        "#]],
    );
}
