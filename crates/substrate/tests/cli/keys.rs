//! Keys of the HTTP listener's callers: made once, kept as digests, listed, forgotten.

use expect_test::expect;
use sha2::{Digest, Sha256};

use crate::{daemon::Daemon, program::Home};

#[test]
fn a_key_is_shown_once_and_kept_as_its_digest() {
    let home = Home::new();
    std::fs::write(
        home.join("config.toml"),
        "# mine\n[lending]\nwhen = \"off\"\n",
    )
    .unwrap();
    let made = home.run(&["key", "add", "laptop", "--scope", "circle"]);
    let secret = String::from_utf8(made.stdout.clone()).unwrap();
    let secret = secret.trim();
    assert!(
        secret.starts_with("sk-substrate-") && secret.len() > 64,
        "{secret}"
    );
    expect![[r#"
        exit 0
        --- stdout
        SECRET
        --- stderr
        this is the only time the key of 'laptop' is shown: only its digest is kept
    "#]]
    .assert_eq(&home.told(&made).replace(secret, "SECRET"));
    let settings = std::fs::read_to_string(home.join("config.toml")).unwrap();
    assert!(settings.starts_with("# mine\n") && !settings.contains(secret));
    assert!(settings.contains(&hex::encode(Sha256::digest(secret))));
    home.check(
        &["key", "add", "laptop"],
        &expect![[r#"
            exit 1
            --- stderr
            error: the API keys cannot be changed
              because: an API key named 'laptop' exists already
            hint: `substrate key rm laptop` forgets the old one
        "#]],
    );
}

#[test]
fn keys_are_listed_and_forgotten() {
    let home = Home::new();
    let made = home.json(&[
        "key",
        "add",
        "server",
        "--scope",
        "commons",
        "--admin",
        "--per-minute",
        "60",
        "--concurrent",
        "2",
    ]);
    assert!(made["key"].as_str().unwrap().starts_with("sk-substrate-"));
    assert_eq!(made["per_minute"], 60);
    assert_eq!(home.run(&["key", "add", "phone"]).status.code(), Some(0));
    home.check(
        &["key", "list"],
        &expect![[r#"
            exit 0
            --- stdout
            NAME      SCOPE      ADMIN    PER MINUTE    AT ONCE
            server    commons    yes      60            2
            phone     mine       no       -             -
        "#]],
    );
    let listed = home.json(&["key", "ls"]);
    assert_eq!(listed["keys"][0]["admin"], true);
    assert!(!listed.to_string().contains(made["key"].as_str().unwrap()));
    home.check(
        &["key", "rm", "phone"],
        &expect![[r#"
            exit 0
            --- stderr
            forgot the key of 'phone'
        "#]],
    );
    home.check(
        &["key", "rm", "phone"],
        &expect![[r#"
            exit 1
            --- stderr
            error: there is no API key 'phone'
            hint: `substrate key list` shows which there are
        "#]],
    );
    assert_eq!(home.json(&["key", "rm", "server"])["removed"], "server");
    assert_eq!(home.json(&["key", "list"])["keys"], serde_json::json!([]));
}

#[test]
fn a_key_needs_a_plain_name_and_limits_that_let_something_through() {
    let home = Home::new();
    home.check(
        &["key", "add", "my phone"],
        &expect![[r#"
            exit 1
            --- stderr
            error: the API keys cannot be changed
              because: 'my phone' cannot name an API key: use letters, digits, '-' and '_', at most 64
        "#]],
    );
    let never = home.run(&["key", "add", "phone", "--concurrent", "0"]);
    assert_eq!(never.status.code(), Some(2));
    assert!(!home.join("config.toml").exists());
}

#[test]
fn a_running_daemon_hears_of_a_new_key() {
    let daemon = Daemon::start();
    let made = daemon.home.run(&["key", "add", "laptop"]);
    assert_eq!(made.status.code(), Some(0), "{}", daemon.home.told(&made));
    daemon
        .reread
        .recv_timeout(std::time::Duration::from_secs(20))
        .expect("the daemon is told");
}
