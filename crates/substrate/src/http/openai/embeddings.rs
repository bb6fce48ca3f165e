//! `POST /v1/embeddings`: a vector for each text.

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use crate::http::embed::{Texts, Wanted, embed};
use crate::http::error::{OpenAiError, Refusal, clipped};
use crate::http::guard::Caller;
use crate::http::job::tell_finished;
use crate::http::{Shared, body};

#[derive(Deserialize)]
struct Wish {
    #[serde(default)]
    model: String,
    #[serde(default)]
    input: Texts,
    encoding_format: Option<String>,
    dimensions: Option<i64>,
}

#[derive(Serialize)]
struct List {
    object: &'static str,
    data: Vec<Entry>,
    model: String,
    usage: Usage,
}

#[derive(Serialize)]
struct Entry {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Numbers(Vec<f32>),
    /// f32, little-endian, in base64.
    Bytes(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u32,
    total_tokens: u32,
}

pub(super) async fn embeddings(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let wish: Wish = body::json(request).await?;
    let as_bytes = encoding(wish.encoding_format.as_deref())?;
    let texts = wish.input.0;
    if texts.is_empty() || texts.iter().any(String::is_empty) {
        let why = "input must be a text or a list of texts, none of them empty";
        return Err(Refusal::invalid("input", why).into());
    }
    let wanted = Wanted {
        model: wish.model,
        texts,
        truncate: false,
        dimensions: wish.dimensions,
    };
    let (answer, rows) = embed(&app, &caller, wanted)
        .await
        .map_err(|refusal| refusal.of_prompt_in("input"))?;
    let data = rows.into_iter().enumerate().map(|(index, row)| Entry {
        object: "embedding",
        index,
        embedding: if as_bytes {
            in_base64(&row)
        } else {
            Vector::Numbers(row)
        },
    });
    let list = List {
        object: "list",
        data: data.collect(),
        model: answer.model.clone(),
        usage: Usage {
            prompt_tokens: answer.summary.n_in,
            total_tokens: answer.summary.n_in,
        },
    };
    let mut response = Json(list).into_response();
    tell_finished(response.headers_mut(), &[answer]);
    Ok(response)
}

/// Whether vectors are wanted as bytes.
fn encoding(asked: Option<&str>) -> Result<bool, Refusal> {
    match asked {
        None | Some("float") => Ok(false),
        Some("base64") => Ok(true),
        Some(other) => Err(Refusal::invalid(
            "encoding_format",
            format!(
                "encoding_format must be float or base64, not '{}'",
                clipped(other)
            ),
        )),
    }
}

fn in_base64(row: &[f32]) -> Vector {
    let bytes: Vec<u8> = row.iter().flat_map(|x| x.to_le_bytes()).collect();
    Vector::Bytes(BASE64_STANDARD.encode(bytes))
}
