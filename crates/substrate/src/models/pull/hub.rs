//! The hub's API, as far as a download needs it: which files a repository has, and a file's digest.
//!
//! Invariant: answers are read up to a limit, and a file's name is only ever put into a URL.
//!
//! Absent by design: accounts and tokens.

use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderMap};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use substrate_record::ContentHash;

use super::{PullError, PullSettings, Source};

/// The longest list of files read. The largest repositories have some thousand.
const MAX_LISTING: usize = 4 << 20;

/// Redirects followed for bytes: hub to store.
const MAX_REDIRECTS: usize = 5;

/// What `latest` means, in order, as Ollama chooses.
const PREFERRED: [&str; 4] = ["Q4_K_M", "Q4_K_S", "Q4_0", "Q8_0"];

/// A file at the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remote {
    /// Where its bytes are.
    pub url: String,
    /// What they hash to, if the hub says.
    pub digest: Option<ContentHash>,
    /// How many they are.
    pub size: u64,
    /// For the entry: `hf:USER/REPO@COMMIT/FILE`.
    pub source: String,
}

/// A connection pool to one hub.
pub(super) struct Hub {
    endpoint: String,
    /// Asks for headers, which are lost if redirects are followed.
    asking: Client,
    /// Fetches bytes.
    fetching: Client,
    stall: std::time::Duration,
}

