//! What a turn says, in the forms that clients write: a string, or a list of parts.
//!
//! Invariant: lists are bounded while they are read, not after. Absent by design: `Debug`, so that no log can show a prompt.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use super::body::elements;
use super::images::{Address, Given, Sent, Source};

/// Most parts of one message.
pub(super) const MAX_PARTS: usize = 1_024;

/// A message's text and images, from a string or from a list of parts.
#[derive(Default)]
pub(super) struct Content {
    pub(super) text: String,
    /// The images, in the order of their places in the text.
    pub(super) images: Vec<Sent>,
    /// The type of the first part that is neither.
    pub(super) other: Option<String>,
    after_image: bool,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with a type")]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    image_url: Option<Address>,
    source: Option<Source>,
}

impl Part {
    /// The image it is, as OpenAI's or as Anthropic's clients send one.
    fn image(&mut self) -> Option<Given> {
        match self.kind.as_str() {
            "image_url" | "input_image" => {
                let address = self.image_url.take()?;
                Some(Given::Address(address.text()))
            }
            "image" => self.source.take()?.given(),
            _ => None,
        }
    }
}

impl Content {
    /// Text parts are lines of one text, as llama.cpp's server and vLLM join them. Around an image no line begins.
    fn add(&mut self, mut part: Part, first: bool) {
        if let Some(what) = part.image() {
            let at = self.text.len();
            self.images.push(Sent { at, what });
            self.after_image = true;
            return;
        }
        match (part.kind.as_str(), part.text) {
            ("text" | "input_text" | "output_text", Some(text)) => {
                if !first && !self.after_image {
                    self.text.push('\n');
                }
                self.after_image = false;
                self.text.push_str(&text);
            }
            _ => self.other = self.other.take().or(Some(part.kind)),
        }
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrParts)
    }
}

struct TextOrParts;

impl<'de> Visitor<'de> for TextOrParts {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of content parts")
    }

    fn visit_unit<E: Error>(self) -> Result<Content, E> {
        Ok(Content::default())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Content, E> {
        Ok(Content {
            text: text.to_owned(),
            ..Content::default()
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Content, A::Error> {
        let mut content = Content::default();
        let mut seen = 0;
        while let Some(part) = parts.next_element()? {
            content.add(part, seen == 0);
            seen += 1;
            if seen > MAX_PARTS {
                return Err(A::Error::custom(format_args!(
                    "more than {MAX_PARTS} parts"
                )));
            }
        }
        Ok(content)
    }
}

/// A string, or a list of at most `N` parts; nothing is an empty list.
pub(super) enum TextOr<T, const N: usize> {
    Text(String),
    Parts(Vec<T>),
}

impl<T, const N: usize> Default for TextOr<T, N> {
    fn default() -> Self {
        Self::Parts(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for TextOr<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T, const N: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Either<T, N> {
            type Value = TextOr<T, N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a string or a list of at most {N} parts")
            }

            fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
                Ok(TextOr::default())
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(TextOr::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<Self::Value, A::Error> {
                elements::<_, _, N>(parts).map(TextOr::Parts)
            }
        }

        deserializer.deserialize_any(Either::<T, N>(PhantomData))
    }
}
