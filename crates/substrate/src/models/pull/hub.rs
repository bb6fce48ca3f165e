//! The hub's API, as far as a download needs it: which files a repository has, and a file's digest.
//!
//! Invariant: answers are read up to a limit, and a file's name is only ever put into a URL.
//!
//! Absent by design: accounts and tokens.

mod listing;

use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderMap};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use substrate_record::ContentHash;

use super::{PullError, PullSettings, Source};
use listing::{Listing, escape, is_gguf};

/// The longest list of files read. The largest repositories have some thousand.
const MAX_LISTING: usize = 4 << 20;

/// Redirects followed for bytes: hub to store.
const MAX_REDIRECTS: usize = 5;

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
    /// The projector beside it, if the repository has one.
    pub projector: Option<Box<Remote>>,
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
        let file = listing.choose(quant).ok_or_else(|| PullError::NoQuant {
            repo: repo.clone(),
            quant: quant.unwrap_or("latest").to_owned(),
            offered: listing
                .files()
                .filter(|file| is_gguf(file))
                .take(24)
                .map(str::to_owned)
                .collect(),
        })?;
        let revision = listing.commit().unwrap_or("main");
        let projector = match listing.projector() {
            Some(file) => Some(Box::new(self.remote(&repo, revision, file, None).await?)),
            None => None,
        };
        self.remote(&repo, revision, file, projector).await
    }

    async fn remote(
        &self,
        repo: &str,
        revision: &str,
        file: &str,
        projector: Option<Box<Remote>>,
    ) -> Result<Remote, PullError> {
        let url = format!(
            "{}/{repo}/resolve/{revision}/{}",
            self.endpoint,
            escape(file)
        );
        let (digest, size) = self.head(&url, repo).await?;
        Ok(Remote {
            url,
            digest,
            size,
            source: format!("hf:{repo}@{revision}/{file}"),
            projector,
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
        Listing::parse(&body).map_err(|error| PullError::Nonsense {
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
