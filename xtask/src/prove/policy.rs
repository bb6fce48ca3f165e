//! Which rules of `policy/seccomp` real workers use: a rule that no run needs is a way for an attacker and for nobody else.
//!
//! Workers answer, embed, see images and abort under strace, and every call that they make behind the filters is counted
//! at its stage. A rule whose call was not seen must say in `unseen` why it stays. Some that say so are seen now and then:
//! which thread is how far is a matter of time.
//!
//! Stage B lies over stage A and both must let a call pass, so a rule of stage A is used by what is called in either.
//!
//! Invariant: only calls of sealed workers count, and of them only those of work: no attack is run here.
//! Absent by design: conditions of rules. They narrow a call that is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use xtask::node::{Node, Scratch};
use xtask::trio::{self, MODEL, SEES, VECTORS};
use xtask::{model, packages, sh, stage};

/// Filters after which a worker is in stage A, and in stage B.
const FILTERS: [(usize, &str); 2] = [(3, "stage-b"), (2, "stage-a")];

/// What the tests call honest: work behind the wall that must go on. The rest of them are attacks and refusals.
const HONEST: [&str; 2] = ["view::", "life::"];

/// How long a traced daemon may take to end. Every call of its stops twice.
const PATIENCE: Duration = Duration::from_secs(60);

/// A rule, as far as it matters here.
#[derive(Deserialize)]
struct Rule {
    syscall: String,
    unseen: Option<String>,
}

#[derive(Deserialize)]
struct Policy {
    refuse: Vec<Rule>,
    allow: Vec<Rule>,
}

/// Runs everything under strace and compares.
pub fn prove(bin: &Path, model: &Path) -> Result<()> {
    packages::ensure_for_policy()?;
    let scratch = Scratch::new("policy")?;
    let mut seen = Seen::default();
    seen.add(&trace_daemon(bin, model, scratch.path())?);
    seen.add(&trace_tests(bin, scratch.path())?);
    println!("{} sealed workers were seen", seen.workers);
    let mut faults = Vec::new();
    let mut used = BTreeMap::new();
    for (_, stage) in FILTERS {
        let path = sh::root().join(format!("policy/seccomp/{stage}.json"));
        let policy: Policy = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        let calls = seen.calls.remove(stage).unwrap_or_default();
        println!("{stage}: {}", words(&calls));
        used.extend(calls);
        faults.extend(compare(stage, &policy, &used));
    }
    match faults.is_empty() {
        true => Ok(()),
        false => bail!(
            "{} rules that no work needs:\n  {}",
            faults.len(),
            faults.join("\n  ")
        ),
    }
}

fn compare(stage: &str, policy: &Policy, used: &BTreeMap<String, usize>) -> Vec<String> {
    let rules = policy.refuse.iter().chain(&policy.allow);
    let unused = rules.filter(|rule| !used.contains_key(&rule.syscall) && rule.unseen.is_none());
    unused
        .map(|rule| {
            let call = &rule.syscall;
            format!("{stage}: {call} was not used: remove it, or say in \"unseen\" why it stays")
        })
        .collect()
}

fn words(used: &BTreeMap<String, usize>) -> String {
    let words: Vec<String> = used.iter().map(|(call, n)| format!("{call} {n}")).collect();
    words.join(", ")
}

/// A daemon whose workers answer alone and together, to long prompts and within a schema, embed, and see.
fn trace_daemon(bin: &Path, model: &Path, folder: &Path) -> Result<String> {
    let log = folder.join("daemon.trace");
    let plain = Node::create(bin, folder, "n")?;
    // Everything on disk before the daemon runs; the header is read behind the wall there too.
    trio::import(&plain, model, &[])?;
    trio::import_as(&plain, &model::vectors_beside(model), VECTORS, &[])?;
    model::publish_drawn()?;
    trio::import_seeing(&plain, model, &model::projector_beside(model))?;
    let mut words = vec![
        "strace",
        "-f",
        "--pidns-translation",
        "-e",
        "signal=none",
        "-o",
    ];
    let path = log.display().to_string();
    words.push(&path);
    if packages::is_root() {
        words.extend(["-u", "nobody"]);
    }
    let mut daemon = Node::create(bin, folder, "n")?.with_root_prefix(&words);
    daemon.start()?;
    ask(&daemon)?;
    // The tracer ends with the daemon.
    plain.cli(&["stop", "--daemon"])?;
    daemon.wait_for("the traced daemon's end", PATIENCE, |node| {
        Ok(ureq::get(&format!("http://{}/healthz", node.api))
            .call()
            .is_err())
    })?;
    daemon.kill()?;
    std::fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))
}

