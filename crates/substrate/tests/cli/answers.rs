//! `run` against a scripted daemon: the answer, its news, its end.

use std::{io::Read, process::Stdio, time::Duration};

use expect_test::expect;
use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::Daemon;

#[test]
fn the_answer_goes_to_stdout_and_news_to_stderr() {
    let daemon = Daemon::start();
    daemon.home.check(
        &["run", "smollm2:135m", "Say", "hello"],
        &expect![[r#"
        exit 0
        --- stdout
        Hello, wörld.
        --- stderr
        node 11111111 is gone after 1 token (its connection was lost); the answer goes on at another
    "#]],
    );
    daemon.home.check(&["run", "smollm2:135m", "Say hello", "--verbose"], &expect![[r#"
        exit 0
        --- stdout
        Hello, wörld.
        --- stderr
        waiting: 1 ahead, about 2.4 s: one answer is under way there
        node 11111111 (direct) reads 12 tokens, attempt 1
        node 11111111 is gone after 1 token (its connection was lost); the answer goes on at another
        node 22222222 (direct) reads 12 tokens, attempt 2
        node 22222222 (direct), scope circle, wall process: 12 + 50 tokens, 25.0 tok/s, begun after 210 ms, 2.2 s in all, attempts 2, ended by stop, receipt cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd
    "#]]);
}

#[test]
fn events_are_lines_of_json() {
    let daemon = Daemon::start();
    let output = daemon.home.run(&["run", "smollm2:135m", "hi", "--json"]);
    let lines: Vec<serde_json::Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let events: Vec<&str> = lines
        .iter()
        .map(|line| line["event"].as_str().unwrap())
        .collect();
    assert_eq!(
        events,
        [
            "taken", "queued", "started", "text", "moved", "started", "text", "finished"
        ]
    );
    assert_eq!(lines[7]["receipt"], "cd".repeat(32));
}

#[test]
fn thoughts_go_to_stderr_or_nowhere() {
    let daemon = Daemon::start();
    daemon.home.check(
        &["run", "ponder", "hi"],
        &expect![[r#"
        exit 0
        --- stdout
        Told Some(On).
        --- stderr
        Thinking...
        Hm, so.
        ...done thinking.

    "#]],
    );
    daemon.home.check(
        &["run", "ponder", "hi", "--think=high", "--hidethinking"],
        &expect![[r#"
        exit 0
        --- stdout
        Told Some(High).
    "#]],
    );
    let output = daemon.home.run(&["run", "ponder", "hi", "--json"]);
    let told = String::from_utf8(output.stdout).unwrap();
    let lines = told
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let said = |name: &str| -> String {
        let texts = lines.clone().filter(|line| line["event"] == "text");
        texts
            .filter_map(|line| Some(line[name].as_str()?.to_owned()))
            .collect()
    };
    assert_eq!(
        (&*said("thinking"), &*said("text")),
        ("Hm, so.", "Told Some(On).")
    );
}

#[test]
fn a_model_that_cannot_think_is_not_asked_to() {
    let daemon = Daemon::start();
    daemon.home.check(
        &["run", "plain", "hi", "--think"],
        &expect![[r#"
        exit 1
        --- stderr
        error: 'plain' does not support thinking
        hint: leave out --think; `substrate show NAME --template` shows what it knows of
    "#]],
    );
    daemon.home.check(
        &["run", "plain", "hi", "--think=false"],
        &expect![[r#"
        exit 0
        --- stdout
        <think>
    "#]],
    );
    daemon.home.check(&["run", "plain", "hi", "--think=hard"], &expect![[r#"
        exit 2
        --- stderr
        error: invalid value 'hard' for '--think[=<HOW>]': must be true, false, low, medium, high or max

        For more information, try '--help'.
    "#]]);
}

#[test]
fn a_refusal_has_a_hint() {
    let daemon = Daemon::start();
    daemon.home.check(
        &["run", "smollm3", "hi"],
        &expect![[r#"
        exit 1
        --- stderr
        error: model 'smollm3' not found
        hint: did you mean smollm2:135m? `substrate list` shows all
    "#]],
    );
    daemon.home.check(
        &["run", "elsewhere", "hi", "--scope", "mine"],
        &expect![[r#"
        exit 1
        --- stderr
        error: no node in scope 'mine' can answer with 'elsewhere': this machine does not hold it
        hint: `--scope circle` also asks the machines of your circles
    "#]],
    );
    daemon.home.check(
        &["run", "doomed", "hi"],
        &expect![[r#"
        exit 1
        --- stdout
        So far
        --- stderr
        error: nothing came within the deadline of 900 ms: its node was too slow
        hint: `substrate jobs` and `substrate peers` show where it waited
    "#]],
    );
}

#[test]
fn a_model_stays_in_memory_as_long_as_asked() {
    let daemon = Daemon::start();
    for (asked, seconds) in [("10m", 600), ("0", 0), ("-1", -1)] {
        let args = ["run", "smollm2:135m", "hi", "--keepalive", asked];
        assert_eq!(daemon.home.run(&args).status.code(), Some(0), "{asked}");
        let told = daemon.kept.recv_timeout(Duration::from_secs(20));
        assert_eq!(told, Ok(("smollm2:135m".to_owned(), seconds)));
    }
    daemon.home.check(
        &["run", "echo", "hi", "--keepalive", "10m"],
        &expect![[r#"
            exit 0
            --- stdout
            user: hi
            --- stderr
            --keepalive changes nothing: 'echo' is not in this machine's memory
        "#]],
    );
    daemon.home.check(
        &["run", "echo", "hi", "--format", "json"],
        &expect![[r#"
            exit 2
            --- stderr
            error: answers that are sure to be JSON are not there yet
            hint: ask for JSON in the prompt and check it; `--json` is about this program's own words
        "#]],
    );
}

#[test]
fn piped_input_follows_the_prompt() {
    let daemon = Daemon::start();
    let told = |args: &[&str], input| daemon.home.told(&daemon.home.run_piped(args, input));
    expect![[r#"
        exit 0
        --- stdout
        system: Be brief.
        user: Review this:

        fn main() {}

    "#]]
    .assert_eq(&told(
        &["run", "echo", "Review this:", "--system", "Be brief."],
        "fn main() {}\n",
    ));
    expect![[r#"
        exit 0
        --- stdout
        user: only this

    "#]]
    .assert_eq(&told(&["run", "echo"], "only this\n"));
}

#[test]
fn flags_reach_the_door() {
    let daemon = Daemon::start();
    let args = "run flags hi --temperature 0 --top-k 7 --top-p 0.25 --min-p .05 --seed -1 --max-tokens 9 --stop END \
                --scope circle --elsewhere --demand-wall process --deadline 90s";
    daemon.home.check(
        &args.split_whitespace().collect::<Vec<_>>(),
        &expect![[r#"
        exit 0
        --- stdout
        scope Some(Circle)
        placement Elsewhere
        wall Some(Process)
        temperature 0 top_k 7 top_p 250000 min_p 50000
        seed Some(-1) max Some(9) stop ["END"] deadline 90000
    "#]],
    );
    daemon.home.check(
        &["run", "flags", "hi", "--scope", "commons", "--consent"],
        &expect![[r#"
        exit 0
        --- stdout
        scope Some(Commons)
        placement Any
        wall None
        temperature 800000 top_k 40 top_p 900000 min_p 0
        seed None max None stop [] deadline 1800000
    "#]],
    );
    // Consent was remembered.
    let again = daemon
        .home
        .run(&["run", "flags", "hi", "--scope", "commons"]);
    assert_eq!(again.status.code(), Some(0));
}

#[test]
fn ctrl_c_cancels_the_answer_and_ends_with_130() {
    let daemon = Daemon::start();
    let mut child = daemon
        .home
        .command(&["run", "endless", "hi"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 5];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    assert_eq!(&first, b"word ");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(
        output.stderr.is_empty(),
        "{:?}",
        String::from_utf8(output.stderr)
    );
    daemon
        .cancelled
        .recv_timeout(Duration::from_secs(5))
        .expect("the job is cancelled");
}

#[test]
fn a_closed_pipe_is_quiet_and_cancels() {
    let daemon = Daemon::start();
    let mut child = daemon
        .home
        .command(&["run", "endless", "hi"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
    daemon
        .cancelled
        .recv_timeout(Duration::from_secs(5))
        .expect("the job is cancelled");
}
