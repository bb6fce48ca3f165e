//! What the mesh costs on loopback: connecting, opening a stream, and one frame there and back.
//!
//! `cargo run -p substrate-mesh --example mesh_bench`. Both ends run in this process, so each
//! figure includes the work of both.

use std::time::{Duration, Instant};

use substrate_mesh::frame::{FrameReader, FrameWriter, framed};
use substrate_mesh::job::JobFrame;
use substrate_mesh::{Discovery, Limits, Mesh, MeshConfig, MeshEvent, MeshStream, Protocol, start};
use substrate_record::{NetworkId, NodeId, SessionNonce};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::mpsc;

/// Fresh connections measured.
const CONNECTS: u8 = 40;

/// Streams opened.
const OPENS: usize = 300;

/// Frames sent there and back.
const FRAMES: usize = 3_000;

type Reader = FrameReader<ReadHalf<MeshStream>, JobFrame>;
type Writer = FrameWriter<WriteHalf<MeshStream>, JobFrame>;

fn config(seed: u8, listen: Option<&str>) -> MeshConfig {
    MeshConfig {
        seed: [seed; 32],
        network: NetworkId::from_bytes([1; 32]),
        rules_hash: Some([1; 32]),
        version: "0.1.0".into(),
        build: "bench".into(),
        session: SessionNonce::from_bytes([seed; 16]),
        listen: listen.into_iter().map(Into::into).collect(),
        static_peers: vec![],
        known_peers: vec![],
        discovery: Discovery {
            mdns: false,
            kad: false,
        },
        allow_join: false,
        limits: Limits::default(),
    }
}

/// Echoes job frames, and gives away the first address it listens on.
async fn serve(
    mut events: mpsc::Receiver<MeshEvent>,
    address: tokio::sync::oneshot::Sender<String>,
) {
    let mut address = Some(address);
    while let Some(event) = events.recv().await {
        match event {
            MeshEvent::Listening { address: listens } => {
                if let Some(address) = address.take() {
                    let _ = address.send(listens);
                }
            }
            MeshEvent::Inbound { stream, .. } => {
                tokio::spawn(async move {
                    let (mut reader, mut writer): (Reader, Writer) = framed(stream);
                    while let Ok(frame) = reader.next().await {
                        if writer.send(&frame).await.is_err() {
                            break;
                        }
                    }
                });
            }
            _ => {}
        }
    }
}

async fn there_and_back(reader: &mut Reader, writer: &mut Writer, frame: &JobFrame) -> Duration {
    let begun = Instant::now();
    writer.send(frame).await.expect("the stream is open");
    reader.next().await.expect("the frame comes back");
    begun.elapsed()
}

async fn open_one(mesh: &Mesh, node: NodeId) -> (Reader, Writer) {
    framed(mesh.open(node, Protocol::Job).await.expect("a stream"))
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_micros();
    println!(
        "{what}: p50 {} µs, p99 {} µs, n {}",
        at(50),
        at(99),
        times.len()
    );
}

async fn bench(name: &str, listen: &str) {
    let (server, events) = start(config(1, Some(listen)))
        .await
        .expect("the mesh starts");
    let (sender, address) = tokio::sync::oneshot::channel();
    tokio::spawn(serve(events, sender));
    let address = address.await.expect("the mesh listens");

    let mut connects = Vec::new();
    for seed in 2..2 + CONNECTS {
        let (client, _events) = start(config(seed, None)).await.expect("the mesh starts");
        let begun = Instant::now();
        client.dial(&address).await.expect("a connection");
        connects.push(begun.elapsed());
        client.shutdown().await;
    }
    report(&format!("{name} connect and hello"), connects);

    let (client, _events) = start(config(200, None)).await.expect("the mesh starts");
    let node = client.dial(&address).await.expect("a connection");
    let small = JobFrame::Token {
        ids: vec![1],
        bytes: b"word".to_vec(),
        logprobs: vec![],
    };
    let large = JobFrame::Input {
        chunk: vec![7; 16 * 1024],
    };
    let mut opens = Vec::new();
    for _ in 0..OPENS {
        let begun = Instant::now();
        let (mut reader, mut writer) = open_one(&client, node).await;
        there_and_back(&mut reader, &mut writer, &small).await;
        opens.push(begun.elapsed());
    }
    report(&format!("{name} open and first frame back"), opens);

    let (mut reader, mut writer) = open_one(&client, node).await;
    for (what, frame) in [
        ("256 B frame there and back", &small),
        ("16 KiB frame there and back", &large),
    ] {
        let mut times = Vec::new();
        for _ in 0..FRAMES {
            times.push(there_and_back(&mut reader, &mut writer, frame).await);
        }
        report(&format!("{name} {what}"), times);
    }
    client.shutdown().await;
    server.shutdown().await;
}

#[tokio::main]
async fn main() {
    bench("quic", "/ip4/127.0.0.1/udp/0/quic-v1").await;
    bench("tcp", "/ip4/127.0.0.1/tcp/0").await;
}
