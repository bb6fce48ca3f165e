//! How images enter a prompt: decoded, put where the chat template left their marks, cut for the projector.
//!
//! Decoding is the `image` library's, which is memory-safe; the decoder that llama.cpp brings gives out memory that it never
//! wrote for a JPEG that ends early, and with it perhaps somebody else's words.
//!
//! Invariants: an image is decoded only after its header was looked at, and only to the size it names. Every image stands
//! in the prompt exactly once, in the order in which they were said; a template that leaves one out or repeats one is an
//! error.
//! Absent by design: encoding, which is computing and waits until the sequence is read (`crate::scheduler`).

use std::io::Cursor;
use std::sync::Arc;

use image::{ImageFormat, ImageReader, Limits};
use sha2::{Digest as _, Sha256};
use substrate_sandbox::wire::image::{Kind, Look, MAX_POINTS, MAX_SIDE};
use substrate_sandbox::wire::{Failure, Message};
use zeroize::Zeroizing;

use crate::engine::read_header;
use crate::ffi::{Bitmap, Context, EngineError, Part, Projector};
use crate::prompt::{Digest, Reading};
use crate::refusal::Refusal;

/// What the header of a projector names as its architecture.
const PROJECTOR: &str = "clip";

/// What decoding one image may allocate: the most points, at 8 bytes each for 16-bit colours with transparency, twice.
const MOST_MEMORY: u64 = 2 * 8 * MAX_POINTS;

/// Checks the header of the projector at `path`, then loads it.
pub fn open(context: &mut Context, path: &str, flash_attention: bool) -> Result<(), Refusal> {
    let (header, _) = read_header(path)?;
    if header.arch != PROJECTOR {
        let detail = format!(
            "the projector is of architecture {}, not {PROJECTOR}",
            header.arch
        );
        return Err(Refusal::new(Failure::BadModel, detail));
    }
    Ok(context.load_projector(path, flash_attention)?)
}

/// A decoded image and the digest of its bytes.
pub struct Decoded {
    bitmap: Bitmap,
    digest: Digest,
}

/// Decodes all images of a conversation.
///
/// # Errors
/// One is broken; which one is told.
pub fn decode(messages: &[Message]) -> Result<Vec<Decoded>, Refusal> {
    let images = messages.iter().flat_map(|message| &message.images);
    images
        .enumerate()
        .map(|(number, image)| {
            let bitmap = bitmap(&image.bytes, number).map_err(|why| numbered(number, why))?;
            let digest = Sha256::digest(&image.bytes).into();
            Ok(Decoded { bitmap, digest })
        })
        .collect()
}

fn bitmap(bytes: &[u8], number: usize) -> Result<Bitmap, EngineError> {
    let look = Look::at(bytes).map_err(|_| EngineError::Image)?;
    let format = match look.kind {
        Kind::Png => ImageFormat::Png,
        Kind::Jpeg => ImageFormat::Jpeg,
        Kind::Gif => ImageFormat::Gif,
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MOST_MEMORY);
    reader.limits(limits);
    let decoded = reader.decode().map_err(|_| EngineError::Image)?.into_rgb8();
    let (width, height) = decoded.dimensions();
    let points = Zeroizing::new(decoded.into_raw());
    if (width, height) != (look.width, look.height) {
        return Err(EngineError::Image);
    }
    Bitmap::new(width, height, &points, number)
}

/// Reads a rendered conversation, in which `mark` stands for each of the images.
pub fn read(
    projector: &Arc<Projector>,
    text: &[u8],
    mark: &str,
    images: &[Decoded],
) -> Result<Reading, Refusal> {
    let pieces = projector.read(&parts(text, mark, images)?)?;
    let digests: Vec<Digest> = images.iter().map(|image| image.digest).collect();
    Ok(Reading::of_pieces(pieces, &digests))
}

/// Text and images in the order they come.
fn parts<'a>(text: &'a [u8], mark: &str, images: &'a [Decoded]) -> Result<Vec<Part<'a>>, Refusal> {
    let mut parts = Vec::with_capacity(images.len() * 2 + 1);
    let mut rest = text;
    for image in images {
        let at = find(rest, mark.as_bytes()).ok_or_else(not_shown)?;
        parts.push(Part::Text(&rest[..at]));
        parts.push(Part::Image(&image.bitmap));
        rest = &rest[at + mark.len()..];
    }
    if find(rest, mark.as_bytes()).is_some() {
        return Err(not_shown());
    }
    parts.push(Part::Text(rest));
    Ok(parts)
}

fn find(text: &[u8], mark: &[u8]) -> Option<usize> {
    text.windows(mark.len()).position(|window| window == mark)
}

/// A template may leave a message out, or write one twice.
fn not_shown() -> Refusal {
    let detail = "the chat template does not show every image once";
    Refusal::new(Failure::BadTemplate, detail)
}

fn numbered(number: usize, why: EngineError) -> Refusal {
    let Refusal { why, detail } = why.into();
    Refusal::new(why, format!("image {}: {detail}", number + 1))
}
