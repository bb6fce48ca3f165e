//! `POST /v1/rerank`: documents in the order of how near they are to a query, as Jina's, Cohere's and llama.cpp's clients ask.
//!
//! Invariants: every document has one score; equal scores keep the documents' own order; the answer says how they were made.
//! Absent by design: models that read a query and a document together (cross-encoders). The worker has no job for them yet.
//! The score here is the cosine of two vectors made apart, of whatever model for vectors is named.

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use substrate_sandbox::wire::input::MAX_TEXTS;

use crate::http::embed::{Wanted, embed};
use crate::http::error::{OpenAiError, Refusal};
use crate::http::guard::Caller;
use crate::http::job::tell_finished;
use crate::http::{Shared, body};

/// Most documents of one request: the query takes the place of a text.
const MAX_DOCUMENTS: usize = MAX_TEXTS - 1;

/// How scores are made, as the answer tells it.
const METHOD: &str = "cosine of vectors made apart (bi-encoder)";

#[derive(Deserialize)]
struct Wish {
    #[serde(default)]
    model: String,
    #[serde(default)]
    query: String,
    #[serde(default, deserialize_with = "body::at_most::<_, _, MAX_DOCUMENTS>")]
    documents: Vec<Document>,
    top_n: Option<i64>,
    #[serde(default)]
    return_documents: Option<bool>,
}

/// A document as clients write it.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a string or an object with a text")]
enum Document {
    Text(String),
    Object { text: String },
}

impl Document {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { text } => text,
        }
    }
}

#[derive(Serialize)]
struct List {
    object: &'static str,
    model: String,
    results: Vec<Scored>,
    usage: Usage,
    substrate: Method,
}

#[derive(Serialize)]
struct Scored {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Told>,
}

#[derive(Serialize)]
struct Told {
    text: String,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u32,
    total_tokens: u32,
}

#[derive(Serialize)]
struct Method {
    method: &'static str,
}

pub(super) async fn rerank(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let wish: Wish = body::json(request).await?;
    let documents = wish.documents.into_iter().map(Document::into_text);
    let mut texts: Vec<String> = [wish.query].into_iter().chain(documents).collect();
    if texts[0].is_empty() {
        return Err(Refusal::invalid("query", "query must be a text that is not empty").into());
    }
    if texts.len() == 1 || texts.iter().any(String::is_empty) {
        let why = "documents must be a list of texts, none of them empty";
        return Err(Refusal::invalid("documents", why).into());
    }
    let top = top_n(wish.top_n)?;
    let returned = match wish.return_documents.unwrap_or(false) {
        true => texts[1..].to_vec(),
        false => Vec::new(),
    };
    let wanted = Wanted {
        model: wish.model,
        texts: std::mem::take(&mut texts),
        truncate: false,
        dimensions: None,
    };
    let (answer, rows) = embed(&app, &caller, wanted)
        .await
        .map_err(|refusal| refusal.of_prompt_in("documents"))?;
    let mut results = scored(&rows);
    results.truncate(top);
    for result in &mut results {
        let text = returned.get(result.index).cloned();
        result.document = text.map(|text| Told { text });
    }
    let list = List {
        object: "list",
        model: answer.model.clone(),
        results,
        usage: Usage {
            prompt_tokens: answer.summary.n_in,
            total_tokens: answer.summary.n_in,
        },
        substrate: Method { method: METHOD },
    };
    let mut response = Json(list).into_response();
    tell_finished(response.headers_mut(), &[answer]);
    Ok(response)
}

fn top_n(asked: Option<i64>) -> Result<usize, Refusal> {
    let Some(asked) = asked else {
        return Ok(MAX_DOCUMENTS);
    };
    match usize::try_from(asked) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(Refusal::invalid(
            "top_n",
            format!("top_n must be at least 1, not {asked}"),
        )),
    }
}

/// The rows after the first, by their nearness to it. All have length 1, so that the product is the cosine.
#[expect(
    clippy::cast_possible_truncation,
    reason = "components are f32; their sum is not to lose what they have"
)]
fn scored(rows: &[Vec<f32>]) -> Vec<Scored> {
    let Some((query, documents)) = rows.split_first() else {
        return Vec::new();
    };
    let numbered = documents.iter().enumerate();
    let mut results: Vec<Scored> = numbered
        .map(|(index, row)| {
            let products = query.iter().zip(row);
            let cosine: f64 = products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            Scored {
                index,
                relevance_score: cosine as f32,
                document: None,
            }
        })
        .collect();
    // Stable, so that equals stay in their order.
    results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_comes_first_and_equals_keep_their_order() {
        let rows = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0], [0.6, 0.8]];
        let rows = rows.map(|row: [f32; 2]| row.to_vec());
        let told = scored(&rows);
        let told: Vec<_> = told
            .iter()
            .map(|one| (one.index, one.relevance_score))
            .collect();
        assert_eq!(told, [(2, 1.0), (1, 0.6), (3, 0.6), (0, 0.0)]);
        assert!(scored(&[]).is_empty());
    }
}
