//! What the host and the first process of a guest say to each other: one short line at a time.
//!
//! The worker's own pipe is apart from this ([`PIPE_PORT`]) and carries [`crate::wire`] unchanged.
//!
//! Invariant: a line is at most [`MAX_LINE`] bytes of ASCII, and whatever does not parse ends the machine: the host does not
//! trust a guest that a worker may have taken over, and the guest has no other host to listen to.
//! Absent by design: models, prompts, paths. A guest is told sizes, and finds its disks by name.

use std::{
    fmt,
    io::{self, Read},
    str::FromStr,
};

/// The port of these lines: the name of a virtio-serial port.
pub const CONTROL_PORT: &str = "substrate.control";

/// The port of the worker's pipe.
pub const PIPE_PORT: &str = "substrate.pipe";

/// The same two under vsock, where ports are numbers. Above 1023, as the lower ones are privileged.
pub const CONTROL_VSOCK: u32 = 5000;

/// The worker's pipe under vsock.
pub const PIPE_VSOCK: u32 = 5001;

/// The names of a guest's disks, which the host gives them as serial numbers, in this order: the root, then the files of the
/// model in the order a worker has them.
pub const DISKS: [&str; 4] = ["root", "model", "projector", "adapter"];

/// Bytes of a disk's sector; the last one of a file is padded with zeros.
pub const SECTOR: u64 = 512;

/// Version of these lines. A guest of another version is not used.
pub const VERSION: u32 = 1;

/// The longest line, with room for an error's text.
pub const MAX_LINE: usize = 512;

/// Bytes of randomness that a guest is given before it starts anything: as many as the kernel's generator holds.
pub const SEED_BYTES: usize = 32;

/// What a guest is told.
#[derive(Clone, PartialEq, Eq)]
pub enum ToGuest {
    /// Mix this into the kernel's generator. Nothing starts before it. Answered by [`FromGuest::Seeded`].
    Seed([u8; SEED_BYTES]),
    /// Forget that a seed came: this machine is about to be copied, and two copies must not draw the same numbers. Answered by
    /// [`FromGuest::Forgotten`].
    Forget,
    /// Start the worker behind the process wall. Answered by [`FromGuest::Started`] or [`FromGuest::Failed`].
    Start(Start),
    /// Start the worker as root of the guest, with no wall around it. Only images for attackers do it; answered as `Start` is.
    Breach(Start),
    /// Say whether both seals of the worker are down. Answered by [`FromGuest::Sealed`].
    Look,
    /// End the worker. Answered by [`FromGuest::Ended`].
    Kill,
}

/// What the worker is started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Bytes of the model, its projector and its adapter; 0 = there is none. Only a size of more than 0 is mounted.
    pub files: [u64; 3],
    /// Bytes it may use beyond them, as in [`crate::launch::WallSpec::memory_limit`].
    pub memory: u64,
}

/// What a guest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromGuest {
    /// It has booted, and waits for its seed.
    Ready {
        /// Its [`VERSION`].
        version: u32,
    },
    /// The seed is in the generator.
    Seeded,
    /// A new seed is needed.
    Forgotten,
    /// The worker's own code has begun.
    Started,
    /// Whether both seals are down, as the guest's kernel tells.
    Sealed(bool),
    /// The worker ended.
    Ended {
        /// By a signal, or by leaving.
        by_signal: bool,
        /// Which, or with which code.
        code: i32,
        /// Bytes of the pipe that it had written, all of which were passed on.
        sent: u64,
    },
    /// Something was not done.
    Failed(String),
}

/// A line that is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line that means nothing")]
pub struct BadLine;

impl From<BadLine> for io::Error {
    fn from(bad: BadLine) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, bad)
    }
}

/// Without the seed, which nobody else may know.
impl fmt::Debug for ToGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seed(_) => f.write_str("seed .."),
            other => write!(f, "{other}"),
        }
    }
}

impl fmt::Display for ToGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seed(seed) => {
                f.write_str("seed ")?;
                seed.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Self::Forget => f.write_str("forget"),
            Self::Start(start) => {
                let [model, projector, adapter] = start.files;
                write!(f, "start {model} {projector} {adapter} {}", start.memory)
            }
            Self::Breach(start) => {
                let [model, projector, adapter] = start.files;
                write!(f, "breach {model} {projector} {adapter} {}", start.memory)
            }
            Self::Look => f.write_str("look"),
            Self::Kill => f.write_str("kill"),
        }
    }
}

impl FromStr for ToGuest {
    type Err = BadLine;

