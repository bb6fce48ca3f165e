//! What HTTP clients may change about the models on this machine, done by the desk.

use std::sync::Arc;

use axum::body::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use substrate_record::ContentHash;
use tokio::sync::{mpsc, watch};

use super::context::blocking;
use super::making;
use crate::door::{Call, Door};
use crate::grpc::desk::{Desk, now_ms};
use crate::http::actions::PullStream;
use crate::http::{ActionError, Details, ModelActions, PullProgress, PullRights};
use crate::models::catalogue::{FindError, Held};
use crate::models::create::Order;
use crate::models::import::Signer;
use crate::models::names::ModelName;
use crate::models::pull::{PullError, Source};

/// Progress lines that may wait for a client; a slow one slows the download's reports, not the download.
const PROGRESS_DEPTH: usize = 16;

/// Model changes by way of the current network's desk.
pub struct DeskActions {
    door: Door,
    desk: watch::Receiver<Arc<Desk>>,
}

impl DeskActions {
    /// `door` is told of every change.
    pub fn new(door: Door, desk: watch::Receiver<Arc<Desk>>) -> Self {
        Self { door, desk }
    }

    fn desk(&self) -> Arc<Desk> {
        self.desk.borrow().clone()
    }

    async fn tell(door: &Door) {
        // A daemon that is stopping reads the list again when it starts.
        let _ = door.call(|reply| Call::ModelsChanged { reply }).await;
    }
}

impl ModelActions for DeskActions {
    fn pull(
        &self,
        name: String,
        rights: PullRights,
    ) -> BoxFuture<'_, Result<PullStream, ActionError>> {
        async move {
            let desk = self.desk();
            if let Ok(held) = desk.catalogue.find(&name) {
                return Ok(already_here(&held));
            }
            let source = Source::parse(&name).map_err(|error| ActionError::BadName { why: error.to_string() })?;
            if rights == PullRights::AdoptOnly {
                return Err(ActionError::Forbidden {
                    why: "this key may only pull what is on this machine already; the owner pulls more with `substrate pull`".to_owned(),
                });
            }
            let bound = source.default_name();
            let mut pull = desk.puller.pull(source, bound, Signer::Device(desk.device.clone()));
            let (sender, stream) = mpsc::channel(PROGRESS_DEPTH);
            let door = self.door.clone();
            tokio::spawn(async move {
                while let Some(progress) = pull.next().await {
                    if sender.send(Ok(line_of(&progress))).await.is_err() {
                        return;
                    }
                }
                match pull.finish().await {
                    Ok(_) => Self::tell(&door).await,
                    Err(error) => drop(sender.send(Err(pull_error(&error))).await),
                }
            });
            Ok(stream)
        }
        .boxed()
    }

    fn delete(&self, name: String) -> BoxFuture<'_, Result<(), ActionError>> {
        async move {
            let desk = self.desk();
            blocking(move || {
                let held = desk.catalogue.find(&name).map_err(action_error)?;
                let removed = desk.catalogue.remove(&held.name).map_err(action_error)?;
                give_up(&desk, removed.unreferenced)
            })
            .await?;
            Self::tell(&self.door).await;
            Ok(())
        }
        .boxed()
    }

    fn copy(&self, from: String, to: String) -> BoxFuture<'_, Result<(), ActionError>> {
        async move {
            let desk = self.desk();
            blocking(move || {
                let to: ModelName = to.parse().map_err(|error| ActionError::BadName {
                    why: format!("{to}: {error}"),
                })?;
                let freed = desk.catalogue.copy(&from, &to, now_ms());
                give_up(&desk, freed.map_err(action_error)?)
            })
            .await?;
            Self::tell(&self.door).await;
            Ok(())
        }
        .boxed()
    }

    fn create(&self, order: Order) -> BoxFuture<'_, Result<PullStream, ActionError>> {
        async move { making::create(self.desk(), self.door.clone(), order).await }.boxed()
    }

    fn has_blob(&self, digest: ContentHash) -> BoxFuture<'_, bool> {
        let blobs = self.desk().blobs.clone();
        async move { blocking(move || blobs.has(&digest)).await }.boxed()
    }

    fn upload(
        &self,
        digest: ContentHash,
        total: Option<u64>,
        bytes: mpsc::Receiver<Bytes>,
    ) -> BoxFuture<'_, Result<(), ActionError>> {
        let blobs = self.desk().blobs.clone();
        async move { blocking(move || making::keep(&blobs, digest, total, bytes)).await }.boxed()
    }

    fn show(&self, name: String) -> BoxFuture<'_, Result<Details, ActionError>> {
        async move {
            let desk = self.desk();
            blocking(move || {
                desk.catalogue
                    .find(&name)
                    .map(|held| details(&held))
                    .map_err(action_error)
            })
            .await
        }
        .boxed()
    }
}

