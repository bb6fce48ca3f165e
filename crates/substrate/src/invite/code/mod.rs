//! The code itself: an invite as the text people paste, and back.
//!
//! Invariants: decoding is total and bounded; an invite has one code, white space and case aside.
//!
//! Absent by design: the store (who was let in is its matter) and mending: a slip is pointed at,
//! never guessed.

use bech32::primitives::checksum::Engine;
use bech32::{Bech32m, Checksum, Fe32, Hrp};
use substrate_record::{NetworkId, NodeId};
use zeroize::Zeroizing;

/// What every code begins with, before bech32's separator `1`.
const PREFIX: &str = "substrate";

/// The layout of the bytes inside.
const VERSION: u8 = 1;

/// The most addresses in a code.
pub const MAX_ADDRS: usize = 8;

/// The longest address and circle name in a code.
const MAX_TEXT: usize = 160;

/// The longest code: bech32m's checksum is defined up to here.
const MAX_CODE: usize = <Bech32m as Checksum>::CODE_LENGTH;

/// The longest text looked at; a pasted code may have line breaks in it.
const MAX_PASTE: usize = 4 * MAX_CODE;

/// Bytes of a secret: 2^128 guesses, over a join stream, for something that expires.
const SECRET: usize = 16;

/// What admits one node, once.
#[derive(Clone, PartialEq, Eq)]
pub struct InviteSecret(Zeroizing<[u8; SECRET]>);

impl InviteSecret {
    /// A new secret.
    pub fn draw() -> Self {
        Self(Zeroizing::new(rand::random()))
    }

    /// A secret that was shown to us.
    pub fn from_bytes(bytes: [u8; SECRET]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret, to be shown to the inviter.
    pub fn as_bytes(&self) -> &[u8; SECRET] {
        &self.0
    }
}

/// An invite as its code carries it. It has no `Debug`: it holds a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Invite {
    /// The network to join.
    pub network: NetworkId,
    /// Who invites.
    pub inviter: NodeId,
    /// Where to reach the inviter, best first; at most [`MAX_ADDRS`], and as many as fit.
    pub addrs: Vec<String>,
    /// What admits the joiner.
    pub secret: InviteSecret,
    /// When it ends, Unix milliseconds by the inviter's clock.
    pub expires_ms: u64,
    /// The circle it leads into; `None` = the network alone.
    pub circle: Option<String>,
}

/// Why a text is not an invite.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InviteError {
    /// Something else was pasted.
    #[error("this is not an invite code: one begins with '{PREFIX}1'")]
    NotACode,
    /// Far too long.
    #[error("this is too long for an invite code ({length} characters, at most {MAX_CODE})")]
    TooLong {
        /// Characters without white space.
        length: usize,
    },
    /// A character no code has.
    #[error("character {position} ('{found}') cannot occur in an invite code")]
    Character {
        /// From 1, white space not counted.
        position: usize,
        /// What is there.
        found: char,
    },
    /// One character is wrong.
    #[error("character {position} ('{found}') is mistyped")]
    Mistyped {
        /// From 1, white space not counted.
        position: usize,
        /// What is there.
        found: char,
    },
    /// Characters are missing, or several are wrong.
    #[error("the code is incomplete, or mistyped in more than one place")]
    Checksum,
    /// A later release made it.
    #[error("the invite has version {found}, this release knows {VERSION}")]
    Version {
        /// As found.
        found: u8,
    },
    /// A sound checksum around something that is not an invite.
    #[error("the invite's {part} is malformed")]
    Malformed {
        /// Which part.
        part: &'static str,
    },
}

impl Invite {
    /// The code. Addresses that no longer fit are left out, from the last.
    pub fn encode(&self) -> String {
        let hrp = Hrp::parse_unchecked(PREFIX);
        let mut addrs: Vec<&str> = self
            .addrs
            .iter()
            .map(String::as_str)
            .filter(|addr| addr.len() <= MAX_TEXT)
            .take(MAX_ADDRS)
            .collect();
        loop {
            let bytes = Zeroizing::new(self.to_bytes(&addrs));
            match bech32::encode_lower::<Bech32m>(hrp, &bytes) {
                Ok(code) => return code,
                Err(_) => drop(
                    addrs
                        .pop()
                        .expect("an invite without addresses is far below the limit"),
                ),
            }
        }
    }