#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    siblings: Vec<Sibling>,
    sha: Option<String>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Hub {
    pub(super) fn new(settings: &PullSettings) -> Result<Self, PullError> {
        let build = |policy: Policy| {
            let client = Client::builder()
                .redirect(policy)
                .connect_timeout(settings.stall)
                .user_agent(crate::BUILD);
            client
                .build()
                .map_err(|error| unreachable(&settings.endpoint, &error))
        };
        Ok(Self {
            endpoint: settings.endpoint.clone(),
            asking: build(Policy::none())?,
            fetching: build(Policy::limited(MAX_REDIRECTS))?,
            stall: settings.stall,
        })
    }

    /// Finds the file of a source, its size and its digest.
    pub(super) async fn resolve(&self, source: &Source) -> Result<Remote, PullError> {
        let Some((repo, quant)) = source.repository() else {
            return Err(PullError::Source {
                text: source.to_string(),
                why: "it is not in the web",
            });
        };
        let listing = self.listing(&repo).await?;
        let files: Vec<String> = listing
            .siblings
            .into_iter()
            .map(|sibling| sibling.rfilename)
            .collect();
        let file = choose(&files, quant).ok_or_else(|| PullError::NoQuant {
            repo: repo.clone(),
            quant: quant.unwrap_or("latest").to_owned(),
            offered: files
                .iter()
                .filter(|file| is_gguf(file))
                .take(24)
                .cloned()
                .collect(),
        })?;
        let commit = listing
            .sha
            .filter(|sha| sha.len() <= 64 && sha.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let revision = commit.as_deref().unwrap_or("main");
        let path: Vec<String> = file.split('/').map(escape).collect();
        let url = format!(
            "{}/{repo}/resolve/{revision}/{}",
            self.endpoint,
            path.join("/")
        );
        let (digest, size) = self.head(&url, &repo).await?;
        Ok(Remote {
            url,
            digest,
            size,
            source: format!("hf:{repo}@{revision}/{file}"),
        })
    }

    /// Starts to fetch bytes `from..=to`.
    pub(super) async fn range(
        &self,
        url: &str,
        from: u64,
        to: u64,
    ) -> Result<Response, reqwest::Error> {
        self.fetching
            .get(url)
            .header(reqwest::header::RANGE, format!("bytes={from}-{to}"))
            .send()
            .await
    }

    async fn listing(&self, repo: &str) -> Result<Listing, PullError> {
        let url = format!("{}/api/models/{repo}", self.endpoint);
        let response = self
            .fetching
            .get(&url)
            .timeout(self.stall)
            .send()
            .await
            .map_err(|error| unreachable(&url, &error))?;
        let mut response = self.expect_ok(response, &url, repo)?;
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| unreachable(&url, &error))?
        {
            if body.len() + chunk.len() > MAX_LISTING {
                return Err(PullError::Nonsense {
                    url,
                    why: "its list of files is too long".to_owned(),
                });
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|error| PullError::Nonsense {
            url,
            why: error.to_string(),
        })
    }

    async fn head(&self, url: &str, repo: &str) -> Result<(Option<ContentHash>, u64), PullError> {
        let response = self
            .asking
            .head(url)
            .timeout(self.stall)
            .send()
            .await
            .map_err(|error| unreachable(url, &error))?;
        let linked = response.headers().contains_key("x-linked-size");
        let response = if response.status().is_redirection() && linked {
            response
        } else {
            self.expect_ok(response, url, repo)?
        };
        let headers = response.headers();
        let size =
            number(headers, "x-linked-size").or_else(|| number(headers, CONTENT_LENGTH.as_str()));
        let size = size
            .filter(|size| *size > 0)
            .ok_or_else(|| PullError::Nonsense {
                url: url.to_owned(),
                why: "it does not say how long the file is".to_owned(),
            })?;
        let digest = digest(headers, "x-linked-etag").or_else(|| digest(headers, ETAG.as_str()));
        Ok((digest, size))
    }

    fn expect_ok(&self, response: Response, url: &str, what: &str) -> Result<Response, PullError> {
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND => Err(PullError::NotFound {
                what: what.to_owned(),
                endpoint: self.endpoint.clone(),
            }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(PullError::Gated {
                what: what.to_owned(),
            }),
            status => Err(PullError::Http {
                url: url.to_owned(),
                status: status.as_u16(),
            }),
        }
    }
}

/// The error and its causes in one line: reqwest's own says little.
pub(super) fn unreachable(url: &str, error: &reqwest::Error) -> PullError {
    PullError::Unreachable {
        url: url.to_owned(),
        why: chain(error),
    }
}

/// An error's causes, from outside in.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

fn is_gguf(file: &str) -> bool {
    let lower = file.to_ascii_lowercase();
    lower.ends_with(".gguf") && !lower.contains("mmproj") && !lower.contains("-of-0")
}

/// The file of a quantisation; without one the usual choice, or the only file there is.
fn choose(files: &[String], quant: Option<&str>) -> Option<String> {
    let models: Vec<&String> = files.iter().filter(|file| is_gguf(file)).collect();
    let of = |quant: &str| {
        models
            .iter()
            .find(|file| bears(file, quant))
            .map(|file| (*file).clone())
    };
    match quant {
        Some(quant) => of(quant),
        None => PREFERRED
            .into_iter()
            .find_map(of)
            .or_else(|| models.first().map(|file| (*file).clone())),
    }
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

/// A part of a path as it stands in a URL.
fn escape(part: &str) -> String {
    let mut escaped = String::with_capacity(part.len());
    for byte in part.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte))
            }
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// A SHA-256 in an entity tag; other tags (of files that are not large) are no digests.
fn digest(headers: &HeaderMap, name: &str) -> Option<ContentHash> {
    let tag = headers.get(name)?.to_str().ok()?;
    tag.trim()
        .trim_start_matches("W/")
        .trim_matches('"')
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_a_quantisation_is_found() {
        let files: Vec<String> = [
            "README.md",
            "m.Q4_1.gguf",
            "m-IQ4_1.gguf",
            "m-Q4_K_M.gguf",
            "mmproj-Q4_1.gguf",
            "Q8_0/m.gguf",
            "m-F16-00001-of-00002.gguf",
        ]
        .map(String::from)
        .to_vec();
        let of = |quant| choose(&files, quant);
        assert_eq!(of(Some("q4_1")).as_deref(), Some("m.Q4_1.gguf"));
        assert_eq!(of(Some("IQ4_1")).as_deref(), Some("m-IQ4_1.gguf"));
        assert_eq!(of(Some("Q8_0")).as_deref(), Some("Q8_0/m.gguf"));
        assert_eq!(of(None).as_deref(), Some("m-Q4_K_M.gguf"));
        assert_eq!(of(Some("F16")), None, "a split model is not one file");
        assert_eq!(choose(&[], None), None);
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escape("a b?#%.gguf"), "a%20b%3F%23%25.gguf");
    }
}
