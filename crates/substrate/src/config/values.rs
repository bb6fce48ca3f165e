//! The small values of the settings file, as people write them.
//!
//! Absent by design: defaults that depend on the machine.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use substrate_record::{NodeId, Scope};
use substrate_sandbox::wire::KvType;
use substrate_tee::{Accepted, MAX_ACCEPTED, Policy};

use super::MAX_QUEUE;

/// A scope by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScopeName {
    /// This device.
    #[default]
    Mine,
    /// Keys the owner listed.
    Circle,
    /// Strangers.
    Commons,
}

impl From<ScopeName> for Scope {
    fn from(name: ScopeName) -> Self {
        match name {
            ScopeName::Mine => Self::Mine,
            ScopeName::Circle => Self::Circle,
            ScopeName::Commons => Self::Commons,
        }
    }
}

impl From<Scope> for ScopeName {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Mine => Self::Mine,
            Scope::Circle => Self::Circle,
            Scope::Commons => Self::Commons,
        }
    }
}

impl fmt::Display for ScopeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mine => "mine",
            Self::Circle => "circle",
            Self::Commons => "commons",
        })
    }
}

/// A number of bytes, written `8GiB`, `512MB` or plainly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Units a size may have; those with `i` are powers of 1,024.
const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a size such as \"8GiB\" or \"512MB\"");
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, bytes)| text.strip_suffix(name).map(|number| (number, *bytes)))
            .unwrap_or((text, 1));
        let number: u64 = number.trim().parse().map_err(|_| wrong())?;
        number.checked_mul(unit).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |unit: u64| self.0 >= unit && self.0.is_multiple_of(unit);
        match UNITS[..4].iter().rev().find(|(_, bytes)| whole(*bytes)) {
            Some((name, bytes)) => write!(f, "{}{name}", self.0 / bytes),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Written::deserialize(from)? {
            Written::Number(bytes) => u64::try_from(bytes)
                .map(Self)
                .map_err(|_| D::Error::custom("a size cannot be negative")),
            Written::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

/// How long an unused model stays loaded, as Ollama's `keep_alive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// So long after the last job; zero unloads at once.
    After(Duration),
    /// Until told otherwise.
    Forever,
}

impl Default for KeepAlive {
    /// Five minutes, as Ollama's.
    fn default() -> Self {
        Self::After(Duration::from_secs(300))
    }
}

impl KeepAlive {
    /// `"10m"`, a number of seconds, or anything negative for ever.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Ok(seconds) = text.parse::<i64>() {
            return Ok(Self::from_seconds(seconds));
        }
        if text.starts_with('-') {
            return Ok(Self::Forever);
        }
        let duration = humantime::parse_duration(text);
        duration.map(Self::After).map_err(|_| {
            format!(
                "'{text}' is not a duration such as \"5m\", a number of seconds, or -1 for ever"
            )
        })
    }

    /// Whole seconds; negative = for ever.
    pub fn seconds(self) -> i64 {
        match self {
            Self::After(stay) => i64::try_from(stay.as_secs()).unwrap_or(i64::MAX),
            Self::Forever => -1,
        }
    }

    /// Seconds; negative = for ever.
    pub fn from_seconds(seconds: i64) -> Self {
        u64::try_from(seconds).map_or(Self::Forever, |seconds| {
            Self::After(Duration::from_secs(seconds))
        })
    }
}

impl<'de> Deserialize<'de> for KeepAlive {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Written::deserialize(from)? {
            Written::Number(seconds) => Ok(Self::from_seconds(seconds)),
            Written::Text(text) => Self::parse(&text).map_err(D::Error::custom),
        }
    }
}

/// How long an owner must be away, written `"3m"` or as a number of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleSpan(pub Duration);

/// The shortest: lending that came and went with every breath would serve nobody.
const SHORTEST_IDLE: Duration = Duration::from_secs(1);

/// The longest: who wants more than a day wants `off`.
const LONGEST_IDLE: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for IdleSpan {
    /// Three minutes, as BOINC's.
    fn default() -> Self {
        Self(Duration::from_secs(180))
    }
}

