//! Thoughts told apart from answers, streamed and whole, in each API.

use serde_json::Value;

use super::double::Double;
use super::*;

async fn ask(path: &str, body: &str) -> Heard {
    let double = Double::thinking();
    send(
        &mut double.router(),
        request("POST", path, &[], body.to_owned()),
    )
    .await
}

/// What is at `place` in every JSON value of a stream or a whole answer, put together.
fn said(heard: &Heard, place: &str) -> String {
    let lines = heard.text.lines();
    let values = lines.filter_map(|line| {
        serde_json::from_str::<Value>(line.strip_prefix("data: ").unwrap_or(line)).ok()
    });
    let text = values.filter_map(|value| Some(value.pointer(place)?.as_str()?.to_owned()));
    text.collect()
}

#[tokio::test]
async fn ollamas_chat_and_generate_tell_thoughts_apart() {
    for stream in [false, true] {
        let chat = format!(
            r#"{{"model":"thinks:1","stream":{stream},"messages":[{{"role":"user","content":"hi"}}]}}"#
        );
        let heard = ask("/api/chat", &chat).await;
        assert_eq!(
            said(&heard, "/message/thinking"),
            "Hm, so.",
            "{}",
            heard.text
        );
        assert_eq!(said(&heard, "/message/content"), "Yes.", "{}", heard.text);
        let generate =
            format!(r#"{{"model":"thinks:1","stream":{stream},"think":"high","prompt":"hi"}}"#);
        let heard = ask("/api/generate", &generate).await;
        assert_eq!(said(&heard, "/thinking"), "Hm, so.", "{}", heard.text);
        assert_eq!(said(&heard, "/response"), "Yes.", "{}", heard.text);
    }
}

#[tokio::test]
async fn openais_chat_tells_thoughts_apart_with_every_logprob() {
    for (stream, thoughts, text) in [
        (
            false,
            "/choices/0/message/reasoning_content",
            "/choices/0/message/content",
        ),
        (
            true,
            "/choices/0/delta/reasoning_content",
            "/choices/0/delta/content",
        ),
    ] {
        let body = format!(
            r#"{{"model":"thinks:1","stream":{stream},"logprobs":true,"messages":[{{"role":"user","content":"hi"}}]}}"#
        );
        let heard = ask("/v1/chat/completions", &body).await;
        assert_eq!(said(&heard, thoughts), "Hm, so.", "{}", heard.text);
        assert_eq!(said(&heard, text), "Yes.", "{}", heard.text);
        assert_eq!(
            heard.text.matches("\"logprob\":").count(),
            6,
            "{}",
            heard.text
        );
    }
}

#[tokio::test]
async fn calls_are_found_behind_thoughts_that_the_template_opened() {
    for stream in [false, true] {
        let body = format!(
            r#"{{"model":"ponders:1","stream":{stream},"messages":[{{"role":"user","content":"hi"}}],"tools":[{{"type":"function","function":{{"name":"f"}}}}]}}"#
        );
        let heard = ask("/api/chat", &body).await;
        assert_eq!(said(&heard, "/message/thinking"), "Hm.", "{}", heard.text);
        assert_eq!(said(&heard, "/message/content"), "", "{}", heard.text);
        assert_eq!(
            heard.text.matches("\"tool_calls\"").count(),
            1,
            "{}",
            heard.text
        );
        let heard = ask("/v1/chat/completions", &body).await;
        assert!(
            heard.text.contains(r#""finish_reason":"tool_calls""#),
            "{}",
            heard.text
        );
        assert!(
            heard.text.contains(r#""reasoning_content":"Hm"#),
            "{}",
            heard.text
        );
    }
}

#[tokio::test]
async fn a_template_is_told_what_was_asked_and_the_model_thinks_if_nothing_was() {
    let double = Double::thinking();
    let mut router = double.router();
    let chat = |model: &str, more: &str| {
        format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hi"}}]{more}}}"#)
    };
    for (path, body) in [
        ("/api/chat", chat("thinks:1", "")),
        ("/api/chat", chat("thinks:1", r#","think":false"#)),
        ("/api/chat", chat("thinks:1", r#","think":"max""#)),
        ("/api/chat", chat("thinks:1", r#","format":"json""#)),
        (
            "/v1/chat/completions",
            chat("thinks:1", r#","reasoning_effort":"none""#),
        ),
        (
            "/v1/chat/completions",
            chat(
                "thinks:1",
                r#","chat_template_kwargs":{"enable_thinking":false}"#,
            ),
        ),
        // Nothing is known of its template; that of the other knows of no thoughts.
        ("/api/chat", chat("strange:1", "")),
        ("/api/chat", chat("plain:1", r#","think":false"#)),
    ] {
        send(&mut router, request("POST", path, &[], body)).await;
    }
    let told = format!("{:?}", double.seen.thinking.lock().unwrap());
    assert_eq!(
        told,
        "[Some(On), Some(Off), Some(Max), Some(Off), Some(Off), Some(Off), None, None]"
    );
}

#[tokio::test]
async fn a_model_that_cannot_think_says_so_and_one_elsewhere_is_asked() {
    let chat = |model: &str| {
        format!(
            r#"{{"model":"{model}","think":true,"stream":false,"messages":[{{"role":"user","content":"hi"}}]}}"#
        )
    };
    let heard = ask("/api/chat", &chat("plain:1")).await;
    assert_eq!(
        heard.told(),
        "400\n{\"error\":\"\\\"plain:1\\\" does not support thinking\"}\n"
    );
    let heard = ask("/api/chat", &chat("strange:1")).await;
    assert_eq!(
        said(&heard, "/message/thinking"),
        "Hm, so.",
        "{}",
        heard.text
    );
    let bound = r#"{"model":"thinks:1","think":true,"prompt":"hi","format":"json"}"#;
    let heard = ask("/api/generate", bound).await;
    assert_eq!(heard.status, StatusCode::BAD_REQUEST, "{}", heard.text);
    assert!(heard.text.contains("bound to a schema"), "{}", heard.text);
}

#[tokio::test]
async fn plain_text_is_told_as_it_is() {
    let heard = ask("/v1/completions", r#"{"model":"thinks:1","prompt":"hi"}"#).await;
    assert!(heard.text.contains("<think>"), "{}", heard.text);
    let raw = r#"{"model":"thinks:1","prompt":"hi","raw":true,"stream":false}"#;
    let heard = ask("/api/generate", raw).await;
    assert!(heard.text.contains("<think>"), "{}", heard.text);
}

#[tokio::test]
async fn lists_tell_who_can_think_and_call() {
    let double = Double::thinking();
    let heard = send(&mut double.router(), request("GET", "/api/tags", &[], "")).await;
    let tags: Value = serde_json::from_str(&heard.text).unwrap();
    let of = |name: &str| {
        let models = tags["models"].as_array().unwrap();
        let model = models.iter().find(|model| model["name"] == name).unwrap();
        model["capabilities"].to_string()
    };
    assert_eq!(of("thinks:1"), r#"["completion","tools","thinking"]"#);
    assert_eq!(of("ponders:1"), r#"["completion","thinking"]"#);
    assert_eq!(of("plain:1"), r#"["completion"]"#);
}