/// Removes blobs that no name needs.
fn give_up(desk: &Desk, digests: Vec<ContentHash>) -> Result<(), ActionError> {
    for digest in digests {
        desk.blobs
            .remove(&digest)
            .map_err(|error| ActionError::Failed {
                why: error.to_string(),
            })?;
    }
    Ok(())
}

fn already_here(held: &Held) -> PullStream {
    let (sender, stream) = mpsc::channel(PROGRESS_DEPTH);
    let digest = format!("sha256:{}", held.weights());
    let size = Some(held.size());
    let line = |status: &str| PullProgress {
        status: status.to_owned(),
        digest: None,
        total: None,
        completed: None,
    };
    let moved = PullProgress {
        status: format!("pulling {}", &digest[7..19]),
        digest: Some(digest.clone()),
        total: size,
        completed: size,
    };
    for line in [
        line("pulling manifest"),
        moved,
        line("verifying sha256 digest"),
        line("writing manifest"),
        line("success"),
    ] {
        // Five lines fit the channel.
        let _ = sender.try_send(Ok(line));
    }
    stream
}

fn line_of(progress: &crate::models::pull::Progress) -> PullProgress {
    PullProgress {
        status: progress.status.clone(),
        digest: progress.digest.clone(),
        total: progress.total,
        completed: progress.completed,
    }
}

/// What the source does not have or does not give is told apart from a fault.
fn pull_error(error: &PullError) -> ActionError {
    let why = error.to_string();
    match error {
        PullError::Shared(error) => pull_error(error),
        PullError::NotFound { .. } | PullError::NoQuant { .. } => ActionError::NotFound { why },
        PullError::Gated { .. } => ActionError::Forbidden { why },
        PullError::Source { .. } => ActionError::BadName { why },
        _ => ActionError::Failed { why },
    }
}

/// A model that was not found.
pub(super) fn action_error(error: FindError) -> ActionError {
    match error {
        FindError::Unknown { model, similar } => ActionError::Unknown { model, similar },
        FindError::Name(error) => ActionError::BadName {
            why: error.to_string(),
        },
        other => ActionError::Failed {
            why: other.to_string(),
        },
    }
}

fn details(held: &Held) -> Details {
    let entry = held.entry.body();
    let template = held.template().unwrap_or_default().to_owned();
    let model_info = [
        ("general.architecture", entry.arch.clone().into()),
        ("general.parameter_count", held.facts.n_params.into()),
        (
            &*format!("{}.context_length", entry.arch),
            entry.context.into(),
        ),
        (
            &*format!("{}.vocab_size", entry.arch),
            held.facts.n_vocab.into(),
        ),
    ]
    .map(|(key, value): (&str, serde_json::Value)| (key.to_owned(), value));
    Details {
        license: entry.licence.clone(),
        model_info: model_info.into(),
        capabilities: crate::thoughts::capabilities(
            &entry.arch,
            &template,
            held.parts().projector.is_some(),
        ),
        template,
        recipe: held.recipe.clone(),
        modelfile: held.modelfile(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_hub_does_not_have_or_give_is_no_fault_of_ours() {
        let missing = PullError::NotFound {
            what: "a/b".into(),
            endpoint: "https://hub".into(),
        };
        // Every pull that was joined hands its error on in a wrapper.
        let joined = PullError::Shared(Arc::new(PullError::Shared(Arc::new(missing))));
        assert!(matches!(pull_error(&joined), ActionError::NotFound { .. }));
        let gated = PullError::Gated { what: "a/b".into() };
        assert!(matches!(pull_error(&gated), ActionError::Forbidden { .. }));
        assert!(matches!(
            pull_error(&PullError::Stopped),
            ActionError::Failed { .. }
        ));
    }
}
