//! The guard: which requests reach a handler, and as whom.
//!
//! Every request passes three questions in this order: is its `Host` ours (a stranger's web page
//! that rebinds its DNS name to this address is not), is its `Origin` one that may read answers, and
//! which key does it show. Handlers see only the resulting [`Caller`].
//!
//! Invariants: a listener that is not on loopback answers nobody without a key; no header widens a
//! caller's scope beyond what the owner set; the `null` and `file:` origins never pass.
//!
//! Absent by design: cookies, sessions in URLs, and trust in `X-Forwarded-*`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use substrate_record::Scope;
use tokio::sync::OwnedSemaphorePermit;

use super::Shared;
use super::error::{Refusal, Shape, clipped};
use super::keys::{KEY_PREFIX, Shown};
use super::names::{parse_scope, scope_name};
use crate::door::Client;

/// Narrows a request's scope, or chooses it up to the key's; answered with the signed scope.
pub(super) const SCOPE: HeaderName = HeaderName::from_static("x-substrate-scope");

/// `true` gives each job of the request a fresh worker that does nothing else and is destroyed afterwards.
pub(super) const ISOLATED: HeaderName = HeaderName::from_static("x-substrate-isolated");

/// Where Anthropic's clients show their key.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Who asks, as far as handlers need to know.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) client: Client,
    /// The scope of its jobs: its default, or what the request's header chose.
    pub(super) scope: Scope,
    /// Its jobs want workers of their own.
    pub(super) isolated: bool,
    pub(super) admin: bool,
    /// Nobody waits for the words: a line of a batch.
    pub(super) patient: bool,
    /// Held until the answer has left, so that a key's open requests can be counted.
    pub(super) seat: Option<Arc<OwnedSemaphorePermit>>,
}

impl Caller {
    /// The caller may change what this machine holds.
    pub(super) fn must_be_admin(&self, what: &str) -> Result<(), Refusal> {
        if self.admin {
            return Ok(());
        }
        let how = "send `Authorization: Bearer <key>` with a key that has the admin right, or use the command line";
        match self.client {
            Client::Key(_) => Err(Refusal::forbidden(format!(
                "this key may not {what}; {how}"
            ))),
            _ => Err(Refusal::unauthorised(format!(
                "without a key nobody may {what}; {how}"
            ))),
        }
    }

    /// The caller showed a key.
    pub(super) fn must_have_key(&self, what: &str) -> Result<(), Refusal> {
        match self.client {
            Client::Anonymous => Err(Refusal::unauthorised(format!(
                "without a key nobody may {what}; send `Authorization: Bearer <key>`, or use the command line"
            ))),
            _ => Ok(()),
        }
    }
}

/// The middleware around every route.
pub(super) async fn guard(State(app): State<Shared>, mut request: Request, next: Next) -> Response {
    let shape = Shape::of(request.uri().path());
    let passed =
        check_host(&app, &request).and_then(|host| check_origin(&app, &host, request.headers()));
    let origin = match passed {
        Ok(origin) => origin,
        Err(refusal) => return refusal.render(shape),
    };
    let mut response = if is_preflight(&request) {
        preflight(request.headers())
    } else {
        match identify(&app, &request) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                next.run(request).await
            }
            Err(refusal) => refusal.render(shape),
        }
    };
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static(EXPOSED),
        );
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

/// Headers of ours that a web page may read.
const EXPOSED: &str = "x-substrate-job, x-substrate-node, x-substrate-route, x-substrate-scope, x-substrate-receipt, \
     server-timing, retry-after";

/// The name by which the caller reached us, if it is one of ours.
fn check_host(app: &Shared, request: &Request) -> Result<String, Refusal> {
    let header = request.headers().get(header::HOST);
    let named = header.and_then(|host| host.to_str().ok());
    let authority = request
        .uri()
        .authority()
        .map(|authority| authority.as_str());
    let Some(host) = named.or(authority) else {
        return Err(Refusal::unreadable("the Host header is missing"));
    };
    if app.policy.is_ours(host) {
        return Ok(host.to_owned());
    }
    let host = clipped(host);
    Err(Refusal::forbidden(format!(
        "the Host '{host}' is not a name of this listener; if it is, add it to `names` under [api] in config.toml and restart the daemon"
    )))
}