impl FromStr for IdleSpan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let span = match text.trim().parse() {
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => humantime::parse_duration(text.trim()).ok(),
        };
        let span = span.filter(|span| (SHORTEST_IDLE..=LONGEST_IDLE).contains(span));
        span.map(Self).ok_or_else(|| {
            format!("'{text}' is not a span from one second to a day, such as \"3m\"")
        })
    }
}

impl fmt::Display for IdleSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl<'de> Deserialize<'de> for IdleSpan {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = match Written::deserialize(from)? {
            Written::Number(seconds) => seconds.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(D::Error::custom)
    }
}

/// The most programs that may pause lending: each is looked for among all that run.
const MAX_PROGRAMS: usize = 64;

/// The longest name a program has for the kernel is 15 bytes; a file's own name may have 255.
const MAX_PROGRAM: usize = 255;

/// Programs that pause lending.
pub(super) fn programs<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(from)?;
    if names.len() > MAX_PROGRAMS {
        return Err(D::Error::custom(format!(
            "{} programs are more than the {MAX_PROGRAMS} that may be named",
            names.len()
        )));
    }
    let is_name = |name: &&String| {
        !name.is_empty()
            && name.len() <= MAX_PROGRAM
            && !name.contains('/')
            && !name.chars().any(char::is_control)
    };
    match names.iter().find(|name| !is_name(name)) {
        Some(wrong) => Err(D::Error::custom(format!(
            "'{wrong}' is not a program's name such as \"blender\": no folder, and not empty"
        ))),
        None => Ok(names),
    }
}

/// A path that means the same wherever the daemon was started.
pub(super) fn absolute_path<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(from)?;
    if path.is_absolute() {
        return Ok(Some(path));
    }
    Err(D::Error::custom(format!(
        "{} is not an absolute path",
        path.display()
    )))
}

/// How long a model may take to be loaded, as Ollama's `OLLAMA_LOAD_TIMEOUT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadTimeout(pub Duration);

/// Stands for no limit: a load of a day is one that hangs.
const LONGEST_LOAD: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for LoadTimeout {
    /// Five minutes, as Ollama's.
    fn default() -> Self {
        Self(Duration::from_secs(300))
    }
}

impl LoadTimeout {
    /// `"10m"` or a number of seconds; nothing and less is no limit, as with Ollama.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(KeepAlive::parse(text)?.into())
    }
}

impl From<KeepAlive> for LoadTimeout {
    fn from(written: KeepAlive) -> Self {
        Self(match written {
            KeepAlive::After(limit) if !limit.is_zero() => limit.min(LONGEST_LOAD),
            KeepAlive::After(_) | KeepAlive::Forever => LONGEST_LOAD,
        })
    }
}

impl<'de> Deserialize<'de> for LoadTimeout {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        KeepAlive::deserialize(from).map(Self::from)
    }
}

/// How the numbers of a model's cache are kept, as Ollama's `OLLAMA_KV_CACHE_TYPE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum CacheType {
    /// Halves: what the model was made for.
    #[default]
    #[serde(rename = "f16")]
    F16,
    /// Half the memory, hardly any loss.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// A quarter of the memory, some loss.
    #[serde(rename = "q4_0")]
    Q4_0,
}

impl From<CacheType> for KvType {
    fn from(kind: CacheType) -> Self {
        match kind {
            CacheType::F16 => Self::F16,
            CacheType::Q8_0 => Self::Q8_0,
            CacheType::Q4_0 => Self::Q4_0,
        }
    }
}

impl FromStr for CacheType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::F16, Self::Q8_0, Self::Q4_0]
            .into_iter()
            .find(|kind| text.eq_ignore_ascii_case(KvType::from(*kind).name()))
            .ok_or_else(|| format!("'{text}' is not one of f16, q8_0, q4_0"))
    }
}

impl fmt::Display for CacheType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(KvType::from(*self).name())
    }
}

/// A span of the day in local time, written `22:00-07:00`; it may cross midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    /// First minute of the day inside.
    pub from: u16,
    /// First minute of the day outside again.
    pub to: u16,
}

/// Minutes of a day.
const DAY: u16 = 24 * 60;

