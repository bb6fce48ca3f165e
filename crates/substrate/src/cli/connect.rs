//! Reaching the owner's service: of the daemon that runs, of one we start, or of a desk of our own.
//!
//! Invariant: a command that touches the disk has the daemon's lock or speaks to who has it, so two
//! never write at once. Absent by design: TCP.

use std::{io, path::Path, sync::Arc};

use futures::StreamExt;
use hyper_util::rt::TokioIo;
use substrate_api::{
    MAX_MESSAGE_BYTES,
    v1::{self, owner_client::OwnerClient},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    sync::watch,
};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{
    blobs::Blobs,
    daemon,
    door::Door,
    grpc::{self, Desk},
    home::{DaemonLock, Home, LockError},
    keys::DeviceKey,
    models::import::{Inspect, InspectError, ModelFacts},
    store::Store,
};

use super::{
    session::Session,
    start,
    story::{Story, refused},
};

/// A client of the owner's service.
pub type Client = OwnerClient<Channel>;

/// Stands in for the address that a connection over a socket does not have.
const NO_ADDRESS: &str = "http://owner.invalid";

/// Buffer between the program and its own desk.
const DESK_BUFFER: usize = 64 * 1024;

/// The daemon that runs, if one does.
pub async fn running(home: &Home) -> anyhow::Result<Option<Client>> {
    let path = home.socket().map_err(|error| {
        Story::new("the daemon's socket cannot be used")
            .because(error)
            .hint("a shorter --home or SUBSTRATE_HOME helps")
    })?;
    match UnixStream::connect(&path).await {
        Ok(stream) => Ok(Some(client(stream).await?)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(unreachable(&path, error)),
    }
}

/// A daemon that runs reads its settings again; one that does not, at its start. Whether one runs.
pub async fn tell_settings(home: &Home) -> anyhow::Result<bool> {
    let Some(mut client) = running(home).await? else {
        return Ok(false);
    };
    let told = client.settings_changed(v1::SettingsChangedRequest {});
    told.await.map_err(refused)?;
    Ok(true)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn unreachable(path: &Path, error: io::Error) -> anyhow::Error {
    Story::new(format!("cannot reach the daemon at {}", path.display()))
        .because(error)
        .hint("only the user who runs the daemon may speak to it")
        .into()
}

/// The daemon that runs; without one, a failure that says how to start one.
pub async fn required(session: &Session) -> anyhow::Result<Client> {
    match running(&session.home()?).await? {
        Some(client) => Ok(client),
        None => Err(Story::new("no daemon runs")
            .hint("`substrate serve --detach` starts one")
            .into()),
    }
}

/// The daemon that runs, or one that is started now.
pub async fn or_started(session: &Session) -> anyhow::Result<Client> {
    let home = session.prepared_home()?;
    match running(&home).await? {
        Some(client) => Ok(client),
        None => start::start(session, &home, &[]).await,
    }
}

/// The daemon that runs; without one, the same service over the disk alone, for as long as this command lives.
pub async fn or_desk(session: &Session) -> anyhow::Result<Client> {
    let home = session.prepared_home()?;
    if let Some(client) = running(&home).await? {
        return Ok(client);
    }
    match DaemonLock::take(&home) {
        Ok(lock) => own_desk(home, lock).await,
        // A daemon is starting, or its command line is at work: its socket or its end is near.
        Err(LockError::Held { .. }) => start::wait_for(&home, None).await,
        Err(error) => Err(Story::new("cannot lock the home folder")
            .because(error)
            .hint("run `substrate doctor`")
            .into()),
    }
}

async fn own_desk(home: Home, lock: DaemonLock) -> anyhow::Result<Client> {
    let desk = tokio::task::spawn_blocking(move || open_desk(home)).await??;
    let (near, far) = tokio::io::duplex(DESK_BUFFER);
    // Nobody reads this door: what needs a node is refused.
    let (door, _) = Door::new();
    tokio::spawn(async move {
        let _lock = lock;
        let (_keep, desk) = watch::channel(Arc::new(desk));
        // The end of this stream would be the end of the service.
        let callers = futures::stream::iter([Ok(far)]).chain(futures::stream::pending());
        if let Err(error) =
            grpc::serve_callers(callers, door, desk, None, std::future::pending()).await
        {
            tracing::warn!(%error, "the desk ended");
        }
    });
    client(near).await
}

fn open_desk(home: Home) -> anyhow::Result<Desk> {
    let device = DeviceKey::open_or_create(&home).map_err(|error| {
        Story::new("cannot open this device's key")
            .because(error)
            .hint("run `substrate doctor`")
    })?;
    let store = Store::open(&home.store()).map_err(|error| {
        Story::new("cannot open the store")
            .because(error)
            .hint("run `substrate doctor`")
    })?;
    let blobs = Blobs::open(&home.blobs()).map_err(|error| {
        Story::new("cannot open the folder of models")
            .because(error)
            .hint("run `substrate doctor`")
    })?;
    let inspect = Arc::new(WhenAsked(home.clone()));
    Desk::new(home, store, blobs, Arc::new(device), inspect)
}

/// Looks for the worker only when a file must be read: listing models needs none.
struct WhenAsked(Home);

impl Inspect for WhenAsked {
    fn inspect(&self, model: &Path) -> Result<ModelFacts, InspectError> {
        let inspector = daemon::inspector(&self.0)
            .map_err(|error| InspectError::Unavailable(format!("{error:#}")))?;
        inspector.inspect(model)
    }
}

/// A client over one connection that exists already.
async fn client<C>(connection: C) -> anyhow::Result<Client>
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut once = Some(connection);
    let connector = tower::service_fn(move |_: Uri| {
        let connection = once
            .take()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        async move { connection.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static(NO_ADDRESS)
        .connect_with_connector(connector)
        .await
        .map_err(|error| {
            Story::new("the daemon does not answer")
                .because(error)
                .hint("run `substrate doctor`")
        })?;
    let client = OwnerClient::new(channel);
    Ok(client
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}
