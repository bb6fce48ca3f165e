//! A daemon that is told to stop: what runs is finished or handed over, what is new is refused at once.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::node::{Node, Scratch};
use xtask::stream::complete;
use xtask::trio::{Holders, MODEL, Trio, import, test_bin, test_model};

/// Raw text that goes on by itself: a chat answer would end when the model thinks it is done.
const PROMPT: &str = "1, 2, 3, 4, 5, 6, 7, 8,";
/// Pieces after which a stream is surely under way.
const UNDER_WAY: usize = 24;
/// How long a daemon lets answers finish by themselves.
const FINISH: Duration = Duration::from_secs(10);
/// Answers that may be stopped until one has the time to finish.
const STOPS: usize = 3;
/// How long connections were once left after a stop. Answers must get more.
const ONCE_CUT_AFTER: Duration = Duration::from_secs(5);

#[test]
fn a_provider_that_stops_hands_over_what_it_has_no_time_to_finish() -> Result<()> {
    let scratch = Scratch::new("handover")?;
    let mut trio = Trio::start(&test_bin(), scratch.path(), &test_model(), Holders::Guests)?;
    // Half as much again as can be sampled until the daemon hands over, so that a machine that grows faster changes nothing.
    let warm = Stream::open(trio.a.api, 96)?.read(|_| Ok(()))?;
    let tokens = warm.tokens_in(FINISH * 3 / 2).clamp(256, 3_500);
    let unbroken = complete(trio.a.api, MODEL, PROMPT, tokens, "circle")?;

    let mut stopped = None;
    let answer = Stream::open(trio.a.api, tokens)?.read(|answer| {
        if stopped.is_none() && answer.times.len() >= UNDER_WAY {
            let node = answering(&trio.a)?;
            signal(trio.guest(&node)?.pid().context("it runs")?, "TERM")?;
            stopped = Some(node);
        }
        Ok(())
    })?;
    let stopped = stopped.context("a node was stopped")?;
    assert_eq!(answer.told["attempts"], 2, "{}", answer.told);
    assert_ne!(answer.told["node"].as_str(), Some(stopped.as_str()));
    assert_eq!(answer.finish.as_deref(), Some("length"));
    // Whole: nothing is repeated and nothing is missing where the second node took over.
    let seam = answer.moved_at.context("the stream tells the move")?;
    let whole = unbroken.body["choices"][0]["text"]
        .as_str()
        .context("a text")?;
    let same = common_prefix(&answer.text, whole);
    assert!(
        same > seam,
        "the answers part after {same} bytes, the move came after {seam}:\n{}\n---\n{whole}",
        answer.text
    );
    // The stopped daemon ends by itself, and both sides can prove what it did.
    let guest = trio.guest_mut(&stopped)?;
    wait_until_ended(guest, FINISH)?;
    guest.kill()?;
    guest.start()?;
    let story = guest.cli(&["receipts", "show", &answer.job])?;
    assert!(story.contains("both halves"), "{story}");
    Ok(())
}

#[test]
fn a_requester_that_stops_finishes_its_clients_answer_and_refuses_new_ones() -> Result<()> {
    // A machine that slows down meanwhile has no time to finish, and shows nothing.
    for _ in 0..STOPS {
        if stops_and_finishes()? {
            return Ok(());
        }
    }
    bail!("{STOPS} times the answer took more than {FINISH:?} to end")
}

