//! The owner's service: gRPC on a Unix socket, for the user the daemon runs as and nobody else.
//!
//! Invariants: a connection whose peer is another user is closed before a byte of it is parsed;
//! the socket is 0600 in a folder that is 0700; a socket in use is never taken over. What the
//! service may ask of the node is the [`Door`]; what it may do on disk is the [`Desk`].
//! Absent by design: credentials, TCP, and anything a stranger could reach.

use std::{
    future::Future,
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::Stream;
use substrate_api::{MAX_MESSAGE_BYTES, v1::owner_server::OwnerServer};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
};
use tonic::transport::{Server, server::Connected};

use crate::batches::Batches;
use crate::door::Door;

mod batches;
pub mod convert;
mod create;
pub mod desk;
mod import;
pub mod refusal;
mod service;
mod shelf;

pub use desk::Desk;
use service::OwnerService;

/// Calls that one connection may have open at once: a person with many terminals, with room.
const CALLS_PER_CONNECTION: usize = 64;

/// Pause after a failed `accept`, which usually means that descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Somebody answers there.
    #[error("another process already listens on {path}")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket is in the way.
    #[error("{path} exists and is not a socket")]
    NotASocket {
        /// The thing.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot listen on {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Its words.
        #[source]
        source: io::Error,
    },
}

/// A listening socket whose file is removed when it is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

/// Opens the socket, removing one that a dead daemon left behind. Call it while holding the daemon's lock.
pub async fn bind(path: &Path) -> Result<Socket, BindError> {
    let failed = |source| BindError::Io {
        path: path.to_owned(),
        source,
    };
    remove_stale(path).await?;
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(Socket {
        listener,
        path: path.to_owned(),
    })
}

async fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::Io {
        path: path.to_owned(),
        source,
    };
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket {
            path: path.to_owned(),
        });
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(BindError::InUse {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Nothing is lost if it fails: the next daemon removes a stale socket.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves the owner until `stop`, then lets open calls end.
///
/// The desk may be replaced while it serves, as happens when the machine joins another network.
pub async fn serve(
    socket: Socket,
    door: Door,
    desk: watch::Receiver<Arc<Desk>>,
    batches: Option<Batches>,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let callers = callers(&socket.listener);
    serve_callers(callers, door, desk, batches, stop).await
}

/// Serves connections that are already known to be the owner's. Without a daemon there are no batches.
pub async fn serve_callers<C>(
    callers: impl Stream<Item = io::Result<C>>,
    door: Door,
    desk: watch::Receiver<Arc<Desk>>,
    batches: Option<Batches>,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error>
where
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Connected + Unpin + Send + 'static,
{
    let service = OwnerServer::new(OwnerService::new(door, desk, batches))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .add_service(service)
        .serve_with_incoming_shutdown(callers, stop)
        .await
}

/// Connections of users who may speak; the others are closed.
fn callers(listener: &UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    let own = rustix::process::geteuid().as_raw();
    futures::stream::unfold(listener, move |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) if admits(&stream, own) => return Some((Ok(stream), listener)),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "the owner's socket did not accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

fn admits(stream: &UnixStream, own: u32) -> bool {
    match stream.peer_cred() {
        Ok(peer) if may_speak(peer.uid(), own) => true,
        Ok(peer) => {
            tracing::warn!(
                uid = peer.uid(),
                "refused another user on the owner's socket"
            );
            false
        }
        Err(error) => {
            tracing::warn!(%error, "refused a peer without credentials on the owner's socket");
            false
        }
    }
}

/// Whether a process of user `peer` may speak to a daemon of user `own`: only the same user, or root.
fn may_speak(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_user_or_root_may_speak() {
        assert!(may_speak(1000, 1000));
        assert!(may_speak(0, 1000));
        assert!(!may_speak(1001, 1000));
        assert!(!may_speak(1000, 0));
        assert!(!may_speak(65_534, 1000));
    }

    #[tokio::test]
    async fn a_peer_is_judged_by_the_kernels_word() {
        let own = rustix::process::geteuid().as_raw();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(admits(&ours, own));
        // Seen from a daemon of another user the same peer is a stranger, unless it is root.
        assert_eq!(admits(&ours, own.wrapping_add(1)), own == 0);
    }

    #[tokio::test]
    async fn a_socket_left_by_a_dead_daemon_is_replaced_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = bind(&path).await.unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_in_use_and_a_plain_file_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let held = bind(&path).await.unwrap();
        assert!(matches!(bind(&path).await, Err(BindError::InUse { .. })));
        drop(held);
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(
            bind(&path).await,
            Err(BindError::NotASocket { .. })
        ));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }
}
