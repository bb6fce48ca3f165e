//! The input of a job: messages (with images in them) or a prompt, tools, schema, stop strings, logit biases, thinking, a
//! template of its own.
//!
//! Its bytes are what a manifest's input commitment covers, so one input has exactly one encoding:
//! a map {1 messages | 2 prompt, 3 tools, 4 schema, 5 stop, 6 logit_bias, 7 thinking, 8 template}, absent where empty; or {9 texts}
//! alone, whose answer is vectors.
//!
//! Invariant: `from_cbor_bytes(b) == Ok(i)` implies `i.to_cbor_bytes() == Ok(b)`.
//! Invariant: an input is parsed inside the wall only; the daemon that serves it passes on bytes.
//! Absent by design: a look inside tools, schema and template (text, the worker's to parse), and a
//! `Debug` that shows text.

use std::fmt;

use super::cbor::{Reader, Writer};
use super::image::{ImageError, Look, MAX_IMAGES, MAX_POINTS_TOGETHER};

pub use super::cbor::CborError;

/// The largest encoded input (PROTOCOL 4).
pub const MAX_INPUT: usize = 8 * 1024 * 1024;

/// The most messages: at 2 KiB each they fill the largest input.
pub const MAX_MESSAGES: usize = 4096;

/// The most stop strings; OpenAI's API takes 4, Ollama's names no limit.
pub const MAX_STOPS: usize = 64;

/// The longest stop string in bytes: all of them are matched at every token.
pub const MAX_STOP: usize = 1024;

/// The most logit biases: far above what clients send, far below a vocabulary.
pub const MAX_LOGIT_BIAS: usize = 4096;

/// The most texts of one job of embeddings: OpenAI's API takes as many.
pub const MAX_TEXTS: usize = 2048;

/// The longest template of an input's own in bytes: the longest known are 20 KiB.
pub const MAX_TEMPLATE: usize = 64 * 1024;

/// The longest role, name or tool call id in bytes.
pub const MAX_LABEL: usize = 256;

/// What a job is asked to work on.
#[derive(Clone, PartialEq, Eq)]
pub struct Input {
    /// Conversation or plain text.
    pub prompt: Prompt,
    /// Tool definitions as JSON text.
    pub tools: Option<String>,
    /// JSON schema of the answer as JSON text.
    pub schema: Option<String>,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// Token id and bias in 1/65,536 of a logit, ascending by id, no id twice.
    pub logit_bias: Vec<(u32, i32)>,
    /// What the template is told of thinking; `None` leaves it to the template.
    pub thinking: Option<Thinking>,
    /// Template (Jinja) that renders the messages in place of the model's own.
    pub template: Option<String>,
}

/// Whether a model is to think before it answers, and how hard; its number is its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Thinking {
    /// Not at all.
    Off = 0,
    /// As it is used to.
    On = 1,
    /// A little.
    Low = 2,
    /// More.
    Medium = 3,
    /// Much.
    High = 4,
    /// As much as it can.
    Max = 5,
}

impl Thinking {
    /// All of them, by code.
    pub const ALL: [Self; 6] = [
        Self::Off,
        Self::On,
        Self::Low,
        Self::Medium,
        Self::High,
        Self::Max,
    ];

    /// The one with this word: Ollama's, where a truth value is `true` or `false`.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "false" => Some(Self::Off),
            "true" => Some(Self::On),
            "low" => Some(Self::Low),
            "medium" => Some(Self::Medium),
            "high" => Some(Self::High),
            "max" => Some(Self::Max),
            _ => None,
        }
    }

    /// How hard, if that is said.
    pub fn effort(self) -> Option<&'static str> {
        match self {
            Self::Off | Self::On => None,
            Self::Low => Some("low"),
            Self::Medium => Some("medium"),
            Self::High => Some("high"),
            Self::Max => Some("max"),
        }
    }
}

