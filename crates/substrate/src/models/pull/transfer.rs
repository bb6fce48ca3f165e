//! Bringing the bytes: several connections, each part going on where it broke off, hashed behind.
//!
//! Invariant: a part is given up only after [`PullSettings::retries`] failures in a row that brought
//! not a single byte; any byte starts the count anew.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::StatusCode;
use substrate_record::ContentHash;
use tokio::task::{JoinHandle, JoinSet};

use super::hashing::hash_behind;
use super::hub::{Hub, Remote, chain};
use super::partial::Partial;
use super::progress::Watched;
use super::retry::Failures;
use super::{PullError, PullSettings, off_loop};
use crate::blobs::Blobs;

/// Bytes gathered before they are written: a write per network packet would cost more than hashing.
const WRITE_CHUNK: usize = 512 * 1024;

/// Everything the connections of one download share.
struct Job {
    settings: PullSettings,
    hub: Arc<Hub>,
    url: String,
    digest: Option<ContentHash>,
    size: u64,
    partial: Arc<Partial>,
    watched: Arc<Watched>,
}

/// Notes what is here when the pull is dropped.
struct SaveOnDrop(Arc<Partial>);

impl Drop for SaveOnDrop {
    fn drop(&mut self) {
        if self.0.missing().is_empty() {
            return;
        }
        if let Err(error) = self.0.save() {
            tracing::warn!(%error, "an unfinished download could not be noted; it begins anew next time");
        }
    }
}

/// Brings a file into the blob store and says its digest.
pub(super) async fn bring(
    settings: &PullSettings,
    hub: &Arc<Hub>,
    blobs: &Blobs,
    remote: &Remote,
    watched: &Arc<Watched>,
) -> Result<ContentHash, PullError> {
    if let Some(digest) = remote
        .digest
        .filter(|digest| blobs.size(digest) == Some(remote.size))
    {
        watched.count(Some(&digest), remote.size, remote.size);
        watched.tell("verifying sha256 digest");
        let blobs = blobs.clone();
        off_loop(move || Ok(blobs.verify(&digest)?)).await?;
        return Ok(digest);
    }
    // A second try only if bytes of an earlier pull could be at fault.
    match once(settings, hub, blobs, remote, watched).await {
        Err((PullError::Digest { .. }, true)) => once(settings, hub, blobs, remote, watched)
            .await
            .map_err(|(error, _)| error),
        brought => brought.map_err(|(error, _)| error),
    }
}

/// One download; the error comes with whether it had gone on from an earlier one.
async fn once(
    settings: &PullSettings,
    hub: &Arc<Hub>,
    blobs: &Blobs,
    remote: &Remote,
    watched: &Arc<Watched>,
) -> Result<ContentHash, (PullError, bool)> {
    let partial =
        Arc::new(Partial::open(blobs, remote, settings.part).map_err(|error| (error, false))?);
    let resumed = partial.resumed;
    let job = Arc::new(Job {
        settings: settings.clone(),
        hub: hub.clone(),
        url: remote.url.clone(),
        digest: remote.digest,
        size: remote.size,
        partial,
        watched: watched.clone(),
    });
    fetch_and_check(job, blobs, remote.digest)
        .await
        .map_err(|error| (error, resumed))
}

async fn fetch_and_check(
    job: Arc<Job>,
    blobs: &Blobs,
    promised: Option<ContentHash>,
) -> Result<ContentHash, PullError> {
    let keep = SaveOnDrop(job.partial.clone());
    job.tell();
    if job.partial.completed() < job.size {
        let ranges = job.serves_ranges().await?;
        if !ranges {
            job.partial.restart();
        }
        let hashing = hash_behind(&job.partial, job.size);
        fetch_all(&job, ranges).await?;
        job.tell();
        drop(keep);
        return settle(job, hashing, blobs, promised).await;
    }
    let hashing = hash_behind(&job.partial, job.size);
    drop(keep);
    settle(job, hashing, blobs, promised).await
}

/// The last bytes are here: waits for the hash, and keeps or discards.
async fn settle(
    job: Arc<Job>,
    hashing: JoinHandle<Result<ContentHash, PullError>>,
    blobs: &Blobs,
    promised: Option<ContentHash>,
) -> Result<ContentHash, PullError> {
    job.watched.tell("verifying sha256 digest");
    let found = hashing.await.map_err(|_| PullError::Stopped)??;
    let Some(partial) = Arc::into_inner(job).and_then(|job| Arc::into_inner(job.partial)) else {
        return Err(PullError::Stopped);
    };
    let blobs = blobs.clone();
    off_loop(move || match promised {
        Some(promised) if promised != found => {
            partial.discard()?;
            Err(PullError::Digest { promised, found })
        }
        _ => {
            partial.into_blob(&blobs, &found)?;
            Ok(found)
        }
    })
    .await
}

