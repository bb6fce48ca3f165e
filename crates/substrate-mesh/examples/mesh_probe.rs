//! A node that is nothing but its mesh: commands on stdin, events on stdout, one a line.
//!
//! The tests start several of these as real processes. It answers job streams by echoing frames,
//! accepts every gossiped record, and penalises what breaks the protocol, as a daemon would.

#[path = "../src/testing.rs"]
mod testing;

use std::io::Write;
use std::time::{Duration, Instant};

use substrate_mesh::frame::{DEAD_AFTER, FrameReader, FrameWriter, HEARTBEAT_EVERY, framed};
use substrate_mesh::job::JobFrame;
use substrate_mesh::join::JoinFrame;
use substrate_mesh::{
    Discovery, Judgement, Limits, Mesh, MeshConfig, MeshEvent, MeshStream, Protocol, start,
};
use substrate_record::{AnyRecord, NetworkId, NodeId, SessionNonce};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};

type Reader = FrameReader<ReadHalf<MeshStream>, JobFrame>;
type Writer = FrameWriter<WriteHalf<MeshStream>, JobFrame>;

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn config() -> MeshConfig {
    let mut config = MeshConfig {
        seed: [1; 32],
        network: testing::network(1),
        rules_hash: Some([1; 32]),
        version: "0.1.0".into(),
        build: "probe".into(),
        session: SessionNonce::from_bytes([1; 16]),
        listen: vec![],
        static_peers: vec![],
        known_peers: vec![],
        discovery: Discovery {
            mdns: false,
            kad: false,
        },
        allow_join: false,
        limits: Limits::default(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let mut value = || args.next().expect("a value");
        match flag.as_str() {
            "--seed" => config.seed = [value().parse().expect("a number"); 32],
            "--network" => config.network = testing::network(value().parse().expect("a number")),
            "--rules" => config.rules_hash = Some([value().parse().expect("a number"); 32]),
            "--session" => {
                config.session = SessionNonce::from_bytes([value().parse().expect("a number"); 16]);
            }
            "--joiner" => config.rules_hash = None,
            "--allow-join" => config.allow_join = true,
            "--listen" => config.listen.push(value()),
            "--peer" => config.static_peers.push(value()),
            "--known" => config.known_peers.push(value()),
            "--kad" => config.discovery.kad = true,
            "--mdns" => config.discovery.mdns = true,
            other => panic!("unknown flag {other}"),
        }
    }
    config
}

#[tokio::main]
async fn main() {
    let config = config();
    let network = config.network;
    let (mesh, mut events) = start(config).await.expect("the mesh starts");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => on_event(&mesh, network, event).await,
                None => break,
            },
            line = lines.next_line() => match line {
                Ok(Some(line)) if line != "quit" => {
                    let mesh = mesh.clone();
                    tokio::spawn(async move { perform(&mesh, network, &line).await });
                }
                _ => break,
            },
        }
    }
    mesh.shutdown().await;
    say("bye");
}

async fn on_event(mesh: &Mesh, network: NetworkId, event: MeshEvent) {
    match event {
        MeshEvent::PeerUp(peer) => say(&format!("up {} {}", peer.node, peer.session)),
        MeshEvent::PeerChanged(peer) => say(&format!("changed {} {}", peer.node, peer.session)),
        MeshEvent::PeerDown { node } => say(&format!("down {node}")),
        MeshEvent::Record { token, bytes, .. } => {
            let id = AnyRecord::open(&bytes, &network)
                .expect("the mesh checks records")
                .id();
            say(&format!("record {id}"));
            mesh.judge(token, Judgement::Accept).await;
        }
        MeshEvent::Inbound {
            node,
            protocol,
            stream,
        } => {
            say(&format!("inbound {node} {protocol:?}"));
            let mesh = mesh.clone();
            tokio::spawn(async move {
                match protocol {
                    Protocol::Job => echo(&mesh, node, stream).await,
                    Protocol::Join => welcome(stream).await,
                    Protocol::Sync => {}
                }
            });
        }
        MeshEvent::Listening { address } => say(&format!("listening {address}")),
        MeshEvent::Refused { node, why, .. } => say(&format!("refused {node} {why}")),
        _ => {}
    }
}

/// The provider's side of a job stream, without a job.
async fn echo(mesh: &Mesh, node: NodeId, stream: MeshStream) {
    let (mut reader, mut writer): (Reader, Writer) = framed(stream);
    loop {
        match reader.next_within(Duration::from_secs(30)).await {
            Ok(frame) => {
                if writer.send(&frame).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                if let Some(offence) = error.offence() {
                    say(&format!("offence {node} {offence:?}"));
                    mesh.penalise(node, offence).await;
                }
                return;
            }
        }
    }
}

/// The inviter's side of a join stream: any secret will do.
async fn welcome(stream: MeshStream) {
    let (mut reader, mut writer) = framed::<_, JoinFrame>(stream);
    if let Ok(JoinFrame::Hello { .. }) = reader.next().await {
        for frame in JoinFrame::welcome(b"genesis".to_vec(), vec![], vec![b"entry".to_vec(); 3]) {
            if writer.send(&frame).await.is_err() {
                return;
            }
        }
        // The joiner ends the stream when it has everything.
        let _ = reader.next().await;
    }
}

