//! Batches from the command line, over a daemon whose lines are answered at once.

use expect_test::expect;
use serde_json::{Value, json};

use crate::daemon::Daemon;

fn line(id: &str, text: &str) -> String {
    let body = json!({ "model": "m", "input": text });
    let line = json!({ "custom_id": id, "method": "POST", "url": "/v1/embeddings", "body": body });
    format!("{line}\n")
}

/// Submits these lines and gives what came.
fn submitted(daemon: &Daemon, text: &str) -> Value {
    let file = daemon.home.join("in.jsonl");
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    daemon
        .home
        .json(&["batch", "submit", file, "--scope", "mine"])
}

#[test]
fn a_batch_is_submitted_waited_for_shown_and_printed() {
    let daemon = Daemon::start();
    let made = submitted(&daemon, &[line("a", "right"), line("b", "wrong")].concat());
    let id = made["id"].as_str().unwrap();
    let ended = daemon.home.json(&["batch", "wait", id]);
    assert_eq!(
        (&ended["status"], &ended["completed"], &ended["failed"]),
        (&json!("completed"), &json!(1), &json!(1))
    );
    // The beginning of its name will do.
    let shown = daemon.home.json(&["batch", "show", &id[..16]]);
    assert_eq!(shown, ended);
    let listed = daemon.home.json(&["batch", "list"]);
    assert_eq!(listed["batches"], json!([ended]));
    let output = daemon.home.run(&["batch", "output", id]);
    let row: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(row["custom_id"], "a");
    assert_eq!(row["response"]["body"]["input"], "right");
    let told = daemon.home.told(&output).replace(id, "BATCH");
    let (_, told) = told.split_once("--- stderr\n").unwrap();
    expect![[r#"
        1 request failed; `substrate batch output BATCH --errors` shows why
    "#]]
    .assert_eq(told);
    let errors = daemon.home.run(&["batch", "output", id, "--errors"]);
    let row: Value = serde_json::from_slice(&errors.stdout).unwrap();
    assert_eq!(row["response"]["status_code"], 400);
}

#[test]
fn what_is_wrong_with_a_batch_is_told_with_its_lines() {
    let daemon = Daemon::start();
    let text = [line("a", "x"), "nonsense\n".into(), line("a", "x")].concat();
    let made = submitted(&daemon, &text);
    let id = made["id"].as_str().unwrap();
    let told = daemon.home.told(&daemon.home.run(&["batch", "wait", id]));
    // It may be seen at work, or only when it is over.
    let told = told.replace(&format!("{id} is validating\n"), "");
    expect![[r#"
        exit 1
        --- stderr
        error: BATCH failed
          because: line 2: this line is not a JSON object; line 3: custom_id 'a' is used by an earlier line
        hint: `substrate batch show BATCH --json` has all of it
    "#]]
    .assert_eq(&told.replace(id, "BATCH"));
    let told = daemon.home.told(&daemon.home.run(&["batch", "cancel", id]));
    expect![[r#"
        exit 1
        --- stderr
        error: BATCH is failed already
    "#]]
    .assert_eq(&told.replace(id, "BATCH"));
}

#[test]
fn what_cannot_be_submitted_is_told_before_a_daemon_is_asked() {
    let daemon = Daemon::start();
    let file = daemon.home.join("in.jsonl");
    std::fs::write(&file, "nonsense\n").unwrap();
    let file = file.to_str().unwrap();
    daemon.home.check(
        &["batch", "submit", file],
        &expect![[r#"
            exit 1
            --- stderr
            error: the first line of $HOME/in.jsonl is no request with a url
            hint: `substrate batch --help` shows what a line looks like
        "#]],
    );
    daemon.home.check(
        &["batch", "submit", file, "--scope", "commons"],
        &expect![[r#"
            exit 2
            --- stderr
            error: a batch from the command line does not go to strangers
            hint: `substrate key add NAME --scope commons` makes a key whose batches do
        "#]],
    );
    daemon.home.check(
        &["batch", "submit", file, "--endpoint", "/v1/moderations"],
        &expect![[r#"
            exit 1
            --- stderr
            error: endpoint must be one of /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/responses, not '/v1/moderations'
        "#]],
    );
    daemon.home.check(
        &["batch", "show", "batch_7"],
        &expect![[r#"
            exit 1
            --- stderr
            error: no batch 'batch_7'
            hint: `substrate batch list` shows which there are
        "#]],
    );
}
