//! A hub on loopback that serves one file, with the trouble a test asks for.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::stream;
use substrate::models::import::ModelFacts;
use substrate_record::ContentHash;

/// Bytes sent at a time.
const CHUNK: usize = 64 * 1024;

/// What goes wrong.
#[derive(Default)]
pub struct Trouble {
    /// Close the connection after so many bytes of an answer, `cuts` times.
    pub cut_after: Option<u64>,
    pub cuts: AtomicU32,
    /// Go silent after so many bytes of an answer, `silences` times.
    pub silent_after: Option<u64>,
    pub silences: AtomicU32,
    /// Answer 503 so many times.
    pub busy: AtomicU32,
    /// Ignore ranges.
    pub no_ranges: bool,
    /// Send one wrong byte.
    pub wrong_byte: bool,
    /// Send nothing more once so many bytes were sent in all, until [`Hub::lift`].
    pub hold_after: Option<u64>,
}

/// What answers that begin now count into, and after how many bytes they hold their breath for good.
#[derive(Clone)]
struct Count {
    sent: Arc<AtomicU64>,
    hold_after: u64,
}

impl Count {
    fn from_nothing(hold_after: Option<u64>) -> Self {
        Self {
            sent: Arc::default(),
            hold_after: hold_after.unwrap_or(u64::MAX),
        }
    }
}

/// The running hub; it stops when dropped.
pub struct Hub {
    pub endpoint: String,
    count: Arc<Mutex<Count>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[derive(Clone)]
struct Shelf {
    file: Bytes,
    digest: ContentHash,
    trouble: Arc<Trouble>,
    count: Arc<Mutex<Count>>,
}

/// What an inspection of the test's file says.
pub fn facts() -> ModelFacts {
    ModelFacts {
        arch: "llama".into(),
        quant: "Q4_1".into(),
        n_ctx_train: 8192,
        ..ModelFacts::default()
    }
}

impl Hub {
    pub async fn serve(file: Vec<u8>, trouble: Trouble) -> Self {
        let count = Arc::new(Mutex::new(Count::from_nothing(trouble.hold_after)));
        let shelf = Shelf {
            digest: ContentHash::of(&file),
            file: file.into(),
            trouble: Arc::new(trouble),
            count: count.clone(),
        };
        let routes = Router::new()
            .route("/api/models/{user}/{repo}", get(listing))
            .route("/{user}/{repo}/resolve/{revision}/{file}", get(resolve))
            .with_state(shelf);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self {
            endpoint,
            count,
            server,
        }
    }

    /// Bytes of the file sent so far, since the last [`Self::lift`].
    pub fn sent(&self) -> u64 {
        self.count.lock().unwrap().sent.load(Ordering::SeqCst)
    }

    /// Answers that begin from now on hold no breath, and are counted from nothing. Those under way stay as they are.
    pub fn lift(&self) {
        *self.count.lock().unwrap() = Count::from_nothing(None);
    }
}

async fn listing(Path((_, repo)): Path<(String, String)>) -> Response {
    match repo.as_str() {
        "repo" => r#"{"sha":"0123abcd","siblings":[{"rfilename":"README.md"},{"rfilename":"model-Q4_1.gguf"},{"rfilename":"model-Q8_0.gguf"}]}"#.into_response(),
        "gated" => StatusCode::UNAUTHORIZED.into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn resolve(method: Method, State(shelf): State<Shelf>, headers: HeaderMap) -> Response {
    let size = shelf.file.len() as u64;
    if method == Method::HEAD {
        let headers = [
            ("x-linked-etag", format!("\"{}\"", shelf.digest)),
            ("x-linked-size", size.to_string()),
            ("location", "/elsewhere".into()),
        ];
        return (StatusCode::FOUND, headers).into_response();
    }
    if take_one(&shelf.trouble.busy) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let range = headers
        .get("range")
        .and_then(|range| range.to_str().ok())
        .filter(|_| !shelf.trouble.no_ranges);
    let (status, from, to) =
        match range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) {
            Some((from, to)) => (
                StatusCode::PARTIAL_CONTENT,
                from.parse().unwrap(),
                to.parse::<u64>().unwrap().min(size - 1),
            ),
            None => (StatusCode::OK, 0, size - 1),
        };
    let headers = [
        ("content-length", (to - from + 1).to_string()),
        ("content-range", format!("bytes {from}-{to}/{size}")),
    ];
    (status, headers, body(shelf, from, to)).into_response()
}

/// Takes one off a count; `false` if none is left.
fn take_one(count: &AtomicU32) -> bool {
    count
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            left.checked_sub(1)
        })
        .is_ok()
}

/// The bytes `from..=to`, with the trouble that was asked for. One byte alone is the question whether
/// ranges are served, and is answered well.
fn body(shelf: Shelf, from: u64, to: u64) -> Body {
    let probe = from == to;
    let limit = |after: Option<u64>, count: &AtomicU32| {
        after
            .filter(|_| !probe && take_one(count))
            .unwrap_or(u64::MAX)
    };
    let cut = limit(shelf.trouble.cut_after, &shelf.trouble.cuts);
    let silent = limit(shelf.trouble.silent_after, &shelf.trouble.silences);
    let count = shelf.count.lock().unwrap().clone();
    Body::from_stream(stream::unfold(
        (shelf, count, from),
        move |(shelf, count, at)| async move {
            let done = at - from;
            if at > to {
                return None;
            }
            // The server sends what it has before it asks for more, so a cut comes after the bytes before it.
            tokio::task::yield_now().await;
            if done >= cut {
                return Some((Err(std::io::Error::other("cut")), (shelf, count, at)));
            }
            if done >= silent {
                std::future::pending::<()>().await;
            }
            let take = (to - at + 1)
                .min(CHUNK as u64)
                .min(cut - done)
                .min(silent - done);
            let before = count.sent.fetch_add(take, Ordering::SeqCst);
            if before >= count.hold_after {
                count.sent.fetch_sub(take, Ordering::SeqCst);
                std::future::pending::<()>().await;
            }
            let mut chunk = shelf.file[at as usize..(at + take) as usize].to_vec();
            if shelf.trouble.wrong_byte && (at..at + take).contains(&1_234_567) {
                chunk[(1_234_567 - at) as usize] ^= 1;
            }
            Some((Ok(Bytes::from(chunk)), (shelf, count, at + take)))
        },
    ))
}