/// Over HTTP: a command under strace would be one more daemon.
fn ask(node: &Node) -> Result<()> {
    let chat = |content: serde_json::Value, more: serde_json::Value| {
        let mut body = serde_json::json!({
            "model": MODEL, "max_tokens": 64,
            "messages": [{ "role": "user", "content": content }],
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        post(node, "/v1/chat/completions", &body)
    };
    chat("Why is the sky blue?".into(), serde_json::json!({}))?;
    chat(
        "word ".repeat(1500).into(),
        serde_json::json!({ "temperature": 1.2, "logprobs": true }),
    )?;
    let schema = serde_json::json!({ "type": "object", "properties": { "colour": { "type": "string" } }, "required": ["colour"] });
    let format = serde_json::json!({ "type": "json_schema", "json_schema": { "name": "c", "schema": schema } });
    chat(
        "Name a colour.".into(),
        serde_json::json!({ "response_format": format }),
    )?;
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..4)
            .map(|n| {
                scope.spawn(move || chat(format!("Tell story {n}.").into(), serde_json::json!({})))
            })
            .collect();
        asked
            .into_iter()
            .try_for_each(|one| one.join().expect("it does not panic"))
    })?;
    post(
        node,
        "/v1/embeddings",
        &serde_json::json!({ "model": VECTORS, "input": ["one", "two"] }),
    )?;
    let image = serde_json::json!([
        { "type": "text", "text": "What is this?" },
        { "type": "image_url", "image_url": { "url": format!("data:image/png;base64,{DOT}") } },
    ]);
    chat(image, serde_json::json!({ "model": SEES, "max_tokens": 8 }))
}

/// A PNG of one point.
const DOT: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

fn post(node: &Node, path: &str, body: &serde_json::Value) -> Result<()> {
    let url = format!("http://{}{path}", node.api);
    let mut answer = ureq::post(&url)
        .config()
        .http_status_as_error(false)
        .build()
        .send_json(body)?;
    let told: serde_json::Value = answer.body_mut().read_json()?;
    match answer.status().is_success() {
        true => Ok(()),
        false => bail!("{path}: {told}"),
    }
}

/// The sandbox's own tests of work behind the wall: threads, allocation, a late start, an abort.
fn trace_tests(bin: &Path, folder: &Path) -> Result<String> {
    let mut traces = String::new();
    let program = test_program()?;
    for name in HONEST {
        let log: PathBuf = folder.join("tests.trace");
        // Not whether they pass: a signal that would end the first process of a namespace ends it otherwise under a tracer.
        Command::new("strace")
            .args(["-f", "--pidns-translation", "-e", "signal=none", "-o"])
            .arg(&log)
            .arg(&program)
            .args(["--test-threads=1", name])
            .env("SUBSTRATE_TEST_BIN", bin)
            .current_dir(sh::root().join("crates/substrate-sandbox"))
            .stdout(Stdio::null())
            .status()
            .context("start strace")?;
        traces.push_str(&std::fs::read_to_string(&log)?);
    }
    Ok(traces)
}

/// The tests' executable, built with the gate's selection.
fn test_program() -> Result<String> {
    let told = sh::output(
        sh::cargo()
            .args([
                "test",
                "--no-run",
                "--message-format",
                "json",
                "--test",
                "wall",
            ])
            .args(stage::ALL_BUT_WORKER)
            .args(stage::SIMULATOR),
    )?;
    let executable = |line: &str| {
        let told: serde_json::Value = serde_json::from_str(line).ok()?;
        let wall = told["target"]["name"] == "wall";
        wall.then(|| told["executable"].as_str().map(str::to_owned))
            .flatten()
    };
    told.lines()
        .find_map(executable)
        .context("cargo names no tests of the wall")
}

/// What sealed workers called.
#[derive(Default)]
struct Seen {
    workers: usize,
    /// For each stage, every call and how often.
    calls: BTreeMap<&'static str, BTreeMap<String, usize>>,
}

impl Seen {
    /// Adds what strace wrote with `-f --pidns-translation -o`.
    fn add(&mut self, trace: &str) {
        let threads = Threads::of(trace);
        let mut filters: BTreeMap<&str, usize> = BTreeMap::new();
        for (thread, call) in lines(trace) {
            let Some(worker) = threads.worker(thread) else {
                continue;
            };
            let name = name_of(call);
            let set = filters.entry(worker).or_default();
            if let Some((_, stage)) = FILTERS.iter().find(|(least, _)| *set >= *least)
                && let Some(name) = name
            {
                let calls = self.calls.entry(stage).or_default();
                *calls.entry(name.to_owned()).or_default() += 1;
            }
            let sets = call.contains("SECCOMP_SET_MODE_FILTER") || call.contains("seccomp resumed");
            if sets && call.ends_with("= 0") {
                *set += 1;
            }
        }
        self.workers += filters.values().filter(|set| **set >= 2).count();
    }
}