impl Hours {
    /// Whether a minute of the day (0 = midnight) is inside.
    pub fn contains(&self, minute: u16) -> bool {
        if self.from <= self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a span such as \"22:00-07:00\"");
        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
        let hours = Self {
            from: minute(from).ok_or_else(wrong)?,
            to: minute(to).ok_or_else(wrong)?,
        };
        if hours.from == hours.to {
            Err(format!(
                "'{text}' is empty: leave the key out to lend all day"
            ))
        } else {
            Ok(hours)
        }
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02}:{:02}-{:02}:{:02}",
            self.from / 60,
            self.from % 60,
            self.to / 60,
            self.to % 60
        )
    }
}

impl<'de> Deserialize<'de> for Hours {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.trim().split_once(':')?;
    let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
    let total = hour.checked_mul(60)?.checked_add(minute)?;
    (minute < 60 && total <= DAY).then_some(total)
}

/// A value people write as a number or as text.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number or a text")]
enum Written {
    Number(i64),
    Text(String),
}

/// Node keys in hex.
pub(super) fn node_ids<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<NodeId>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    texts
        .iter()
        .map(|text| {
            text.parse().map_err(|_| {
                D::Error::custom(format!(
                    "'{text}' is not a node's key: 64 hexadecimal digits"
                ))
            })
        })
        .collect()
}

/// Guests of trusted execution environments.
pub(super) fn guests<'de, D: Deserializer<'de>>(from: D) -> Result<Policy, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    if texts.len() > MAX_ACCEPTED {
        return Err(D::Error::custom(format!(
            "{} guests are more than the {MAX_ACCEPTED} that may be accepted",
            texts.len()
        )));
    }
    let read = |text: &String| text.parse::<Accepted>().map_err(D::Error::custom);
    let accepted = texts.iter().map(read).collect::<Result<_, _>>()?;
    Ok(Policy { accepted })
}

/// A SHA-256 in hex.
pub(super) fn hash<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
    let text = String::deserialize(from)?;
    let mut hash = [0; 32];
    hex::decode_to_slice(&text, &mut hash)
        .map_err(|_| D::Error::custom("not a SHA-256 in 64 hexadecimal digits"))?;
    Ok(hash)
}

/// Whether virtual machines are tried as a wall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MicrovmUse {
    /// If the processor can run them and an image is installed.
    #[default]
    Auto,
    /// An emulated one, if the processor cannot: a hundred times slower and more, for the owner's own trials.
    Emulated,
    /// No.
    Off,
}

/// An Ed25519 key in hex.
pub(super) fn image_key<'de, D: Deserializer<'de>>(from: D) -> Result<Option<[u8; 32]>, D::Error> {
    let text = String::deserialize(from)?;
    let mut key = [0; 32];
    hex::decode_to_slice(&text, &mut key)
        .map_err(|_| D::Error::custom("not an Ed25519 key in 64 hexadecimal digits"))?;
    Ok(Some(key))
}

/// How many jobs of clients are kept. A list of none answers nobody; one longer than the node's would be cut silently.
pub(super) fn max_queue<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let jobs = u32::deserialize(from)?;
    if (1..=MAX_QUEUE).contains(&jobs) {
        return Ok(jobs);
    }
    Err(D::Error::custom(format!(
        "{jobs} is not between 1 and {MAX_QUEUE}"
    )))
}

/// The most names a listener may have beside loopback's: a machine has a few, a family of virtual hosts some dozens.
const MAX_NAMES: usize = 64;

/// The longest host name (RFC 1035 2.3.4).
const MAX_NAME: usize = 253;

/// Names a listener answers to.
pub(super) fn host_names<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(from)?;
    if names.len() > MAX_NAMES {
        return Err(D::Error::custom(format!(
            "{} names are more than the {MAX_NAMES} a listener may have",
            names.len()
        )));
    }
    match names.iter().find(|name| !is_host_name(name)) {
        Some(wrong) => Err(D::Error::custom(format!(
            "'{wrong}' is not a host name such as \"box.lan\": no scheme, no port, no path, no wildcard"
        ))),
        None => Ok(names),
    }
}

/// Labels of letters, digits, `-` and `_`. An address is no name: the listener knows its own.
fn is_host_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.chars().all(plain);
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= MAX_NAME
        && name.split('.').all(label)
        && !last.chars().all(|c| c.is_ascii_digit())
}