/// False if the daemon gave the answer up, rightly: it was not done within its time.
fn stops_and_finishes() -> Result<bool> {
    let scratch = Scratch::new("stopping")?;
    let mut node = Node::create(&test_bin(), scratch.path(), "n")?;
    // One speed: by itself the engine would take a second core when it is free, and give it back for what is asked here.
    node.write_config("[models]\nthreads = 1\n")?;
    node.start()?;
    import(&node, &test_model(), &[])?;
    complete(node.api, MODEL, PROMPT, 1, "mine")?;
    let (api, pid) = (node.api, node.pid().context("it runs")?);

    let tokens = 500;
    let mut told_at = None;
    let answer = Stream::open(api, tokens)?.read(|answer| {
        // More than connections once got, less than answers get.
        let left = answer.tokens_in(Duration::from_millis(7_000));
        let near = tokens.saturating_sub(answer.tokens()) <= left;
        if told_at.is_none() && near && answer.times.len() >= UNDER_WAY {
            signal(pid, "TERM")?;
            told_at = Some(Instant::now());
            wait_until_refused(api)?;
            refuses_in_each_shape(api)?;
            let jobs = node.json(&["jobs"])?;
            ensure!(jobs["jobs"][0]["state"] == "running", "{jobs}");
            let told = refused(&node, &["run", MODEL, "hello"])?;
            ensure!(told.contains("the daemon is stopping"), "{told}");
        }
        Ok(())
    });
    let after = told_at.context("it was told to stop")?.elapsed();
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) if after >= FINISH => {
            println!("the machine slowed down, and after {after:?}: {error:#}");
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    assert_eq!(answer.usage["completion_tokens"], tokens, "{after:?}");
    assert_eq!(answer.finish.as_deref(), Some("length"));
    println!("the answer went on for {after:?} after the signal");
    assert!(after > ONCE_CUT_AFTER, "{after:?} proves nothing");
    wait_until_ended(&node, FINISH)?;
    Ok(true)
}

#[test]
fn a_second_signal_ends_a_daemon_at_once() -> Result<()> {
    let scratch = Scratch::new("atonce")?;
    let mut node = Node::create(&test_bin(), scratch.path(), "n")?;
    node.start()?;
    import(&node, &test_model(), &[])?;
    complete(node.api, MODEL, PROMPT, 1, "mine")?;
    let (api, pid) = (node.api, node.pid().context("it runs")?);
    let mut told = None;
    let cut = Stream::open(api, 3_500)?.read(|answer| {
        if told.is_none() && answer.times.len() >= UNDER_WAY {
            signal(pid, "TERM")?;
            wait_until_refused(api)?;
            told = Some(Instant::now());
            signal(pid, "INT")?;
        }
        Ok(())
    });
    assert!(cut.is_err(), "nobody finished the answer");
    wait_until_ended(&node, FINISH / 2)?;
    let took = told.context("it was told twice")?.elapsed();
    assert!(took < FINISH / 2, "{took:?}");
    // Nothing is in the way of the next start.
    node.kill()?;
    node.start()?;
    complete(node.api, MODEL, PROMPT, 1, "mine").map(drop)
}

/// A streamed raw completion.
struct Stream(BufReader<Box<dyn std::io::Read>>, String);

/// What came of it so far.
#[derive(Default)]
struct Streamed {
    job: String,
    text: String,
    times: Vec<Duration>,
    finish: Option<String>,
    usage: Value,
    told: Value,
    /// Bytes of text when the answer moved to another node.
    moved_at: Option<usize>,
    done: bool,
}

impl Stream {
    fn open(api: SocketAddr, max_tokens: u32) -> Result<Self> {
        let response = post(api, "/v1/completions", &asked(max_tokens, true))?;
        let job = response.headers().get("x-substrate-job");
        let job = job.and_then(|job| job.to_str().ok()).map(str::to_owned);
        let status = response.status();
        let body: Box<dyn std::io::Read> = Box::new(response.into_body().into_reader());
        ensure!(
            status.is_success(),
            "{status}: {}",
            std::io::read_to_string(body)?
        );
        Ok(Self(BufReader::new(body), job.unwrap_or_default()))
    }

    fn read(self, mut on_piece: impl FnMut(&Streamed) -> Result<()>) -> Result<Streamed> {
        let start = Instant::now();
        let mut answer = Streamed {
            job: self.1,
            ..Streamed::default()
        };
        for line in self.0.lines() {
            if answer.take(&line?)? {
                answer.times.push(start.elapsed());
                on_piece(&answer)?;
            }
        }
        ensure!(
            answer.done,
            "the stream ended without [DONE]: {}",
            answer.text
        );
        Ok(answer)
    }
}