    /// Reads a code as people paste it: spaces and line breaks do not matter, nor does case.
    pub fn decode(pasted: &str) -> Result<Self, InviteError> {
        if pasted.len() > MAX_PASTE {
            return Err(InviteError::TooLong {
                length: pasted.chars().count(),
            });
        }
        let code: String = pasted
            .chars()
            .filter(|c| !c.is_whitespace())
            .map(|c| c.to_ascii_lowercase())
            .collect();
        let data = code
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.strip_prefix('1'))
            .ok_or(InviteError::NotACode)?;
        let length = code.chars().count();
        if length > MAX_CODE {
            return Err(InviteError::TooLong { length });
        }
        let symbols = symbols(data)?;
        if !checks(&symbols) {
            return Err(mistyped(&symbols, data));
        }
        let (hrp, bytes) = bech32::decode(&code).map_err(|_| InviteError::Checksum)?;
        let bytes = Zeroizing::new(bytes);
        let invite = Self::from_bytes(&bytes)?;
        // Bits behind the last byte mean nothing, so anything but the encoder's zeros is refused.
        if bech32::encode_lower::<Bech32m>(hrp, &bytes).is_ok_and(|again| again == code) {
            Ok(invite)
        } else {
            Err(InviteError::Malformed { part: "end" })
        }
    }

    fn to_bytes(&self, addrs: &[&str]) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(self.network.as_bytes());
        bytes.extend(self.inviter.as_bytes());
        bytes.extend(self.secret.as_bytes());
        bytes.extend(self.expires_ms.to_be_bytes());
        put_text(&mut bytes, self.circle.as_deref().unwrap_or(""));
        bytes.push(u8::try_from(addrs.len()).expect("at most MAX_ADDRS"));
        addrs.iter().for_each(|addr| put_text(&mut bytes, addr));
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, InviteError> {
        let mut rest = bytes;
        let [version] = take(&mut rest, "version")?;
        if version != VERSION {
            return Err(InviteError::Version { found: version });
        }
        let network = NetworkId::from_bytes(take(&mut rest, "network")?);
        let inviter = NodeId::from_bytes(take(&mut rest, "inviter")?);
        let secret = InviteSecret::from_bytes(take(&mut rest, "secret")?);
        let expires_ms = u64::from_be_bytes(take(&mut rest, "expiry")?);
        let circle = Some(take_text(&mut rest, "circle")?).filter(|circle| !circle.is_empty());
        if circle
            .as_deref()
            .is_some_and(|circle| !crate::store::valid_circle_name(circle))
        {
            return Err(InviteError::Malformed { part: "circle" });
        }
        let [count] = take(&mut rest, "addresses")?;
        if usize::from(count) > MAX_ADDRS {
            return Err(InviteError::Malformed { part: "addresses" });
        }
        let addrs = (0..count)
            .map(|_| take_text(&mut rest, "address"))
            .collect::<Result<_, _>>()?;
        if !rest.is_empty() {
            return Err(InviteError::Malformed { part: "end" });
        }
        Ok(Self {
            network,
            inviter,
            addrs,
            secret,
            expires_ms,
            circle,
        })
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    let text = if text.len() <= MAX_TEXT { text } else { "" };
    bytes.push(u8::try_from(text.len()).expect("at most MAX_TEXT"));
    bytes.extend(text.as_bytes());
}

fn take<const N: usize>(rest: &mut &[u8], part: &'static str) -> Result<[u8; N], InviteError> {
    let (taken, left) = rest
        .split_first_chunk()
        .ok_or(InviteError::Malformed { part })?;
    *rest = left;
    Ok(*taken)
}

fn take_text(rest: &mut &[u8], part: &'static str) -> Result<String, InviteError> {
    let malformed = InviteError::Malformed { part };
    let [length] = take(rest, part)?;
    let Some((text, left)) = rest.split_at_checked(usize::from(length)) else {
        return Err(malformed);
    };
    *rest = left;
    let plain = text.len() <= MAX_TEXT && !text.iter().any(u8::is_ascii_control);
    match std::str::from_utf8(text) {
        Ok(text) if plain => Ok(text.to_owned()),
        _ => Err(malformed),
    }
}

/// The five-bit symbols of a code's data, or the first character that is none.
fn symbols(data: &str) -> Result<Vec<Fe32>, InviteError> {
    let behind_prefix = PREFIX.len() + 2;
    let symbol = |(at, found)| {
        Fe32::from_char(found).map_err(|_| InviteError::Character {
            position: behind_prefix + at,
            found,
        })
    };
    data.chars().enumerate().map(symbol).collect()
}

fn checks(symbols: &[Fe32]) -> bool {
    residue(symbols) == Bech32m::TARGET_RESIDUE
}

fn residue(symbols: &[Fe32]) -> u32 {
    let mut engine = Engine::<Bech32m>::new();
    engine.input_hrp(Hrp::parse_unchecked(PREFIX));
    symbols.iter().for_each(|symbol| engine.input_fe(*symbol));
    *engine.residue()
}

/// Looks for the one character whose change makes the checksum right. The code is never mended by
/// itself: a guess that is wrong once in a million would lead to somebody else's network.
///
/// The checksum is linear: a change of one symbol changes the residue by an amount that depends only
/// on the change and on how many symbols follow it.
fn mistyped(symbols: &[Fe32], data: &str) -> InviteError {
    let wanted = residue(symbols) ^ Bech32m::TARGET_RESIDUE;
    let mut found = None;
    for change in 1..32_u32 {
        let mut effect = change;
        for at in (0..symbols.len()).rev() {
            if effect == wanted {
                if found.is_some() {
                    return InviteError::Checksum;
                }
                found = Some(at);
            }
            effect = followed_by_one_more(effect);
        }
    }
    match found.and_then(|at| Some((at, data.chars().nth(at)?))) {
        Some((at, found)) => InviteError::Mistyped {
            position: PREFIX.len() + 2 + at,
            found,
        },
        None => InviteError::Checksum,
    }
}

/// One step of BIP 173's polynomial without input: the residue's top symbol is folded back.
fn followed_by_one_more(residue: u32) -> u32 {
    let top = residue >> 25;
    let shifted = (residue & 0x01ff_ffff) << 5;
    (0..5)
        .filter(|bit| top >> bit & 1 == 1)
        .fold(shifted, |folded, bit| folded ^ Bech32m::GENERATOR_SH[bit])
}

#[cfg(test)]
mod tests;