/// What the model reads.
#[derive(Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Messages for the model's chat template.
    Chat(Vec<Message>),
    /// Text as it is, no template.
    Text {
        /// The text.
        text: String,
        /// Whether special tokens in the text count as such.
        special: bool,
    },
    /// Texts to be turned into vectors, one row each. No other field goes with them.
    Texts {
        /// The texts, at least one.
        texts: Vec<String>,
        /// Whether a text longer than the context is cut at its end; otherwise it is refused.
        truncate: bool,
    },
}

/// One message of a conversation.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
    /// The speaker's name, if given.
    pub name: Option<String>,
    /// The assistant's tool calls as JSON text.
    pub tool_calls: Option<String>,
    /// Which call a tool's message answers.
    pub tool_call_id: Option<String>,
    /// The assistant's earlier reasoning.
    pub thinking: Option<String>,
    /// Images, in the order of their places.
    pub images: Vec<Image>,
}

/// An image in a message.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    /// Where in the message's content it stands: before this byte of it.
    pub at: u32,
    /// The image, encoded: PNG, JPEG or GIF.
    pub bytes: Vec<u8>,
}

/// Why an input is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// The bytes are not canonical CBOR of the expected shape.
    #[error("input is not canonical: {0}")]
    Cbor(#[from] CborError),
    /// A field is missing, unknown, out of order, or present though empty.
    #[error("unexpected field {label} in {place}")]
    Field {
        /// The label found, or of the field missed.
        label: u64,
        /// Where.
        place: &'static str,
    },
    /// Something is larger than its limit.
    #[error("{what} of {size} is over the limit of {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// A stop string is empty, which would end every answer at once.
    #[error("a stop string is empty")]
    EmptyStop,
    /// Logit biases are not ascending by token id.
    #[error("logit biases are not ascending by token id")]
    BiasOrder,
    /// An image that no worker decodes.
    #[error("image {number} cannot be used: {why}")]
    Image {
        /// Which of all, from 1.
        number: usize,
        /// Why.
        #[source]
        why: ImageError,
    },
    /// The images have too many points together.
    #[error("the images have {0} points together, over the limit of {MAX_POINTS_TOGETHER}")]
    Points(u64),
    /// An image stands nowhere in its message, or before the one that comes before it.
    #[error("image {0} has no place in its message")]
    ImagePlace(usize),
    /// Texts without one, or with what only an answer in words can have.
    #[error("texts to embed are one or more, and nothing goes with them")]
    Texts,
    /// A template without messages.
    #[error("a template goes with messages only")]
    Template,
}

impl Input {
    /// An input of messages alone.
    pub fn chat(messages: Vec<Message>) -> Self {
        Self::from_prompt(Prompt::Chat(messages))
    }

    /// An input of plain text alone.
    pub fn text(text: impl Into<String>, special: bool) -> Self {
        let text = text.into();
        Self::from_prompt(Prompt::Text { text, special })
    }

    /// An input of texts to embed.
    pub fn texts(texts: Vec<String>, truncate: bool) -> Self {
        Self::from_prompt(Prompt::Texts { texts, truncate })
    }

    /// An input of a prompt alone.
    pub fn from_prompt(prompt: Prompt) -> Self {
        Self {
            prompt,
            tools: None,
            schema: None,
            stop: Vec::new(),
            logit_bias: Vec::new(),
            thinking: None,
            template: None,
        }
    }

