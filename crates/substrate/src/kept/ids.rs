//! Names of what is kept for clients: a word and 32 hex digits, as OpenAI's clients expect them.
//!
//! Invariant: a name that was read is safe as a file's name, and is written again as the same text.

/// Makes a name of 16 random bytes behind a word.
macro_rules! name {
    ($name:ident, $prefix:literal, $about:literal) => {
        #[doc = $about]
        #[derive(
            Debug,
            Clone,
            Copy,
            PartialEq,
            Eq,
            PartialOrd,
            Ord,
            serde::Serialize,
            serde::Deserialize,
        )]
        #[serde(into = "String", try_from = "String")]
        pub struct $name([u8; 16]);

        impl $name {
            /// A new one.
            pub fn draw() -> Self {
                Self(rand::random())
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}{}", $prefix, hex::encode(self.0))
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                let digits = text.strip_prefix($prefix).ok_or(BadName)?;
                let mut bytes = [0; 16];
                hex::decode_to_slice(digits, &mut bytes).map_err(|_| BadName)?;
                // Capitals would be a second name of the same thing.
                if digits.bytes().any(|digit| digit.is_ascii_uppercase()) {
                    return Err(BadName);
                }
                Ok(Self(bytes))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;

            fn try_from(text: String) -> Result<Self, BadName> {
                text.parse()
            }
        }
    };
}

/// Not a name that this machine gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a name of this kind")]
pub struct BadName;

name!(FileId, "file-", "The name of a kept file.");
name!(BatchId, "batch_", "The name of a batch.");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_is_read() {
        let id = FileId::draw();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().len(), "file-".len() + 32);
        for wrong in [
            "",
            "file-",
            "file-../../etc/passwd",
            "batch_00112233445566778899aabbccddeeff",
            "file-00112233445566778899AABBCCDDEEFF",
            "file-00112233445566778899aabbccddeeff0",
        ] {
            assert_eq!(wrong.parse::<FileId>(), Err(BadName), "{wrong}");
        }
    }
}
