//! Model actions that change nothing.

use std::collections::BTreeMap;

use axum::body::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use substrate_record::ContentHash;
use tokio::sync::mpsc;

use crate::http::actions::PullStream;
use crate::http::{ActionError, Details, ModelActions, PullProgress, PullRights};
use crate::models::create::{Base, Order};

/// Changes nothing; answers as the store would.
pub(crate) struct Hands;

impl ModelActions for Hands {
    fn pull(
        &self,
        name: String,
        rights: PullRights,
    ) -> BoxFuture<'_, Result<PullStream, ActionError>> {
        async move {
            if rights == PullRights::AdoptOnly && name != "tiny:1" {
                return Err(ActionError::Forbidden {
                    why: "a new entry needs a key with the admin right".into(),
                });
            }
            if name == "bare:1" || name.starts_with("hf.co/far") {
                return Err(ActionError::BadName {
                    why: "no source: use hf:USER/REPO".into(),
                });
            }
            let (sender, progress) = mpsc::channel(8);
            let step = |status: &str| PullProgress {
                status: status.into(),
                digest: None,
                total: None,
                completed: None,
            };
            let moving = |completed| PullProgress {
                status: "pulling 040404040404".into(),
                digest: Some("sha256:0404".into()),
                total: Some(100),
                completed,
            };
            tokio::spawn(async move {
                let mut steps = vec![
                    Ok(step("pulling manifest")),
                    Ok(moving(None)),
                    Ok(moving(Some(100))),
                ];
                match name.as_str() {
                    "breaks:1" => steps.push(Err(ActionError::Failed {
                        why: "disk is full".into(),
                    })),
                    "absent:1" => steps.push(Err(ActionError::NotFound {
                        why: "a/b does not exist at the hub".into(),
                    })),
                    "gated:1" => steps.push(Err(ActionError::Forbidden {
                        why: "a/b is private or gated".into(),
                    })),
                    "stalls:1" => {}
                    _ => steps.extend([
                        Ok(step("verifying sha256 digest")),
                        Ok(step("writing manifest")),
                        Ok(step("success")),
                    ]),
                }
                for step in steps {
                    if sender.send(step).await.is_err() {
                        return;
                    }
                }
            });
            Ok(progress)
        }
        .boxed()
    }

    fn delete(&self, name: String) -> BoxFuture<'_, Result<(), ActionError>> {
        async move { held(&name) }.boxed()
    }

    fn copy(&self, from: String, _to: String) -> BoxFuture<'_, Result<(), ActionError>> {
        async move { held(&from) }.boxed()
    }

    fn create(&self, order: Order) -> BoxFuture<'_, Result<PullStream, ActionError>> {
        async move {
            if let Base::Model(from) = &order.base {
                held(from)?;
            }
            let (sender, steps) = mpsc::channel(2);
            for status in ["writing manifest", "success"] {
                let line = PullProgress {
                    status: status.into(),
                    digest: None,
                    total: None,
                    completed: None,
                };
                sender.try_send(Ok(line)).expect("two fit");
            }
            Ok(steps)
        }
        .boxed()
    }

    fn has_blob(&self, digest: ContentHash) -> BoxFuture<'_, bool> {
        async move { digest == ContentHash::of(b"here") }.boxed()
    }

    fn upload(
        &self,
        digest: ContentHash,
        _total: Option<u64>,
        mut bytes: mpsc::Receiver<Bytes>,
    ) -> BoxFuture<'_, Result<(), ActionError>> {
        async move {
            let mut whole = Vec::new();
            while let Some(chunk) = bytes.recv().await {
                whole.extend_from_slice(&chunk);
            }
            if ContentHash::of(&whole) == digest {
                return Ok(());
            }
            Err(ActionError::Invalid {
                param: "digest",
                why: "the bytes have another digest".into(),
            })
        }
        .boxed()
    }

    fn show(&self, name: String) -> BoxFuture<'_, Result<Details, ActionError>> {
        async move {
            held(&name)?;
            let model_info =
                BTreeMap::from([("general.name".to_owned(), serde_json::json!("Tiny"))]);
            Ok(Details {
                license: String::new(),
                template: "{{ messages }}".into(),
                model_info,
                capabilities: vec![],
                ..Details::default()
            })
        }
        .boxed()
    }
}

fn held(name: &str) -> Result<(), ActionError> {
    match name {
        "tiny:1" => Ok(()),
        _ => Err(ActionError::Unknown {
            model: name.to_owned(),
            similar: vec![],
        }),
    }
}