    /// The one encoding of this input.
    ///
    /// # Errors
    /// An input that [`Input::from_cbor_bytes`] would refuse is not encoded.
    pub fn to_cbor_bytes(&self) -> Result<Vec<u8>, InputError> {
        self.check()?;
        let mut w = Writer::default();
        w.map(
            1 + usize::from(self.tools.is_some())
                + usize::from(self.schema.is_some())
                + usize::from(!self.stop.is_empty())
                + usize::from(!self.logit_bias.is_empty())
                + usize::from(self.thinking.is_some())
                + usize::from(self.template.is_some()),
        );
        write_prompt(&mut w, &self.prompt);
        write_option(&mut w, 3, self.tools.as_deref());
        write_option(&mut w, 4, self.schema.as_deref());
        if !self.stop.is_empty() {
            w.unsigned(5);
            w.array(self.stop.len());
            self.stop.iter().for_each(|stop| w.text(stop));
        }
        if !self.logit_bias.is_empty() {
            w.unsigned(6);
            w.array(self.logit_bias.len());
            for &(id, bias) in &self.logit_bias {
                w.array(2);
                w.unsigned(u64::from(id));
                w.signed(bias);
            }
        }
        if let Some(thinking) = self.thinking {
            w.unsigned(7);
            w.unsigned(thinking as u64);
        }
        write_option(&mut w, 8, self.template.as_deref());
        within("input", w.0.len(), MAX_INPUT)?;
        Ok(w.0)
    }

    /// The input that has exactly this encoding.
    pub fn from_cbor_bytes(bytes: &[u8]) -> Result<Self, InputError> {
        within("input", bytes.len(), MAX_INPUT)?;
        let mut reader = Reader(bytes);
        let mut fields = Fields::open(&mut reader, "input")?;
        let prompt = match fields.next(&mut reader)? {
            Some(1) => Prompt::Chat(read_list(
                &mut reader,
                "messages",
                MAX_MESSAGES,
                read_message,
            )?),
            Some(2) => read_text_prompt(&mut reader)?,
            Some(9) => read_texts(&mut reader)?,
            other => return Err(fields.unexpected(other)),
        };
        let mut input = Self::from_prompt(prompt);
        while let Some(label) = fields.next(&mut reader)? {
            match label {
                3 => input.tools = Some(reader.text()?.to_owned()),
                4 => input.schema = Some(reader.text()?.to_owned()),
                5 => input.stop = read_list(&mut reader, "stop", MAX_STOPS, read_string)?,
                6 => {
                    input.logit_bias =
                        read_list(&mut reader, "logit_bias", MAX_LOGIT_BIAS, read_bias)?;
                }
                7 => input.thinking = Some(read_thinking(&mut reader)?),
                8 => input.template = Some(reader.text()?.to_owned()),
                _ => return Err(fields.unexpected(Some(label))),
            }
            if (label == 5 && input.stop.is_empty()) || (label == 6 && input.logit_bias.is_empty())
            {
                return Err(fields.unexpected(Some(label)));
            }
        }
        reader.finish()?;
        input.check()?;
        Ok(input)
    }

    /// The limits both directions share.
    fn check(&self) -> Result<(), InputError> {
        if let Prompt::Chat(messages) = &self.prompt {
            within("messages", messages.len(), MAX_MESSAGES)?;
            messages.iter().try_for_each(Message::check)?;
            check_images(messages)?;
        }
        if let Prompt::Texts { texts, .. } = &self.prompt {
            within("texts", texts.len(), MAX_TEXTS)?;
            let alone = self.tools.is_none()
                && self.schema.is_none()
                && self.stop.is_empty()
                && self.logit_bias.is_empty()
                && self.thinking.is_none();
            if texts.is_empty() || !alone {
                return Err(InputError::Texts);
            }
        }
        if let Some(template) = &self.template {
            within("template", template.len(), MAX_TEMPLATE)?;
            if !matches!(self.prompt, Prompt::Chat(_)) {
                return Err(InputError::Template);
            }
        }
        within("stop strings", self.stop.len(), MAX_STOPS)?;
        for stop in &self.stop {
            if stop.is_empty() {
                return Err(InputError::EmptyStop);
            }
            within("stop string", stop.len(), MAX_STOP)?;
        }
        within("logit biases", self.logit_bias.len(), MAX_LOGIT_BIAS)?;
        if !self.logit_bias.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(InputError::BiasOrder);
        }
        Ok(())
    }
}

