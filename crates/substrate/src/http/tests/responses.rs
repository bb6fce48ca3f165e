//! The responses API's answers, event for event.

use expect_test::{Expect, expect};
use serde_json::Value;

use super::double::Double;
use super::*;

const RESPONSES: &str = "/v1/responses";

async fn ask(body: &str) -> Heard {
    let double = Double::thinking();
    let sent = request("POST", RESPONSES, &[], body.to_owned());
    send(&mut double.router(), sent).await
}

async fn check(body: &str, expect: Expect) {
    expect.assert_eq(&ask(body).await.told());
}

const TOOLS: &str = r#","tools":[{"type":"function","name":"f","parameters":{"type":"object"}}]"#;

#[tokio::test]
async fn a_whole_answer_is_a_response_that_is_not_stored() {
    check(
        r#"{"model":"tiny","input":"hi","store":true}"#,
        expect![[r#"
            200
            {"id":"resp_00000000000000000000000000000001","object":"response","created_at":T,"status":"completed","background":false,"error":null,"incomplete_details":null,"instructions":null,"max_output_tokens":null,"model":"tiny:1","output":[{"type":"message","id":"msg_00000000000000000000000000000001","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Hello world!","annotations":[],"logprobs":[]}]}],"parallel_tool_calls":true,"previous_response_id":null,"reasoning":{"effort":null,"summary":null},"store":false,"temperature":1.0,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_p":1.0,"truncation":"disabled","usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":0},"output_tokens":3,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":8},"user":null,"metadata":{}}
        "#]],
    )
    .await;
    let body = format!(r#"{{"model":"ponders:1","input":"hi"{TOOLS}}}"#);
    check(&body, expect![[r#"
        200
        {"id":"resp_00000000000000000000000000000001","object":"response","created_at":T,"status":"completed","background":false,"error":null,"incomplete_details":null,"instructions":null,"max_output_tokens":null,"model":"ponders:1","output":[{"type":"reasoning","id":"rs_00000000000000000000000000000001","summary":[],"content":[{"type":"reasoning_text","text":"Hm."}],"status":"completed"},{"type":"function_call","id":"fc_00000000000000000000000000000001_0","call_id":"call_00000000000000000000000000000001_0","name":"f","arguments":"{\"x\":1}","status":"completed"}],"parallel_tool_calls":true,"previous_response_id":null,"reasoning":{"effort":null,"summary":null},"store":false,"temperature":1.0,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[{"description":null,"name":"f","parameters":{"type":"object"},"strict":null,"type":"function"}],"top_p":1.0,"truncation":"disabled","usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":0},"output_tokens":4,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":9},"user":null,"metadata":{}}
    "#]]).await;
}

/// The events of a stream: their names and their data.
fn events(text: &str) -> Vec<(String, Value)> {
    let events = text.split("\n\n").filter_map(|event| {
        let (name, data) = event.strip_prefix("event: ")?.split_once("\ndata: ")?;
        Some((name.to_owned(), serde_json::from_str(data).unwrap()))
    });
    events.collect()
}

/// Every event in one line, without the response at both ends.
fn outline(text: &str) -> String {
    let lines = events(text)
        .into_iter()
        .enumerate()
        .map(|(at, (name, mut data))| {
            assert_eq!(data["type"], *name);
            assert_eq!(data["sequence_number"], at);
            let fields = data.as_object_mut().unwrap();
            fields.remove("type");
            fields.remove("sequence_number");
            if let Some(response) = fields.remove("response") {
                fields.insert("status".into(), response["status"].clone());
            }
            format!("{name} {data}\n")
        });
    lines.collect()
}

#[tokio::test]
async fn a_stream_opens_tells_and_closes_its_message() {
    let heard = ask(r#"{"model":"tiny:1","input":"hi","stream":true}"#).await;
    expect![[r#"
        response.created {"status":"in_progress"}
        response.in_progress {"status":"in_progress"}
        response.output_item.added {"item":{"content":[],"id":"msg_00000000000000000000000000000001","role":"assistant","status":"in_progress","type":"message"},"output_index":0}
        response.content_part.added {"content_index":0,"item_id":"msg_00000000000000000000000000000001","output_index":0,"part":{"annotations":[],"logprobs":[],"text":"","type":"output_text"}}
        response.output_text.delta {"content_index":0,"delta":"Hello","item_id":"msg_00000000000000000000000000000001","logprobs":[],"output_index":0}
        response.output_text.delta {"content_index":0,"delta":" world","item_id":"msg_00000000000000000000000000000001","logprobs":[],"output_index":0}
        response.output_text.delta {"content_index":0,"delta":"!","item_id":"msg_00000000000000000000000000000001","logprobs":[],"output_index":0}
        response.output_text.done {"content_index":0,"item_id":"msg_00000000000000000000000000000001","logprobs":[],"output_index":0,"text":"Hello world!"}
        response.content_part.done {"content_index":0,"item_id":"msg_00000000000000000000000000000001","output_index":0,"part":{"annotations":[],"logprobs":[],"text":"Hello world!","type":"output_text"}}
        response.output_item.done {"item":{"content":[{"annotations":[],"logprobs":[],"text":"Hello world!","type":"output_text"}],"id":"msg_00000000000000000000000000000001","role":"assistant","status":"completed","type":"message"},"output_index":0}
        response.completed {"status":"completed"}
    "#]].assert_eq(&outline(&heard.text));
    assert!(!heard.text.contains("[DONE]"));
    assert!(heard.text.contains("\n\n: substrate {"));
}

#[tokio::test]
async fn a_stream_numbers_thoughts_and_calls() {
    let body = format!(r#"{{"model":"ponders:1","input":"hi","stream":true{TOOLS}}}"#);
    expect![[r#"
        response.created {"status":"in_progress"}
        response.in_progress {"status":"in_progress"}
        response.output_item.added {"item":{"content":[],"id":"rs_00000000000000000000000000000001","status":"in_progress","summary":[],"type":"reasoning"},"output_index":0}
        response.content_part.added {"content_index":0,"item_id":"rs_00000000000000000000000000000001","output_index":0,"part":{"text":"","type":"reasoning_text"}}
        response.reasoning_text.delta {"content_index":0,"delta":"Hm","item_id":"rs_00000000000000000000000000000001","output_index":0}
        response.reasoning_text.delta {"content_index":0,"delta":".","item_id":"rs_00000000000000000000000000000001","output_index":0}
        response.reasoning_text.done {"content_index":0,"item_id":"rs_00000000000000000000000000000001","output_index":0,"text":"Hm."}
        response.content_part.done {"content_index":0,"item_id":"rs_00000000000000000000000000000001","output_index":0,"part":{"text":"Hm.","type":"reasoning_text"}}
        response.output_item.done {"item":{"content":[{"text":"Hm.","type":"reasoning_text"}],"id":"rs_00000000000000000000000000000001","status":"completed","summary":[],"type":"reasoning"},"output_index":0}
        response.output_item.added {"item":{"arguments":"","call_id":"call_00000000000000000000000000000001_0","id":"fc_00000000000000000000000000000001_0","name":"f","status":"in_progress","type":"function_call"},"output_index":1}
        response.function_call_arguments.delta {"delta":"{\"x\":1}","item_id":"fc_00000000000000000000000000000001_0","output_index":1}
        response.function_call_arguments.done {"arguments":"{\"x\":1}","item_id":"fc_00000000000000000000000000000001_0","name":"f","output_index":1}
        response.output_item.done {"item":{"arguments":"{\"x\":1}","call_id":"call_00000000000000000000000000000001_0","id":"fc_00000000000000000000000000000001_0","name":"f","status":"completed","type":"function_call"},"output_index":1}
        response.completed {"status":"completed"}
    "#]].assert_eq(&outline(&ask(&body).await.text));
}

#[tokio::test]
async fn the_last_event_of_a_stream_is_the_whole_answer() {
    for (model, more) in [
        ("tiny:1", ""),
        ("tiny:1", r#","max_output_tokens":2"#),
        ("thinks:1", ""),
        ("thinks:1", r#","max_output_tokens":1"#),
        ("ponders:1", TOOLS),
        ("calls:1", TOOLS),
    ] {
        let body =
            |stream: bool| format!(r#"{{"model":"{model}","input":"hi","stream":{stream}{more}}}"#);
        let whole: Value = serde_json::from_str(&ask(&body(false)).await.text).unwrap();
        let streamed = ask(&body(true)).await.text;
        let (name, mut last) = events(&streamed).pop().unwrap();
        let mut last = last["response"].take();
        assert_eq!(
            name,
            format!("response.{}", whole["status"].as_str().unwrap())
        );
        last["created_at"] = whole["created_at"].clone();
        assert_eq!(last, whole, "{model} {more}");
        let done: Vec<Value> = events(&streamed)
            .into_iter()
            .filter(|(name, _)| name == "response.output_item.done")
            .map(|(_, mut data)| data["item"].take())
            .collect();
        assert_eq!(Value::Array(done), whole["output"], "{model} {more}");
    }
}

#[tokio::test]
async fn failures_are_told_with_a_status_or_as_the_last_event() {
    let mut told = String::new();
    for model in ["none:1", "busy:1", "overflow:1", "fails:1"] {
        let heard = ask(&format!(r#"{{"model":"{model}","input":"hi"}}"#)).await;
        told += &format!("{model} {}", heard.told());
    }
    expect![[r#"
        none:1 404
        {"error":{"code":"model_not_found","message":"the model 'none:1' does not exist or is not usable in this scope; usable now: tiny:1","param":"model","type":"not_found_error"}}
        busy:1 429
        {"error":{"code":"queue_full","message":"server busy, please try again: 1024 jobs wait; retry in 5 s","param":null,"type":"rate_limit_error"}}
        overflow:1 400
        {"error":{"code":"context_length_exceeded","message":"the prompt needs 9000 tokens, the context holds 2048","param":"input","type":"invalid_request_error"}}
        fails:1 500
        {"error":{"code":"internal_error","message":"internal error: the worker broke","param":null,"type":"api_error"}}
    "#]].assert_eq(&told);
    for model in ["fails:1", "lost:1", "stopped:1"] {
        let body = format!(r#"{{"model":"{model}","input":"hi","stream":true}}"#);
        let (name, last) = events(&ask(&body).await.text).pop().unwrap();
        assert_eq!(name, "response.failed", "{model}");
        assert_eq!(last["response"]["status"], "failed");
        assert_eq!(last["response"]["error"]["code"], "server_error");
        assert!(last["response"]["error"]["message"].is_string(), "{last}");
    }
}
