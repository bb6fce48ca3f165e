//! A bounded reader of GGUF headers: the first to look at a model file, before llama.cpp does.
//!
//! It checks what a file says about its own sizes (counts, lengths, dimensions, offsets) against
//! the bytes that are there, and keeps the few facts worth showing.
//!
//! Invariant: total and bounded: any bytes give a [`Header`] or an error with its offset, a kept value is
//! no longer than [`MAX_TEXT`] and there are no more than a score of them, and work is linear in the header.
//! Absent by design: tensor data, and any judgement of the architecture, which is llama.cpp's.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use shape::{MAX_LAYERS, Numbers, Shape, Tensor};

#[path = "header/shape.rs"] // The fuzz target includes this file from elsewhere.
pub mod shape;

/// Header entries and tensors: ten times the largest models known.
const MAX_ENTRIES: u64 = 100_000;
/// The longest kept text; the longest chat templates known are 20 KiB.
const MAX_TEXT: u64 = 256 * 1024;
/// The longest key; the specification says 65,535.
const MAX_KEY: u64 = 65_535;
/// Context lengths kept until the architecture is known, each under its key. Files have one, or a second for a projector.
const MAX_LENGTHS: usize = 8;
/// ggml's limit on tensor names and dimensions.
const MAX_TENSOR_NAME: u64 = 63;
const MAX_DIMENSIONS: u32 = 4;
/// Where tensor data is aligned if the file does not say (GGUF specification).
const DEFAULT_ALIGNMENT: u64 = 32;
/// Arrays of arrays are read this deep.
const MAX_DEPTH: u32 = 2;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// `general.architecture`.
    pub arch: String,
    /// `general.name`.
    pub name: Option<String>,
    /// `general.license`.
    pub licence: Option<String>,
    /// `tokenizer.chat_template`.
    pub template: Option<String>,
    /// `general.file_type`.
    pub file_type: Option<u32>,
    /// Context length the model was trained with.
    pub n_ctx_train: u32,
    /// Tokens in the vocabulary.
    pub n_vocab: u32,
    /// Elements of all tensors.
    pub n_params: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// What its memory is reckoned from.
    pub shape: Shape,
    /// Whether `general.type` says that it is an adapter, and no model.
    pub is_adapter: bool,
}

/// Why a file is not a sound GGUF, and where.
#[derive(Debug, thiserror::Error)]
#[error("{what} at byte {at}")]
pub struct HeaderError {
    /// Offset of the offending field.
    pub at: u64,
    /// What is wrong.
    pub what: Fault,
}