impl Message {
    /// A message with only a role and a content.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            ..Self::default()
        }
    }

    fn check(&self) -> Result<(), InputError> {
        within("role", self.role.len(), MAX_LABEL)?;
        within("name", self.name.as_ref().map_or(0, String::len), MAX_LABEL)?;
        let id = self.tool_call_id.as_ref().map_or(0, String::len);
        within("tool call id", id, MAX_LABEL)
    }

    fn write(&self, w: &mut Writer) {
        let options = [
            self.name.as_deref(),
            self.tool_calls.as_deref(),
            self.tool_call_id.as_deref(),
            self.thinking.as_deref(),
        ];
        let images = usize::from(!self.images.is_empty());
        w.map(2 + options.iter().flatten().count() + images);
        write_option(w, 1, Some(&self.role));
        write_option(w, 2, Some(&self.content));
        for (label, option) in (3..).zip(options) {
            write_option(w, label, option);
        }
        if images > 0 {
            w.unsigned(7);
            w.array(self.images.len());
            for image in &self.images {
                w.array(2);
                w.unsigned(u64::from(image.at));
                w.bytes(&image.bytes);
            }
        }
    }
}

/// Every image has its place and is of a kind and size that is decoded, and there are not too many.
fn check_images(messages: &[Message]) -> Result<(), InputError> {
    let count = messages.iter().map(|message| message.images.len()).sum();
    within("images", count, MAX_IMAGES)?;
    let (mut number, mut points) = (0, 0_u64);
    for message in messages {
        let mut last = 0;
        for image in &message.images {
            number += 1;
            let place = image.at as usize;
            if image.at < last || !message.content.is_char_boundary(place) {
                return Err(InputError::ImagePlace(number));
            }
            last = image.at;
            let look = Look::at(&image.bytes);
            let look = look.map_err(|why| InputError::Image { number, why })?;
            points = look.points().saturating_add(points);
        }
    }
    if points > MAX_POINTS_TOGETHER {
        return Err(InputError::Points(points));
    }
    Ok(())
}

fn write_prompt(w: &mut Writer, prompt: &Prompt) {
    match prompt {
        Prompt::Chat(messages) => {
            w.unsigned(1);
            w.array(messages.len());
            messages.iter().for_each(|message| message.write(w));
        }
        Prompt::Text { text, special } => {
            w.unsigned(2);
            w.map(2);
            write_option(w, 1, Some(text));
            w.unsigned(2);
            w.bool(*special);
        }
        Prompt::Texts { texts, truncate } => {
            w.unsigned(9);
            w.map(2);
            w.unsigned(1);
            w.array(texts.len());
            texts.iter().for_each(|text| w.text(text));
            w.unsigned(2);
            w.bool(*truncate);
        }
    }
}

fn write_option(w: &mut Writer, label: u64, text: Option<&str>) {
    if let Some(text) = text {
        w.unsigned(label);
        w.text(text);
    }
}

fn read_text_prompt(reader: &mut Reader<'_>) -> Result<Prompt, InputError> {
    let mut fields = Fields::open(reader, "prompt")?;
    fields.require(reader, 1)?;
    let text = reader.text()?.to_owned();
    fields.require(reader, 2)?;
    let special = reader.bool()?;
    match fields.next(reader)? {
        None => Ok(Prompt::Text { text, special }),
        other => Err(fields.unexpected(other)),
    }
}

fn read_texts(reader: &mut Reader<'_>) -> Result<Prompt, InputError> {
    let mut fields = Fields::open(reader, "texts")?;
    fields.require(reader, 1)?;
    let texts = read_list(reader, "texts", MAX_TEXTS, read_string)?;
    fields.require(reader, 2)?;
    let truncate = reader.bool()?;
    match fields.next(reader)? {
        None => Ok(Prompt::Texts { texts, truncate }),
        other => Err(fields.unexpected(other)),
    }
}

