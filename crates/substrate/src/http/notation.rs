//! Tools and calls as OpenAI's chat clients write them, which is what chat templates know: made here of other APIs' own.

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

/// A tool that may be called.
#[derive(Serialize)]
pub(super) struct Offered<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    function: OfferedFunction<'a>,
}

#[derive(Serialize)]
struct OfferedFunction<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<&'a RawValue>,
}

impl<'a> Offered<'a> {
    /// What is missing is told where the tools are checked.
    pub(super) fn new(
        name: Option<&'a str>,
        description: Option<&'a str>,
        parameters: Option<&'a RawValue>,
    ) -> Self {
        Self {
            kind: "function",
            function: OfferedFunction {
                name: name.unwrap_or_default(),
                description,
                parameters,
            },
        }
    }
}

/// A call that was made in an earlier turn.
#[derive(Serialize)]
pub(super) struct Called {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: CalledFunction,
}

#[derive(Serialize)]
struct CalledFunction {
    name: String,
    /// An object, or its JSON text, as it was written.
    arguments: Box<RawValue>,
}

impl Called {
    pub(super) fn new(id: String, name: String, arguments: Box<RawValue>) -> Self {
        Self {
            id,
            kind: "function",
            function: CalledFunction { name, arguments },
        }
    }
}

/// `value` as JSON text.
pub(super) fn raw(value: &impl Serialize) -> Box<RawValue> {
    to_raw_value(value).expect("own types have string keys and serialise without failing")
}
