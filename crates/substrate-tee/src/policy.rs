//! Which guests are good enough.
//!
//! Invariant: a policy that says nothing accepts nothing. A measurement means what whoever wrote it down knows of the
//! image behind it, so there is no list of them here.
//! Absent by design: accepting a guest that may be debugged or moved to another machine.

use std::str::FromStr;

use crate::claim::{Claim, Platform, Svns};
use crate::error::EvidenceError;

/// Guests one policy may name: a dozen images on each platform.
pub const MAX_ACCEPTED: usize = 64;

/// The guests somebody accepts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// One for each image and platform.
    pub accepted: Vec<Accepted>,
}

/// A guest somebody accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// On what.
    pub platform: Platform,
    /// What was started, as in [`Claim::measurement`].
    pub measurement: [u8; 48],
    /// What must be below it at least.
    pub least: Svns,
}

impl Policy {
    /// Whether a guest is one of those accepted.
    ///
    /// # Errors
    /// It is not, or it is and what is below it is too old.
    pub(crate) fn admit(&self, claim: &Claim) -> Result<(), EvidenceError> {
        let mut same = self
            .accepted
            .iter()
            .filter(|one| one.platform == claim.platform && one.measurement == claim.measurement)
            .peekable();
        if same.peek().is_none() {
            return Err(EvidenceError::Measurement);
        }
        if same.any(|one| claim.svns.at_least(&one.least)) {
            return Ok(());
        }
        Err(EvidenceError::OldTcb { svns: claim.svns })
    }
}

/// Why a text is not an accepted guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseAcceptedError {
    /// Not three words.
    #[error("expected a platform, a measurement and the least security versions")]
    Shape,
    /// An unknown platform.
    #[error("the platform is milan, genoa, turin or tdx")]
    Platform,
    /// Not 96 digits.
    #[error("a measurement is 96 hexadecimal digits")]
    Measurement,
    /// Not numbers.
    #[error("security versions are up to 16 numbers from 0 to 255, such as 0.3.0.8.115")]
    Svns,
}

/// Such as `milan 7659…e0ee 0.3.0.8.115`.
impl FromStr for Accepted {
    type Err = ParseAcceptedError;

    fn from_str(text: &str) -> Result<Self, ParseAcceptedError> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [platform, measurement, least] = words[..] else {
            return Err(ParseAcceptedError::Shape);
        };
        let all = [
            Platform::Milan,
            Platform::Genoa,
            Platform::Turin,
            Platform::Tdx,
        ];
        let platform = all.into_iter().find(|one| one.name() == platform);
        let mut accepted = Self {
            platform: platform.ok_or(ParseAcceptedError::Platform)?,
            measurement: [0; 48],
            least: least.parse()?,
        };
        hex::decode_to_slice(measurement, &mut accepted.measurement)
            .map_err(|_| ParseAcceptedError::Measurement)?;
        Ok(accepted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Accepted, ParseAcceptedError> {
        text.parse()
    }

    #[test]
    fn a_guest_is_read_from_its_line() {
        let digits = "ab".repeat(48);
        let accepted = read(&format!("milan {digits} 0.3.0.8.115")).unwrap();
        assert_eq!(accepted.platform, Platform::Milan);
        assert_eq!(accepted.measurement, [0xab; 48]);
        assert_eq!(accepted.least.to_string(), "0.3.0.8.115");
        assert_eq!(read("milan ab"), Err(ParseAcceptedError::Shape));
        assert_eq!(
            read(&format!("rome {digits} 0")),
            Err(ParseAcceptedError::Platform)
        );
        assert_eq!(read("tdx abcd 0"), Err(ParseAcceptedError::Measurement));
        let seventeen = ["1"; 17].join(".");
        for svns in [".", "256", "-1", "x", "1..2", &seventeen] {
            assert_eq!(
                read(&format!("tdx {digits} {svns}")),
                Err(ParseAcceptedError::Svns),
                "{svns}"
            );
        }
    }

    #[test]
    fn every_part_must_be_new_enough() {
        let svns = |text: &str| text.parse::<Svns>().unwrap();
        assert!(svns("0.3.0.8.115").at_least(&svns("0.3.0.8.115")));
        assert!(svns("0.4.0.8.115").at_least(&svns("0.3.0.8")));
        assert!(!svns("0.4.0.8.114").at_least(&svns("0.3.0.8.115")));
        assert!(!svns("255.255").at_least(&svns("0.0.1")));
    }
}
