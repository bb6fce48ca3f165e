//! `POST /api/chat`

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;

use super::ask;
use super::lines::{Kind, answer};
use crate::http::error::OllamaError;
use crate::http::guard::Caller;
use crate::http::{Shared, body};

pub(super) async fn chat(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, OllamaError> {
    let plan = ask::chat(body::json(request).await?, &caller)?;
    Ok(answer(app, caller, Kind::Chat, plan).await?)
}
