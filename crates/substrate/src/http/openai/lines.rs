//! Lines of batches, answered by the handlers that answer everybody's requests: called, not asked over HTTP.
//!
//! Invariants: a line's scope is never wider than its owner's is now, nor than the batch's was; a scope beyond this machine
//! means the circles of the network it was chosen in, and of no other; a key's limits hold for its lines too.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, Method};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Deserialize;
use serde_json::value::RawValue;
use substrate_record::Scope;

use super::{chat, completions, embeddings, responses};
use crate::batches::{Asked, Asker, Endpoint, LINE_TRIES, Reply, Told, UNKNOWN_TRIES};
use crate::door::{Call, Client, Door};
use crate::http::actions::ModelActions;
use crate::http::guard::Caller;
use crate::http::health::Counters;
use crate::http::job::JOB;
use crate::http::keys::{ApiKeys, Shown};
use crate::http::names::{parse_scope, scope_name};
use crate::http::policy::ListenerPolicy;
use crate::http::{App, Shared};

/// Largest answer to a line: the largest text kept for a client that does not stream, and what JSON makes of its letters.
const MAX_REPLY: usize = 48 << 20;

/// When to ask a daemon again that stops, if it does not say.
const STOPPING: Duration = Duration::from_secs(10);

/// Answers lines by the handlers of this listener.
pub fn lines(
    door: Door,
    keys: ApiKeys,
    keyless: Scope,
    models: Arc<dyn ModelActions>,
) -> Arc<dyn Asker> {
    // What lets callers in is not asked for: a line came in with its batch.
    let policy = ListenerPolicy {
        bound: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        keyless,
        names: Arc::from([]),
        origins: Arc::from([]),
    };
    Arc::new(Lines {
        app: Arc::new(App {
            door,
            keys,
            policy,
            models,
            counters: Counters::default(),
        }),
    })
}

struct Lines {
    app: Shared,
}

impl Asker for Lines {
    fn ask(&self, asked: Asked) -> BoxFuture<'_, Told> {
        async move {
            let caller = match self.caller(&asked).await {
                Ok(caller) => caller,
                Err(told) => return told,
            };
            let response = self.answer(caller, asked.endpoint, asked.body).await;
            told(response).await
        }
        .boxed()
    }
}

impl Lines {
    /// As whom a line is asked now.
    async fn caller(&self, asked: &Asked) -> Result<Caller, Told> {
        let never = |why: String| Told::Never { why };
        let wanted = parse_scope(&asked.scope).unwrap_or(Scope::Mine);
        let (widest, seat) = match &asked.client {
            Client::Owner => (Scope::Commons, None),
            Client::Anonymous => (self.app.policy.keyless, None),
            Client::Key(name) => match self.app.keys.admit(name, Instant::now()) {
                None | Some(Shown::Unknown) => {
                    return Err(never(format!("the API key '{name}' was removed")));
                }
                Some(Shown::Spent { retry_after_ms, .. }) => {
                    let after = Duration::from_millis(retry_after_ms);
                    return Err(Told::NotNow { after });
                }
                Some(Shown::Known { scope, seat, .. }) => (scope, seat),
            },
        };
        if wanted > widest {
            let (wanted, widest) = (scope_name(wanted), scope_name(widest));
            let why =
                format!("the batch has scope '{wanted}', and its owner may only '{widest}' now");
            return Err(never(why));
        }
        if wanted > Scope::Mine {
            self.same_network(&asked.network).await?;
        }
        Ok(Caller {
            client: asked.client.clone(),
            scope: wanted,
            admin: false,
            isolated: false,
            patient: true,
            seat: seat.map(Arc::new),
        })
    }

    async fn same_network(&self, network: &str) -> Result<(), Told> {
        let status = self.app.door.call(|reply| Call::Status { reply }).await;
        let Ok(status) = status else {
            return Err(Told::NotNow { after: STOPPING });
        };
        if status.network.1.to_string() == network {
            return Ok(());
        }
        let why = "this machine left the network whose circles were to answer this batch";
        Err(Told::Never { why: why.into() })
    }

    async fn answer(&self, caller: Caller, endpoint: Endpoint, body: String) -> Response {
        let request = Request::builder()
            .method(Method::POST)
            .uri(endpoint.path())
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .expect("a path of ours is a URI");
        let (app, caller) = (State(self.app.clone()), Extension(caller));
        match endpoint {
            Endpoint::Chat => chat::chat(app, caller, request).await.into_response(),
            Endpoint::Completions => {
                let answer = completions::completions(app, caller, request).await;
                answer.into_response()
            }
            Endpoint::Embeddings => {
                let answer = embeddings::embeddings(app, caller, request).await;
                answer.into_response()
            }
            Endpoint::Responses => {
                let answer = responses::responses(app, caller, request).await;
                answer.into_response()
            }
        }
    }
}

/// What is looked for in an error.
#[derive(Deserialize)]
struct Failed {
    error: Coded,
}

#[derive(Deserialize)]
struct Coded {
    code: Option<String>,
}

/// What an answer means for its line.
async fn told(response: Response) -> Told {
    let (head, body) = response.into_parts();
    let text = |name: HeaderName| {
        let value = head.headers.get(name)?;
        Some(value.to_str().ok()?.to_owned())
    };
    let status = head.status.as_u16();
    let body = match to_bytes(body, MAX_REPLY).await {
        Ok(bytes) => serde_json::from_slice::<Box<RawValue>>(&bytes)
            .unwrap_or_else(|_| quoted("the answer is not JSON")),
        Err(_) => quoted("the answer is too large for a line of a batch"),
    };
    let reply = Reply {
        status,
        request_id: text(JOB),
        body,
    };
    let after = text(RETRY_AFTER)
        .and_then(|seconds| seconds.parse().ok())
        .map(Duration::from_secs);
    let failed: Option<Failed> = serde_json::from_str(reply.body.get()).ok();
    let code = failed.and_then(|failed| failed.error.code);
    if code.as_deref() == Some("stopping") {
        let after = after.unwrap_or(STOPPING);
        return Told::NotNow { after };
    }
    match tries(status, code.as_deref()) {
        Some(tries) => Told::MayPass {
            reply,
            after,
            tries,
        },
        None => Told::Answer(reply),
    }
}

/// How often a failure is asked about; `None` if another try would be answered as this one was.
fn tries(status: u16, code: Option<&str>) -> Option<u32> {
    match (status, code) {
        // The nodes that hold the model may be back in a moment; of this machine's own start it cannot be told apart.
        (404, Some("model_not_found")) => Some(UNKNOWN_TRIES),
        // Too many, lost, nobody there, nothing in time.
        (408 | 429 | 500 | 502..=504, _) => Some(LINE_TRIES),
        _ => None,
    }
}

fn quoted(why: &str) -> Box<RawValue> {
    serde_json::value::to_raw_value(why).expect("a text is JSON")
}
