//! OpenAI's answers, chunk for chunk.

use expect_test::{Expect, expect};

use super::*;

async fn check(path: &str, body: &str, expect: Expect) {
    expect.assert_eq(&post(path, body).await.told());
}

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_stream_is_role_text_finish_usage_facts_done() {
    let body = r#"{"model":"tiny:1","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"hi"}]}"#;
    check(CHAT, body, expect![[r#"
        200
        : started {"attempt":1,"node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct"}

        data: {"id":"chatcmpl-00000000000000000000000000000001","object":"chat.completion.chunk","created":T,"model":"tiny:1","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-00000000000000000000000000000001","object":"chat.completion.chunk","created":T,"model":"tiny:1","choices":[{"index":0,"delta":{"content":"Hello"},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-00000000000000000000000000000001","object":"chat.completion.chunk","created":T,"model":"tiny:1","choices":[{"index":0,"delta":{"content":" world"},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-00000000000000000000000000000001","object":"chat.completion.chunk","created":T,"model":"tiny:1","choices":[{"index":0,"delta":{"content":"!"},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-00000000000000000000000000000001","object":"chat.completion.chunk","created":T,"model":"tiny:1","system_fingerprint":"sha256:0404040404040404040404040404040404040404040404040404040404040404","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}

        data: {"id":"chatcmpl-00000000000000000000000000000001","object":"chat.completion.chunk","created":T,"model":"tiny:1","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8}}

        : substrate {"job":"00000000000000000000000000000001","node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct","scope":"circle","wall":"process","isolated":false,"attempts":1,"receipt":"0303030303030303030303030303030303030303030303030303030303030303","model_sha256":"0404040404040404040404040404040404040404040404040404040404040404","timings_ms":{"queue":1,"route":2,"load":0,"prefill":30,"decode":400,"total":433}}

        data: [DONE]


    "#]]).await;
}

#[tokio::test]
async fn a_plain_stream_has_no_usage() {
    let body = r#"{"model":"tiny:1","stream":true,"max_tokens":1,"messages":[{"role":"user","content":"hi"}]}"#;
    check(CHAT, body, expect![[r#"
        200
        : started {"attempt":1,"node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct"}

        data: {"id":"chatcmpl-00000000000000000000000000000001","object":"chat.completion.chunk","created":T,"model":"tiny:1","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}

        data: {"id":"chatcmpl-00000000000000000000000000000001","object":"chat.completion.chunk","created":T,"model":"tiny:1","choices":[{"index":0,"delta":{"content":"Hello"},"logprobs":null,"finish_reason":null}]}

        data: {"id":"chatcmpl-00000000000000000000000000000001","object":"chat.completion.chunk","created":T,"model":"tiny:1","system_fingerprint":"sha256:0404040404040404040404040404040404040404040404040404040404040404","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}]}

        : substrate {"job":"00000000000000000000000000000001","node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct","scope":"circle","wall":"process","isolated":false,"attempts":1,"receipt":"0303030303030303030303030303030303030303030303030303030303030303","model_sha256":"0404040404040404040404040404040404040404040404040404040404040404","timings_ms":{"queue":1,"route":2,"load":0,"prefill":30,"decode":400,"total":433}}

        data: [DONE]


    "#]]).await;
}

#[tokio::test]
async fn a_stream_shows_its_queue_and_its_moves_as_comments() {
    let body = |model: &str| {
        format!(
            r#"{{"model":"{model}","stream":true,"max_tokens":2,"messages":[{{"role":"user","content":"hi"}}]}}"#
        )
    };
    let told = post(CHAT, &body("queued:1")).await.told();
    let comments = |told: &str| {
        told.lines()
            .filter(|line| line.starts_with(':'))
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    };
    expect![[r#"
        : queue {"position":3,"expected_wait_ms":900,"why":"3 jobs are ahead"}
        : queue {"position":0,"expected_wait_ms":100,"why":"next"}
        : started {"attempt":1,"node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct"}
        : substrate {"job":"00000000000000000000000000000001","node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct","scope":"circle","wall":"process","isolated":false,"attempts":1,"receipt":"0303030303030303030303030303030303030303030303030303030303030303","model_sha256":"0404040404040404040404040404040404040404040404040404040404040404","timings_ms":{"queue":1,"route":2,"load":0,"prefill":30,"decode":400,"total":433}}
    "#]].assert_eq(&comments(&told));
    let told = post(CHAT, &body("moves:1")).await.told();
    expect![[r#"
        : started {"attempt":1,"node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct"}
        : moved {"from":"0202020202020202020202020202020202020202020202020202020202020202","after_tokens":1,"why":"no heartbeat for 1.8 s"}
        : started {"attempt":2,"node":"0808080808080808080808080808080808080808080808080808080808080808","route":"direct"}
        : substrate {"job":"00000000000000000000000000000001","node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct","scope":"circle","wall":"process","isolated":false,"attempts":1,"receipt":"0303030303030303030303030303030303030303030303030303030303030303","model_sha256":"0404040404040404040404040404040404040404040404040404040404040404","timings_ms":{"queue":1,"route":2,"load":0,"prefill":30,"decode":400,"total":433}}
    "#]].assert_eq(&comments(&told));
}

#[tokio::test]
async fn a_whole_answer_tells_its_facts_in_headers() {
    let heard = post(
        CHAT,
        r#"{"model":"tiny","messages":[{"role":"user","content":"hi"}]}"#,
    )
    .await;
    expect![[r#"
        200
        {"id":"chatcmpl-00000000000000000000000000000001","object":"chat.completion","created":T,"model":"tiny:1","system_fingerprint":"sha256:0404040404040404040404040404040404040404040404040404040404040404","choices":[{"index":0,"message":{"role":"assistant","content":"Hello world!","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8}}
    "#]].assert_eq(&heard.told());
    let names = [
        "content-type",
        "x-substrate-job",
        "x-substrate-node",
        "x-substrate-route",
        "x-substrate-scope",
        "x-substrate-receipt",
        "server-timing",
    ];
    let headers: String = names
        .iter()
        .map(|name| format!("{name}: {}\n", heard.header(name)))
        .collect();
    expect![[r#"
        content-type: application/json
        x-substrate-job: 00000000000000000000000000000001
        x-substrate-node: 0707070707070707070707070707070707070707070707070707070707070707
        x-substrate-route: direct
        x-substrate-scope: circle
        x-substrate-receipt: 0303030303030303030303030303030303030303030303030303030303030303
        server-timing: queue;dur=1, route;dur=2, load;dur=0, prefill;dur=30, decode;dur=400, total;dur=433
    "#]].assert_eq(&headers);
}

#[tokio::test]
async fn a_stream_names_job_and_scope_in_headers() {
    let heard = post(
        CHAT,
        r#"{"model":"tiny:1","stream":true,"messages":[{"role":"user","content":"hi"}]}"#,
    )
    .await;
    assert_eq!(heard.header("content-type"), "text/event-stream");
    assert_eq!(
        heard.header("x-substrate-job"),
        "00000000000000000000000000000001"
    );
    assert_eq!(heard.header("x-substrate-scope"), "circle");
    assert_eq!(heard.header("cache-control"), "no-cache");
}

#[tokio::test]
async fn choices_are_told_apart() {
    let body = r#"{"model":"tiny:1","n":2,"seed":3,"messages":[{"role":"user","content":"hi"}]}"#;
    check(CHAT, body, expect![[r#"
        200
        {"id":"chatcmpl-00000000000000000000000000000001","object":"chat.completion","created":T,"model":"tiny:1","system_fingerprint":"sha256:0404040404040404040404040404040404040404040404040404040404040404","choices":[{"index":0,"message":{"role":"assistant","content":"Hello world! red blue green red blue","refusal":null},"logprobs":null,"finish_reason":"stop"},{"index":1,"message":{"role":"assistant","content":"Hello world! blue green red blue green","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":16,"total_tokens":21}}
    "#]]).await;
    let body = r#"{"model":"tiny:1","n":2,"stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"hi"}]}"#;
    let told = post(CHAT, body).await.text;
    for index in 0..2 {
        let of = |needle: &str| {
            told.matches(&format!("{{\"index\":{index},{needle}"))
                .count()
        };
        assert_eq!(
            (
                of("\"delta\":{\"role\""),
                of("\"delta\":{\"content\""),
                of("\"delta\":{},")
            ),
            (1, 3, 1)
        );
    }
    assert_eq!(
        told.matches("\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":6,\"total_tokens\":11}")
            .count(),
        1
    );
    assert_eq!(told.matches(": substrate ").count(), 2);
    assert!(told.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn logprobs_have_no_infinities() {
    let body = r#"{"model":"tiny:1","logprobs":true,"top_logprobs":2,"max_tokens":1,"messages":[{"role":"user","content":"hi"}]}"#;
    check(CHAT, body, expect![[r#"
        200
        {"id":"chatcmpl-00000000000000000000000000000001","object":"chat.completion","created":T,"model":"tiny:1","system_fingerprint":"sha256:0404040404040404040404040404040404040404040404040404040404040404","choices":[{"index":0,"message":{"role":"assistant","content":"Hello","refusal":null},"logprobs":{"content":[{"token":"Hello","logprob":-0.5,"bytes":[72,101,108,108,111],"top_logprobs":[{"token":"Hello","logprob":-0.5,"bytes":[72,101,108,108,111]},{"token":"zz","logprob":-9999.0,"bytes":[122,122]}]}],"refusal":null},"finish_reason":"length"}],"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}
    "#]]).await;
}

#[tokio::test]
async fn completions_have_text_and_offsets() {
    check("/v1/completions", r#"{"model":"tiny:1","prompt":"once","logprobs":1,"max_tokens":2}"#, expect![[r#"
        200
        {"id":"cmpl-00000000000000000000000000000001","object":"text_completion","created":T,"model":"tiny:1","system_fingerprint":"sha256:0404040404040404040404040404040404040404040404040404040404040404","choices":[{"index":0,"text":"Hello world","logprobs":{"tokens":["Hello"," world"],"token_logprobs":[-0.5,-0.5],"top_logprobs":[{"Hello":-0.5},{" world":-0.5}],"text_offset":[0,5]},"finish_reason":"length"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}
    "#]]).await;
    check("/v1/completions", r#"{"model":"tiny:1","prompt":"once","stream":true,"max_tokens":2}"#, expect![[r#"
        200
        : started {"attempt":1,"node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct"}

        data: {"id":"cmpl-00000000000000000000000000000001","object":"text_completion","created":T,"model":"tiny:1","choices":[{"index":0,"text":"Hello","logprobs":null,"finish_reason":null}]}

        data: {"id":"cmpl-00000000000000000000000000000001","object":"text_completion","created":T,"model":"tiny:1","choices":[{"index":0,"text":" world","logprobs":null,"finish_reason":null}]}

        data: {"id":"cmpl-00000000000000000000000000000001","object":"text_completion","created":T,"model":"tiny:1","system_fingerprint":"sha256:0404040404040404040404040404040404040404040404040404040404040404","choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]}

        : substrate {"job":"00000000000000000000000000000001","node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct","scope":"circle","wall":"process","isolated":false,"attempts":1,"receipt":"0303030303030303030303030303030303030303030303030303030303030303","model_sha256":"0404040404040404040404040404040404040404040404040404040404040404","timings_ms":{"queue":1,"route":2,"load":0,"prefill":30,"decode":400,"total":433}}

        data: [DONE]


    "#]]).await;
}

#[tokio::test]
async fn several_prompts_are_several_choices() {
    let told = post(
        "/v1/completions",
        r#"{"model":"tiny:1","prompt":["a","b"],"n":2}"#,
    )
    .await
    .text;
    assert_eq!(told.matches("\"index\":").count(), 4);
    assert!(
        told.contains(
            "\"usage\":{\"prompt_tokens\":6,\"completion_tokens\":12,\"total_tokens\":18}"
        ),
        "{told}"
    );
}

#[tokio::test]
async fn a_failure_inside_a_stream_is_an_error_event_and_no_done() {
    for model in ["fails:1", "lost:1", "stopped:1"] {
        let body = format!(
            r#"{{"model":"{model}","stream":true,"messages":[{{"role":"user","content":"hi"}}]}}"#
        );
        let heard = post(CHAT, &body).await;
        assert_eq!(heard.status, StatusCode::OK);
        let last = heard.text.trim_end().lines().last().unwrap().to_owned();
        assert!(last.starts_with("data: {\"error\":{"), "{model}: {last}");
        assert!(!heard.text.contains("[DONE]"), "{model}");
    }
}

#[tokio::test]
async fn models_are_listed_own_first_and_found_by_name() {
    expect![[r#"{"object":"list","data":[{"id":"tiny:1","object":"model","created":1700000000,"owned_by":"this-machine","substrate":{"own":true,"loaded":true,"nodes":1,"sha256":"0404040404040404040404040404040404040404040404040404040404040404"}},{"id":"hf.co/far/away:Q4_1","object":"model","created":1700000000,"owned_by":"mesh","substrate":{"own":false,"loaded":false,"nodes":1,"sha256":"0404040404040404040404040404040404040404040404040404040404040404"}}]}"#]].assert_eq(&get("/v1/models").await.text);
    for (path, status) in [
        ("/v1/models/tiny:1", 200),
        ("/v1/models/TINY:1", 200),
        ("/v1/models/hf.co%2Ffar%2Faway:Q4_1", 200),
        ("/v1/models/hf.co/far/away:q4_1", 200),
        ("/v1/models/tinny", 404),
    ] {
        assert_eq!(get(path).await.status.as_u16(), status, "{path}");
    }
    expect![[r#"{"error":{"code":"model_not_found","message":"the model 'tinny' does not exist or is not usable in this scope; usable now: tiny:1","param":"model","type":"not_found_error"}}"#]].assert_eq(&get("/v1/models/tinny").await.text);
}

#[tokio::test]
async fn a_call_of_a_tool_is_told_as_one_streamed_or_whole() {
    let body = |stream: bool, tools: &str| {
        format!(
            r#"{{"model":"calls:1","stream":{stream},"messages":[{{"role":"user","content":"hi"}}]{tools}}}"#
        )
    };
    const F: &str = r#","tools":[{"type":"function","function":{"name":"f"}}]"#;
    let call = r#""id":"call_00000000000000000000000000000001_0_0","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}}]"#;
    let told = post(CHAT, &body(false, F)).await.told();
    assert!(
        told.contains(&format!(
            r#""content":"I look. ","refusal":null,"tool_calls":[{{{call}"#
        )),
        "{told}"
    );
    assert!(told.contains(r#""finish_reason":"tool_calls""#), "{told}");
    let told = post(CHAT, &body(true, F)).await.told();
    assert!(told.contains(r#""delta":{"content":"I look. "}"#), "{told}");
    assert!(
        told.contains(&format!(r#""delta":{{"tool_calls":[{{"index":0,{call}}}"#)),
        "{told}"
    );
    assert!(
        told.contains(r#""delta":{},"logprobs":null,"finish_reason":"tool_calls""#),
        "{told}"
    );
    // Without tools, or with others, the same is text.
    for tools in ["", &F.replace("\"f\"", "\"g\"")] {
        for stream in [false, true] {
            let told = post(CHAT, &body(stream, tools)).await.told();
            assert!(!told.contains("tool_calls"), "{told}");
            assert!(told.contains(r#""finish_reason":"stop""#), "{told}");
        }
    }
}

const EMBEDDINGS: &str = "/v1/embeddings";

#[tokio::test]
async fn vectors_come_as_numbers_or_as_bytes() {
    let body = r#"{"model":"tiny:1","input":["a","b"]}"#;
    check(EMBEDDINGS, body, expect![[r#"
        200
        {"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.6,0.8,0.0]},{"object":"embedding","index":1,"embedding":[-0.6,-0.8,-0.0]}],"model":"tiny:1","usage":{"prompt_tokens":6,"total_tokens":6}}
    "#]]).await;
    let body = r#"{"model":"tiny:1","input":"a","encoding_format":"base64","dimensions":2}"#;
    check(EMBEDDINGS, body, expect![[r#"
        200
        {"object":"list","data":[{"object":"embedding","index":0,"embedding":"mpkZP83MTD8="}],"model":"tiny:1","usage":{"prompt_tokens":3,"total_tokens":3}}
    "#]]).await;
}

#[tokio::test]
async fn documents_come_by_their_nearness_to_the_query() {
    // The double's vectors point one way and the other by turns: the query, and every second document after it.
    let body = r#"{"model":"tiny:1","query":"q","documents":["a",{"text":"b"},"c"],"top_n":2,"return_documents":true}"#;
    for path in ["/v1/rerank", "/rerank"] {
        check(path, body, expect![[r#"
            200
            {"object":"list","model":"tiny:1","results":[{"index":1,"relevance_score":1.0,"document":{"text":"b"}},{"index":0,"relevance_score":-1.0,"document":{"text":"a"}}],"usage":{"prompt_tokens":12,"total_tokens":12},"substrate":{"method":"cosine of vectors made apart (bi-encoder)"}}
        "#]]).await;
    }
    for (body, param) in [
        (r#"{"model":"tiny:1","documents":["a"]}"#, "query"),
        (r#"{"model":"tiny:1","query":"q"}"#, "documents"),
        (
            r#"{"model":"tiny:1","query":"q","documents":["a",""]}"#,
            "documents",
        ),
        (
            r#"{"model":"tiny:1","query":"q","documents":[7]}"#,
            "documents[0]",
        ),
        (
            r#"{"model":"tiny:1","query":"q","documents":["a"],"top_n":0}"#,
            "top_n",
        ),
        (
            r#"{"model":"overflow:1","query":"q","documents":["a"]}"#,
            "documents",
        ),
    ] {
        let told = post("/v1/rerank", body).await.told();
        assert!(told.starts_with("400"), "{body}: {told}");
        assert!(
            told.contains(&format!(r#""param":"{param}""#)),
            "{body}: {told}"
        );
    }
}

#[tokio::test]
async fn wishes_for_vectors_that_cannot_be_are_named() {
    for (body, param) in [
        (r#"{"model":"tiny:1"}"#, "input"),
        (r#"{"model":"tiny:1","input":[]}"#, "input"),
        (r#"{"model":"tiny:1","input":["a",""]}"#, "input"),
        (r#"{"model":"tiny:1","input":[1,2]}"#, "input[0]"),
        (
            r#"{"model":"tiny:1","input":"a","dimensions":0}"#,
            "dimensions",
        ),
        (
            r#"{"model":"tiny:1","input":"a","dimensions":4}"#,
            "dimensions",
        ),
        (
            r#"{"model":"tiny:1","input":"a","encoding_format":"hex"}"#,
            "encoding_format",
        ),
        (r#"{"model":"overflow:1","input":"a"}"#, "input"),
    ] {
        let told = post(EMBEDDINGS, body).await.told();
        assert!(told.starts_with("400"), "{body}: {told}");
        assert!(
            told.contains(&format!(r#""param":"{param}""#)),
            "{body}: {told}"
        );
    }
}
