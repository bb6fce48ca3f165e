//! What the settings file promises: errors name key and line, edits keep comments, the file wins.

use expect_test::{Expect, expect};

use super::*;

fn check(text: &str, expected: Expect) {
    let error = Config::parse(text, Path::new("config.toml")).unwrap_err();
    expected.assert_eq(&error.to_string());
}

fn home() -> (tempfile::TempDir, Home) {
    let folder = tempfile::tempdir().unwrap();
    let home = Home::at(folder.path().join("home"));
    home.prepare().unwrap();
    (folder, home)
}

#[test]
fn an_empty_file_lends_nothing_and_logs_no_prompt() {
    let config = Config::parse("", Path::new("config.toml")).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.lending.when, When::Off);
    assert_eq!(config.log.prompts, PromptLogging::Never);
    assert!(
        config
            .api
            .listen
            .iter()
            .all(|address| address.ip().is_loopback())
    );
}

#[test]
fn every_error_names_key_and_line() {
    check(
        "[lending]\nwhen = \"sometimes\"\n",
        expect![
            "config.toml:2:8: lending.when: unknown variant `sometimes`, expected one of `off`, `idle`, `always`"
        ],
    );
    check(
        "[lending]\n# mine\ncores = \"many\"\n",
        expect![[r#"config.toml:3:9: lending.cores: invalid type: string "many", expected u32"#]],
    );
    check(
        "[lending]\nwatts = 3\n",
        expect![
            "config.toml:2:1: lending.watts: unknown field `watts`, expected one of `when`, `cores`, `memory`, `models`, `job_types`, `hours`, `idle_after`, `pause_for`, `busy_file`, `requesters`"
        ],
    );
    check(
        "[lendng]\nwhen = \"off\"\n",
        expect![
            "config.toml:1:2: lendng: unknown field `lendng`, expected one of `lending`, `api`, `mesh`, `models`, `walls`, `tee`, `log`"
        ],
    );
    check(
        "[api]\nlisten = [\"127.0.0.1:1\", \"here\"]\n",
        expect!["config.toml:2:26: api.listen: invalid socket address syntax"],
    );
    check(
        "[[api.keys]]\nname = \"a\"\nsha256 = \"12\"\n",
        expect!["config.toml:3:10: api.keys.sha256: not a SHA-256 in 64 hexadecimal digits"],
    );
    check(
        "[lending.requesters]\ndeny = [\"bob\"]\n",
        expect![
            "config.toml:2:8: lending.requesters.deny: 'bob' is not a node's key: 64 hexadecimal digits"
        ],
    );
    check(
        "[models]\nkeep_alive = \"soon\"\n",
        expect![[
            r#"config.toml:2:14: models.keep_alive: 'soon' is not a duration such as "5m", a number of seconds, or -1 for ever"#
        ]],
    );
    check(
        "[walls]\nmicrovm = \"always\"\n",
        expect![
            "config.toml:2:11: walls.microvm: unknown variant `always`, expected one of `auto`, `emulated`, `off`"
        ],
    );
    check(
        "[walls]\nimage_key = \"0f\"\n",
        expect!["config.toml:2:13: walls.image_key: not an Ed25519 key in 64 hexadecimal digits"],
    );
    check(
        "[tee]\naccept = [\"milan abcd 0.3.0.8.115\"]\n",
        expect!["config.toml:2:10: tee.accept: a measurement is 96 hexadecimal digits"],
    );
    check(
        "[log]\nprompts = \"always\"\n",
        expect!["config.toml:2:11: log.prompts: unknown variant `always`, expected `never`"],
    );
    check(
        "[lending\nwhen = 1",
        expect!["config.toml:1:9: [lending: unclosed table, expected `]`"],
    );
    check(
        "a = 1\na = 2\n",
        expect!["config.toml:2:1: a: duplicate key"],
    );
    check(
        "[lending]\nhours = \"25:00-26:00\"\n",
        expect![[
            r#"config.toml:2:9: lending.hours: '25:00-26:00' is not a span such as "22:00-07:00""#
        ]],
    );
}

#[test]
fn when_the_owner_is_there_is_told_by_spans_programs_and_a_file() {
    let read = |text: &str| Config::parse(&format!("[lending]\n{text}\n"), Path::new("c"));
    let config = read("idle_after='90s'\npause_for=['blender']\nbusy_file='/run/busy'").unwrap();
    assert_eq!(config.lending.idle_after.to_string(), "1m 30s");
    assert_eq!(config.lending.pause_for, ["blender"]);
    assert_eq!(
        config.lending.busy_file.as_deref(),
        Some(Path::new("/run/busy"))
    );
    assert_eq!(
        read("").unwrap().lending.idle_after.0,
        std::time::Duration::from_secs(180)
    );
    assert_eq!(
        read("idle_after = 60").unwrap().lending.idle_after,
        "1m".parse().unwrap()
    );
    for wrong in [
        "idle_after = 0",
        "idle_after = -1",
        "idle_after = '2 days'",
        "idle_after = 'soon'",
        "pause_for = ['']",
        "pause_for = ['/usr/bin/blender']",
        "busy_file = 'busy'",
    ] {
        let error = read(wrong).unwrap_err().to_string();
        assert!(error.starts_with("c:2:"), "{error}");
    }
    let many = format!("pause_for = {:?}", vec!["a"; 65]);
    assert!(read(&many).is_err());
}

#[test]
fn values_read_as_people_write_them() {
    let text =
        "[lending]\nwhen='idle'\nmemory='8GiB'\nhours='22:00-07:30'\n[models]\nkeep_alive=-1\n";
    let config = Config::parse(text, Path::new("config.toml")).unwrap();
    assert_eq!(config.lending.memory, Some(ByteSize(8 << 30)));
    let hours = config.lending.hours.unwrap();
    assert!(
        hours.contains(23 * 60)
            && hours.contains(0)
            && !hours.contains(7 * 60 + 30)
            && !hours.contains(12 * 60)
    );
    assert_eq!(config.models.keep_alive, KeepAlive::Forever);
    for (text, seconds) in [("5m", 300), ("300", 300), ("0", 0), ("1h30m", 5400)] {
        assert_eq!(
            KeepAlive::parse(text).unwrap(),
            KeepAlive::from_seconds(seconds),
            "{text}"
        );
    }
    for size in [
        ByteSize(0),
        ByteSize(1),
        ByteSize(1 << 30),
        ByteSize(3 << 20),
        ByteSize(1_000_000_007),
    ] {
        assert_eq!(size.to_string().parse(), Ok(size));
    }
}

#[test]
fn ollamas_variables_fill_in_what_the_file_leaves_out() {
    let env = |name: &str| {
        let value = match name {
            "OLLAMA_HOST" => "http://0.0.0.0",
            "OLLAMA_KEEP_ALIVE" => "-1",
            "OLLAMA_LOAD_TIMEOUT" => "90s",
            "OLLAMA_CONTEXT_LENGTH" => "8192",
            "OLLAMA_ORIGINS" => "http://a.example, app://b",
            "OLLAMA_MAX_QUEUE" => "7",
            "OLLAMA_NUM_PARALLEL" => "3",
            "OLLAMA_MAX_LOADED_MODELS" => "2",
            "OLLAMA_KV_CACHE_TYPE" => "q8_0",
            "OLLAMA_FLASH_ATTENTION" => "1",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let config =
        Config::parse_with("[models]\ncontext = 512\n", Path::new("config.toml"), &env).unwrap();
    assert_eq!(config.api.listen, ["0.0.0.0:11434".parse().unwrap()]);
    assert_eq!(config.models.keep_alive, KeepAlive::Forever);
    assert_eq!(config.models.load_timeout.0.as_secs(), 90);
    assert_eq!(config.models.context, Some(512), "the file wins");
    assert_eq!(config.api.origins, ["http://a.example", "app://b"]);
    assert_eq!(config.api.max_queue, 7);
    assert_eq!(config.models.parallel.map(u32::from), Some(3));
    assert_eq!(config.models.max_loaded.map(u32::from), Some(2));
    assert_eq!(config.models.kv_cache_type, CacheType::Q8_0);
    assert_eq!(config.models.flash_attention, Some(true));
    let wrong = Config::parse_with("", Path::new("c"), &|name| {
        (name == "OLLAMA_HOST").then(|| "a b".to_owned())
    });
    assert!(wrong.unwrap_err().to_string().starts_with("OLLAMA_HOST: "));
}

#[test]
fn a_load_without_a_limit_is_given_up_after_a_day() {
    for (written, seconds) in [("\"10m\"", 600), ("7", 7), ("0", 86_400), ("-1", 86_400)] {
        let text = format!("[models]\nload_timeout = {written}\n");
        let config = Config::parse(&text, Path::new("c")).unwrap();
        assert_eq!(config.models.load_timeout.0.as_secs(), seconds, "{written}");
    }
}

#[test]
fn a_quantised_cache_without_flash_attention_is_refused_wherever_each_is_set() {
    let plain = |name: &str| (name == "OLLAMA_FLASH_ATTENTION").then(|| "0".to_owned());
    let file = "[models]\nkv_cache_type = \"q4_0\"\n";
    let both = "[models]\nkv_cache_type = \"q4_0\"\nflash_attention = false\n";
    for (text, env) in [
        (file, &plain as &dyn Fn(&str) -> Option<String>),
        (both, &|_| None),
    ] {
        let error = Config::parse_with(text, Path::new("c"), env).unwrap_err();
        let told = error.to_string();
        for part in ["models.kv_cache_type: q4_0", "flash_attention", "f16"] {
            assert!(told.contains(part), "{told}");
        }
    }
    let half = Config::parse_with("", Path::new("c"), &plain).unwrap();
    assert_eq!(half.models.flash_attention, Some(false));
    check(
        "[models]\nkv_cache_type = \"q5_0\"\n",
        expect![
            "config.toml:2:17: models.kv_cache_type: unknown variant `q5_0`, expected one of `f16`, `q8_0`, `q4_0`"
        ],
    );
    let odd = Config::parse_with("", Path::new("c"), &|name| {
        (name == "OLLAMA_FLASH_ATTENTION").then(|| "perhaps".to_owned())
    });
    assert!(
        odd.unwrap_err()
            .to_string()
            .starts_with("OLLAMA_FLASH_ATTENTION: ")
    );
}

#[test]
fn lending_keeps_the_owners_comments() {
    let (_folder, home) = home();
    let text = "# my machine\n\n[lending]   # careful\nwhen = \"off\" # for now\ncores = 2\n\n[models]\nkeep_alive = \"1h\"\n";
    std::fs::write(home.config_file(), text).unwrap();
    let change = LendingChange {
        when: Some(When::Idle),
        cores: Some(None),
        models: Some(vec!["smollm2:135m".into()]),
        ..LendingChange::default()
    };
    let config = set_lending(&home, &change).unwrap();
    assert_eq!(config.lending.when, When::Idle);
    assert_eq!(config.lending.cores, None);
    expect![[r##"
        # my machine

        [lending]   # careful
        when = "idle" # for now
        models = ["smollm2:135m"]

        [models]
        keep_alive = "1h"
    "##]]
    .assert_eq(&std::fs::read_to_string(home.config_file()).unwrap());
}

#[test]
fn a_wrong_file_is_not_edited() {
    let (_folder, home) = home();
    std::fs::write(home.config_file(), "[lending]\nwen = 1\n").unwrap();
    let error = set_lending(
        &home,
        &LendingChange {
            when: Some(When::Always),
            ..LendingChange::default()
        },
    )
    .unwrap_err();
    assert!(error.to_string().contains("lending.wen"), "{error}");
    assert_eq!(
        std::fs::read_to_string(home.config_file()).unwrap(),
        "[lending]\nwen = 1\n"
    );
}

#[test]
fn an_api_key_is_kept_as_its_hash_and_can_be_forgotten() {
    let (_folder, home) = home();
    let circle = KeyGrant {
        scope: ScopeName::Circle,
        ..KeyGrant::default()
    };
    let secret = add_api_key(&home, "laptop", &circle).unwrap().to_string();
    add_api_key(&home, "phone", &KeyGrant::default()).unwrap();
    assert!(
        !std::fs::read_to_string(home.config_file())
            .unwrap()
            .contains(&secret)
    );
    let config = Config::load(&home).unwrap();
    assert_eq!(
        config
            .api_key_of(&secret)
            .map(|key| (key.name.as_str(), key.scope)),
        Some(("laptop", ScopeName::Circle))
    );
    assert!(config.api_key_of("sk-substrate-wrong").is_none());
    assert!(matches!(
        add_api_key(&home, "laptop", &KeyGrant::default()),
        Err(ConfigError::KeyExists { .. })
    ));
    assert!(matches!(
        add_api_key(&home, "a b", &KeyGrant::default()),
        Err(ConfigError::KeyName { .. })
    ));
    assert!(remove_api_key(&home, "laptop").unwrap());
    assert!(!remove_api_key(&home, "laptop").unwrap());
    assert_eq!(Config::load(&home).unwrap().api.keys.len(), 1);
}

#[test]
fn what_a_key_is_granted_is_written_down() {
    let (_folder, home) = home();
    // As a person may write the list by hand.
    std::fs::write(home.config_file(), "[api]\nkeys = []\n").unwrap();
    let grant = KeyGrant {
        scope: ScopeName::Commons,
        admin: true,
        per_minute: Some(60),
        concurrent: Some(2),
    };
    add_api_key(&home, "server", &grant).unwrap();
    let config = Config::load(&home).unwrap();
    let key = &config.api.keys[0];
    assert_eq!(
        (key.scope, key.admin, key.per_minute, key.concurrent),
        (ScopeName::Commons, true, Some(60), Some(2))
    );
}

#[test]
fn a_listener_has_names_and_not_addresses() {
    let text = "[api]\nnames = ['box.lan', 'my_box', 'xn--bcher-kva.example']\n";
    let config = Config::parse(text, Path::new("config.toml")).unwrap();
    assert_eq!(config.api.names.len(), 3);
    for wrong in [
        "",
        "box.lan:80",
        "http://box.lan",
        "10.0.0.7",
        "::1",
        "*.lan",
        "box.",
        ".lan",
        "a b",
    ] {
        let text = format!("[api]\nnames = ['{wrong}']\n");
        assert!(Config::parse(&text, Path::new("c")).is_err(), "{wrong}");
    }
    let many = vec!["'box.lan'"; 65].join(", ");
    let text = format!("[api]\nnames = [{many}]\n");
    check(
        &text,
        expect![[
            r#"config.toml:2:9: api.names: 65 names are more than the 64 a listener may have"#
        ]],
    );
}

#[test]
fn a_queue_is_never_longer_than_the_nodes() {
    check(
        "[api]\nmax_queue = 1025\n",
        expect!["config.toml:2:13: api.max_queue: 1025 is not between 1 and 1024"],
    );
    check(
        "[api]\nmax_queue = 0\n",
        expect!["config.toml:2:13: api.max_queue: 0 is not between 1 and 1024"],
    );
    // Ollama's own list may be longer.
    let config = Config::parse_with("", Path::new("c"), &|name| {
        (name == "OLLAMA_MAX_QUEUE").then(|| "5000".to_owned())
    });
    assert_eq!(config.unwrap().api.max_queue, 1024);
}

#[test]
fn a_lent_model_is_meant_by_any_spelling_of_its_name() {
    let text = "[lending]\nmodels = ['SmolLM2', 'me/other:1b', 'not a name']\n";
    let lending = Config::parse(text, Path::new("c")).unwrap().lending;
    let name = |text: &str| text.parse::<ModelName>().unwrap();
    assert!(lending.lends(&name("smollm2:latest")) && lending.lends(&name("me/other:1B")));
    assert!(!lending.lends(&name("smollm2:135m")) && !lending.lends(&name("other:1b")));
    let held = [name("smollm2:latest")];
    assert_eq!(
        lending.unknown_models(held.iter()),
        ["me/other:1b", "not a name"]
    );
    assert!(Lending::default().lends(&name("anything")));
}
