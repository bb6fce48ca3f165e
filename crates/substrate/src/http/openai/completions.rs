//! `POST /v1/completions`: text in, text out, without a chat template.

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;

use super::answer::Kind;
use super::{ask, chat};
use crate::http::error::OpenAiError;
use crate::http::guard::Caller;
use crate::http::{Shared, body};

pub(super) async fn completions(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let plan = ask::completion(body::json(request).await?, &caller)?;
    Ok(chat::answer(&app, &caller, Kind::Text, plan).await?)
}