/// The origin that may read the answer; pages that this listener itself gave out may.
fn check_origin(
    app: &Shared,
    host: &str,
    headers: &HeaderMap,
) -> Result<Option<HeaderValue>, Refusal> {
    let Some(value) = headers.get(header::ORIGIN) else {
        return Ok(None);
    };
    let origin = value.to_str().unwrap_or_default();
    let own = origin
        .strip_prefix("http://")
        .is_some_and(|page| page.eq_ignore_ascii_case(host));
    if own || app.policy.may_read(origin) {
        return Ok(Some(value.clone()));
    }
    let origin = clipped(&String::from_utf8_lossy(value.as_bytes()));
    Err(Refusal::forbidden(format!(
        "pages of the origin '{origin}' may not use this listener"
    )))
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Says yes to an origin that has passed: method and headers are not what is guarded.
fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, HEAD, POST, DELETE"),
    );
    let wanted = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let allowed = wanted.unwrap_or(HeaderValue::from_static(
        "authorization, content-type, x-api-key, anthropic-version, x-substrate-scope, x-substrate-isolated",
    ));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    headers.insert(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static("600"),
    );
    response
}

fn identify(app: &Shared, request: &Request) -> Result<Caller, Refusal> {
    let mut caller = admit(app, request)?;
    if let Some(asked) = request.headers().get(SCOPE) {
        let scope = asked.to_str().ok().and_then(parse_scope).ok_or_else(|| {
            Refusal::invalid(
                SCOPE.as_str(),
                "x-substrate-scope must be mine, circle or commons",
            )
        })?;
        if scope > caller.scope {
            let (asked, widest) = (scope_name(scope), scope_name(caller.scope));
            return Err(Refusal::forbidden(format!(
                "scope '{asked}' is wider than this caller's '{widest}'"
            )));
        }
        caller.scope = scope;
    }
    if let Some(asked) = request.headers().get(ISOLATED) {
        caller.isolated = match asked.as_bytes() {
            b"true" => true,
            b"false" => false,
            _ => {
                return Err(Refusal::invalid(
                    ISOLATED.as_str(),
                    "x-substrate-isolated must be true or false",
                ));
            }
        };
    }
    Ok(caller)
}

fn admit(app: &Shared, request: &Request) -> Result<Caller, Refusal> {
    let secret = secret(request.headers());
    let shown = secret.map_or(Shown::Unknown, |secret| {
        app.keys.show(secret, Instant::now())
    });
    match shown {
        Shown::Known {
            name,
            scope,
            admin,
            seat,
        } => Ok(Caller {
            client: Client::Key(name),
            scope,
            admin,
            isolated: false,
            patient: false,
            seat: seat.map(Arc::new),
        }),
        Shown::Spent {
            why,
            retry_after_ms,
        } => Err(Refusal::too_often(why, retry_after_ms)),
        // A mistyped key must not quietly become nobody; another program's placeholder may.
        Shown::Unknown if secret.is_some_and(|secret| secret.starts_with(KEY_PREFIX)) => {
            Err(Refusal::unauthorised("unknown API key"))
        }
        Shown::Unknown if app.policy.demands_key() && !is_open(request.uri().path()) => {
            Err(Refusal::unauthorised(
                "this listener demands an API key: send `Authorization: Bearer <key>`",
            ))
        }
        Shown::Unknown => Ok(Caller {
            client: Client::Anonymous,
            scope: app.policy.keyless,
            admin: false,
            isolated: false,
            patient: false,
            seat: None,
        }),
    }
}

/// Paths that say only that something listens here.
fn is_open(path: &str) -> bool {
    matches!(path, "/" | "/healthz")
}

/// The key shown: as a bearer, or as Anthropic's clients show theirs. Who shows two means the one that is this program's.
fn secret(headers: &HeaderMap) -> Option<&str> {
    let named = headers.get(API_KEY).and_then(|key| key.to_str().ok());
    let shown = [bearer(headers), named.map(str::trim)];
    let own = |secret: &&str| secret.starts_with(KEY_PREFIX);
    let mut secrets = shown.into_iter().flatten();
    secrets.clone().find(own).or_else(|| secrets.next())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
}
