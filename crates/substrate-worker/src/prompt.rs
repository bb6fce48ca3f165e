//! Text that people typed, kept where it cannot leak by accident.
//!
//! Invariant: a [`Prompt`] has no `Debug` and no `Display`, and its bytes are overwritten when it is
//! dropped. The same holds for everything read out of an input through [`wipe`].
//! Absent by design: a way to clone it, and any type that prints it.

use sha2::{Digest as _, Sha256};
use substrate_sandbox::wire::{self, input};
use zeroize::Zeroize;

use crate::ffi::{Context, EngineError, Picture, Piece, Rows};

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

/// Ids that stand for rows of images have this bit; no vocabulary is so large.
pub const SEEN: u32 = 1 << 31;

/// A prompt as it will be read: an id for every place, and the images among them.
///
/// The id at a row of an image is made of the image's digest and the row's number, with [`SEEN`] set. So prompts that begin
/// with the same images have the same ids, and no others do: whoever compares ids need not know of images.
#[derive(Default)]
pub struct Reading {
    /// The ids.
    pub ids: Ids,
    /// The images, by the place of their first row.
    pub images: Vec<SeenImage>,
}

/// An image, or a part of one, in a prompt.
pub struct SeenImage {
    /// The place of its first row.
    pub start: usize,
    picture: Picture,
    rows: Option<Rows>,
}

impl SeenImage {
    /// An image whose first row is at `start`.
    pub fn new(start: usize, picture: Picture) -> SeenImage {
        let rows = None;
        SeenImage {
            start,
            picture,
            rows,
        }
    }

    /// The places of its rows.
    pub fn places(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.picture.rows()
    }

    /// Whether a row sees only those before it.
    pub fn is_causal(&self) -> bool {
        self.picture.is_causal()
    }

    /// `count` of its rows from the place `from` on; they are computed once.
    pub fn rows(
        &mut self,
        context: &mut Context,
        from: usize,
        count: usize,
    ) -> Result<&[f32], EngineError> {
        let rows = match self.rows.take() {
            Some(rows) => rows,
            None => self.picture.encode(context)?,
        };
        Ok(self.rows.insert(rows).from(from - self.start, count))
    }
}

impl Reading {
    /// A prompt without images.
    pub fn of(ids: Vec<u32>) -> Reading {
        let ids = Ids::new(ids);
        Reading {
            ids,
            images: Vec::new(),
        }
    }

    /// A prompt of pieces in their order; `digests` are those of the images that they were cut from.
    pub fn of_pieces(pieces: Vec<Piece>, digests: &[Digest]) -> Reading {
        let (mut ids, mut images) = (Vec::new(), Vec::new());
        let mut cut = vec![0u32; digests.len()];
        for piece in pieces {
            match piece {
                Piece::Text(text) => ids.extend(text),
                Piece::Image(picture) => {
                    let of = picture.image().min(digests.len().saturating_sub(1));
                    let rows = 0..picture.rows() as u32;
                    let start = ids.len();
                    ids.extend(rows.map(|row| row_id(&digests[of], cut[of], row)));
                    cut[of] += 1;
                    images.push(SeenImage::new(start, picture));
                }
            }
        }
        let ids = Ids::new(ids);
        Reading { ids, images }
    }
}

/// SHA-256 of an image as it came.
pub type Digest = [u8; 32];

/// The id at a row of a piece of an image.
fn row_id(image: &Digest, piece: u32, row: u32) -> u32 {
    let hash = Sha256::new()
        .chain_update(image)
        .chain_update(piece.to_le_bytes())
        .chain_update(row.to_le_bytes())
        .finalize();
    let [a, b, c, d, ..] = <[u8; 32]>::from(hash);
    u32::from_le_bytes([a, b, c, d]) | SEEN
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
    for image in &mut message.images {
        image.bytes.zeroize();
    }
}
