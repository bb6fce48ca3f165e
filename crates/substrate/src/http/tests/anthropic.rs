//! Anthropic's answers, event for event.

use expect_test::{Expect, expect};
use serde_json::Value;

use super::double::{Double, PLAIN_KEY};
use super::*;

const MESSAGES: &str = "/v1/messages";

async fn check(body: &str, expect: Expect) {
    let double = Double::thinking();
    let sent = request("POST", MESSAGES, &[], body.to_owned());
    expect.assert_eq(&send(&mut double.router(), sent).await.told());
}

fn body(model: &str, more: &str) -> String {
    format!(
        r#"{{"model":"{model}","max_tokens":99,"messages":[{{"role":"user","content":"hi"}}]{more}}}"#
    )
}

const TOOLS: &str = r#","tools":[{"name":"f","input_schema":{"type":"object"}}]"#;

#[tokio::test]
async fn a_whole_answer_is_a_message() {
    check(&body("tiny", ""), expect![[r#"
        200
        {"id":"msg_00000000000000000000000000000001","type":"message","role":"assistant","model":"tiny:1","content":[{"type":"text","text":"Hello world!"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":5,"output_tokens":3}}
    "#]]).await;
    check(
        &body(
            "thinks:1",
            r#","thinking":{"type":"enabled","budget_tokens":1024}"#,
        ),
        expect![[r#"
            200
            {"id":"msg_00000000000000000000000000000001","type":"message","role":"assistant","model":"thinks:1","content":[{"type":"thinking","thinking":"Hm, so.","signature":""},{"type":"text","text":"Yes."}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":5,"output_tokens":6}}
        "#]],
    )
    .await;
    check(&body("calls:1", TOOLS), expect![[r#"
        200
        {"id":"msg_00000000000000000000000000000001","type":"message","role":"assistant","model":"calls:1","content":[{"type":"text","text":"I look. "},{"type":"tool_use","id":"toolu_00000000000000000000000000000001_0","name":"f","input":{"x":1}}],"stop_reason":"tool_use","stop_sequence":null,"usage":{"input_tokens":5,"output_tokens":4}}
    "#]]).await;
}

#[tokio::test]
async fn a_stream_is_start_blocks_delta_stop() {
    check(&body("tiny:1", r#","stream":true"#), expect![[r#"
        200
        : started {"attempt":1,"node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct"}

        event: message_start
        data: {"message":{"content":[],"id":"msg_00000000000000000000000000000001","model":"tiny:1","role":"assistant","stop_reason":null,"stop_sequence":null,"type":"message","usage":{"input_tokens":5,"output_tokens":0}},"type":"message_start"}

        event: ping
        data: {"type":"ping"}

        event: content_block_start
        data: {"content_block":{"text":"","type":"text"},"index":0,"type":"content_block_start"}

        event: content_block_delta
        data: {"delta":{"text":"Hello","type":"text_delta"},"index":0,"type":"content_block_delta"}

        event: content_block_delta
        data: {"delta":{"text":" world","type":"text_delta"},"index":0,"type":"content_block_delta"}

        event: content_block_delta
        data: {"delta":{"text":"!","type":"text_delta"},"index":0,"type":"content_block_delta"}

        event: content_block_stop
        data: {"index":0,"type":"content_block_stop"}

        event: message_delta
        data: {"delta":{"stop_reason":"end_turn","stop_sequence":null},"type":"message_delta","usage":{"input_tokens":5,"output_tokens":3}}

        : substrate {"job":"00000000000000000000000000000001","node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct","scope":"circle","wall":"process","isolated":false,"attempts":1,"receipt":"0303030303030303030303030303030303030303030303030303030303030303","model_sha256":"0404040404040404040404040404040404040404040404040404040404040404","timings_ms":{"queue":1,"route":2,"load":0,"prefill":30,"decode":400,"total":433}}

        event: message_stop
        data: {"type":"message_stop"}


    "#]]).await;
}

#[tokio::test]
async fn a_stream_numbers_thoughts_text_and_calls() {
    let body = body("ponders:1", &format!(r#","stream":true{TOOLS}"#));
    check(&body, expect![[r#"
        200
        : started {"attempt":1,"node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct"}

        event: message_start
        data: {"message":{"content":[],"id":"msg_00000000000000000000000000000001","model":"ponders:1","role":"assistant","stop_reason":null,"stop_sequence":null,"type":"message","usage":{"input_tokens":5,"output_tokens":0}},"type":"message_start"}

        event: ping
        data: {"type":"ping"}

        event: content_block_start
        data: {"content_block":{"signature":"","thinking":"","type":"thinking"},"index":0,"type":"content_block_start"}

        event: content_block_delta
        data: {"delta":{"thinking":"Hm","type":"thinking_delta"},"index":0,"type":"content_block_delta"}

        event: content_block_delta
        data: {"delta":{"thinking":".","type":"thinking_delta"},"index":0,"type":"content_block_delta"}

        event: content_block_delta
        data: {"delta":{"signature":"","type":"signature_delta"},"index":0,"type":"content_block_delta"}

        event: content_block_stop
        data: {"index":0,"type":"content_block_stop"}

        event: content_block_start
        data: {"content_block":{"id":"toolu_00000000000000000000000000000001_0","input":{},"name":"f","type":"tool_use"},"index":1,"type":"content_block_start"}

        event: content_block_delta
        data: {"delta":{"partial_json":"{\"x\":1}","type":"input_json_delta"},"index":1,"type":"content_block_delta"}

        event: content_block_stop
        data: {"index":1,"type":"content_block_stop"}

        event: message_delta
        data: {"delta":{"stop_reason":"tool_use","stop_sequence":null},"type":"message_delta","usage":{"input_tokens":5,"output_tokens":4}}

        : substrate {"job":"00000000000000000000000000000001","node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct","scope":"circle","wall":"process","isolated":false,"attempts":1,"receipt":"0303030303030303030303030303030303030303030303030303030303030303","model_sha256":"0404040404040404040404040404040404040404040404040404040404040404","timings_ms":{"queue":1,"route":2,"load":0,"prefill":30,"decode":400,"total":433}}

        event: message_stop
        data: {"type":"message_stop"}


    "#]]).await;
}

#[tokio::test]
async fn an_answer_cut_short_says_so() {
    let cut = r#"{"model":"tiny:1","max_tokens":2,"messages":[{"role":"user","content":"hi"}]}"#;
    let heard = post(MESSAGES, cut).await;
    let told: Value = serde_json::from_str(&heard.text).unwrap();
    assert_eq!(told["stop_reason"], "max_tokens");
    assert_eq!(told["usage"]["output_tokens"], 2);
    assert_eq!(heard.header("x-substrate-route"), "direct");
}

#[tokio::test]
async fn refusals_have_anthropics_shape_and_numbers() {
    let mut told = String::new();
    for model in [
        "none:1",
        "busy:1",
        "nowhere:1",
        "overflow:1",
        "closed:1",
        "fails:1",
        "late:1",
    ] {
        let heard = post(MESSAGES, &body(model, "")).await;
        told += &format!("{model} {}", heard.told());
    }
    told += &get(MESSAGES).await.told();
    told += &post("/v1/messages/count_tokens", "{}").await.told();
    told += &post(MESSAGES, "{").await.told();
    expect![[r#"
        none:1 404
        {"error":{"message":"the model 'none:1' does not exist or is not usable in this scope; usable now: tiny:1","type":"not_found_error"},"type":"error"}
        busy:1 529
        {"error":{"message":"server busy, please try again: 1024 jobs wait; retry in 5 s","type":"overloaded_error"},"type":"error"}
        nowhere:1 503
        {"error":{"message":"no node in scope 'circle' can answer with 'nowhere:1': it needs 40 GiB","type":"api_error"},"type":"error"}
        overflow:1 400
        {"error":{"message":"the prompt needs 9000 tokens, the context holds 2048","type":"invalid_request_error"},"type":"error"}
        closed:1 403
        {"error":{"message":"this model is for its owner","type":"permission_error"},"type":"error"}
        fails:1 500
        {"error":{"message":"internal error: the worker broke","type":"api_error"},"type":"error"}
        late:1 504
        {"error":{"message":"nothing came within the deadline of 5 ms: two nodes refused","type":"timeout_error"},"type":"error"}
        405
        {"error":{"message":"/v1/messages does not answer GET","type":"invalid_request_error"},"type":"error"}
        501
        {"error":{"message":"/v1/messages/count_tokens is not there yet","type":"api_error"},"type":"error"}
        400
        {"error":{"message":"the request body is not JSON: EOF while parsing an object at line 1 column 1","type":"invalid_request_error"},"type":"error"}
    "#]].assert_eq(&told);
}

#[tokio::test]
async fn a_failure_inside_a_stream_is_an_error_event_and_the_end() {
    for model in ["fails:1", "lost:1", "stopped:1"] {
        let heard = post(MESSAGES, &body(model, r#","stream":true"#)).await;
        assert_eq!(heard.status, StatusCode::OK);
        let last = heard.text.trim_end().rsplit("\n\n").next().unwrap();
        assert!(
            last.starts_with("event: error\ndata: {\"error\":"),
            "{model}: {last}"
        );
        assert!(!heard.text.contains("message_stop"), "{model}");
    }
}

#[tokio::test]
async fn a_key_is_shown_as_anthropics_clients_show_theirs() {
    let double = Double::start();
    let mut router = double.router();
    let asked = |headers: &[(&str, &str)]| {
        let streamed = body("tiny:1", r#","stream":true"#);
        request("POST", MESSAGES, headers, streamed)
    };
    for headers in [
        &[("x-api-key", PLAIN_KEY)][..],
        &[("x-api-key", PLAIN_KEY), ("authorization", "Bearer none")],
    ] {
        let heard = send(&mut router, asked(headers)).await;
        assert_eq!(heard.header("x-substrate-scope"), "mine", "{}", heard.text);
    }
    // The key may ask twice a minute.
    let heard = send(&mut router, asked(&[("x-api-key", PLAIN_KEY)])).await;
    assert_eq!(heard.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(
        heard.text.contains(r#""type":"rate_limit_error""#),
        "{}",
        heard.text
    );
    let heard = send(&mut router, asked(&[("x-api-key", "sk-substrate-wrong")])).await;
    assert_eq!(heard.status, StatusCode::UNAUTHORIZED);
    assert!(
        heard.text.contains(r#""type":"authentication_error""#),
        "{}",
        heard.text
    );
}
