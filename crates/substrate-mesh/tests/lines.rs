//! Bad lines: a proxy in user space that delays, loses and cuts what passes through it.

mod net;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use net::{Probe, QUIC, TCP, node};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// Each way, so that a round trip takes twice as long.
const DELAY: Duration = Duration::from_millis(50);

/// Packets lost of a hundred, each way.
const LOSS: u32 = 5;

/// A packet or chunk, and when it is let out at the other end.
type Delayed = (Instant, Vec<u8>);

/// A fixed sequence, so that a failure can be seen again.
struct Dice(u32);

impl Dice {
    fn lost(&mut self) -> bool {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) % 100 < LOSS
    }
}

/// Passes datagrams between whoever writes to it and `target`.
async fn udp_proxy(target: SocketAddr) -> SocketAddr {
    let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let address = front.local_addr().unwrap();
    tokio::spawn(async move {
        let mut clients: HashMap<SocketAddr, mpsc::Sender<Delayed>> = HashMap::new();
        let (mut dice, mut packet) = (Dice(1), vec![0; 65_536]);
        while let Ok((len, client)) = front.recv_from(&mut packet).await {
            let due = (Instant::now() + DELAY, packet[..len].to_vec());
            if let Entry::Vacant(seat) = clients.entry(client) {
                seat.insert(udp_client(Arc::clone(&front), client, target).await);
            }
            if !dice.lost() {
                let _ = clients[&client].try_send(due);
            }
        }
    });
    address
}

async fn udp_client(
    front: Arc<UdpSocket>,
    client: SocketAddr,
    target: SocketAddr,
) -> mpsc::Sender<Delayed> {
    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    back.connect(target).await.unwrap();
    let (there, mut inbox) = mpsc::channel::<Delayed>(4_096);
    let (here, mut outbox) = mpsc::channel::<Delayed>(4_096);
    let out = Arc::clone(&back);
    tokio::spawn(async move {
        while let Some((due, packet)) = inbox.recv().await {
            sleep_until(due).await;
            let _ = out.send(&packet).await;
        }
    });
    tokio::spawn(async move {
        let (mut dice, mut packet) = (Dice(2), vec![0; 65_536]);
        while let Ok(len) = back.recv(&mut packet).await {
            if !dice.lost() {
                let _ = here.try_send((Instant::now() + DELAY, packet[..len].to_vec()));
            }
        }
    });
    tokio::spawn(async move {
        while let Some((due, packet)) = outbox.recv().await {
            sleep_until(due).await;
            let _ = front.send_to(&packet, client).await;
        }
    });
    there
}

/// Passes bytes between connections to it and `target`. While `open` is false, nothing passes:
/// bytes are swallowed and connections stay up, as behind a cable that was pulled out.
async fn tcp_proxy(target: SocketAddr, open: watch::Receiver<bool>) -> SocketAddr {
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = front.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = front.accept().await {
            if !*open.borrow() {
                continue;
            }
            let server = TcpStream::connect(target).await.unwrap();
            let (client_read, client_write) = client.into_split();
            let (server_read, server_write) = server.into_split();
            tokio::spawn(pump(client_read, server_write, open.clone()));
            tokio::spawn(pump(server_read, client_write, open.clone()));
        }
    });
    address
}

async fn pump(
    mut from: impl AsyncReadExt + Unpin + Send + 'static,
    mut to: impl AsyncWriteExt + Unpin + Send + 'static,
    open: watch::Receiver<bool>,
) {
    let (sender, mut chunks) = mpsc::channel::<Delayed>(1_024);
    let reading = tokio::spawn(async move {
        let mut chunk = vec![0; 16_384];
        while let Ok(len @ 1..) = from.read(&mut chunk).await {
            if sender
                .send((Instant::now() + DELAY, chunk[..len].to_vec()))
                .await
                .is_err()
            {
                return;
            }
        }
    });
    while let Some((due, chunk)) = chunks.recv().await {
        sleep_until(due).await;
        if *open.borrow() && to.write_all(&chunk).await.is_err() {
            break;
        }
    }
    reading.abort();
}

fn socket(address: &str) -> SocketAddr {
    let parts: Vec<&str> = address.split('/').collect();
    format!("{}:{}", parts[2], parts[4]).parse().unwrap()
}

#[tokio::test]
async fn quic_works_over_a_line_that_delays_and_loses() {
    let mut a = Probe::start(1, &["--listen", QUIC]);
    let proxy = udp_proxy(socket(&a.address().await)).await;
    let mut b = Probe::start(2, &[]);
    let dialed = b
        .ask(
            &format!("dial /ip4/127.0.0.1/udp/{}/quic-v1", proxy.port()),
            "dial",
        )
        .await;
    assert_eq!(dialed, format!("dialed {}", node(1)));
    let echoed = b.ask(&format!("echo {} 50", node(1)), "echo").await;
    assert!(echoed.starts_with("echoed 50"), "{echoed}");
    assert!(!b.has_seen("down") && !a.has_seen("down"));
}

#[tokio::test]
async fn tcp_works_over_a_line_that_delays_and_its_silence_is_noticed() {
    let mut a = Probe::start(1, &["--listen", TCP]);
    let (cable, open) = watch::channel(true);
    let proxy = tcp_proxy(socket(&a.address().await), open).await;
    let mut b = Probe::start(
        2,
        &["--peer", &format!("/ip4/127.0.0.1/tcp/{}", proxy.port())],
    );
    b.expect("up ").await;
    let echoed = b.ask(&format!("echo {} 20", node(1)), "echo").await;
    assert!(echoed.starts_with("echoed 20"), "{echoed}");

    b.ask(&format!("beat {}", node(1)), "beating").await;
    cable.send(false).unwrap();
    let cut = Instant::now();
    let ended = b.expect("beat ended").await;
    let noticed = cut.elapsed();
    assert!(ended.contains("nothing heard within 1.8s"), "{ended}");
    // 1.8 s after the last beat that came through, and what a busy machine adds.
    assert!(noticed < Duration::from_secs(4), "{noticed:?}");
    b.expect("down ").await;
    a.expect("down ").await;
    eprintln!(
        "stream silent after {noticed:?}, peer down after {:?}",
        cut.elapsed()
    );

    cable.send(true).unwrap();
    b.expect("up ").await;
    assert!(
        b.ask(&format!("echo {} 5", node(1)), "echo")
            .await
            .starts_with("echoed 5")
    );
}
