//! The policies' compilers: what they refuse, and where they say the fault lies.

#![cfg(target_os = "linux")]

#[allow(dead_code)]
#[path = "../build/policy.rs"]
mod policy;

#[allow(dead_code)]
#[path = "../build/gpu.rs"]
mod gpu;

use policy::compile;

/// Compiles a policy whose fifth and sixth lines are given, for x86-64.
fn check(refuse: &str, allow: &str, expected: &str) {
    let text = format!(
        "{{\n  \"about\": [\"a test\"],\n  \"arch\": {{ \"x86_64\": {{ \"FLAG\": 4 }} }},\n  \"refuse\": [\n{refuse}],\n  \
         \"allow\": [{{ \"syscall\": \"read\", \"why\": \"to read\" }},\n{allow}] }}"
    );
    let compiled = compile("test.json", &text, "x86_64");
    let said = match compiled {
        Ok(Some(programs)) => format!("{} and {}", programs.refuse.len(), programs.allow.len()),
        Ok(None) => "nothing".to_owned(),
        Err(error) => error,
    };
    assert!(said.starts_with(expected), "{said}");
}

fn check_rule(rule: &str, expected: &str) {
    check("", rule, expected);
}

#[test]
fn an_unknown_call_is_named_with_its_line() {
    check_rule(
        r#"{ "syscall": "raed", "why": "a slip" }"#,
        "test.json:7: Json Frontend error: Invalid syscall name: raed",
    );
}

#[test]
fn an_unknown_constant_is_named_with_its_line() {
    check_rule(
        r#"{ "syscall": "mmap", "why": "w", "when": [[{ "arg": 2, "equals": "FLAG|FALG" }]] }"#,
        "test.json:7: unknown constant \"FALG\"",
    );
}

#[test]
fn an_argument_no_call_has_is_refused() {
    check_rule(
        r#"{ "syscall": "mmap", "why": "w", "when": [[{ "arg": 6, "equals": 0 }]] }"#,
        "test.json:7: Json Frontend error: The seccomp rule contains an invalid argument index",
    );
}

#[test]
fn a_rule_without_a_reason_is_refused() {
    check_rule(
        r#"{ "syscall": "write", "why": "to write", "unseen": "" }"#,
        "test.json:7: a rule needs a reason in \"why\", and in \"unseen\" if it has that",
    );
    check_rule(
        r#"{ "syscall": "write", "why": " " }"#,
        "test.json:7: a rule needs a reason in \"why\"",
    );
    check_rule(
        r#"{ "syscall": "write" }"#,
        "test.json:7: missing field `why`",
    );
}

#[test]
fn a_misspelt_field_is_refused() {
    check_rule(
        r#"{ "syscall": "write", "why": "w", "wehn": [] }"#,
        "test.json:7: unknown field `wehn`",
    );
}

#[test]
fn a_call_listed_twice_is_refused() {
    check_rule(
        r#"{ "syscall": "read", "why": "again" }"#,
        "test.json:7: system call \"read\" is listed twice",
    );
    check(
        r#"{ "syscall": "write", "errno": "ENOSYS", "why": "w" }"#,
        r#"{ "syscall": "write", "why": "w" }"#,
        "test.json:7: system call \"write\" is listed twice",
    );
}

#[test]
fn only_a_missing_call_may_be_pretended() {
    check(
        r#"{ "syscall": "clone3", "errno": "EPERM", "why": "w" }"#,
        r#"{ "syscall": "write", "why": "w" }"#,
        "test.json:5: errno \"EPERM\" is not ENOSYS",
    );
}

