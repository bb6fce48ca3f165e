//! The engine inside the wall: llama.cpp, a sampler that can be audited, and the loop that drives
//! both over one pipe.
//!
//! Reading order: [`serve`] (the loop), [`engine`], [`scheduler`] with [`plan`] and [`prefixes`] (who is
//! computed when), [`sequence`] with [`lookup`] (an answer, step by step), [`embedder`] (vectors of texts),
//! [`sampler`] with [`candidates`], [`noise`] and [`portable`] (one token), [`grammar`] with [`numerals`] (schemas),
//! [`emitter`] (text), [`template`] (prompts), `sight` (images in them), [`header`] (the first look at a model file),
//! [`ffi`] (llama.cpp).
//!
//! Invariant: usable in-process and unsealed by tests; the seals are applied by [`walled`] alone, for `main`.
//! Absent by design: keys, network, files other than the model, logs, any text of a prompt in an
//! error.

pub mod candidates;
mod conversation;
pub mod embedder;
pub mod emitter;
pub mod engine;
pub mod ffi;
pub mod grammar;
pub mod header;
pub mod inbox;
mod json;
pub mod logprobs;
pub mod lookup;
pub mod near_tie;
pub mod noise;
pub mod numerals;
pub mod plan;
pub mod portable;
pub mod prefixes;
pub mod prompt;
pub mod refusal;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod serve;
mod sight;
mod strftime;
pub mod template;
pub mod walled;
pub mod wordpiece;