/// What is wrong with a header.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The file could not be read.
    #[error("cannot read")]
    Io(#[source] io::Error),
    /// The file ends before what it promised.
    #[error("file ends inside {0}")]
    Truncated(&'static str),
    /// A field has a value that no sound file has.
    #[error("bad {0}")]
    Bad(&'static str),
    /// A count, length or size is over the reader's limit or the file's own length.
    #[error("{0} of {1} is more than the file can hold")]
    TooLarge(&'static str, u64),
    /// A needed key is missing.
    #[error("no {0}")]
    Missing(&'static str),
}

/// What `general.type` says of a LoRA adapter (GGUF specification).
const ADAPTER: &str = "adapter";

/// Elements and bytes of one block of a tensor type.
pub type TensorType = fn(u32) -> Option<(u64, u64)>;

/// Reads and checks the header of `file`.
pub fn read(file: impl Read + Seek, tensor_type: TensorType) -> Result<Header, HeaderError> {
    let mut reader = Reader::open(file)?;
    let (tensors, entries) = reader.preamble()?;
    let mut values = Values::default();
    for _ in 0..entries {
        reader.entry(&mut values)?;
    }
    let alignment = values.alignment.unwrap_or(DEFAULT_ALIGNMENT);
    let mut header = values.into_header(reader.at)?;
    reader.tensors(tensors, alignment, &mut header, tensor_type)?;
    Ok(header)
}

/// The values kept while reading.
#[derive(Default)]
struct Values {
    texts: BTreeMap<String, String>,
    lengths: BTreeMap<String, u64>,
    file_type: Option<u32>,
    alignment: Option<u64>,
    n_vocab: u64,
    numbers: Numbers,
}

impl Values {
    fn into_header(mut self, at: u64) -> Result<Header, HeaderError> {
        let missing = |what| HeaderError {
            at,
            what: Fault::Missing(what),
        };
        let arch = self.texts.remove("general.architecture");
        let arch = arch.ok_or_else(|| missing("general.architecture"))?;
        let layers = self.numbers.layers(&arch);
        if layers > MAX_LAYERS {
            let what = Fault::TooLarge("number of layers", layers);
            return Err(HeaderError { at, what });
        }
        let n_ctx_train = self.lengths.get(&format!("{arch}.context_length")).copied();
        Ok(Header {
            name: self.texts.remove("general.name"),
            licence: self.texts.remove("general.license"),
            template: self.texts.remove("tokenizer.chat_template"),
            file_type: self.file_type,
            n_ctx_train: n_ctx_train.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            n_vocab: u32::try_from(self.n_vocab).unwrap_or(u32::MAX),
            n_params: 0,
            tensor_bytes: 0,
            shape: self.numbers.shape(&arch),
            is_adapter: self.texts.remove("general.type").as_deref() == Some(ADAPTER),
            arch,
        })
    }
}

struct Reader<R> {
    file: BufReader<R>,
    at: u64,
    size: u64,
}

impl<R: Read + Seek> Reader<R> {
    fn open(mut file: R) -> Result<Reader<R>, HeaderError> {
        let io = |error| HeaderError {
            at: 0,
            what: Fault::Io(error),
        };
        let size = file.seek(SeekFrom::End(0)).map_err(io)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        Ok(Reader {
            file: BufReader::with_capacity(64 * 1024, file),
            at: 0,
            size,
        })
    }

    fn fail<T>(&self, what: Fault) -> Result<T, HeaderError> {
        Err(HeaderError { at: self.at, what })
    }

    fn bytes<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], HeaderError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8], what: &'static str) -> Result<(), HeaderError> {
        match self.file.read_exact(bytes) {
            Ok(()) => {
                self.at += bytes.len() as u64;
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => self.fail(Fault::Truncated(what)),
            Err(e) => self.fail(Fault::Io(e)),
        }
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, HeaderError> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, HeaderError> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    /// Checks that `count` items of at least `each` bytes can still follow.
    fn room(&self, what: &'static str, count: u64, each: u64) -> Result<(), HeaderError> {
        let left = self.size - self.at.min(self.size);
        match count.checked_mul(each) {
            Some(bytes) if bytes <= left => Ok(()),
            _ => self.fail(Fault::TooLarge(what, count)),
        }
    }

    fn skip(&mut self, bytes: u64, what: &'static str) -> Result<(), HeaderError> {
        self.room(what, bytes, 1)?;
        // Within the file, so below i64::MAX.
        if let Err(error) = self.file.seek_relative(bytes as i64) {
            return self.fail(Fault::Io(error));
        }
        self.at += bytes;
        Ok(())
    }

    fn text(&mut self, what: &'static str, limit: u64) -> Result<String, HeaderError> {
        let length = self.u64(what)?;
        if length > limit {
            return self.fail(Fault::TooLarge(what, length));
        }
        self.room(what, length, 1)?;
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes, what)?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(_) => self.fail(Fault::Bad(what)),
        }
    }

    /// Magic, version and the two counts.
    fn preamble(&mut self) -> Result<(u64, u64), HeaderError> {
        if &self.bytes::<4>("magic")? != b"GGUF" {
            return self.fail(Fault::Bad("magic"));
        }
        if !matches!(self.u32("version")?, 2 | 3) {
            return self.fail(Fault::Bad("version"));
        }
        let tensors = self.u64("tensor count")?;
        let entries = self.u64("entry count")?;
        for (what, count) in [("tensor count", tensors), ("entry count", entries)] {
            if count > MAX_ENTRIES {
                return self.fail(Fault::TooLarge(what, count));
            }
            // The smallest entry: an empty key, its type and one byte.
            self.room(what, count, 13)?;
        }
        Ok((tensors, entries))
    }

    fn entry(&mut self, values: &mut Values) -> Result<(), HeaderError> {
        let key = self.text("key", MAX_KEY)?;
        let kind = self.u32("value type")?;
        match kind {
            8 if is_kept_text(&key) => {
                let text = self.text("text value", MAX_TEXT)?;
                if values.texts.insert(key, text).is_some() {
                    return self.fail(Fault::Bad("key (given twice)"));
                }
            }
            9 => {
                let mut kept = values.numbers.wants(&key).then(Vec::new);
                let count = self.array(1, kept.as_mut())?;
                if key == "tokenizer.ggml.tokens" {
                    values.n_vocab = count;
                } else if let Some(kept) = kept {
                    values.numbers.keep(key, kept);
                }
            }
            8 => {
                let length = self.u64("text value")?;
                self.skip(length, "text value")?;
            }
            _ => self.number(key, kind, values)?,
        }
        Ok(())
    }

    fn number(&mut self, key: String, kind: u32, values: &mut Values) -> Result<(), HeaderError> {
        let Some(width) = scalar_width(kind) else {
            return self.fail(Fault::Bad("value type"));
        };
        let mut bytes = [0; 8];
        self.fill(&mut bytes[..width as usize], "value")?;
        let number = u64::from_le_bytes(bytes);
        if key == "general.alignment" {
            if kind != 4 || !number.is_power_of_two() || number > 1 << 20 {
                return self.fail(Fault::Bad("alignment"));
            }
            values.alignment = Some(number);
        }
        if key == "general.file_type" {
            values.file_type = u32::try_from(number).ok();
        } else if key.ends_with(".context_length") {
            values.lengths.insert(key, number);
            if values.lengths.len() > MAX_LENGTHS {
                return self.fail(Fault::Bad("number of context lengths"));
            }
        } else if values.numbers.wants(&key) && is_whole(kind) {
            values.numbers.keep(key, vec![number]);
        }
        Ok(())
    }

    /// Reads over an array and gives its length. One number for each layer is kept, if they are wanted.
    fn array(&mut self, depth: u32, kept: Option<&mut Vec<u64>>) -> Result<u64, HeaderError> {
        let kind = self.u32("array type")?;
        let count = self.u64("array length")?;
        match (scalar_width(kind), kind) {
            (Some(width), _) => {
                self.room("array length", count, width)?;
                match kept.filter(|_| is_whole(kind) && count <= MAX_LAYERS) {
                    Some(kept) => self.numbers(count, width, kept)?,
                    None => self.skip(count * width, "array")?,
                }
            }
            (None, 8) => {
                self.room("array length", count, 8)?;
                for _ in 0..count {
                    let length = self.u64("array text")?;
                    self.skip(length, "array text")?;
                }
            }
            (None, 9) if depth < MAX_DEPTH => {
                self.room("array length", count, 12)?;
                for _ in 0..count {
                    self.array(depth + 1, None)?;
                }
            }
            _ => return self.fail(Fault::Bad("array type")),
        }
        Ok(count)
    }

    fn numbers(&mut self, count: u64, width: u64, kept: &mut Vec<u64>) -> Result<(), HeaderError> {
        for _ in 0..count {
            let mut bytes = [0; 8];
            self.fill(&mut bytes[..width as usize], "array")?;
            kept.push(u64::from_le_bytes(bytes));
        }
        Ok(())
    }

    /// Reads the tensor list and checks that the data it promises is there.
    fn tensors(
        &mut self,
        count: u64,
        alignment: u64,
        header: &mut Header,
        tensor_type: TensorType,
    ) -> Result<(), HeaderError> {
        let mut end = 0u64;
        for _ in 0..count {
            let (offset, bytes) = self.tensor(header, tensor_type)?;
            if offset % alignment != 0 {
                return self.fail(Fault::Bad("tensor offset"));
            }
            match offset.checked_add(bytes) {
                Some(past) => end = end.max(past),
                None => return self.fail(Fault::TooLarge("tensor offset", offset)),
            }
        }
        let start = self.at.next_multiple_of(alignment);
        match start.checked_add(end) {
            Some(needed) if needed <= self.size => Ok(()),
            _ => self.fail(Fault::Truncated("the tensors")),
        }
    }

    fn tensor(
        &mut self,
        header: &mut Header,
        types: TensorType,
    ) -> Result<(u64, u64), HeaderError> {
        let name = self.text("tensor name", MAX_TENSOR_NAME)?;
        let dimensions = self.u32("tensor dimensions")?;
        if dimensions == 0 || dimensions > MAX_DIMENSIONS {
            return self.fail(Fault::Bad("tensor dimensions"));
        }
        let (mut elements, mut row, mut rows) = (1u64, 0, 1);
        for index in 0..dimensions {
            let size = self.u64("tensor shape")?;
            match index {
                0 => row = size,
                1 => rows = size,
                _ => {}
            }
            elements = match elements.checked_mul(size) {
                Some(product) if size > 0 && product < 1 << 62 => product,
                _ => return self.fail(Fault::Bad("tensor shape")),
            };
        }
        let kind = self.u32("tensor type")?;
        let Some((block, block_bytes)) = types(kind) else {
            return self.fail(Fault::Bad("tensor type"));
        };
        if row % block != 0 {
            return self.fail(Fault::Bad("tensor shape"));
        }
        let offset = self.u64("tensor offset")?;
        let Some(bytes) = (elements / block).checked_mul(block_bytes) else {
            return self.fail(Fault::Bad("tensor shape"));
        };
        header.n_params = header.n_params.saturating_add(elements);
        header.tensor_bytes = header.tensor_bytes.saturating_add(bytes);
        header.shape.add(&Tensor {
            name: &name,
            kind,
            rows,
            bytes,
        });
        Ok((offset, bytes))
    }
}

fn is_kept_text(key: &str) -> bool {
    matches!(
        key,
        "general.architecture"
            | "general.type"
            | "general.name"
            | "general.license"
            | "tokenizer.chat_template"
    )
}

/// Whether a value type is a whole number that is not negative by its kind, or hardly ever.
fn is_whole(kind: u32) -> bool {
    matches!(kind, 0..=5 | 10 | 11)
}

/// Bytes of a scalar value type, `None` for text, arrays and unknown ones.
fn scalar_width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
#[path = "header/tests.rs"] // The fuzz target includes this file from elsewhere.
mod tests;
