//! Every way to be refused, in the shape of the API that was called.

use expect_test::expect;

use super::*;

const HI: &str = r#""messages":[{"role":"user","content":"hi"}]"#;

#[tokio::test]
async fn what_the_daemon_refuses_keeps_its_apis_shape() {
    let mut told = String::new();
    for model in [
        "none:1",
        "busy:1",
        "nowhere:1",
        "closed:1",
        "refuses:1",
        "overflow:1",
        "far-overflow:1",
        "late:1",
        "stopping:1",
    ] {
        for path in ["/v1/chat/completions", "/api/chat"] {
            let heard = post(path, &format!("{{\"model\":\"{model}\",{HI}}}")).await;
            let retry = heard.header("retry-after");
            told += &format!("{model} {path} retry-after={retry} {}", heard.told());
        }
    }
    expect![[r#"
        none:1 /v1/chat/completions retry-after= 404
        {"error":{"code":"model_not_found","message":"the model 'none:1' does not exist or is not usable in this scope; usable now: tiny:1","param":"model","type":"not_found_error"}}
        none:1 /api/chat retry-after= 404
        {"error":"model \"none:1\" not found, try pulling it first; usable now: tiny:1"}
        busy:1 /v1/chat/completions retry-after=5 429
        {"error":{"code":"queue_full","message":"server busy, please try again: 1024 jobs wait; retry in 5 s","param":null,"type":"rate_limit_error"}}
        busy:1 /api/chat retry-after=5 503
        {"error":"server busy, please try again.  maximum pending requests exceeded"}
        nowhere:1 /v1/chat/completions retry-after= 503
        {"error":{"code":"no_node","message":"no node in scope 'circle' can answer with 'nowhere:1': it needs 40 GiB","param":"model","type":"api_error"}}
        nowhere:1 /api/chat retry-after= 503
        {"error":"no node in scope 'circle' can answer with 'nowhere:1': it needs 40 GiB"}
        closed:1 /v1/chat/completions retry-after= 403
        {"error":{"code":"forbidden","message":"this model is for its owner","param":null,"type":"permission_error"}}
        closed:1 /api/chat retry-after= 403
        {"error":"this model is for its owner"}
        refuses:1 /v1/chat/completions retry-after= 400
        {"error":{"code":"invalid_value","message":"no such token","param":"logit_bias","type":"invalid_request_error"}}
        refuses:1 /api/chat retry-after= 400
        {"error":"no such token"}
        overflow:1 /v1/chat/completions retry-after= 400
        {"error":{"code":"context_length_exceeded","message":"the prompt needs 9000 tokens, the context holds 2048","param":"messages","type":"invalid_request_error"}}
        overflow:1 /api/chat retry-after= 400
        {"error":"the prompt needs 9000 tokens, the context holds 2048"}
        far-overflow:1 /v1/chat/completions retry-after= 400
        {"error":{"code":"context_length_exceeded","message":"the prompt is longer than the context","param":"messages","type":"invalid_request_error"}}
        far-overflow:1 /api/chat retry-after= 400
        {"error":"the prompt is longer than the context"}
        late:1 /v1/chat/completions retry-after= 504
        {"error":{"code":"deadline_exceeded","message":"nothing came within the deadline of 5 ms: two nodes refused","param":null,"type":"api_error"}}
        late:1 /api/chat retry-after= 504
        {"error":"nothing came within the deadline of 5 ms: two nodes refused"}
        stopping:1 /v1/chat/completions retry-after=10 503
        {"error":{"code":"stopping","message":"the daemon is stopping: ask again when it is back","param":null,"type":"api_error"}}
        stopping:1 /api/chat retry-after=10 503
        {"error":"the daemon is stopping: ask again when it is back"}
    "#]].assert_eq(&told);
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_named_by_the_field_it_came_in() {
    let mut told = String::new();
    for (path, body) in [
        ("/v1/completions", r#"{"model":"overflow:1","prompt":"hi"}"#),
        (
            "/v1/completions",
            r#"{"model":"overflow:1","prompt":"hi","stream":true}"#,
        ),
        ("/api/generate", r#"{"model":"overflow:1","prompt":"hi"}"#),
    ] {
        told += &format!("{path} {}", post(path, body).await.told());
    }
    expect![[r#"
        /v1/completions 400
        {"error":{"code":"context_length_exceeded","message":"the prompt needs 9000 tokens, the context holds 2048","param":"prompt","type":"invalid_request_error"}}
        /v1/completions 400
        {"error":{"code":"context_length_exceeded","message":"the prompt needs 9000 tokens, the context holds 2048","param":"prompt","type":"invalid_request_error"}}
        /api/generate 400
        {"error":"the prompt needs 9000 tokens, the context holds 2048"}
    "#]].assert_eq(&told);
}

#[tokio::test]
async fn a_failure_before_the_end_has_a_status_if_nothing_was_streamed() {
    for (model, status) in [("fails:1", 500), ("lost:1", 500), ("stopped:1", 499)] {
        let body = format!("{{\"model\":\"{model}\",\"stream\":false,{HI}}}");
        for path in ["/v1/chat/completions", "/api/chat"] {
            let heard = post(path, &body).await;
            assert_eq!(heard.status.as_u16(), status, "{model} {path}");
            assert_eq!(
                heard.header("x-substrate-job"),
                "00000000000000000000000000000001"
            );
        }
    }
}

#[tokio::test]
async fn routes_that_are_not_there_say_so() {
    let mut told = String::new();
    for (method, path) in [
        ("GET", "/v1/responses/resp_1"),
        ("POST", "/v1/images/generations"),
        ("POST", "/api/push"),
        ("GET", "/v1/nothing"),
        ("GET", "/v1/chat/completions"),
        ("GET", "/api/nothing"),
        ("GET", "/api/chat"),
        ("POST", "/nothing"),
    ] {
        let double = Double::start();
        told += &format!(
            "{method} {path} {}",
            send(&mut double.router(), request(method, path, &[], "{}"))
                .await
                .told()
        );
    }
    expect![[r#"
        GET /v1/responses/resp_1 501
        {"error":{"code":"not_implemented","message":"/v1/responses/resp_1 is not there yet","param":null,"type":"api_error"}}
        POST /v1/images/generations 501
        {"error":{"code":"not_implemented","message":"/v1/images/generations is not there yet","param":null,"type":"api_error"}}
        POST /api/push 501
        {"error":"/api/push is not there yet"}
        GET /v1/nothing 404
        {"error":{"code":"unknown_url","message":"unknown request: GET /v1/nothing","param":null,"type":"not_found_error"}}
        GET /v1/chat/completions 405
        {"error":{"code":"method_not_allowed","message":"/v1/chat/completions does not answer GET","param":null,"type":"invalid_request_error"}}
        GET /api/nothing 404
        {"error":"unknown request: GET /api/nothing"}
        GET /api/chat 405
        {"error":"/api/chat does not answer GET"}
        POST /nothing 404
        {"error":"unknown request: POST /nothing"}
    "#]].assert_eq(&told);
}

#[tokio::test]
async fn malformed_json_names_its_place() {
    let mut told = String::new();
    for body in [
        "",
        "  ",
        "{",
        "{\"model\":\n  nope}",
        "\n []",
        "nope",
        "{\"model\":7}",
        "{\"model\":\"a\"} x",
        "\u{feff}{}",
        "{\"messages\":[{\"role\":\"user\",\"content\":{}}]}",
        "{\"temperature\":NaN}",
        "{\"temperature\":1e999}",
    ] {
        for path in ["/v1/chat/completions", "/api/chat"] {
            told += &format!("{body:?} {}", post(path, body).await.told());
        }
    }
    expect![[r#"
        "" 400
        {"error":{"code":"invalid_request","message":"the request body is empty; a JSON object is expected","param":null,"type":"invalid_request_error"}}
        "" 400
        {"error":"the request body is empty; a JSON object is expected"}
        "  " 400
        {"error":{"code":"invalid_request","message":"the request body is empty; a JSON object is expected","param":null,"type":"invalid_request_error"}}
        "  " 400
        {"error":"the request body is empty; a JSON object is expected"}
        "{" 400
        {"error":{"code":"invalid_request","message":"the request body is not JSON: EOF while parsing an object at line 1 column 1","param":null,"type":"invalid_request_error"}}
        "{" 400
        {"error":"the request body is not JSON: EOF while parsing an object at line 1 column 1"}
        "{\"model\":\n  nope}" 400
        {"error":{"code":"invalid_request","message":"the request body is not JSON: model: expected ident at line 2 column 4","param":"model","type":"invalid_request_error"}}
        "{\"model\":\n  nope}" 400
        {"error":"the request body is not JSON: model: expected ident at line 2 column 4"}
        "\n []" 400
        {"error":{"code":"invalid_request","message":"the request body must be a JSON object, at line 2 column 2","param":null,"type":"invalid_request_error"}}
        "\n []" 400
        {"error":"the request body must be a JSON object, at line 2 column 2"}
        "nope" 400
        {"error":{"code":"invalid_request","message":"the request body must be a JSON object, at line 1 column 1","param":null,"type":"invalid_request_error"}}
        "nope" 400
        {"error":"the request body must be a JSON object, at line 1 column 1"}
        "{\"model\":7}" 400
        {"error":{"code":"invalid_request","message":"model: invalid type: integer `7`, expected a string at line 1 column 10","param":"model","type":"invalid_request_error"}}
        "{\"model\":7}" 400
        {"error":"model: invalid type: integer `7`, expected a string at line 1 column 10"}
        "{\"model\":\"a\"} x" 400
        {"error":{"code":"invalid_request","message":"the request body is not JSON: trailing characters at line 1 column 15","param":null,"type":"invalid_request_error"}}
        "{\"model\":\"a\"} x" 400
        {"error":"the request body is not JSON: trailing characters at line 1 column 15"}
        "\u{feff}{}" 400
        {"error":{"code":"invalid_request","message":"the request body must be a JSON object, at line 1 column 1","param":null,"type":"invalid_request_error"}}
        "\u{feff}{}" 400
        {"error":"the request body must be a JSON object, at line 1 column 1"}
        "{\"messages\":[{\"role\":\"user\",\"content\":{}}]}" 400
        {"error":{"code":"invalid_request","message":"messages[0].content: invalid type: map, expected a string or a list of content parts at line 1 column 40","param":"messages[0].content","type":"invalid_request_error"}}
        "{\"messages\":[{\"role\":\"user\",\"content\":{}}]}" 400
        {"error":"messages[0].content: invalid type: map, expected a string at line 1 column 38"}
        "{\"temperature\":NaN}" 400
        {"error":{"code":"invalid_request","message":"the request body is not JSON: temperature: expected value at line 1 column 16","param":"temperature","type":"invalid_request_error"}}
        "{\"temperature\":NaN}" 400
        {"error":"the request body is not JSON: temperature: expected value at line 1 column 16"}
        "{\"temperature\":1e999}" 400
        {"error":{"code":"invalid_request","message":"the request body is not JSON: temperature: number out of range at line 1 column 20","param":"temperature","type":"invalid_request_error"}}
        "{\"temperature\":1e999}" 400
        {"error":"model is required"}
    "#]].assert_eq(&told);
}

#[tokio::test]
async fn ten_thousand_stops_are_refused_by_name() {
    let stops = vec!["\"s\""; 10_000].join(",");
    let heard = post(
        "/v1/chat/completions",
        &format!("{{\"model\":\"tiny:1\",\"stop\":[{stops}],{HI}}}"),
    )
    .await;
    expect![[r#"
        400
        {"error":{"code":"invalid_request","message":"stop: more than 64 elements at line 1 column 286","param":"stop","type":"invalid_request_error"}}
    "#]].assert_eq(&heard.told());
    let heard = post(
        "/api/chat",
        &format!("{{\"model\":\"tiny:1\",\"options\":{{\"stop\":[{stops}]}},{HI}}}"),
    )
    .await;
    expect![[r#"
        400
        {"error":"options.stop: more than 64 elements at line 1 column 297"}
    "#]]
    .assert_eq(&heard.told());
}

#[tokio::test]
async fn more_messages_than_an_input_holds_are_refused_while_read() {
    let messages = vec![r#"{"role":"user"}"#; 4_097].join(",");
    for path in ["/v1/chat/completions", "/api/chat"] {
        let heard = post(
            path,
            &format!("{{\"model\":\"tiny:1\",\"messages\":[{messages}]}}"),
        )
        .await;
        assert_eq!(heard.status, StatusCode::BAD_REQUEST);
        assert!(
            heard.text.contains("messages: more than 4096 elements"),
            "{}",
            heard.text
        );
    }
}

#[tokio::test]
async fn a_daemon_that_stopped_is_said_to() {
    let mut double = Double::start();
    let (door, calls) = crate::door::Door::new();
    drop(calls);
    double.state.door = door;
    let mut router = double.router();
    for path in ["/v1/models", "/api/tags", "/metrics", "/healthz"] {
        let heard = send(&mut router, request("GET", path, &[], "")).await;
        assert_eq!(heard.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
    }
}

#[tokio::test]
async fn an_error_does_not_repeat_a_long_text() {
    let body = format!("{{\"stream\":\"{}\"}}", "s".repeat(1 << 20));
    let heard = post("/api/chat", &body).await;
    assert!(heard.text.len() < 400, "{} bytes", heard.text.len());
    assert!(
        heard.text.contains("at line 1 column 1048588"),
        "{}",
        heard.text
    );
}