    fn from_str(line: &str) -> Result<Self, BadLine> {
        let mut words = Words(line.split(' '));
        let said = match words.word()? {
            "seed" => Self::Seed(words.seed()?),
            "forget" => Self::Forget,
            "start" => Self::Start(words.start()?),
            "breach" => Self::Breach(words.start()?),
            "look" => Self::Look,
            "kill" => Self::Kill,
            _ => return Err(BadLine),
        };
        words.end().map(|()| said)
    }
}

impl fmt::Display for FromGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { version } => write!(f, "ready {version}"),
            Self::Seeded => f.write_str("seeded"),
            Self::Forgotten => f.write_str("forgotten"),
            Self::Started => f.write_str("started"),
            Self::Sealed(sealed) => write!(f, "sealed {}", u8::from(*sealed)),
            Self::Ended {
                by_signal,
                code,
                sent,
            } => write!(f, "ended {} {code} {sent}", u8::from(*by_signal)),
            Self::Failed(why) => {
                let room = MAX_LINE - "failed \n".len();
                let plain = why
                    .chars()
                    .filter(|c| c.is_ascii() && !c.is_ascii_control());
                let plain: String = plain.take(room).collect();
                write!(f, "failed {plain}")
            }
        }
    }
}

impl FromStr for FromGuest {
    type Err = BadLine;

    fn from_str(line: &str) -> Result<Self, BadLine> {
        if let Some(why) = line.strip_prefix("failed ") {
            let plain = why
                .bytes()
                .all(|byte| byte.is_ascii() && !byte.is_ascii_control());
            return match plain {
                true => Ok(Self::Failed(why.to_owned())),
                false => Err(BadLine),
            };
        }
        let mut words = Words(line.split(' '));
        let said = match words.word()? {
            "ready" => Self::Ready {
                version: words.number()?,
            },
            "seeded" => Self::Seeded,
            "forgotten" => Self::Forgotten,
            "started" => Self::Started,
            "sealed" => Self::Sealed(words.truth()?),
            "ended" => Self::Ended {
                by_signal: words.truth()?,
                code: words.number()?,
                sent: words.number()?,
            },
            _ => return Err(BadLine),
        };
        words.end().map(|()| said)
    }
}

struct Words<'a>(std::str::Split<'a, char>);

impl<'a> Words<'a> {
    fn word(&mut self) -> Result<&'a str, BadLine> {
        self.0.next().ok_or(BadLine)
    }

    /// Digits only, as they are written: `+1`, `01` and the like are refused, so that a line has one meaning and one form.
    fn number<N: FromStr + fmt::Display>(&mut self) -> Result<N, BadLine> {
        let word = self.word()?;
        let number: N = word.parse().map_err(|_| BadLine)?;
        match number.to_string() == word {
            true => Ok(number),
            false => Err(BadLine),
        }
    }

    fn start(&mut self) -> Result<Start, BadLine> {
        Ok(Start {
            files: [self.number()?, self.number()?, self.number()?],
            memory: self.number()?,
        })
    }

    fn truth(&mut self) -> Result<bool, BadLine> {
        match self.word()? {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Err(BadLine),
        }
    }

    fn seed(&mut self) -> Result<[u8; SEED_BYTES], BadLine> {
        let word = self.word()?.as_bytes();
        let mut seed = [0; SEED_BYTES];
        if word.len() != 2 * SEED_BYTES {
            return Err(BadLine);
        }
        for (byte, pair) in seed.iter_mut().zip(word.chunks_exact(2)) {
            let digit = |c: u8| match c {
                b'0'..=b'9' => Ok(c - b'0'),
                b'a'..=b'f' => Ok(c - b'a' + 10),
                _ => Err(BadLine),
            };
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(seed)
    }

    fn end(&mut self) -> Result<(), BadLine> {
        match self.0.next() {
            None => Ok(()),
            Some(_) => Err(BadLine),
        }
    }
}

/// The next line, without its end; `None` if the other side closed before one began.
///
/// It is read byte by byte: lines are few, and nothing behind one may be taken with it.
///
/// # Errors
/// The port failed, the line is too long or has no end, or it means nothing.
pub fn read_line<T: FromStr<Err = BadLine>>(port: &mut impl Read) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match port.read(&mut byte) {
            Ok(0) if line.is_empty() => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if byte[0] == b'\n' => break,
            Ok(_) if line.len() == MAX_LINE => return Err(BadLine.into()),
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let line = std::str::from_utf8(&line).map_err(|_| BadLine)?;
    Ok(Some(line.parse()?))
}