impl Streamed {
    /// Takes a line; `true` if it brought text.
    fn take(&mut self, line: &str) -> Result<bool> {
        if let Some(facts) = line.strip_prefix(": substrate ") {
            self.told = serde_json::from_str(facts)?;
        } else if line.starts_with(": moved ") {
            self.moved_at = Some(self.text.len());
        }
        let Some(payload) = line.strip_prefix("data: ") else {
            return Ok(false);
        };
        if payload == "[DONE]" {
            self.done = true;
            return Ok(false);
        }
        let chunk: Value = serde_json::from_str(payload)?;
        if let Some(error) = chunk.get("error") {
            bail!("the stream ended with an error: {error}");
        }
        if chunk["usage"].is_object() {
            self.usage = chunk["usage"].clone();
        }
        let choice = &chunk["choices"][0];
        if let Some(finish) = choice["finish_reason"].as_str() {
            self.finish = Some(finish.to_owned());
        }
        let piece = choice["text"].as_str().unwrap_or_default();
        self.text.push_str(piece);
        Ok(!piece.is_empty())
    }

    /// Tokens so far: each comes in a piece of its own.
    fn tokens(&self) -> u32 {
        u32::try_from(self.times.len()).unwrap_or(u32::MAX)
    }

    /// Tokens this answer would bring in so long, by its own speed.
    fn tokens_in(&self, span: Duration) -> u32 {
        let (Some(first), Some(last)) = (self.times.first(), self.times.last()) else {
            return 0;
        };
        let took = (*last - *first).as_millis().max(1);
        let tokens = span.as_millis() * u128::from(self.tokens()) / took;
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }
}

fn asked(max_tokens: u32, stream: bool) -> Value {
    json!({
        "model": MODEL,
        "prompt": PROMPT,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": stream,
        "stream_options": { "include_usage": true },
    })
}

fn post(api: SocketAddr, path: &str, body: &Value) -> Result<ureq::http::Response<ureq::Body>> {
    let request = ureq::post(&format!("http://{api}{path}"))
        .config()
        .http_status_as_error(false)
        .build();
    Ok(request.send_json(body)?)
}

/// The signal has arrived when the daemon no longer calls itself well.
fn wait_until_refused(api: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + FINISH / 2;
    while ureq::get(&format!("http://{api}/healthz")).call().is_ok() {
        ensure!(
            Instant::now() < deadline,
            "the daemon still says it is well"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn refuses_in_each_shape(api: SocketAddr) -> Result<()> {
    let chat = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "hi" }] });
    for (path, body) in [
        ("/v1/completions", &asked(1, false)),
        ("/v1/chat/completions", &chat),
        ("/api/chat", &chat),
    ] {
        let asked = Instant::now();
        let response = post(api, path, body)?;
        ensure!(response.status() == 503, "{path}: {}", response.status());
        ensure!(response.headers().contains_key("retry-after"), "{path}");
        let told: Value = response.into_body().read_json()?;
        let error = match path.starts_with("/v1") {
            true => &told["error"]["message"],
            false => &told["error"],
        };
        let error = error.as_str().context("its API's own shape")?;
        ensure!(error.contains("the daemon is stopping"), "{path}: {told}");
        ensure!(asked.elapsed() < FINISH / 5, "{path} was kept waiting");
    }
    Ok(())
}

/// Runs a command that must fail and returns its stderr.
fn refused(node: &Node, args: &[&str]) -> Result<String> {
    let output = node.command().args(args).output()?;
    ensure!(!output.status.success(), "{args:?} did not fail");
    Ok(String::from_utf8(output.stderr)?)
}

/// Waits until the daemon's process has ended; it stays a zombie until its handle is dropped.
fn wait_until_ended(node: &Node, within: Duration) -> Result<()> {
    let stat = format!("/proc/{}/stat", node.pid().context("it was started")?);
    node.wait_for("the daemon's end", within, |_| {
        let stat = std::fs::read_to_string(&stat).unwrap_or_default();
        Ok(stat.is_empty() || stat.contains(") Z "))
    })
}

fn common_prefix(left: &str, right: &str) -> usize {
    let pairs = left.bytes().zip(right.bytes());
    pairs.take_while(|(left, right)| left == right).count()
}

/// The key of the node that answers the one running job.
fn answering(a: &Node) -> Result<String> {
    let jobs = a.json(&["jobs"])?;
    let jobs = jobs["jobs"].as_array().context("no jobs")?;
    let running = jobs.iter().find(|job| job["state"] == "running");
    let node = running.and_then(|job| job["node"].as_str());
    Ok(node.context("no running job")?.to_owned())
}

fn signal(pid: u32, name: &str) -> Result<()> {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status()?;
    ensure!(status.success(), "kill -{name} {pid}: {status}");
    Ok(())
}
