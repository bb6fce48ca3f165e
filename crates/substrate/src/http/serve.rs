//! The accept loop: bounded connections, patient with none of them, graceful at the end.
//!
//! Invariant: at most [`MAX_CONNECTIONS`] sockets are open; further callers wait in the kernel's
//! backlog. After `stop`, nothing is accepted and answers in flight get [`STOP_GRACE`] to end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::{HttpState, router};

/// Sockets open at once. Twice the daemon's own list of 1,024 jobs: every waiting client may keep a
/// second connection for lists and `ps`.
const MAX_CONNECTIONS: usize = 2_048;

/// Callers that the kernel lets wait until they are accepted, as many as the list of jobs takes. With the usual 128, of 500 who call at
/// once while the machine is busy some are answered with a reset: the kernel falls back to SYN cookies, which may have expired.
const BACKLOG: u32 = 1_024;

/// How long a caller may take to send its request line and headers.
///
/// Also how long an idle kept-alive connection stays open; longer than the 60 s pause of a person
/// who types in a chat would need a reconnect anyway.
const HEADER_PATIENCE: Duration = Duration::from_secs(60);

/// How long answers in flight may go on after `stop`. The daemon has finished or handed over its
/// jobs before; this only lets the last bytes leave.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// A pause after a failed `accept` (such as too many open files), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens at this address.
///
/// # Errors
/// Another program does, or it is no address of this machine.
pub fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // So that a daemon that starts again need not wait for connections of the last one.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Answers callers of `listener` until `stop`, then returns when the last answer has left.
pub async fn serve(listener: TcpListener, state: HttpState, stop: CancellationToken) {
    let router = router(state);
    let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    if let Ok(addr) = listener.local_addr() {
        info!(%addr, "http listener is up");
    }
    loop {
        let (stream, seat) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = accept(&listener, &seats) => accepted,
        };
        connections.spawn(attend(stream, seat, router.clone(), stop.clone()));
    }
    connections.close();
    connections.wait().await;
}

async fn accept(
    listener: &TcpListener,
    seats: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let seat = seats
        .clone()
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, seat),
            Err(error) => {
                warn!(%error, "http accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn attend(
    stream: TcpStream,
    seat: OwnedSemaphorePermit,
    router: Router,
    stop: CancellationToken,
) {
    // A token is one small packet and must not wait for the next.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "http connection without TCP_NODELAY");
    }
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE);
    let connection =
        builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(STOP_GRACE, connection).await.ok()
        }
    };
    if let Some(Err(error)) = ended {
        debug!(%error, "http connection ended early");
    }
    drop(seat);
}
