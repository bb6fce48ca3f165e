//! `HEAD /api/blobs/:digest` and `POST /api/blobs/:digest`: bytes of models, before they have a name.
//!
//! Invariants: a body goes to the disk as it comes, a few chunks of it in memory at a time; it is kept only if it has the
//! digest that the path says; nobody without the admin right sends one.

use std::time::Duration;

use axum::Extension;
use axum::body::{BodyDataStream, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use futures::StreamExt;
use substrate_record::ContentHash;
use tokio::sync::mpsc;

use crate::http::Shared;
use crate::http::body::{declared, linger};
use crate::http::error::{OllamaError, Refusal, clipped};
use crate::http::guard::Caller;

/// How long the next piece of a body may take: a wireless line that comes back within it goes on.
const PATIENCE: Duration = Duration::from_secs(60);

/// Chunks that wait for the disk.
const DEPTH: usize = 8;

pub(super) async fn head(
    State(app): State<Shared>,
    Path(digest): Path<String>,
) -> Result<StatusCode, OllamaError> {
    let digest = parse(&digest)?;
    Ok(match app.models.has_blob(digest).await {
        true => StatusCode::OK,
        false => StatusCode::NOT_FOUND,
    })
}

pub(super) async fn upload(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(digest): Path<String>,
    request: Request,
) -> Result<StatusCode, OllamaError> {
    let (parts, body) = request.into_parts();
    let body = body.into_data_stream();
    let refused = caller
        .must_be_admin("send models")
        .and_then(|()| parse(&digest));
    let digest = match refused {
        Ok(digest) => digest,
        Err(refusal) => {
            linger(body);
            return Err(refusal.into());
        }
    };
    if app.models.has_blob(digest).await {
        // Clients read no answer before they have sent all; what comes goes nowhere.
        let (send, mut bytes) = mpsc::channel(DEPTH);
        let nowhere = async { while bytes.recv().await.is_some() {} };
        let (read, ()) = tokio::join!(hand_on(body, send), nowhere);
        read?;
        return Ok(StatusCode::OK);
    }
    let total = Some(declared(&parts.headers)).filter(|total| *total > 0);
    let (send, bytes) = mpsc::channel(DEPTH);
    let kept = app.models.upload(digest, total, bytes);
    // Whichever ends first: a full disk ends the reading, a broken body the writing.
    let (kept, read) = tokio::join!(kept, hand_on(body, send));
    kept.map_err(|error| read.err().unwrap_or_else(|| Refusal::from(error)))?;
    Ok(StatusCode::CREATED)
}

/// Hands a body on, chunk by chunk, as long as somebody takes it.
async fn hand_on(mut body: BodyDataStream, send: mpsc::Sender<Bytes>) -> Result<(), Refusal> {
    loop {
        let chunk = match tokio::time::timeout(PATIENCE, body.next()).await {
            Err(_) => return Err(Refusal::too_slow()),
            Ok(None) => return Ok(()),
            Ok(Some(chunk)) => chunk,
        };
        let chunk = chunk.map_err(|_| Refusal::unreadable("the request body broke off"))?;
        if send.send(chunk).await.is_err() {
            linger(body);
            return Ok(());
        }
    }
}

/// `sha256:<hex>`, or with a dash as in file names.
pub(super) fn parse(text: &str) -> Result<ContentHash, Refusal> {
    let hex = text
        .strip_prefix("sha256:")
        .or_else(|| text.strip_prefix("sha256-"));
    let lower = hex.map(str::to_ascii_lowercase);
    let digest = lower.and_then(|hex| hex.parse().ok());
    digest.ok_or_else(|| {
        let shown = clipped(text);
        let why =
            format!("invalid digest \"{shown}\": sha256: and 64 hexadecimal digits are expected");
        Refusal::invalid("digest", why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_in_both_spellings_and_nothing_else_is() {
        let hex = "ab".repeat(32);
        for text in [
            format!("sha256:{hex}"),
            format!("sha256-{}", hex.to_uppercase()),
        ] {
            assert_eq!(parse(&text).unwrap().to_string(), hex);
        }
        for text in [&*hex, "sha256:ab", "sha256:../../x", "", "sha512:ab"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
