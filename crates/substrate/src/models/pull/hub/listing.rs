//! What a hub says of a repository, read from its JSON, and which of its files is meant.
//!
//! Invariant: any bytes give a [`Listing`] or an error, and a chosen file is one of those listed.
//! Absent by design: the network, and everything else this crate is made of: the fuzz target compiles this file alone.

use serde::Deserialize;

/// What `latest` means, in order, as Ollama chooses.
const PREFERRED: [&str; 4] = ["Q4_K_M", "Q4_K_S", "Q4_0", "Q8_0"];

/// Which projector is taken where there are several, in order, as llama.cpp's users are told to: what sees is small, and
/// suffers from being made smaller.
const PREFERRED_PROJECTORS: [&str; 4] = ["F16", "Q8_0", "BF16", "F32"];

/// The longest name of a commit: a SHA-256 in hexadecimal digits.
const MAX_COMMIT: usize = 64;

/// A repository's files.
#[derive(Deserialize)]
pub struct Listing {
    #[serde(default)]
    siblings: Vec<Sibling>,
    sha: Option<String>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Listing {
    /// Reads the hub's answer.
    pub fn parse(body: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }

    /// The names of all files.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.siblings
            .iter()
            .map(|sibling| sibling.rfilename.as_str())
    }

    /// The commit that was listed, if it looks like one.
    pub fn commit(&self) -> Option<&str> {
        self.sha.as_deref().filter(|sha| {
            (1..=MAX_COMMIT).contains(&sha.len())
                && sha.bytes().all(|digit| digit.is_ascii_hexdigit())
        })
    }

    /// The file of a quantisation; without one the usual choice, or the only file there is.
    pub fn choose(&self, quant: Option<&str>) -> Option<&str> {
        let mut models = self.files().filter(|file| is_gguf(file));
        let of = |quant: &str| {
            self.files()
                .find(|file| is_gguf(file) && bears(file, quant))
        };
        match quant {
            Some(quant) => of(quant),
            None => PREFERRED.into_iter().find_map(of).or_else(|| models.next()),
        }
    }

    /// The projector of the repository's models, if there is one.
    pub fn projector(&self) -> Option<&str> {
        let mut projectors = self.files().filter(|file| is_projector(file));
        let of = |quant: &str| {
            self.files()
                .find(|file| is_projector(file) && bears(file, quant))
        };
        PREFERRED_PROJECTORS
            .into_iter()
            .find_map(of)
            .or_else(|| projectors.next())
    }
}

/// Whether a file is a projector, by the name that llama.cpp's converter gives it.
pub fn is_projector(file: &str) -> bool {
    let lower = file.to_ascii_lowercase();
    lower.ends_with(".gguf") && lower.contains("mmproj")
}

/// Whether a file is a whole model.
pub fn is_gguf(file: &str) -> bool {
    let lower = file.to_ascii_lowercase();
    lower.ends_with(".gguf") && !lower.contains("mmproj") && !lower.contains("-of-0")
}

/// Whether a file's name ends in the quantisation, set apart: `x-Q4_1.gguf`, `x.Q4_1.gguf`, `Q4_1/x.gguf`.
fn bears(file: &str, quant: &str) -> bool {
    let stem = file.to_ascii_lowercase();
    let stem = stem.strip_suffix(".gguf").unwrap_or(&stem);
    let quant = quant.to_ascii_lowercase();
    stem.strip_suffix(&quant)
        .is_some_and(|before| before.is_empty() || before.ends_with(['-', '.', '_', '/']))
        || stem.split('/').rev().skip(1).any(|folder| folder == quant)
}

/// A file's path as it stands in a URL.
pub fn escape(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                escaped.push(char::from(byte))
            }
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(files: &[&str]) -> Listing {
        let siblings = files.iter().map(|file| Sibling {
            rfilename: (*file).to_owned(),
        });
        Listing {
            siblings: siblings.collect(),
            sha: None,
        }
    }

    #[test]
    fn the_file_of_a_quantisation_is_found() {
        let listing = listed(&[
            "README.md",
            "m.Q4_1.gguf",
            "m-IQ4_1.gguf",
            "m-Q4_K_M.gguf",
            "mmproj-Q4_1.gguf",
            "Q8_0/m.gguf",
            "m-F16-00001-of-00002.gguf",
        ]);
        let of = |quant| listing.choose(quant);
        assert_eq!(of(Some("q4_1")), Some("m.Q4_1.gguf"));
        assert_eq!(of(Some("IQ4_1")), Some("m-IQ4_1.gguf"));
        assert_eq!(of(Some("Q8_0")), Some("Q8_0/m.gguf"));
        assert_eq!(of(None), Some("m-Q4_K_M.gguf"));
        assert_eq!(of(Some("F16")), None, "a split model is not one file");
        assert_eq!(listed(&["only.gguf"]).choose(None), Some("only.gguf"));
        assert_eq!(listed(&[]).choose(None), None);
    }

    #[test]
    fn the_projector_beside_a_model_is_found() {
        let of = |files: &[&str]| listed(files).projector().map(str::to_owned);
        let several = ["m.gguf", "mmproj-m-Q8_0.gguf", "mmproj-m-f16.gguf"];
        assert_eq!(of(&several).as_deref(), Some("mmproj-m-f16.gguf"));
        assert_eq!(of(&["m.mmproj.gguf"]).as_deref(), Some("m.mmproj.gguf"));
        assert_eq!(of(&["m.gguf", "mmproj.txt"]), None);
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escape("d/a b?#%.gguf"), "d/a%20b%3F%23%25.gguf");
    }

    #[test]
    fn a_commit_is_digits_or_nothing() {
        let of = |body: &str| {
            let listing = Listing::parse(body.as_bytes()).unwrap();
            listing.commit().map(str::to_owned)
        };
        assert_eq!(of(r#"{"sha":"0a1F"}"#).as_deref(), Some("0a1F"));
        assert_eq!(of(r#"{"sha":"../main"}"#), None);
        assert_eq!(of(r#"{"sha":""}"#), None);
        assert_eq!(of("{}"), None);
    }
}
