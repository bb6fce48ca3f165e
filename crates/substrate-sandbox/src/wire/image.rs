//! The first look at an image: of which kind it is and how large, from its header alone.
//!
//! It runs at both ends: the daemon that was asked refuses what no worker would decode, and the worker bounds what
//! decoding will allocate before a decoder sees a byte.
//!
//! Invariant: total and linear; any bytes give a kind with sides within the limits, or a typed error.
//! Absent by design: pixels. They are decoded behind the wall only.

/// The largest image in bytes: a photograph of 12 million points takes 3 to 5 MiB.
pub const MAX_IMAGE: usize = 6 * 1024 * 1024;

/// The most images of one input. Every one costs tens to thousands of tokens; contexts end before this does.
pub const MAX_IMAGES: usize = 16;

/// The most points of one image. A PNG of 16-bit colours with transparency takes 8 bytes a point while it is decoded, so
/// this is a quarter of a gigabyte at worst, for a moment.
pub const MAX_POINTS: u64 = 16 * 1024 * 1024;

/// The most points of all images of one input: eight photographs as phones take them for such uses. The worker decodes them
/// together, at three bytes a point.
pub const MAX_POINTS_TOGETHER: u64 = 2 * MAX_POINTS;

/// The longest side: a panorama of the most points may be this long and a thousand high.
pub const MAX_SIDE: u32 = 16 * 1024;

/// How many times longer than the other a side may be. Encoders scale an image to their own size, keeping its shape: of one
/// that is all length, nothing would be left of the other side.
pub const MAX_RATIO: u32 = 64;

/// The kinds of image that are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PNG.
    Png,
    /// JPEG.
    Jpeg,
    /// GIF; its first picture is seen.
    Gif,
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Its kind.
    pub kind: Kind,
    /// Points from left to right.
    pub width: u32,
    /// Points from top to bottom.
    pub height: u32,
}

/// Why an image is refused before it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// WebP is not decoded.
    #[error("it is a WebP; PNG, JPEG and GIF are read")]
    WebP,
    /// It is no image of a known kind.
    #[error("it is neither PNG, JPEG nor GIF")]
    Kind,
    /// It ends within its header, or the header does not say how large it is.
    #[error("its header is broken or cut off")]
    Header,
    /// It has too many bytes.
    #[error("it has {0} bytes, over the limit of {MAX_IMAGE}")]
    Bytes(usize),
    /// It has no point, too many, or hardly any in one direction.
    #[error(
        "it is {width} by {height} points; it may have {MAX_POINTS} in all, {MAX_SIDE} on a side, and one side {MAX_RATIO} times the other"
    )]
    Points {
        /// From left to right.
        width: u32,
        /// From top to bottom.
        height: u32,
    },
}

impl Look {
    /// Points in all.
    pub fn points(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// Looks at an image's header.
    pub fn at(bytes: &[u8]) -> Result<Self, ImageError> {
        if bytes.len() > MAX_IMAGE {
            return Err(ImageError::Bytes(bytes.len()));
        }
        let (kind, sides) = if let Some(rest) = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n") {
            (Kind::Png, png(rest))
        } else if bytes.starts_with(b"\xff\xd8\xff") {
            (Kind::Jpeg, jpeg(&bytes[2..]))
        } else if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
            (Kind::Gif, gif(&bytes[6..]))
        } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            return Err(ImageError::WebP);
        } else {
            return Err(ImageError::Kind);
        };
        let (width, height) = sides.ok_or(ImageError::Header)?;
        let within = 1..=MAX_SIDE;
        let points = u64::from(width) * u64::from(height);
        let narrow = width.max(height) / MAX_RATIO > width.min(height);
        if !within.contains(&width) || !within.contains(&height) || points > MAX_POINTS || narrow {
            return Err(ImageError::Points { width, height });
        }
        Ok(Self {
            kind,
            width,
            height,
        })
    }
}

/// The first chunk is IHDR and begins with the sides (PNG specification, 11.2.2).
fn png(rest: &[u8]) -> Option<(u32, u32)> {
    let rest = rest.strip_prefix(b"\0\0\0\x0dIHDR")?;
    let (width, rest) = rest.split_first_chunk()?;
    let (height, _) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(*height)))
}

/// The logical screen, within which every picture lies (GIF89a, 18).
fn gif(rest: &[u8]) -> Option<(u32, u32)> {
    let (width, rest) = rest.split_first_chunk()?;
    let (height, _) = rest.split_first_chunk()?;
    let side = |bytes: &[u8; 2]| u32::from(u16::from_le_bytes(*bytes));
    Some((side(width), side(height)))
}

/// The first start-of-frame segment (ITU T.81, B.2.2); segments before it are skipped by their lengths.
fn jpeg(mut rest: &[u8]) -> Option<(u32, u32)> {
    loop {
        // Any number of fill bytes may stand before a marker's code.
        let fill = rest.iter().take_while(|&&byte| byte == 0xff).count();
        if fill == 0 {
            return None;
        }
        let (&marker, after) = rest[fill..].split_first()?;
        rest = after;
        match marker {
            // Markers without a segment.
            0x01 | 0xd0..=0xd7 => {}
            // Picture data or the end came first.
            0x00 | 0xd8..=0xda => return None,
            0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => return frame(rest),
            _ => {
                let (length, _) = rest.split_first_chunk()?;
                rest = rest.get(usize::from(u16::from_be_bytes(*length)).max(2)..)?;
            }
        }
    }
}

/// Length, precision, height, width.
fn frame(segment: &[u8]) -> Option<(u32, u32)> {
    let (height, rest) = segment.get(3..)?.split_first_chunk()?;
    let (width, _) = rest.split_first_chunk()?;
    let side = |bytes: &[u8; 2]| u32::from(u16::from_be_bytes(*bytes));
    Some((side(width), side(height)))
}