fn read_message(reader: &mut Reader<'_>) -> Result<Message, InputError> {
    let mut fields = Fields::open(reader, "message")?;
    fields.require(reader, 1)?;
    let role = reader.text()?;
    fields.require(reader, 2)?;
    let mut message = Message::new(role, reader.text()?);
    while let Some(label) = fields.next(reader)? {
        let field = match label {
            3 => &mut message.name,
            4 => &mut message.tool_calls,
            5 => &mut message.tool_call_id,
            6 => &mut message.thinking,
            7 => {
                message.images = read_list(reader, "images", MAX_IMAGES, read_image)?;
                if message.images.is_empty() {
                    return Err(fields.unexpected(Some(label)));
                }
                continue;
            }
            _ => return Err(fields.unexpected(Some(label))),
        };
        *field = Some(reader.text()?.to_owned());
    }
    Ok(message)
}

fn read_image(reader: &mut Reader<'_>) -> Result<Image, InputError> {
    match reader.array()? {
        2 => Ok(Image {
            at: reader.u32()?,
            bytes: reader.bytes()?.to_vec(),
        }),
        label => {
            let place = "image";
            Err(InputError::Field { label, place })
        }
    }
}

fn read_string(reader: &mut Reader<'_>) -> Result<String, InputError> {
    Ok(reader.text()?.to_owned())
}

fn read_bias(reader: &mut Reader<'_>) -> Result<(u32, i32), InputError> {
    match reader.array()? {
        2 => Ok((reader.u32()?, reader.i32()?)),
        label => {
            let place = "logit_bias";
            Err(InputError::Field { label, place })
        }
    }
}

fn read_thinking(reader: &mut Reader<'_>) -> Result<Thinking, InputError> {
    let code = usize::try_from(reader.unsigned()?).ok();
    let known = code.and_then(|code| Thinking::ALL.get(code).copied());
    Ok(known.ok_or(CborError::OutOfRange)?)
}

fn read_list<T>(
    reader: &mut Reader<'_>,
    what: &'static str,
    limit: usize,
    item: impl Fn(&mut Reader<'_>) -> Result<T, InputError>,
) -> Result<Vec<T>, InputError> {
    let size = usize::try_from(reader.array()?).unwrap_or(usize::MAX);
    within(what, size, limit)?;
    (0..size).map(|_| item(reader)).collect()
}

/// Walks the labels of a map, which must ascend.
struct Fields {
    left: u64,
    last: u64,
    place: &'static str,
}

impl Fields {
    fn open(reader: &mut Reader<'_>, place: &'static str) -> Result<Self, InputError> {
        let left = reader.map()?;
        Ok(Self {
            left,
            last: 0,
            place,
        })
    }

    fn next(&mut self, reader: &mut Reader<'_>) -> Result<Option<u64>, InputError> {
        if self.left == 0 {
            return Ok(None);
        }
        let label = reader.unsigned()?;
        if label <= self.last {
            return Err(self.unexpected(Some(label)));
        }
        self.left -= 1;
        self.last = label;
        Ok(Some(label))
    }

    fn require(&mut self, reader: &mut Reader<'_>, wanted: u64) -> Result<(), InputError> {
        match self.next(reader)? {
            Some(label) if label == wanted => Ok(()),
            Some(label) => Err(self.unexpected(Some(label))),
            None => Err(self.unexpected(Some(wanted))),
        }
    }

    fn unexpected(&self, label: Option<u64>) -> InputError {
        InputError::Field {
            label: label.unwrap_or(self.last.saturating_add(1)),
            place: self.place,
        }
    }
}

fn within(what: &'static str, size: usize, limit: usize) -> Result<(), InputError> {
    if size > limit {
        return Err(InputError::TooLarge { what, size, limit });
    }
    Ok(())
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Input")
            .field("prompt", &self.prompt)
            .field("stop", &self.stop.len())
            .field("logit_bias", &self.logit_bias.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chat(messages) => write!(f, "Chat({} messages)", messages.len()),
            Self::Text { text, .. } => write!(f, "Text({} bytes)", text.len()),
            Self::Texts { texts, .. } => write!(f, "Texts({} texts)", texts.len()),
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({} bytes)", self.content.len())
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} bytes)", self.bytes.len())
    }
}
