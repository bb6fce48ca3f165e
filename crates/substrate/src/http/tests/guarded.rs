//! Who gets past the guard, and how far.

use std::sync::atomic::Ordering;

use expect_test::expect;

use super::double::{ADMIN_KEY, PLAIN_KEY};
use super::*;

const ASK: &str =
    r#"{"model":"tiny:1","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}"#;

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

#[tokio::test]
async fn strange_hosts_and_origins_are_refused_in_both_shapes() {
    let double = Double::start();
    let mut router = double.router();
    let mut told = String::new();
    for (path, headers) in [
        ("/v1/models", [("host", "evil.example")]),
        ("/api/tags", [("host", "evil.example")]),
        ("/v1/models", [("origin", "null")]),
        ("/api/tags", [("origin", "file://")]),
        ("/api/tags", [("origin", "http://evil.example")]),
    ] {
        told += &send(&mut router, request("GET", path, &headers, ""))
            .await
            .told();
    }
    expect![[r#"
        403
        {"error":{"code":"forbidden","message":"the Host 'evil.example' is not a name of this listener; if it is, add it to `names` under [api] in config.toml and restart the daemon","param":null,"type":"permission_error"}}
        403
        {"error":"the Host 'evil.example' is not a name of this listener; if it is, add it to `names` under [api] in config.toml and restart the daemon"}
        403
        {"error":{"code":"forbidden","message":"pages of the origin 'null' may not use this listener","param":null,"type":"permission_error"}}
        403
        {"error":"pages of the origin 'file://' may not use this listener"}
        403
        {"error":"pages of the origin 'http://evil.example' may not use this listener"}
    "#]].assert_eq(&told);
}

#[tokio::test]
async fn a_local_page_may_read_and_is_told_so_before() {
    let double = Double::start();
    let mut router = double.router();
    let page = ("origin", "http://localhost:3000");
    let wanted = [
        page,
        ("access-control-request-method", "POST"),
        (
            "access-control-request-headers",
            "content-type, x-stainless-os",
        ),
    ];
    let heard = send(
        &mut router,
        request("OPTIONS", "/v1/chat/completions", &wanted, ""),
    )
    .await;
    assert_eq!(heard.status, StatusCode::NO_CONTENT);
    assert_eq!(
        heard.header("access-control-allow-origin"),
        "http://localhost:3000"
    );
    assert_eq!(
        heard.header("access-control-allow-headers"),
        "content-type, x-stainless-os"
    );
    let heard = send(
        &mut router,
        request("POST", "/v1/chat/completions", &[page], ASK),
    )
    .await;
    assert_eq!(heard.status, StatusCode::OK);
    assert_eq!(
        heard.header("access-control-allow-origin"),
        "http://localhost:3000"
    );
    assert_eq!(heard.header("vary"), "origin");
    let evil = [
        ("origin", "http://evil.example"),
        ("access-control-request-method", "POST"),
    ];
    let heard = send(
        &mut router,
        request("OPTIONS", "/v1/chat/completions", &evil, ""),
    )
    .await;
    assert_eq!(
        (heard.status, heard.header("access-control-allow-origin")),
        (StatusCode::FORBIDDEN, "")
    );
}

#[tokio::test]
async fn off_loopback_nobody_is_answered_without_a_key() {
    let double = Double::bound("10.0.0.7:11535");
    let mut router = double.router();
    let host = ("host", "10.0.0.7:11535");
    let mut told = String::new();
    for path in ["/v1/models", "/api/tags", "/metrics", "/", "/healthz"] {
        told += &format!(
            "{path} {}",
            send(&mut router, request("GET", path, &[host], ""))
                .await
                .told()
        );
    }
    expect![[r#"
        /v1/models 401
        {"error":{"code":"invalid_api_key","message":"this listener demands an API key: send `Authorization: Bearer <key>`","param":null,"type":"authentication_error"}}
        /api/tags 401
        {"error":"this listener demands an API key: send `Authorization: Bearer <key>`"}
        /metrics 401
        {"error":"this listener demands an API key: send `Authorization: Bearer <key>`"}
        / 200
        Ollama is running
        /healthz 200
        {"status":"ok"}
    "#]].assert_eq(&told);
    for (key, status) in [
        ("ollama", 401),
        ("sk-substrate-wrong", 401),
        (ADMIN_KEY, 200),
    ] {
        let headers = [host, ("authorization", &*bearer(key))];
        assert_eq!(
            send(&mut router, request("GET", "/v1/models", &headers, ""))
                .await
                .status
                .as_u16(),
            status,
            "{key}"
        );
    }
}

#[tokio::test]
async fn a_placeholder_key_is_nobody_and_a_mistyped_key_is_an_error() {
    let double = Double::start();
    let mut router = double.router();
    for (key, status) in [
        ("ollama", 200),
        ("sk-none", 200),
        ("sk-substrate-wrong", 401),
        (ADMIN_KEY, 200),
    ] {
        let headers = [("authorization", &*bearer(key))];
        assert_eq!(
            send(
                &mut router,
                request("POST", "/v1/chat/completions", &headers, ASK)
            )
            .await
            .status
            .as_u16(),
            status,
            "{key}"
        );
    }
}

#[tokio::test]
async fn a_job_gets_a_worker_of_its_own_if_the_header_says_so() {
    let double = Double::start();
    let mut router = double.router();
    let mut told = String::new();
    for wish in ["true", "false", "yes"] {
        let headers = [("x-substrate-isolated", wish)];
        let asked = request("POST", "/v1/chat/completions", &headers, ASK);
        let heard = send(&mut router, asked).await;
        told += &format!("{wish}: {}\n", heard.status.as_u16());
    }
    expect![[r#"
        true: 200
        false: 200
        yes: 400
    "#]]
    .assert_eq(&told);
    assert_eq!(*double.seen.isolated.lock().unwrap(), [true, false]);
}

#[tokio::test]
async fn the_scope_header_narrows_and_never_widens() {
    let double = Double::start();
    let mut router = double.router();
    let (admin, plain) = (bearer(ADMIN_KEY), bearer(PLAIN_KEY));
    let mut told = String::new();
    for (key, scope) in [
        ("", ""),
        ("", "mine"),
        ("", "commons"),
        ("", "world"),
        (&*plain, "circle"),
        (&*admin, ""),
        (&*admin, "circle"),
    ] {
        let mut headers = vec![];
        if !key.is_empty() {
            headers.push(("authorization", key));
        }
        if !scope.is_empty() {
            headers.push(("x-substrate-scope", scope));
        }
        // A stream tells the scope the job was taken with.
        let body = ASK.replace("\"max_tokens\"", "\"stream\":true,\"max_tokens\"");
        let heard = send(
            &mut router,
            request("POST", "/v1/chat/completions", &headers, body),
        )
        .await;
        let who = key.trim_start_matches("Bearer sk-substrate-");
        told += &format!(
            "{who:?} asks {scope:?}: {} {}\n",
            heard.status.as_u16(),
            heard.header("x-substrate-scope")
        );
    }
    expect![[r#"
        "" asks "": 200 circle
        "" asks "mine": 200 mine
        "" asks "commons": 403 
        "" asks "world": 400 
        "plain" asks "circle": 403 
        "admin" asks "": 200 commons
        "admin" asks "circle": 200 circle
    "#]]
    .assert_eq(&told);
}

#[tokio::test]
async fn a_key_may_not_ask_more_often_than_it_may() {
    let double = Double::start();
    let mut router = double.router();
    let plain = bearer(PLAIN_KEY);
    let headers = [("authorization", &*plain)];
    for _ in 0..2 {
        assert_eq!(
            send(&mut router, request("GET", "/v1/models", &headers, ""))
                .await
                .status,
            StatusCode::OK
        );
    }
    let heard = send(&mut router, request("GET", "/v1/models", &headers, "")).await;
    assert_eq!(
        (heard.status, heard.header("retry-after")),
        (StatusCode::TOO_MANY_REQUESTS, "30")
    );
}

#[tokio::test]
async fn changing_models_takes_rights_and_json() {
    let double = Double::start();
    let mut router = double.router();
    let (admin, plain) = (bearer(ADMIN_KEY), bearer(PLAIN_KEY));
    let json = ("content-type", "application/json");
    let mut told = String::new();
    for (method, path, body, headers) in [
        ("DELETE", "/api/delete", r#"{"model":"tiny:1"}"#, vec![json]),
        (
            "POST",
            "/api/copy",
            r#"{"source":"tiny:1","destination":"b:1"}"#,
            vec![json],
        ),
        ("POST", "/api/pull", r#"{"model":"tiny:1"}"#, vec![json]),
        (
            "DELETE",
            "/api/delete",
            r#"{"model":"tiny:1"}"#,
            vec![json, ("authorization", &*plain)],
        ),
        (
            "POST",
            "/api/pull",
            r#"{"model":"new:1"}"#,
            vec![json, ("authorization", &*plain)],
        ),
        (
            "DELETE",
            "/api/delete",
            r#"{"model":"tiny:1"}"#,
            vec![("authorization", &*admin)],
        ),
        (
            "DELETE",
            "/api/delete",
            r#"{"model":"tiny:1"}"#,
            vec![json, ("authorization", &*admin)],
        ),
        (
            "DELETE",
            "/api/delete",
            r#"{"name":"none:1"}"#,
            vec![json, ("authorization", &*admin)],
        ),
        (
            "POST",
            "/api/copy",
            r#"{"source":"tiny:1","destination":"b:1"}"#,
            vec![json, ("authorization", &*admin)],
        ),
        (
            "POST",
            "/api/copy",
            r#"{"source":"tiny:1"}"#,
            vec![json, ("authorization", &*admin)],
        ),
    ] {
        told += &format!(
            "{method} {path} {}",
            send(&mut router, request(method, path, &headers, body))
                .await
                .told()
        );
    }
    expect![[r#"
        DELETE /api/delete 401
        {"error":"without a key nobody may delete models; send `Authorization: Bearer <key>` with a key that has the admin right, or use the command line"}
        POST /api/copy 401
        {"error":"without a key nobody may copy models; send `Authorization: Bearer <key>` with a key that has the admin right, or use the command line"}
        POST /api/pull 401
        {"error":"without a key nobody may pull models; send `Authorization: Bearer <key>`, or use the command line"}
        DELETE /api/delete 403
        {"error":"this key may not delete models; send `Authorization: Bearer <key>` with a key that has the admin right, or use the command line"}
        POST /api/pull 403
        {"error":"a new entry needs a key with the admin right"}
        DELETE /api/delete 415
        {"error":"this request must carry content-type: application/json"}
        DELETE /api/delete 200

        DELETE /api/delete 404
        {"error":"model \"none:1\" not found, try pulling it first"}
        POST /api/copy 200

        POST /api/copy 400
        {"error":"destination is required"}
    "#]].assert_eq(&told);
    assert_eq!(double.seen.changed.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn metrics_have_bounded_labels() {
    let double = Double::start();
    let mut router = double.router();
    for path in [
        "/api/tags",
        "/v1/models/none",
        "/secret-path",
        "/other-path",
    ] {
        send(&mut router, request("GET", path, &[], "")).await;
    }
    expect![[r##"
        # HELP substrate_num_requests_running Jobs running.
        # TYPE substrate_num_requests_running gauge
        substrate_num_requests_running 1
        # HELP substrate_num_requests_waiting Jobs waiting.
        # TYPE substrate_num_requests_waiting gauge
        substrate_num_requests_waiting 3
        # HELP substrate_peers Connected peers.
        # TYPE substrate_peers gauge
        substrate_peers 2
        # HELP substrate_resident_bytes Resident bytes of the daemon.
        # TYPE substrate_resident_bytes gauge
        substrate_resident_bytes 1000
        # HELP substrate_http_requests_total Requests answered.
        # TYPE substrate_http_requests_total counter
        substrate_http_requests_total{route="/api/tags",status="200"} 1
        substrate_http_requests_total{route="/v1/models/{*id}",status="404"} 1
        substrate_http_requests_total{route="other",status="404"} 2
    "##]]
    .assert_eq(
        &send(&mut router, request("GET", "/metrics", &[], ""))
            .await
            .text,
    );
}

#[tokio::test]
async fn a_page_of_this_listener_may_use_it() {
    let double = Double::bound("10.0.0.7:11535");
    let mut router = double.router();
    let key = bearer(ADMIN_KEY);
    for (origin, status) in [
        ("http://10.0.0.7:11535", 200),
        ("http://10.0.0.7:80", 403),
        ("http://10.0.0.8:11535", 403),
    ] {
        let headers = [
            ("host", "10.0.0.7:11535"),
            ("origin", origin),
            ("authorization", &*key),
        ];
        let heard = send(&mut router, request("GET", "/v1/models", &headers, "")).await;
        assert_eq!(heard.status.as_u16(), status, "{origin}");
    }
}
