//! Text that people typed, kept where it cannot leak by accident.
//!
//! Invariant: a [`Prompt`] has no `Debug` and no `Display`, and its bytes are overwritten when it is
//! dropped. The same holds for everything read out of an input through [`wipe`].
//! Absent by design: a way to clone it, and any type that prints it.

use substrate_sandbox::wire::{self, input};
use zeroize::Zeroize;

/// Bytes of a prompt, overwritten when dropped.
pub struct Prompt(Vec<u8>);

impl Prompt {
    /// Takes the bytes over.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Prompt {
        Prompt(bytes.into())
    }

    /// The bytes, for the one who must read them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Token ids of a prompt or an answer, overwritten when dropped: ids are the text.
#[derive(Default)]
pub struct Ids(Vec<u32>);

impl Ids {
    /// Takes the ids over.
    pub fn new(ids: Vec<u32>) -> Ids {
        Ids(ids)
    }

    /// The ids, for the one who must read them.
    pub fn expose(&self) -> &[u32] {
        &self.0
    }

    /// Keeps the first `count`; the rest is overwritten.
    pub fn truncate(&mut self, count: usize) {
        if let Some(rest) = self.0.get_mut(count..) {
            rest.zeroize();
        }
        self.0.truncate(count);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for Ids {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Cells copied out of the cache, overwritten when dropped: what was read can be told from them.
pub struct State(Vec<u8>);

impl State {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> State {
        State(bytes)
    }

    /// The bytes, for the one who puts them back.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Overwrites every text of an input.
pub fn wipe(input: &mut wire::Input) {
    match &mut input.prompt {
        input::Prompt::Text { text, .. } => text.zeroize(),
        input::Prompt::Texts { texts, .. } => texts.zeroize(),
        input::Prompt::Chat(messages) => messages.iter_mut().for_each(wipe_message),
    }
    input.tools.zeroize();
    input.schema.zeroize();
    input.stop.zeroize();
    input.template.zeroize();
}

/// Overwrites every text of a message.
pub fn wipe_message(message: &mut wire::Message) {
    message.content.zeroize();
    message.name.zeroize();
    message.tool_calls.zeroize();
    message.thinking.zeroize();
}
