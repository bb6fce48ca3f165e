//! What daemon and worker say to each other: messages, their frames, and the input of a job.
//!
//! Invariant: decoding is total and bounded; any bytes give a message or a typed error, never a
//! panic and never an allocation larger than the frame that was really received allows.
//!
//! Absent by design: compatibility between versions. Both ends come from one build; the daemon
//! checks the worker's digest before it speaks to it.

mod cbor;
mod codec;
pub mod image;
pub mod input;
mod message;

pub use codec::{DecodeError, Decoder, EncodeError, ReadError, Wire, decode, encode, read, write};
pub use input::{Image, Input, InputError, Message, Prompt, Thinking};
pub use message::{
    Failure, Finished, FromWorker, INITIAL_GRANT, KvType, Load, ModelFacts, OnGpu, Prepare,
    Sampler, Shape, ToWorker, TokenLogprob,
};
