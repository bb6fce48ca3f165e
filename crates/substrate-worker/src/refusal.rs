//! Why the worker says no: a wire code and a sentence without a word of any prompt.
//!
//! Invariant: the sentence is built from constants, numbers and text of the model file only.
//! Absent by design: the input and whatever llama.cpp might have said about it.

use substrate_sandbox::wire::{Failure, InputError};

use crate::ffi::EngineError;
use crate::header::HeaderError;
use crate::sampler::SettingsError;
use crate::template::TemplateError;

/// A refusal as the wire carries it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why:?}: {detail}")]
pub struct Refusal {
    /// The code.
    pub why: Failure,
    /// The sentence.
    pub detail: String,
}

impl Refusal {
    /// A refusal of kind `why`.
    pub fn new(why: Failure, detail: impl Into<String>) -> Refusal {
        Refusal {
            why,
            detail: detail.into(),
        }
    }
}

impl From<EngineError> for Refusal {
    fn from(error: EngineError) -> Refusal {
        let why = match error {
            EngineError::Model(_) | EngineError::Projector(_) | EngineError::Adapter(_) => {
                Failure::BadModel
            }
            EngineError::Memory(_) => Failure::OutOfMemory,
            EngineError::UnknownToken(_) | EngineError::Grammar(_) | EngineError::Image => {
                Failure::BadInput
            }
            _ => Failure::Internal,
        };
        Refusal::new(why, error.to_string())
    }
}

impl From<HeaderError> for Refusal {
    fn from(error: HeaderError) -> Refusal {
        Refusal::new(Failure::BadModel, error.to_string())
    }
}

impl From<TemplateError> for Refusal {
    fn from(error: TemplateError) -> Refusal {
        let why = match error {
            TemplateError::BadJson(_) => Failure::BadInput,
            _ => Failure::BadTemplate,
        };
        Refusal::new(why, error.to_string())
    }
}

impl From<SettingsError> for Refusal {
    fn from(error: SettingsError) -> Refusal {
        Refusal::new(Failure::BadInput, error.to_string())
    }
}

impl From<InputError> for Refusal {
    fn from(error: InputError) -> Refusal {
        Refusal::new(Failure::BadInput, error.to_string())
    }
}