#[test]
fn broken_json_is_named_with_its_line() {
    check_rule(r#"{ "syscall": "#, "test.json:7: ");
}

#[test]
fn an_architecture_without_constants_gets_no_program() {
    let text = r#"{ "about": [], "arch": {}, "refuse": [], "allow": [] }"#;
    assert!(compile("test.json", text, "x86_64").unwrap().is_none());
    assert!(compile("test.json", text, "sparc").unwrap().is_none());
}

#[test]
fn a_good_policy_compiles() {
    check(
        r#"{ "syscall": "clone3", "errno": "ENOSYS", "why": "w" }"#,
        r#"{ "syscall": "mmap", "why": "w", "when": [[{ "arg": 2, "mask": "FLAG", "equals": 0 }]] }"#,
        "",
    );
}

#[test]
fn the_second_stage_takes_away_and_adds_nothing() {
    let calls = |text: &str| -> std::collections::BTreeSet<String> {
        let policy: serde_json::Value = serde_json::from_str(text).unwrap();
        let rules = policy["allow"].as_array().unwrap().iter();
        rules
            .map(|rule| rule["syscall"].as_str().unwrap().to_owned())
            .collect()
    };
    let first = calls(include_str!("../../../policy/seccomp/stage-a.json"));
    let second = calls(include_str!("../../../policy/seccomp/stage-b.json"));
    assert!(second.is_subset(&first));
    for gone in [
        "openat",
        "close",
        "clone",
        "seccomp",
        "prctl",
        "newfstatat",
        "fstat",
    ] {
        assert!(first.contains(gone) && !second.contains(gone), "{gone}");
    }
}

/// Compiles a list whose sixth line is this node and whose ninth is this file.
fn check_gpu(node: &str, file: &str, expected: &str) {
    let text = format!(
        "{{\n  \"about\": [\"a test\"],\n  \"vendor\": \"maker\",\n  \"pci\": \"0x10de\",\n  \"nodes\": [\n{node}\n  ],\n  \
         \"files\": [\n{file}\n  ]\n}}"
    );
    let said = match gpu::compile("test.json", &text) {
        Ok(vendor) => format!("{} and {}", vendor.nodes.len(), vendor.files.len()),
        Err(error) => error,
    };
    assert!(said.starts_with(expected), "{said}");
}

const NODE: &str = r#"{ "path": "/dev/card*", "why": "to compute" }"#;
const FILE: &str = r#"{ "path": "/usr/lib/libcard.so", "why": "to drive" }"#;

#[test]
fn a_list_of_a_driver_is_nodes_and_whole_names_of_files() {
    check_gpu(NODE, FILE, "1 and 1");
    check_gpu(NODE, "", "1 and 0");
    check_gpu(
        "",
        FILE,
        "test.json: a list has a node, and at most 32 entries",
    );
    let many = vec![FILE; 32].join(",");
    check_gpu(
        NODE,
        &many,
        "test.json: a list has a node, and at most 32 entries",
    );
}

#[test]
fn a_field_that_a_list_does_not_have_is_named_with_its_line() {
    check_gpu(
        &NODE.replace("why", "because"),
        FILE,
        "test.json:6: unknown field `because`",
    );
    check_gpu(
        NODE,
        &FILE.replace("why", "because"),
        "test.json:9: unknown field `because`",
    );
    // Which of two makers' nodes is meant cannot be said of a file.
    let of_vendor = FILE.replace("\"why\"", "\"of_vendor\": true, \"why\"");
    check_gpu(NODE, &of_vendor, "test.json:9: unknown field `of_vendor`");
    check_gpu("3", FILE, "test.json:6: invalid type: integer");
}

#[test]
fn a_path_that_could_reach_more_than_it_says_is_named_with_its_line() {
    let node = |path: &str| NODE.replace("/dev/card*", path);
    let file = |path: &str| FILE.replace("/usr/lib/libcard.so", path);
    for path in [
        "/dev/../etc",
        "/dev//card",
        "dev/card",
        "/dev/*/card",
        "/dev/ca rd",
        "/dev/",
        "/",
    ] {
        check_gpu(
            &node(path),
            FILE,
            &format!("test.json:6: \"{path}\" is no plain absolute path"),
        );
    }
    check_gpu(
        &node("/etc/card"),
        FILE,
        "test.json:6: \"/etc/card\" is no device node",
    );
    check_gpu(
        NODE,
        &file("/usr/lib/lib*"),
        "test.json:9: \"/usr/lib/lib*\": a file is named whole",
    );
    check_gpu(
        NODE,
        &file("/etc/shadow"),
        "test.json:9: \"/etc/shadow\" is in none of /usr/",
    );
    check_gpu(
        NODE,
        &format!("{FILE},\n{FILE}"),
        "test.json:10: \"/usr/lib/libcard.so\" is listed twice",
    );
    check_gpu(
        &NODE.replace("to compute", " "),
        FILE,
        "test.json:6: an entry needs a reason",
    );
}
