//! Clients that go away: cut off after a part of the answer, before its first token, or with the request half sent. Nothing
//! of them stays behind: no job, no descriptor of daemon or worker, no place and no cell of the cache.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use xtask::node::{Node, Scratch};
use xtask::size;
use xtask::stream::complete;
use xtask::trio::{MODEL, import, test_bin, test_model};

/// Requests that are given up, in the gate and in `prove`.
const REQUESTS: (usize, usize) = (24, 1000);
/// At once.
const CLIENTS: usize = 4;
/// Answers at once; fewer than clients would make a queue, which is given up as well.
const SLOTS: usize = 3;
/// Of one answer. The cache holds two of them.
const CONTEXT: usize = 256;
/// How long the last of them may take to end.
const CALM: Duration = Duration::from_secs(20);

#[test]
fn requests_that_are_given_up_leave_nothing_behind() -> Result<()> {
    let scratch = Scratch::new("abandoned")?;
    let mut node = Node::create(&test_bin(), scratch.path(), "n")?;
    node.write_config(&format!(
        "[models]\nthreads = 1\nparallel = {SLOTS}\ncontext = {CONTEXT}\nkeep_alive = -1\n"
    ))?;
    node.start()?;
    import(&node, &test_model(), &[])?;
    // What is opened once and kept: the store's file, the runtime's threads, the worker.
    give_up(node.api, 2 * CLIENTS, 1)?;
    calm(&node)?;
    let before = descriptors(&node)?;

    let requests = size::of(REQUESTS.0, REQUESTS.1);
    let ways = give_up(node.api, requests, 2)?;
    calm(&node)?;
    println!("{requests} requests given up, by way: {ways:?}; descriptors before: {before:?}");
    assert!(
        ways.iter().all(|count| *count > 0),
        "every way is gone: {ways:?}"
    );
    node.wait_for("the descriptors of before", CALM, |node| {
        Ok(descriptors(node)? == before)
    })?;

    // Every cell is free: an answer over nearly the whole context fits, several times, and so do all places at once.
    let whole = "word ".repeat(CONTEXT - 24);
    for turn in 0..3 {
        let done = complete(node.api, MODEL, &format!("{turn} {whole}"), 16, "mine")?;
        let made = done.body["usage"]["completion_tokens"].as_u64();
        assert_eq!(made, Some(16), "{}", done.body);
    }
    let together: Vec<_> = (0..SLOTS)
        .map(|client| {
            let api = node.api;
            std::thread::spawn(move || complete(api, MODEL, &format!("{client}, 2, 3,"), 8, "mine"))
        })
        .collect();
    for client in together {
        client.join().expect("no client panics")?;
    }
    Ok(())
}

/// Gives so many requests up, each in a way drawn from `seed`. Returns how many went which way.
fn give_up(api: SocketAddr, requests: usize, seed: u64) -> Result<[usize; WAYS]> {
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            std::thread::spawn(move || -> Result<[usize; WAYS]> {
                let mut dice = Dice(seed * 1000 + client as u64);
                let mut ways = [0; WAYS];
                for request in (client..requests).step_by(CLIENTS) {
                    let way = dice.roll(WAYS as u64) as usize;
                    ways[way] += 1;
                    abandon(api, way, &mut dice)
                        .with_context(|| format!("request {request}, way {way}"))?;
                }
                Ok(ways)
            })
        })
        .collect();
    let mut ways = [0; WAYS];
    for client in clients {
        let some = client.join().expect("no client panics")?;
        ways.iter_mut()
            .zip(some)
            .for_each(|(all, some)| *all += some);
    }
    Ok(ways)
}

/// Ways to give a request up.
const WAYS: usize = 5;

fn abandon(api: SocketAddr, way: usize, dice: &mut Dice) -> Result<()> {
    let mut stream = TcpStream::connect(api)?;
    stream.set_read_timeout(Some(CALM))?;
    let body = json!({
        "model": MODEL,
        "prompt": format!("{} ", dice.roll(1_000_000)).repeat(dice.roll(12) as usize + 1),
        "max_tokens": 200,
        "stream": way != 4,
    })
    .to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {api}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    match way {
        // The body breaks off.
        0 => stream.write_all(&body.as_bytes()[..body.len() / 2])?,
        // Nothing of the answer is waited for.
        1 => stream.write_all(body.as_bytes())?,
        // A part of it is read; then both directions are cut, or only the reader's silence tells.
        2 | 3 => {
            stream.write_all(body.as_bytes())?;
            read_pieces(&mut stream, dice.roll(6) as usize + 1)?;
            if way == 3 {
                stream.shutdown(Shutdown::Both)?;
            }
        }
        // An answer in one piece of which only the head could ever be seen.
        _ => {
            stream.write_all(body.as_bytes())?;
            stream.shutdown(Shutdown::Write)?;
        }
    }
    Ok(())
}

/// Reads until so many pieces of text were seen, or the end.
fn read_pieces(stream: &mut TcpStream, pieces: usize) -> Result<()> {
    let (mut seen, mut buffer) = (Vec::new(), [0; 512]);
    while seen.windows(6).filter(|six| six == b"data: ").count() < pieces {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        seen.extend_from_slice(&buffer[..count]);
        ensure!(seen.len() < 1 << 20, "an answer without pieces");
    }
    Ok(())
}

/// Waits until no job is listed any more.
fn calm(node: &Node) -> Result<()> {
    node.wait_for("the end of every job", CALM, |node| {
        let jobs = node.json(&["jobs"])?;
        Ok(jobs["jobs"].as_array().is_some_and(|jobs| {
            jobs.iter()
                .all(|job| job["state"] != "running" && job["state"] != "queued")
        }))
    })
}

/// Open descriptors of daemon and worker.
fn descriptors(node: &Node) -> Result<[usize; 2]> {
    let models = node.json(&["ps"])?;
    let worker = models["models"][0]["pid"].as_u64().context("no worker")?;
    let daemon = u64::from(node.pid().context("it runs")?);
    let count =
        |pid: u64| -> Result<usize> { Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count()) };
    Ok([count(daemon)?, count(worker)?])
}

/// Knuth's MMIX generator: the same chaos every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}