/// Which threads are a worker's.
struct Threads<'a> {
    workers: BTreeSet<&'a str>,
    /// Of each thread, the one that started it.
    parents: BTreeMap<&'a str, &'a str>,
}

impl<'a> Threads<'a> {
    fn of(trace: &'a str) -> Self {
        let mut found = Self {
            workers: BTreeSet::new(),
            parents: BTreeMap::new(),
        };
        for (thread, call) in lines(trace) {
            // The launcher executes the worker by descriptor; nothing else here does.
            if call.starts_with("execveat(5, \"\"") {
                found.workers.insert(thread);
            }
            let clones = call.starts_with("clone(") || call.contains("clone resumed");
            if let (true, Some(child)) = (clones, outer_number(call)) {
                found.parents.insert(child, thread);
            }
        }
        found
    }

    fn worker(&self, thread: &'a str) -> Option<&'a str> {
        let mut at = thread;
        // A pool is two deep; a cycle cannot be, but a trace is only text.
        for _ in 0..8 {
            if self.workers.contains(at) {
                return Some(at);
            }
            at = self.parents.get(at)?;
        }
        None
    }
}

/// `3 /* 1234 in strace's PID NS */`: the number that the lines begin with.
fn outer_number(call: &str) -> Option<&str> {
    let (_, told) = call.rsplit_once(" = ")?;
    let (_, told) = told.split_once("/* ")?;
    told.split_once(" in strace's PID NS")
        .map(|(number, _)| number)
}

/// Thread and call of each line.
fn lines(trace: &str) -> impl Iterator<Item = (&str, &str)> {
    let line = |line: &'_ str| -> Option<(usize, usize)> {
        let end = line.find(' ')?;
        let start = end + line[end..].find(|c| c != ' ')?;
        Some((end, start))
    };
    trace.lines().filter_map(move |text| {
        let (end, start) = line(text)?;
        Some((&text[..end], &text[start..]))
    })
}

/// The call that a line begins; none for the end of one, a signal or an exit.
fn name_of(call: &str) -> Option<&str> {
    let (name, _) = call.split_once('(')?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (!name.is_empty() && name.bytes().all(plain)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = r#"100   clone3({flags=CLONE_PIDFD}, 88) = 101
101   execveat(5, "", ["substrate-worker"], 0x1 /* 1 var */, AT_EMPTY_PATH) = 0
101   openat(AT_FDCWD, "/before", O_RDONLY) = -1 ENOENT
101   seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, {len=3}) = 0
101   seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, {len=9}) = 0
101   openat(AT_FDCWD, "/model.gguf", O_RDONLY) = 6
100   getppid() = 1
101   clone(child_stack=0x7f, flags=CLONE_VM <unfinished ...>
102   rseq(0x7f, 32, 0, 0x53053053)     = 0
101   <... clone resumed>) = 2 /* 102 in strace's PID NS */
101   seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, {len=9} <unfinished ...>
102   futex(0x1, FUTEX_WAIT) = 0
101   <... seccomp resumed>) = 0
102   write(4, "x", 1) = 1
102   +++ exited with 0 +++
"#;

    #[test]
    fn calls_are_counted_at_their_stage_and_for_workers_only() {
        let mut seen = Seen::default();
        seen.add(TRACE);
        assert_eq!(seen.workers, 1);
        assert_eq!(
            words(&seen.calls["stage-a"]),
            "clone 1, futex 1, openat 1, rseq 1, seccomp 1"
        );
        assert_eq!(words(&seen.calls["stage-b"]), "write 1");
    }

    #[test]
    fn a_rule_is_used_or_says_why_it_stays() {
        let policy = |unseen: &str| -> Policy {
            let text = format!(
                r#"{{"refuse": [], "allow": [{{"syscall": "readv", "why": "w"{unseen}}}]}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        let (bare, told) = (policy(""), policy(r#", "unseen": "w""#));
        let used = BTreeMap::from([("readv".to_owned(), 1)]);
        assert!(compare("a", &bare, &used).is_empty());
        assert!(compare("a", &told, &BTreeMap::new()).is_empty());
        assert_eq!(compare("a", &bare, &BTreeMap::new()).len(), 1);
        assert!(compare("a", &told, &used).is_empty());
    }
}
