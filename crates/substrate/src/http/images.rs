//! Images as clients send them: base64, or `data:` URIs around it.
//!
//! Invariant: what comes out is of a kind that workers decode, and within its limits; nothing is fetched for anybody.
//! Absent by design: decoding. Points are made of bytes behind the wall only.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use substrate_sandbox::wire::image::{ImageError, Look, MAX_IMAGE};
use substrate_sandbox::wire::input::Image;

use super::error::{Refusal, clipped};

/// Padded or not: clients write both.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// An image as it was sent, and where it stands in the text it came with.
pub(super) struct Sent {
    /// Before this byte of the text.
    pub(super) at: usize,
    /// What was sent for it.
    pub(super) what: Given,
}

/// What is sent for an image.
pub(super) enum Given {
    /// An address: a `data:` URI, or one that somebody would have to fetch.
    Address(String),
    /// Base64.
    Base64(String),
}

/// An address as OpenAI's clients write it: alone, or with how closely it is to be looked at, which is the projector's
/// own affair here.
#[derive(Deserialize)]
#[serde(untagged, expecting = "an address or an object with a url")]
pub(super) enum Address {
    /// Alone.
    Plain(String),
    /// In an object.
    Named {
        /// The address.
        url: String,
    },
}

impl Address {
    pub(super) fn text(self) -> String {
        match self {
            Self::Plain(url) | Self::Named { url } => url,
        }
    }
}

/// An image as Anthropic's clients write it.
#[derive(Deserialize)]
#[serde(expecting = "an object with a type")]
pub(super) struct Source {
    data: Option<String>,
    url: Option<String>,
}

impl Source {
    /// What was sent, if it is of a type that is known.
    pub(super) fn given(self) -> Option<Given> {
        let data = self.data.map(Given::Base64);
        data.or(self.url.map(Given::Address))
    }
}

/// The images of one text; `place` names what of the request they are in.
pub(super) fn all(sent: Vec<Sent>, place: &str) -> Result<Vec<Image>, Refusal> {
    let one = |sent: Sent| {
        let bytes = match sent.what {
            Given::Address(address) => from_address(&address),
            Given::Base64(text) => from_base64(&text),
        };
        let bytes = bytes.and_then(|bytes| match Look::at(&bytes) {
            Ok(_) => Ok(bytes),
            Err(why) => Err(format!("the image cannot be used: {why}")),
        });
        Ok(Image {
            at: u32::try_from(sent.at).unwrap_or(u32::MAX),
            bytes: bytes.map_err(|why| Refusal::invalid(place, why))?,
        })
    };
    sent.into_iter().map(one).collect()
}

fn from_address(address: &str) -> Result<Vec<u8>, String> {
    let Some(rest) = address.strip_prefix("data:") else {
        let scheme = address.split_once(':').map_or("", |(scheme, _)| scheme);
        return Err(match scheme {
            "http" | "https" => {
                "images are not fetched from the web: send the image itself, as a data: URI"
                    .to_owned()
            }
            _ => format!(
                "an image must be a data: URI with base64 in it, not '{}'",
                clipped(address)
            ),
        });
    };
    match rest.split_once(',') {
        Some((head, data)) if head.ends_with(";base64") => from_base64(data),
        _ => Err("a data: URI of an image must be data:image/…;base64,…".to_owned()),
    }
}

/// Ollama's clients send bare base64, some of them with a `data:` URI's head.
pub(super) fn from_base64(text: &str) -> Result<Vec<u8>, String> {
    if text.starts_with("data:") {
        return from_address(text);
    }
    let text = text.trim_ascii();
    let longest = base64::decoded_len_estimate(text.len());
    // The estimate is up to two bytes high.
    if longest > MAX_IMAGE + 2 {
        let why = ImageError::Bytes(longest);
        return Err(format!("the image cannot be used: {why}"));
    }
    BASE64
        .decode(text)
        .map_err(|_| "the image is not base64".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::error::Shape;
    use crate::http::tests::DOT;

    fn read(what: Given) -> Result<usize, String> {
        let sent = Sent { at: 3, what };
        let images = all(vec![sent], "messages[0]")
            .map_err(|refusal| refusal.body(Shape::OpenAi).to_string())?;
        assert_eq!(images[0].at, 3);
        Ok(images[0].bytes.len())
    }

    fn at(address: &str) -> Result<usize, String> {
        read(Given::Address(address.to_owned()))
    }

    #[test]
    fn base64_is_read_bare_or_in_a_data_uri() {
        for text in [
            DOT.to_owned(),
            DOT.trim_end_matches('=').to_owned(),
            format!(" {DOT}\n"),
            format!("data:image/gif;base64,{DOT}"),
        ] {
            assert_eq!(read(Given::Base64(text)), Ok(42));
        }
        assert_eq!(at(&format!("data:image/gif;base64,{DOT}")), Ok(42));
        // What it is called does not matter: what it is does.
        assert_eq!(at(&format!("data:image/png;base64,{DOT}")), Ok(42));
    }

    #[test]
    fn what_is_no_image_says_why() {
        for (address, why) in [
            ("https://example.org/a.png", "not fetched from the web"),
            ("file:///etc/passwd", "must be a data: URI"),
            ("a.png", "must be a data: URI"),
            ("data:image/png,abc", ";base64"),
            ("data:image/png;base64,***", "not base64"),
            (
                "data:image/png;base64,aGVsbG8gdGhlcmU=",
                "neither PNG, JPEG nor GIF",
            ),
            ("data:image/webp;base64,UklGRgAAAABXRUJQ", "WebP"),
        ] {
            let told = at(address).expect_err(address);
            assert!(told.contains(why), "{told}");
        }
        let huge = "A".repeat(MAX_IMAGE / 3 * 4 + 8);
        let told = read(Given::Base64(huge)).expect_err("too large");
        assert!(told.contains("over the limit"), "{told}");
    }
}