/// Fetches every missing part; the first part that is given up ends all.
async fn fetch_all(job: &Arc<Job>, ranges: bool) -> Result<(), PullError> {
    let queue = Arc::new(Mutex::new(VecDeque::from(job.partial.missing())));
    let connections = if ranges {
        job.settings.connections.max(1)
    } else {
        1
    };
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let (job, queue) = (job.clone(), queue.clone());
        tasks.spawn(async move {
            if !ranges {
                return job.fetch_from_the_start().await;
            }
            loop {
                let next = queue
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .pop_front();
                let Some(index) = next else { return Ok(()) };
                job.fetch(index).await?;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|_| PullError::Stopped)??;
    }
    Ok(())
}

impl Job {
    fn tell(&self) {
        self.watched
            .count(self.digest.as_ref(), self.size, self.partial.completed());
    }

    /// Whether the server gives parts of the file: it answers a question for one byte with one byte.
    async fn serves_ranges(&self) -> Result<bool, PullError> {
        let mut failures = Failures::new(&self.settings);
        loop {
            match self.hub.range(&self.url, 0, 0).await {
                Ok(response) if response.status() == StatusCode::PARTIAL_CONTENT => {
                    return Ok(true);
                }
                Ok(response) if response.status() == StatusCode::OK => return Ok(false),
                Ok(response) => {
                    self.wait_or_refuse(&mut failures, response.status(), 0)
                        .await?
                }
                Err(error) => failures.wait(0, chain(&error)).await?,
            }
        }
    }

    /// Fetches one part, going on where a connection broke off.
    async fn fetch(&self, index: usize) -> Result<(), PullError> {
        let mut failures = Failures::new(&self.settings);
        while let Some((from, to)) = self.partial.gap(index) {
            let why = match self.hub.range(&self.url, from, to).await {
                Ok(response) if response.status() == StatusCode::PARTIAL_CONTENT => {
                    self.read_part(index, response).await?
                }
                Ok(response) => {
                    self.wait_or_refuse(&mut failures, response.status(), from)
                        .await?;
                    continue;
                }
                Err(error) => chain(&error),
            };
            match self.partial.gap(index) {
                None => {}
                Some((now, _)) if now > from => failures.reset(),
                Some((now, _)) => failures.wait(now, why).await?,
            }
        }
        Ok(())
    }

    /// Without ranges: one connection, everything from the first byte, anew after each failure.
    async fn fetch_from_the_start(&self) -> Result<(), PullError> {
        let mut failures = Failures::new(&self.settings);
        while self.partial.completed() < self.size {
            self.partial.restart();
            let why = match self.hub.range(&self.url, 0, self.size - 1).await {
                Ok(response) if response.status().is_success() => self.read_all(response).await?,
                Ok(response) => {
                    self.wait_or_refuse(&mut failures, response.status(), 0)
                        .await?;
                    continue;
                }
                Err(error) => chain(&error),
            };
            if self.partial.completed() < self.size {
                // Progress does not count here: the next try begins at zero again.
                failures.wait(self.partial.completed(), why).await?;
            }
        }
        Ok(())
    }

    /// Reads a response into one part and says why it ended.
    async fn read_part(
        &self,
        index: usize,
        mut response: reqwest::Response,
    ) -> Result<String, PullError> {
        let mut gathered = Vec::with_capacity(WRITE_CHUNK);
        let why = loop {
            match tokio::time::timeout(self.settings.stall, response.chunk()).await {
                Err(_) => break "the server went silent".to_owned(),
                Ok(Err(error)) => break chain(&error),
                Ok(Ok(None)) => break "the server closed the connection".to_owned(),
                Ok(Ok(Some(chunk))) => gathered.extend_from_slice(&chunk),
            }
            if gathered.len() >= WRITE_CHUNK {
                gathered = self.write(index, gathered).await?;
            }
        };
        self.write(index, gathered).await?;
        Ok(why)
    }

    /// Reads a whole file in order.
    async fn read_all(&self, mut response: reqwest::Response) -> Result<String, PullError> {
        let (mut index, mut gathered) = (0, Vec::with_capacity(WRITE_CHUNK));
        loop {
            let (chunk, why) =
                match tokio::time::timeout(self.settings.stall, response.chunk()).await {
                    Err(_) => (None, "the server went silent".to_owned()),
                    Ok(Err(error)) => (None, chain(&error)),
                    Ok(Ok(None)) => (None, "the server closed the connection".to_owned()),
                    Ok(Ok(Some(chunk))) => (Some(chunk), String::new()),
                };
            gathered.extend_from_slice(chunk.as_deref().unwrap_or_default());
            while !gathered.is_empty() && (chunk.is_none() || gathered.len() >= WRITE_CHUNK) {
                let Some((at, last)) = self.partial.gap(index) else {
                    if index + 1 == self.partial.parts() {
                        return Ok("the server sent more than it promised".to_owned());
                    }
                    index += 1;
                    continue;
                };
                let fits = usize::try_from(last - at + 1)
                    .unwrap_or(usize::MAX)
                    .min(gathered.len());
                let rest = gathered.split_off(fits);
                self.write(index, gathered).await?;
                gathered = rest;
            }
            if chunk.is_none() {
                return Ok(why);
            }
        }
    }

    /// Writes off the runtime's threads, tells how far it is, and gives the buffer back empty.
    async fn write(&self, index: usize, mut bytes: Vec<u8>) -> Result<Vec<u8>, PullError> {
        if bytes.is_empty() {
            return Ok(bytes);
        }
        let partial = self.partial.clone();
        let bytes = off_loop(move || {
            partial.write(index, &bytes)?;
            bytes.clear();
            Ok(bytes)
        })
        .await?;
        self.tell();
        Ok(bytes)
    }

    /// A status that may pass is waited for; one that will not is told at once.
    async fn wait_or_refuse(
        &self,
        failures: &mut Failures,
        status: StatusCode,
        at: u64,
    ) -> Result<(), PullError> {
        if status.is_server_error()
            || status == StatusCode::TOO_MANY_REQUESTS
            || status == StatusCode::REQUEST_TIMEOUT
        {
            return failures
                .wait(at, format!("the server answered {status}"))
                .await;
        }
        Err(match status {
            StatusCode::NOT_FOUND => PullError::NotFound {
                what: self.url.clone(),
                endpoint: self.settings.endpoint.clone(),
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => PullError::Gated {
                what: self.url.clone(),
            },
            status => PullError::Http {
                url: self.url.clone(),
                status: status.as_u16(),
            },
        })
    }
}