async fn perform(mesh: &Mesh, network: NetworkId, line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let outcome = match words[..] {
        ["dial", address] => match mesh.dial(address).await {
            Ok(node) => format!("dialed {node}"),
            Err(error) => format!("dial failed: {error}"),
        },
        ["publish", seed, seq] => {
            let (seed, seq) = (
                seed.parse().expect("a number"),
                seq.parse().expect("a number"),
            );
            let bytes = testing::signed_record(seed, network, seq);
            let id = AnyRecord::open(&bytes, &network).expect("just signed").id();
            format!("published {id} {:?}", mesh.publish(bytes).await)
        }
        ["echo", node, count] => {
            match bounce(mesh, parse(node), count.parse().expect("a number")).await {
                Ok(line) => line,
                Err(error) => format!("echo failed: {error}"),
            }
        }
        ["beat", node] => match beat(mesh, parse(node)).await {
            Ok(line) => line,
            Err(error) => format!("beat failed: {error}"),
        },
        ["raw", node, hex] => raw(mesh, parse(node), &unhex(hex)).await,
        ["join", node] => join(mesh, parse(node)).await,
        ["session", i] => {
            mesh.set_session(SessionNonce::from_bytes([i.parse().expect("a number"); 16]))
                .await;
            "session set".into()
        }
        ["peers"] => {
            let peers = mesh.peers().await;
            let shown: Vec<String> = peers
                .iter()
                .map(|peer| format!("{} {:?}", peer.node, peer.addresses))
                .collect();
            format!("peers {} {}", peers.len(), shown.join(" "))
        }
        ["counters"] => format!("counters {:?}", mesh.counters().await),
        _ => format!("unknown command {line}"),
    };
    say(&outcome);
}

/// Sends frames and waits for each to come back.
async fn bounce(mesh: &Mesh, node: NodeId, count: u32) -> Result<String, String> {
    let stream = mesh
        .open(node, Protocol::Job)
        .await
        .map_err(|error| error.to_string())?;
    let (mut reader, mut writer): (Reader, Writer) = framed(stream);
    let mut times = Vec::new();
    for n in 0..count {
        let sent = JobFrame::Token {
            ids: vec![n],
            bytes: b"hello".to_vec(),
            logprobs: vec![],
        };
        let begun = Instant::now();
        writer
            .send(&sent)
            .await
            .map_err(|error| error.to_string())?;
        let back = reader
            .next_within(Duration::from_secs(20))
            .await
            .map_err(|error| error.to_string())?;
        times.push(begun.elapsed());
        if back != sent {
            return Err(format!("another frame came back: {back:?}"));
        }
    }
    writer.close().await.map_err(|error| error.to_string())?;
    times.sort();
    Ok(format!(
        "echoed {count} median {:?}",
        times[times.len() / 2]
    ))
}

/// Heartbeats until the other side is silent for too long.
async fn beat(mesh: &Mesh, node: NodeId) -> Result<String, String> {
    let stream = mesh
        .open(node, Protocol::Job)
        .await
        .map_err(|error| error.to_string())?;
    let (mut reader, mut writer): (Reader, Writer) = framed(stream);
    let beats = tokio::spawn(async move {
        while writer.send(&JobFrame::Heartbeat).await.is_ok() {
            tokio::time::sleep(HEARTBEAT_EVERY).await;
        }
    });
    reader.next().await.map_err(|error| error.to_string())?;
    say("beating");
    let outcome = loop {
        if let Err(error) = reader.next_within(DEAD_AFTER).await {
            break error;
        }
    };
    beats.abort();
    Ok(format!("beat ended: {outcome}"))
}

/// Writes bytes that need not be frames, and waits for the stream to end.
async fn raw(mesh: &Mesh, node: NodeId, bytes: &[u8]) -> String {
    let Ok(mut stream) = mesh.open(node, Protocol::Job).await else {
        return "raw refused".into();
    };
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    "raw ended".into()
}

async fn join(mesh: &Mesh, node: NodeId) -> String {
    let stream = match mesh.open(node, Protocol::Join).await {
        Ok(stream) => stream,
        Err(error) => return format!("join failed: {error}"),
    };
    let (mut reader, mut writer) = framed::<_, JoinFrame>(stream);
    if let Err(error) = writer.send(&JoinFrame::Hello { secret: [7; 16] }).await {
        return format!("join failed: {error}");
    }
    let mut records = 0;
    loop {
        match reader.next_within(Duration::from_secs(5)).await {
            Ok(JoinFrame::Entries { records: batch }) => records += batch.len(),
            Ok(JoinFrame::Done { entries }) => return format!("joined {records} of {entries}"),
            Ok(_) => {}
            Err(error) => return format!("join failed: {error}"),
        }
    }
}

fn parse(node: &str) -> NodeId {
    node.parse().expect("a node id")
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex"))
        .collect()
}
