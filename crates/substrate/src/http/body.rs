//! Reading a request's body: bounded in bytes and time, then JSON with the place of every mistake.
//!
//! Invariant: never more than [`BODY_LIMIT`] bytes of a request are kept, and a body that declares
//! more is refused before any of it is read.

use std::time::Duration;

use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, header};
use futures::StreamExt;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;
use substrate_sandbox::wire::input::{MAX_INPUT, MAX_STOPS};

use super::error::Refusal;

/// Largest body kept: an input's own bound, so a larger one could not leave this machine.
pub(super) const BODY_LIMIT: usize = MAX_INPUT;

/// How long a body may take to arrive: 8 MiB at a modest 2 Mbit/s.
const BODY_PATIENCE: Duration = Duration::from_secs(32);

/// How long the rest of a refused body is thrown away, so that the refusal reaches a client which
/// reads only after it has written (nginx calls this a lingering close).
const LINGER: Duration = Duration::from_secs(2);

/// The body as `T`.
pub(super) async fn json<T: DeserializeOwned>(request: Request) -> Result<T, Refusal> {
    parse(&read(request).await?)
}

async fn read(request: Request) -> Result<Vec<u8>, Refusal> {
    let (head, body) = request.into_parts();
    if declared(&head.headers) > BODY_LIMIT as u64 {
        // With `expect: 100-continue` the client has sent nothing yet, and reading would ask for it.
        if !head.headers.contains_key(header::EXPECT) {
            linger(body.into_data_stream());
        }
        return Err(Refusal::too_large(BODY_LIMIT));
    }
    match tokio::time::timeout(BODY_PATIENCE, keep(body)).await {
        Ok(kept) => kept,
        Err(_) => Err(Refusal::too_slow()),
    }
}

fn declared(headers: &HeaderMap) -> u64 {
    headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok())
        .unwrap_or(0)
}

async fn keep(body: Body) -> Result<Vec<u8>, Refusal> {
    let mut arriving = body.into_data_stream();
    let mut kept = Vec::new();
    while let Some(chunk) = arriving.next().await {
        let chunk = chunk.map_err(|_| Refusal::unreadable("the request body broke off"))?;
        if kept.len() + chunk.len() > BODY_LIMIT {
            linger(arriving);
            return Err(Refusal::too_large(BODY_LIMIT));
        }
        kept.extend_from_slice(&chunk);
    }
    Ok(kept)
}

pub(super) fn linger(mut arriving: BodyDataStream) {
    tokio::spawn(tokio::time::timeout(LINGER, async move {
        while let Some(Ok(_)) = arriving.next().await {}
    }));
}

/// Bytes as `T`; a mistake is told with its parameter, line and column.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    let Some(start) = bytes.iter().position(|byte| !byte.is_ascii_whitespace()) else {
        return Err(Refusal::unreadable(
            "the request body is empty; a JSON object is expected",
        ));
    };
    // Serde would also take a list, field by field.
    if bytes[start] != b'{' {
        let line = 1 + bytes[..start].iter().filter(|byte| **byte == b'\n').count();
        let column = 1 + bytes[..start]
            .iter()
            .rev()
            .take_while(|byte| **byte != b'\n')
            .count();
        let why = format!("the request body must be a JSON object, at line {line} column {column}");
        return Err(Refusal::unreadable(why));
    }
    let rejection = match Json::<T>::from_bytes(bytes) {
        Ok(Json(value)) => return Ok(value),
        Err(rejection) => rejection,
    };
    // "<axum's sentence>: <path>: <serde's words> at line L column C"
    let text = rejection.body_text();
    let why = &shortened(text.split_once(": ").map_or(text.as_str(), |(_, why)| why));
    let refusal = match rejection {
        JsonRejection::JsonDataError(_) => Refusal::unreadable(why),
        _ => Refusal::unreadable(format!("the request body is not JSON: {why}")),
    };
    match why.split_once(": ") {
        Some((path, _)) if is_path(path) => Err(refusal.at(path)),
        _ => Err(refusal),
    }
}

/// Serde repeats a string of the wrong type in full; this keeps its start and, at the end, its place.
fn shortened(why: &str) -> String {
    const START: usize = 200;
    const END: usize = 100;
    let chars = why.chars().count();
    if chars <= START + END {
        return why.to_owned();
    }
    why.chars()
        .take(START)
        .chain(['…'])
        .chain(why.chars().skip(chars - END))
        .collect()
}

fn is_path(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_.[]".contains(&byte))
}

/// Deserialises a list of at most `N` elements; `null` is an empty list.
///
/// Serde's own `Vec` would first build millions of empty messages out of 8 MiB of `{},{},…`.
pub(super) fn at_most<'de, D, T, const N: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct AtMost<T, const N: usize>(std::marker::PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for AtMost<T, N> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "a list of at most {N} elements")
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
            elements::<_, _, N>(seq)
        }
    }

    deserializer.deserialize_any(AtMost::<T, N>(std::marker::PhantomData))
}

/// The elements of a list that may have `N`.
pub(super) fn elements<'de, A, T, const N: usize>(mut seq: A) -> Result<Vec<T>, A::Error>
where
    A: SeqAccess<'de>,
    T: Deserialize<'de>,
{
    let mut list = Vec::new();
    while let Some(element) = seq.next_element()? {
        if list.len() == N {
            return Err(A::Error::custom(format_args!("more than {N} elements")));
        }
        list.push(element);
    }
    Ok(list)
}

/// Most strings where one string or a list of them is accepted (`stop`, `prompt`): an input's own
/// bound of stop strings.
const MAX_TEXTS: usize = MAX_STOPS;

/// One string or a bounded list of them.
pub(super) type Texts = TextsOf<MAX_TEXTS>;

/// One string or a list of at most `N`.
#[derive(Default)]
pub(super) struct TextsOf<const N: usize>(pub(super) Vec<String>);

impl<'de, const N: usize> Deserialize<'de> for TextsOf<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany<const N: usize>;

        impl<'de, const N: usize> Visitor<'de> for OneOrMany<N> {
            type Value = TextsOf<N>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "a string or a list of at most {N} strings")
            }

            fn visit_unit<E: Error>(self) -> Result<TextsOf<N>, E> {
                Ok(TextsOf::default())
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<TextsOf<N>, E> {
                Ok(TextsOf(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<TextsOf<N>, A::Error> {
                elements::<_, _, N>(seq).map(TextsOf)
            }
        }

        deserializer.deserialize_any(OneOrMany::<N>)
    }
}

/// The JSON text of a list with something in it, as it was written: templates show it as it is.
pub(super) fn non_empty_list(raw: &RawValue) -> Option<String> {
    let inside = raw.get().trim().strip_prefix('[')?.strip_suffix(']')?;
    (!inside.trim().is_empty()).then(|| raw.get().to_owned())
}
