//! Over a real socket: clients that leave, dawdle, come in crowds or send too much.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::double::Double;
use crate::http::serve;

struct Up {
    double: Double,
    addr: std::net::SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn up() -> Up {
    let double = Double::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve(listener, double.state.clone(), stop.clone()));
    Up {
        double,
        addr,
        stop,
        task,
    }
}

async fn ask(addr: std::net::SocketAddr, model: &str, stream: bool) -> TcpStream {
    let body = format!(
        r#"{{"model":"{model}","stream":{stream},"messages":[{{"role":"user","content":"hi"}}]}}"#
    );
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    socket
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(5), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_job() {
    let up = up().await;
    let mut socket = ask(up.addr, "endless:1", true).await;
    socket.read_exact(&mut [0; 400]).await.unwrap();
    drop(socket);
    until("a streamed job outlived its client", || {
        up.double.seen.cancelled.load(Ordering::SeqCst) == 1
    })
    .await;
    let socket = ask(up.addr, "endless:1", false).await;
    until("the second job was not taken", || {
        up.double.seen.submitted.load(Ordering::SeqCst) == 2
    })
    .await;
    drop(socket);
    until("a whole job outlived its client", || {
        up.double.seen.cancelled.load(Ordering::SeqCst) == 2
    })
    .await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_sampler() {
    let up = up().await;
    let socket = ask(up.addr, "bytes:1", true).await;
    let pieces = || up.double.seen.pieces.load(Ordering::SeqCst);
    until("nothing was sent", || pieces() > 20).await;
    // All tasks share this test's one thread and take turns: a sampler that could go on would do so
    // while another client is answered. One that is never stopped runs into the bound.
    let mut before = 0;
    while pieces() > before {
        before = pieces();
        // Kernel buffers on both sides of loopback, and nothing that grows.
        assert!(
            before * (16 << 10) < 32 << 20,
            "{before} pieces were buffered"
        );
        let mut answer = String::new();
        let mut other = ask(up.addr, "busy:1", true).await;
        other.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    }
    drop(socket);
}

#[tokio::test]
async fn five_hundred_clients_are_each_answered() {
    let up = up().await;
    let clients = (0..500).map(|_| async {
        let mut answer = String::new();
        ask(up.addr, "tiny:1", true)
            .await
            .read_to_string(&mut answer)
            .await
            .unwrap();
        assert!(answer.contains("data: [DONE]"), "{answer}");
    });
    futures::future::join_all(clients).await;
    assert_eq!(up.double.seen.submitted.load(Ordering::SeqCst), 500);
    assert_eq!(up.double.seen.cancelled.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_body_that_declares_too_much_is_refused_unread() {
    let up = up().await;
    let mut socket = TcpStream::connect(up.addr).await.unwrap();
    let head = "POST /api/chat HTTP/1.1\r\nhost: localhost\r\ncontent-length: 104857600\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn a_body_that_hides_its_size_is_cut_off_and_the_client_still_hears_why() {
    let up = up().await;
    let mut socket = TcpStream::connect(up.addr).await.unwrap();
    socket
        .write_all(
            b"POST /api/chat HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n",
        )
        .await
        .unwrap();
    let chunk = vec![b' '; 1 << 20];
    for _ in 0..20 {
        socket.write_all(b"100000\r\n").await.unwrap();
        socket.write_all(&chunk).await.unwrap();
        socket.write_all(b"\r\n").await.unwrap();
    }
    let mut answer = vec![0; 12];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn stop_ends_the_listener_and_its_streams() {
    let up = up().await;
    let mut socket = ask(up.addr, "tiny:1", true).await;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    up.stop.cancel();
    tokio::time::timeout(Duration::from_secs(2), up.task)
        .await
        .expect("the listener did not stop")
        .unwrap();
    assert!(TcpStream::connect(up.addr).await.is_err());
}
