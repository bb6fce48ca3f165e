//! Without a daemon: help, wrong usage, bad settings, completions, the manual, the desk of one's own.

use expect_test::expect;

use crate::program::Home;

#[test]
fn no_arguments_are_help_on_stdout() {
    let home = Home::new();
    let bare = home.run(&[]);
    assert_eq!(bare.status.code(), Some(0));
    assert!(bare.stderr.is_empty());
    expect![[r#"
        A peer-to-peer compute commons: run open models on your own machines, your circles' and the commons'

        Usage: substrate [OPTIONS] [COMMAND]

        Commands:
          run          Ask a model, once or in a conversation
          embed        Turn texts into vectors
          batch        Ask many requests in one file, when there is time
          serve        Run the daemon [alias: start]
          pull         Fetch a model from where it is published
          import       Bring a model file under a name
          create       Make a model of your own from a Modelfile
          list         List the models that can be used now [alias: ls]
          show         Show everything known of a model
          cp           Give a model a second name
          rm           Take a model away from this machine
          ps           List the models in memory
          stop         Unload a model, or end the daemon
          status       Show what the daemon does
          peers        List the nodes in sight
          jobs         List jobs, or cancel one
          receipts     Prove who did what for whom
          network      Found a network, invite to it, join one
          circle       Share with a few: invite, join, list, remove
          key          Keys of callers of the HTTP listener: make one, list them, forget one
          node         This machine: its key, its parts, its speed, what it lends
          pause        Keep this machine to yourself for a while: others' jobs move on, memory is freed
          resume       End a pause
          wall         Try the walls around workers
          doctor       Say what is wrong here and how to mend it
          completions  Print completions for a shell

        Options:
          -h, --help     Print help
          -V, --version  Print version

        Everywhere:
              --home <DIR>  Keep everything below this folder [default: $SUBSTRATE_HOME, else the XDG
                            folders]
              --json        Answer in JSON on stdout
          -v...             Log more to stderr; twice for still more

        Start with `substrate import FILE --as NAME`, then `substrate run NAME`.
    "#]].assert_eq(&String::from_utf8(bare.stdout).unwrap());
}

#[test]
fn wrong_usage_ends_with_2() {
    let home = Home::new();
    home.check(
        &["summon"],
        &expect![[r#"
        exit 2
        --- stderr
        error: unrecognized subcommand 'summon'

        Usage: substrate [OPTIONS] [COMMAND]

        For more information, try '--help'.
    "#]],
    );
    home.check(
        &["stop"],
        &expect![[r#"
        exit 2
        --- stderr
        error: the following required arguments were not provided:
          <MODEL>

        Usage: substrate stop <MODEL>

        For more information, try '--help'.
    "#]],
    );
    home.check(
        &["run"],
        &expect![[r#"
        exit 2
        --- stderr
        error: the following required arguments were not provided:
          <MODEL>

        Usage: substrate run <MODEL> [PROMPT]...

        For more information, try '--help'.
    "#]],
    );
    home.check(
        &["run", "m", "hi", "--top-p", "1.5"],
        &expect![[r#"
        exit 2
        --- stderr
        error: invalid value '1.5' for '--top-p <TOP_P>': '1.5' is not between 0 and 1

        For more information, try '--help'.
    "#]],
    );
    home.check(&["run", "m", "hi", "--node", "abc"], &expect![[r#"
        exit 2
        --- stderr
        error: invalid value 'abc' for '--node <KEY>': a node is named by the 64 hex digits of its key, as `substrate peers` shows

        For more information, try '--help'.
    "#]]);
    home.check(
        &["run", "m"],
        &expect![[r#"
        exit 2
        --- stderr
        error: there is no prompt
        hint: give one after the model's name, pipe one in, or run at a terminal to converse
    "#]],
    );
    home.check(&["jobs", "cancel", "12"], &expect![[r#"
        exit 2
        --- stderr
        error: invalid value '12' for '<JOB>': a job is named by the 32 hex digits of its id, as `substrate jobs` shows

        For more information, try '--help'.
    "#]]);
}

#[test]
fn without_a_daemon_questions_to_it_say_how_to_start_one() {
    let home = Home::new();
    let expected = expect![[r#"
        exit 1
        --- stderr
        error: no daemon runs
        hint: `substrate serve --detach` starts one
    "#]];
    for command in [
        &["ps"][..],
        &["status"],
        &["peers"],
        &["jobs"],
        &["stop", "--daemon"],
        &["stop", "m"],
    ] {
        home.check(command, &expected);
    }
}

#[test]
fn the_disk_can_be_asked_without_a_daemon() {
    let home = Home::new();
    home.check(
        &["ls"],
        &expect![[r#"
        exit 0
        --- stdout
        NAME    ID    SIZE    MODIFIED
    "#]],
    );
    home.check(
        &["receipts", "list"],
        &expect![[r#"
        exit 0
        --- stdout
        JOB    ATTEMPT    ROLE    NODE    MODEL    TOKENS    VERDICT    WHEN
    "#]],
    );
    home.check(
        &["circle", "list"],
        &expect![[r#"
        exit 0
        --- stdout
        CIRCLE    NODE    LABEL    ADDRESS
    "#]],
    );
    home.check(&["show", "smollm2:135m"], &expect![[r#"
        exit 1
        --- stderr
        error: model 'smollm2:135m' not found
        hint: `substrate list` shows what can be used now; `substrate pull` and `substrate import` bring more
    "#]]);
    home.check(&["rm", "smollm2:135m"], &expect![[r#"
        exit 1
        --- stderr
        error: model 'smollm2:135m' not found
        hint: `substrate list` shows what can be used now; `substrate pull` and `substrate import` bring more
    "#]]);
    home.check(
        &["receipts", "export", "00112233445566778899aabbccddeeff"],
        &expect![[r#"
        exit 1
        --- stderr
        error: no receipt of job 00112233445566778899aabbccddeeff
    "#]],
    );
}

#[test]
fn bad_settings_name_key_and_line() {
    let home = Home::new();
    std::fs::write(
        home.join("config.toml"),
        "[lending]\nwhen = \"idle\"\ncores = \"two\"\n",
    )
    .unwrap();
    let expected = expect![[r#"
        exit 1
        --- stderr
        error: the configuration cannot be used
          because: $HOME/config.toml:3:9: lending.cores: invalid type: string "two", expected u32
        hint: mend that line of $HOME/config.toml
    "#]];
    home.check(&["run", "m", "hi"], &expected);
    home.check(&["node", "lend"], &expected);
    home.check(&["serve"], &expected);
}

#[test]
fn a_pause_is_kept_without_a_daemon() {
    let home = Home::new();
    home.check(
        &["pause", "1h"],
        &expect![[r#"
        exit 0
        --- stderr
        this machine lends nothing anyway: `substrate node lend` shows what it would
        nothing is lent for 1 hour
    "#]],
    );
    home.run(&[
        "node",
        "lend",
        "always",
        "--idle-after",
        "90s",
        "--pause-for",
        "blender",
    ]);
    home.check(
        &["pause"],
        &expect![[r#"
        exit 0
        --- stderr
        nothing is lent until `substrate resume`
    "#]],
    );
    let kept = std::fs::read_to_string(home.join("pause")).unwrap();
    assert_eq!(kept, "until resumed\n");
    home.check(
        &["resume"],
        &expect![[r#"
        exit 0
        --- stderr
        the pause is over
    "#]],
    );
    home.check(
        &["resume"],
        &expect![[r#"
        exit 0
        --- stderr
        there was no pause; `substrate status` tells why nothing is lent
    "#]],
    );
    home.check(
        &["node", "lend"],
        &expect![[r#"
        exit 0
        --- stdout
        lending  always
        cores    all that are free
        memory   all of the machine's
        models   all
        jobs     all
        hours    all
        after    1m 30s without you
        pauses   for blender
    "#]],
    );
    assert_eq!(home.json(&["node", "lend"])["idle_after_ms"], 90_000);
    assert_eq!(home.json(&["pause", "1m"])["paused"], true);
}

#[test]
fn settings_are_changed_in_place() {
    let home = Home::new();
    std::fs::write(
        home.join("config.toml"),
        "# mine\n[lending]\nwhen = \"off\" # for now\n",
    )
    .unwrap();
    home.check(
        &["node", "lend", "idle", "--cores", "2", "--memory", "8GiB"],
        &expect![[r#"
        exit 0
        --- stdout
        lending  idle
        cores    2
        memory   8GiB
        models   all
        jobs     all
        hours    all
    "#]],
    );
    home.check(
        &["node", "lend", "--cores", "all"],
        &expect![[r#"
        exit 0
        --- stdout
        lending  idle
        cores    all that are free
        memory   8GiB
        models   all
        jobs     all
        hours    all
    "#]],
    );
    expect![[r##"
        # mine
        [lending]
        when = "idle" # for now
        memory = "8GiB"
    "##]]
    .assert_eq(&std::fs::read_to_string(home.join("config.toml")).unwrap());
}

#[test]
fn a_second_daemon_is_told_who_has_the_home() {
    let home = Home::new();
    let lock = substrate::home::Home::at(home.path());
    lock.prepare().unwrap();
    let _held = substrate::home::DaemonLock::take(&lock).unwrap();
    let told = home
        .told(&home.run(&["serve"]))
        .replace(&std::process::id().to_string(), "PID");
    expect![[r#"
        exit 1
        --- stderr
        error: a daemon (pid PID) already runs on this home
        hint: `substrate status` asks it; `substrate stop --daemon` ends it; --home names another home
    "#]].assert_eq(&told);
}

#[test]
fn strangers_read_nothing_without_consent() {
    let home = Home::new();
    home.check(
        &["run", "m", "hi", "--scope", "commons"],
        &expect![[r#"
        exit 1
        --- stderr
        error: scope 'commons' needs your consent: a stranger's machine will read this prompt
        hint: --consent gives it once and for all for 'm'; --scope circle stays among those you know
    "#]],
    );
}

#[test]
fn a_network_is_founded_with_an_encrypted_key() {
    let home = Home::new();
    home.check(
        &[
            "network",
            "create",
            &"x".repeat(65),
            "--passphrase-file",
            "none",
        ],
        &expect![[r#"
        exit 2
        --- stderr
        error: a network's name has 1 to 64 bytes, this one 65
    "#]],
    );
    home.check(
        &["network", "create", "friends"],
        &expect![[r#"
        exit 2
        --- stderr
        error: a network needs a passphrase for its registry key
        hint: pass --passphrase-file FILE
    "#]],
    );
    std::fs::write(home.join("pass"), "correct horse\n").unwrap();
    let pass = home.join("pass");
    let founded = home.json(&[
        "network",
        "create",
        "friends",
        "--passphrase-file",
        pass.to_str().unwrap(),
    ]);
    let shown = home.json(&["network", "show"]);
    assert_eq!(
        (&shown["name"], &shown["id"]),
        (&"friends".into(), &founded["network"])
    );
    assert_eq!(shown["registry_keys"][0], founded["registry_key"]);
    let key = home.join(&format!(
        "keys/registry-{}",
        founded["network"].as_str().unwrap()
    ));
    let sealed = std::fs::read(key).unwrap();
    assert!(sealed.starts_with(b"age-encryption.org/") || sealed.starts_with(b"-----BEGIN AGE"));
}

#[test]
fn a_file_that_is_no_export_does_not_verify() {
    let home = Home::new();
    std::fs::write(home.join("x.receipt"), b"not a receipt").unwrap();
    let file = home.join("x.receipt");
    let file = file.to_str().unwrap();
    let output = home.run(&["receipts", "verify", file]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("does not verify") && told.contains("hint: "),
        "{told}"
    );
    assert_eq!(home.json(&["receipts", "verify", file])["verified"], false);
}

#[test]
fn completions_exist_for_every_shell_and_know_the_commands() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let output = home.run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(
            script.contains("receipts") && script.contains("demand-wall"),
            "{shell}"
        );
    }
}

#[test]
fn every_visible_command_has_a_man_page() {
    let home = Home::new();
    let folder = home.join("man");
    let output = home.run(&["man", folder.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    let page = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    assert!(page("substrate.1").contains("compute commons"));
    assert!(page("substrate-run.1").contains("demand\\-wall"));
    assert!(page("substrate-circle-invite.1").contains("invite"));
    assert!(!folder.join("substrate-man.1").exists());
}

#[test]
fn answers_in_json_parse() {
    let home = Home::new();
    assert_eq!(home.json(&["ls"])["models"], serde_json::json!([]));
    assert_eq!(
        home.json(&["receipts", "list"])["receipts"],
        serde_json::json!([])
    );
    assert_eq!(
        home.json(&["circle", "list"])["circles"],
        serde_json::json!([])
    );
    assert_eq!(home.json(&["node", "lend"])["when"], "off");
    assert_eq!(
        home.json(&["node", "id"])["node"].as_str().unwrap().len(),
        64
    );
    assert!(home.json(&["node", "hardware"])["cores"].as_u64().unwrap() > 0);
    assert!(home.json(&["doctor"])["findings"].as_array().unwrap().len() > 5);
}

#[test]
fn a_failure_in_json_is_one_line_of_it_on_stderr() {
    let home = Home::new();
    home.check(
        &["status", "--json"],
        &expect![[r#"
            exit 1
            --- stderr
            {"because":[],"error":"no daemon runs","hint":"`substrate serve --detach` starts one"}
        "#]],
    );
    home.check(
        &["run", "m", "hi", "--top-p", "1.5", "--json"],
        &expect![[r#"
            exit 2
            --- stderr
            {"because":[],"error":"invalid value '1.5' for '--top-p <TOP_P>': '1.5' is not between 0 and 1","hint":"`--help` shows what there is"}
        "#]],
    );
    home.check(
        &["circle", "--json"],
        &expect![[r#"
            exit 2
            --- stderr
            {"because":[],"error":"a command is missing","hint":"`--help` shows what there is"}
        "#]],
    );
}

#[test]
fn what_ollama_has_and_we_have_not_says_so() {
    let home = Home::new();
    home.check(&["push", "me/mine"], &expect![[r#"
        exit 1
        --- stderr
        error: models are not pushed: there is no registry that would hold them for everyone
        hint: `substrate node lend always` lets others use a model where it is; `substrate import` signs one
    "#]]);
    let account = expect![[r#"
        exit 1
        --- stderr
        error: nobody signs in or out here: there are no accounts, this machine is its key
        hint: `substrate node id` prints it; `substrate circle invite` and `join` make two machines know each other
    "#]];
    home.check(&["signin"], &account);
    home.check(&["signout"], &account);
}

#[test]
fn open_invites_are_listed_and_taken_back() {
    use substrate::invite::{Invite, InviteSecret, issue};
    let home = Home::new();
    let network = home.json(&["network", "show"])["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let now = u64::try_from(now.as_millis()).unwrap();
    let made = |circle: &str, expires_ms| Invite {
        network: network.parse().unwrap(),
        inviter: substrate_record::NodeId::from_bytes([7; 32]),
        addrs: Vec::new(),
        secret: InviteSecret::draw(),
        expires_ms,
        circle: Some(circle.to_owned()),
    };
    {
        let at = substrate::home::Home::at(home.path());
        let store = substrate::store::Store::open(&at.store()).unwrap();
        issue(&store, &made("over", 1), 0).unwrap();
        issue(&store, &made("school", now + 3_660_000), 0).unwrap();
    }
    let open = home.json(&["circle", "invites"]);
    assert_eq!(open["invites"].as_array().unwrap().len(), 1);
    let id = open["invites"][0]["id"].as_str().unwrap();
    let told = home.told(&home.run(&["circle", "invites"]));
    expect![[r#"
        exit 0
        --- stdout
        ID              CIRCLE    ENDS
        INVITEINVITE    school    1 hour from now
    "#]]
    .assert_eq(&told.replace(&id[..12], "INVITEINVITE"));
    assert_eq!(home.json(&["circle", "revoke", &id[..12]])["revoked"], id);
    assert_eq!(
        home.json(&["circle", "invites"])["invites"],
        serde_json::json!([])
    );
    assert_eq!(home.json(&["network", "show"])["open_invites"], 0);
    home.check(
        &["circle", "revoke", "abcd"],
        &expect![[r#"
        exit 1
        --- stderr
        error: no open invite abcd
        hint: `substrate circle invites` shows which are; who used one is in `substrate circle list`
    "#]],
    );
    home.check(&["circle", "revoke", "x"], &expect![[r#"
        exit 2
        --- stderr
        error: invalid value 'x' for '<INVITE>': an invite is named by at least 4 hex digits of its id, as `substrate circle invites` shows

        For more information, try '--help'.
    "#]]);
}

#[test]
fn a_modelfile_that_is_wrong_is_told_with_its_line() {
    let home = Home::new();
    let file = home.join("Modelfile");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "FROM smollm2:135m\n\nPARAMETER temprature 1\n").unwrap();
    home.check(
        &["create", "mine", "-f", path],
        &expect![[r#"
        exit 1
        --- stderr
        error: $HOME/Modelfile: line 3: there is no parameter 'temprature'
    "#]],
    );
    std::fs::write(&file, b"GGUF\xff\xfe").unwrap();
    home.check(
        &["create", "mine", "-f", path],
        &expect![[r#"
        exit 1
        --- stderr
        error: $HOME/Modelfile is not text in UTF-8
        hint: a model file is brought by `substrate import FILE --as NAME`
    "#]],
    );
    let absent = home.join("absent");
    home.check(
        &["create", "mine", "-f", absent.to_str().unwrap()],
        &expect![[r#"
        exit 1
        --- stderr
        error: cannot read $HOME/absent
          because: No such file or directory (os error 2)
        hint: `-f FILE` names the Modelfile
    "#]],
    );
    home.check(
        &["create", "mine", "-q", "q4_0"],
        &expect![[r#"
        exit 2
        --- stderr
        error: models are not quantised here
        hint: `substrate pull hf:USER/REPO:QUANT` fetches one that is
    "#]],
    );
}
