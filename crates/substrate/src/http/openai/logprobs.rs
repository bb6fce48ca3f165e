//! Log-probabilities in OpenAI's two shapes.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::door::TokenLogprob;

/// What OpenAI writes for a token that cannot be drawn; JSON has no infinity.
const LEAST: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LEAST }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `choices[].logprobs` of a chat.
#[derive(Debug, Serialize)]
pub(super) struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<Alternative>,
}

#[derive(Debug, Serialize)]
struct Alternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// `None` when no log-probabilities were asked for.
pub(super) fn chat(tokens: &[TokenLogprob]) -> Option<ChatLogprobs> {
    let token = |told: &TokenLogprob| ChatToken {
        token: text(&told.bytes),
        logprob: finite(told.logprob),
        bytes: told.bytes.clone(),
        top_logprobs: told
            .top
            .iter()
            .map(|(_, logprob, bytes)| alternative(*logprob, bytes))
            .collect(),
    };
    (!tokens.is_empty()).then(|| ChatLogprobs {
        content: tokens.iter().map(token).collect(),
        refusal: None,
    })
}

fn alternative(logprob: f32, bytes: &[u8]) -> Alternative {
    Alternative {
        token: text(bytes),
        logprob: finite(logprob),
        bytes: bytes.to_vec(),
    }
}

/// `choices[].logprobs` of a completion.
#[derive(Debug, Serialize)]
pub(super) struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<BTreeMap<String, f32>>,
    text_offset: Vec<usize>,
}

/// The same for completions; `offset` counts the characters told before and is moved on.
pub(super) fn completion(tokens: &[TokenLogprob], offset: &mut usize) -> Option<TextLogprobs> {
    if tokens.is_empty() {
        return None;
    }
    let mut told = TextLogprobs {
        tokens: vec![],
        token_logprobs: vec![],
        top_logprobs: vec![],
        text_offset: vec![],
    };
    for token in tokens {
        let written = text(&token.bytes);
        told.text_offset.push(*offset);
        *offset += written.chars().count();
        told.tokens.push(written);
        told.token_logprobs.push(finite(token.logprob));
        let top = token
            .top
            .iter()
            .map(|(_, logprob, bytes)| (text(bytes), finite(*logprob)));
        told.top_logprobs.push(top.collect());
    }
    Some(told)
}
