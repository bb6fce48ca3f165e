//! Lists and single questions against a scripted daemon, for people and for programs.

use expect_test::expect;

use crate::daemon::{Daemon, JOB};

#[test]
fn lists_have_ollamas_columns() {
    let daemon = Daemon::start();
    daemon.home.check(
        &["ls", "--scope", "mine", "smol"],
        &expect![[r#"
        exit 0
        --- stdout
        NAME            ID              SIZE     MODIFIED
        smollm2:135m    b1b1b1b1b1b1    98 MB    56 years ago
    "#]],
    );
    daemon.home.check(
        &["list"],
        &expect![[r#"
        exit 0
        --- stdout
        NAME            ID              SIZE     MODIFIED        WHERE
        smollm2:135m    b1b1b1b1b1b1    98 MB    56 years ago    here
        qwen3:4b        b1b1b1b1b1b1    98 MB    56 years ago    2 nodes
    "#]],
    );
    daemon.home.check(
        &["ps"],
        &expect![[r#"
        exit 0
        --- stdout
        NAME            ID              SIZE      PROCESSOR    CONTEXT    UNTIL
        smollm2:135m    b1b1b1b1b1b1    212 MB    100% CPU     4096       Forever
        smollm2:135m    b1b1b1b1b1b1    212 MB    100% CPU     4096       in use
        smollm2:135m    b1b1b1b1b1b1    212 MB    100% CPU     4096       loading
    "#]],
    );
}

#[test]
fn jobs_and_peers_are_told() {
    let daemon = Daemon::start();
    daemon.home.check(&["jobs"], &expect![[r#"
        exit 0
        --- stdout
        JOB                                 ROLE       MODEL           SCOPE     STATE      NODE        TOKENS    AGE         WHY
        abababababababababababababababab    asked      smollm2:135m    circle    queued     22222222    5         1 minute    2 ahead, about 3.2 s: two answers are before it
        abababababababababababababababab    serving    smollm2:135m    circle    running    22222222    5         1 minute
    "#]]);
    daemon.home.check(&["peers"], &expect![[r#"
        exit 0
        --- stdout
        NODE                                                                STATE        SCOPE      RTT      QUEUE    WRITES        CLOCK            MODELS
        1111111111111111111111111111111111111111111111111111111111111111    connected    circle     12 ms    0/1      61.7 tok/s    2 days behind    smollm2:135m
        2222222222222222222222222222222222222222222222222222222222222222    seen         commons    -        0/1      -             ok               -
    "#]]);
    daemon.home.check(
        &["status"],
        &expect![[r#"
        exit 0
        --- stdout
        node      1111111111111111111111111111111111111111111111111111111111111111
        network   friends (9999999999999999999999999999999999999999999999999999999999999999)
        version   0.1.0
        up        1 hour
        api       http://127.0.0.1:11535
        listen    /ip4/127.0.0.1/udp/11536/quic-v1
        lending   off
        wall      process
        peers     1 connected
        jobs      1 running, 2 waiting
        memory    42 MB
        warning   the clock is 2 days off
    "#]],
    );
    daemon.home.check(
        &["node", "bench", "smollm2:135m"],
        &expect![[r#"
        exit 0
        --- stdout
        reads   512.3 tok/s
        writes  41.2 tok/s
        --- stderr
        measuring 'smollm2:135m' on this machine ...
    "#]],
    );
}

#[test]
fn every_list_is_json_too() {
    let home = &Daemon::start();
    let home = &home.home;
    assert_eq!(home.json(&["ls"])["models"][1]["nodes"][0], "22".repeat(32));
    assert_eq!(home.json(&["ps"])["models"][0]["wall"], "process");
    assert_eq!(home.json(&["jobs"])["jobs"][0]["queue"]["position"], 2);
    assert_eq!(home.json(&["peers"])["peers"][0]["skew_ms"], -172_800_000);
    assert_eq!(home.json(&["status"])["network"]["name"], "friends");
    assert_eq!(home.json(&["show", "qwen3:4b"])["own"], false);
    // Names in sight are found as names of one's own are.
    assert_eq!(home.json(&["show", "QWEN3:4B"])["name"], "qwen3:4b");
    assert_eq!(
        home.json(&["circle", "invite", "school", "--valid", "1h"])["code"],
        "substrate1school3600000"
    );
    assert_eq!(home.json(&["network", "show"])["name"], "this machine");
}

#[test]
fn single_questions_are_answered() {
    let daemon = Daemon::start();
    let job = JOB.to_string();
    daemon.home.check(
        &["jobs", "cancel", &job],
        &expect![[r#"
        exit 0
        --- stderr
        cancelled abababababababababababababababab
    "#]],
    );
    daemon.home.check(
        &["jobs", "cancel", &"0".repeat(32)],
        &expect![[r#"
        exit 1
        --- stderr
        error: no live job 00000000000000000000000000000000
        hint: `substrate jobs` shows which there are
    "#]],
    );
    daemon.home.check(
        &["stop", "smollm2:135m"],
        &expect![[r#"
        exit 0
    "#]],
    );
    daemon.home.check(
        &["stop", "other"],
        &expect![[r#"
        exit 1
        --- stderr
        error: model 'other' is not in memory
        hint: `substrate ps` shows which are
    "#]],
    );
    daemon.home.check(
        &["network", "invite"],
        &expect![[r#"
        exit 0
        --- stdout
        substrate1friends86400000
        --- stderr
        valid once, for 1 day; on the other machine: substrate circle join CODE
        whoever enters 'friends' may read prompts you send with --scope circle, and you theirs
    "#]],
    );
    daemon.home.check(
        &["circle", "join", "substrate1good"],
        &expect![[r#"
        exit 0
        --- stderr
        joined 'friends'; `substrate peers` shows who is there
        left 'this machine' for it: your models came along, receipts and circles stay there
    "#]],
    );
    daemon.home.check(
        &["circle", "join", "substrate1bad"],
        &expect![[r#"
        exit 1
        --- stderr
        error: the code is mistyped at position 3
    "#]],
    );
}

#[test]
fn a_model_is_imported_shown_copied_and_removed() {
    let daemon = Daemon::start();
    let file = daemon.home.join("tiny.gguf");
    std::fs::write(&file, "GGUF and then weights").unwrap();
    let file = file.to_str().unwrap();
    daemon.home.check(
        &["import", file, "--as", "tiny:1b"],
        &expect![[r#"
        exit 0
        --- stderr
        reading and checking the file
        'tiny:1b' is here (21 B); a new entry was signed
        try: substrate run tiny:1b
    "#]],
    );
    daemon.home.check(
        &["show", "tiny:1b", "--template"],
        &expect![[r#"
        exit 0
        --- stdout
        {{ messages }}
    "#]],
    );
    assert_eq!(
        daemon.home.json(&["show", "tiny:1b", "--template"]),
        serde_json::json!({ "name": "tiny:1b", "template": "{{ messages }}" })
    );
    assert_eq!(
        daemon.home.json(&["show", "tiny:1b", "--license"]),
        serde_json::json!({ "name": "tiny:1b", "licence": "apache-2.0" })
    );
    let shown = daemon.home.run(&["show", "tiny:1b"]);
    let shown = daemon.home.told(&shown).replace(
        &daemon.home.json(&["show", "tiny:1b"])["entry"]
            .as_str()
            .unwrap()
            .to_owned(),
        "ENTRY",
    );
    let me = daemon.home.json(&["node", "id"])["node"]
        .as_str()
        .unwrap()
        .to_owned();
    expect![[r#"
        exit 0
        --- stdout
          Model
            name              tiny:1b
            architecture      llama
            parameters        134.5M
            context length    8192
            quantization      Q4_1
            vocabulary        49152
            size              21 B
            licence           apache-2.0

          Identity
            digest            sha256:515248b616dcb0d94bbe4ae220cd5e691cdb6df634ef34e53bd80a2d19d81b5a
            entry             ENTRY
            signed by         NODE
            sources           file:tiny.gguf

          Memory
            weights           98 MB
            cache             4 GB (f16, 4096 tokens for 8 answers at a time)
            kept prefixes     4 GB
            buffers           20 MB
            engine            30 MB
            in all            8.3 GB
            would run on      cpu

          Use
            on this machine   yes
            in memory         no
            chat              yes, by the model's own template
    "#]].assert_eq(&shown.replace(&me, "NODE"));
    let memory = &daemon.home.json(&["show", "tiny:1b", "--context", "8192"])["memory"];
    assert_eq!(memory["context"], 8192);
    assert_eq!(memory["place"], serde_json::Value::Null);
    assert_eq!(memory["why"], "it needs more than there is");
    daemon.home.check(
        &["cp", "tiny:1b", "other:1b"],
        &expect![[r#"
        exit 0
        --- stderr
        'tiny:1b' is also called 'other:1b'
    "#]],
    );
    daemon.home.check(
        &["rm", "tiny:1b"],
        &expect![[r#"
        exit 0
        --- stderr
        removed 'tiny:1b'; its bytes stay for another name
    "#]],
    );
    daemon.home.check(
        &["rm", "other:1b", "nowhere:1b", "--json"],
        &expect![[r#"
            exit 1
            --- stdout
            {
              "removed": [
                {
                  "freed": 21,
                  "name": "other:1b"
                }
              ]
            }
            --- stderr
            removed 'other:1b', 21 B free again
            {"because":[],"error":"model 'nowhere:1b' not found","hint":"`substrate list` shows what can be used now; `substrate pull` and `substrate import` bring more"}
        "#]],
    );
    daemon.home.check(
        &["import", "/nowhere/x.gguf", "--as", "x"],
        &expect![[r#"
        exit 1
        --- stderr
        error: cannot open /nowhere/x.gguf
          because: No such file or directory (os error 2)
    "#]],
    );
}

#[test]
fn a_lying_file_is_refused() {
    let daemon = Daemon::start();
    let file = daemon.home.join("lie.gguf");
    std::fs::write(&file, "lie lie lie").unwrap();
    let output = daemon
        .home
        .run(&["import", file.to_str().unwrap(), "--as", "lie"]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("its header lies about sizes"), "{told}");
    assert_eq!(daemon.home.run(&["show", "lie"]).status.code(), Some(1));
}

#[test]
fn an_import_is_signed_by_the_registry_key_where_its_passphrase_is() {
    let home = crate::program::Home::new();
    std::fs::write(home.join("pass"), "correct horse\n").unwrap();
    let pass = home.join("pass");
    let pass = pass.to_str().unwrap();
    let founded = home.json(&["network", "create", "friends", "--passphrase-file", pass]);
    let daemon = Daemon::on(home);
    let file = daemon.home.join("tiny.gguf");
    std::fs::write(&file, "GGUF and then weights").unwrap();
    let args = [
        "import",
        file.to_str().unwrap(),
        "--as",
        "tiny:1b",
        "--passphrase-file",
        pass,
    ];
    assert_eq!(
        daemon.home.last_json(&args)["signer"],
        founded["registry_key"]
    );
    // The same bytes again: the entry is known and adopted.
    assert_eq!(
        daemon
            .home
            .last_json(&["import", file.to_str().unwrap(), "--as", "again:1b"])["adopted"],
        true
    );
}

#[test]
fn the_daemon_is_ended_and_waited_for() {
    let daemon = Daemon::start();
    daemon.home.check(
        &["stop", "--daemon"],
        &expect![[r#"
        exit 0
        --- stderr
        the daemon has stopped
    "#]],
    );
    daemon.home.check(
        &["status"],
        &expect![[r#"
        exit 1
        --- stderr
        error: no daemon runs
        hint: `substrate serve --detach` starts one
    "#]],
    );
}

#[test]
fn a_list_of_what_is_lent_is_held_against_what_is_here() {
    let daemon = Daemon::start();
    let lend = &[
        "node",
        "lend",
        "--model",
        "SmolLM2:135m",
        "--model",
        "smolm2",
    ];
    daemon.home.check(
        lend,
        &expect![[r#"
            exit 0
            --- stdout
            lending  off
            cores    all that are free
            memory   all of the machine's
            models   SmolLM2:135m, smolm2
            jobs     all
            hours    all
            --- stderr
            no model 'smolm2' is on this machine: nothing is lent by that name until it is
        "#]],
    );
    daemon.home.check(
        &["node", "lend", "--model", "all", "--memory", "8GiB"],
        &expect![[r#"
            exit 0
            --- stdout
            lending  off
            cores    all that are free
            memory   8GiB
            models   all
            jobs     all
            hours    all
            --- stderr
            the limit of memory holds from the daemon's next start on
        "#]],
    );
}
