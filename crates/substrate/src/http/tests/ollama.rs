//! Ollama's answers, line for line.

use std::sync::atomic::Ordering;

use expect_test::{Expect, expect};

use super::double::{ADMIN_KEY, Double, PLAIN_KEY};
use super::*;

async fn check(path: &str, body: &str, expect: Expect) {
    expect.assert_eq(&post(path, body).await.told());
}

#[tokio::test]
async fn a_chat_streams_lines_and_ends_with_totals() {
    check("/api/chat", r#"{"model":"tiny:1","messages":[{"role":"user","content":"hi"}]}"#, expect![[r#"
        200
        {"model":"tiny:1","created_at":T,"message":{"role":"assistant","content":"Hello"},"done":false}
        {"model":"tiny:1","created_at":T,"message":{"role":"assistant","content":" world"},"done":false}
        {"model":"tiny:1","created_at":T,"message":{"role":"assistant","content":"!"},"done":false}
        {"model":"tiny:1","created_at":T,"message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":433000000,"load_duration":0,"prompt_eval_count":5,"prompt_eval_duration":30000000,"eval_count":3,"eval_duration":400000000,"substrate":{"job":"00000000000000000000000000000001","node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct","scope":"circle","wall":"process","isolated":false,"attempts":1,"receipt":"0303030303030303030303030303030303030303030303030303030303030303","model_sha256":"0404040404040404040404040404040404040404040404040404040404040404","timings_ms":{"queue":1,"route":2,"load":0,"prefill":30,"decode":400,"total":433}}}

    "#]]).await;
}

#[tokio::test]
async fn a_generation_streams_responses() {
    check("/api/generate", r#"{"model":"tiny:1","prompt":"hi","options":{"num_predict":2}}"#, expect![[r#"
        200
        {"model":"tiny:1","created_at":T,"response":"Hello","done":false}
        {"model":"tiny:1","created_at":T,"response":" world","done":false}
        {"model":"tiny:1","created_at":T,"response":"","done":true,"done_reason":"length","total_duration":433000000,"load_duration":0,"prompt_eval_count":5,"prompt_eval_duration":30000000,"eval_count":2,"eval_duration":400000000,"substrate":{"job":"00000000000000000000000000000001","node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct","scope":"circle","wall":"process","isolated":false,"attempts":1,"receipt":"0303030303030303030303030303030303030303030303030303030303030303","model_sha256":"0404040404040404040404040404040404040404040404040404040404040404","timings_ms":{"queue":1,"route":2,"load":0,"prefill":30,"decode":400,"total":433}}}

    "#]]).await;
}

#[tokio::test]
async fn a_whole_answer_is_one_object_with_headers() {
    let heard = post("/api/chat", r#"{"model":"tiny","stream":false,"logprobs":true,"messages":[{"role":"user","content":"hi"}],"options":{"num_predict":1}}"#).await;
    expect![[r#"
        200
        {"model":"tiny:1","created_at":T,"message":{"role":"assistant","content":"Hello"},"done":true,"done_reason":"length","logprobs":[{"token":"Hello","logprob":-0.5,"bytes":[72,101,108,108,111]}],"total_duration":433000000,"load_duration":0,"prompt_eval_count":5,"prompt_eval_duration":30000000,"eval_count":1,"eval_duration":400000000,"substrate":{"job":"00000000000000000000000000000001","node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct","scope":"circle","wall":"process","isolated":false,"attempts":1,"receipt":"0303030303030303030303030303030303030303030303030303030303030303","model_sha256":"0404040404040404040404040404040404040404040404040404040404040404","timings_ms":{"queue":1,"route":2,"load":0,"prefill":30,"decode":400,"total":433}}}
    "#]].assert_eq(&heard.told());
    assert_eq!(heard.header("x-substrate-route"), "direct");
    assert_eq!(
        heard.header("server-timing"),
        "queue;dur=1, route;dur=2, load;dur=0, prefill;dur=30, decode;dur=400, total;dur=433"
    );
}

#[tokio::test]
async fn an_empty_prompt_loads_and_keep_alive_zero_unloads() {
    let double = Double::start();
    let mut router = double.router();
    let mut told = String::new();
    for (path, body) in [
        ("/api/generate", r#"{"model":"tiny:1"}"#),
        ("/api/generate", r#"{"model":"tiny:1","keep_alive":"10m"}"#),
        ("/api/generate", r#"{"model":"tiny:1","keep_alive":0}"#),
        (
            "/api/chat",
            r#"{"model":"tiny:1","messages":[],"keep_alive":"0"}"#,
        ),
        (
            "/api/chat",
            r#"{"model":"none:1","messages":[],"keep_alive":0}"#,
        ),
        ("/api/chat", r#"{"model":"none:1","messages":[]}"#),
        (
            "/api/chat",
            r#"{"model":"tiny:1","stream":true,"keep_alive":-1,"options":{"num_predict":1},"messages":[{"role":"user","content":"x"}]}"#,
        ),
    ] {
        told += &send(&mut router, request("POST", path, &[], body))
            .await
            .told();
    }
    expect![[r#"
        200
        {"model":"tiny:1","created_at":T,"response":"","done":true,"done_reason":"load"}
        200
        {"model":"tiny:1","created_at":T,"response":"","done":true,"done_reason":"load"}
        200
        {"model":"tiny:1","created_at":T,"response":"","done":true,"done_reason":"unload"}
        200
        {"model":"tiny:1","created_at":T,"message":{"role":"assistant","content":""},"done":true,"done_reason":"unload"}
        404
        {"error":"model \"none:1\" not found, try pulling it first"}
        404
        {"error":"model \"none:1\" not found, try pulling it first; usable now: tiny:1"}
        200
        {"model":"tiny:1","created_at":T,"message":{"role":"assistant","content":"Hello"},"done":false}
        {"model":"tiny:1","created_at":T,"message":{"role":"assistant","content":""},"done":true,"done_reason":"length","total_duration":433000000,"load_duration":0,"prompt_eval_count":5,"prompt_eval_duration":30000000,"eval_count":1,"eval_duration":400000000,"substrate":{"job":"00000000000000000000000000000001","node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct","scope":"circle","wall":"process","isolated":false,"attempts":1,"receipt":"0303030303030303030303030303030303030303030303030303030303030303","model_sha256":"0404040404040404040404040404040404040404040404040404040404040404","timings_ms":{"queue":1,"route":2,"load":0,"prefill":30,"decode":400,"total":433}}}

    "#]].assert_eq(&told);
    let kept = format!("{:?}", double.seen.kept_alive.lock().unwrap());
    assert_eq!(
        kept,
        r#"[("tiny:1", 600), ("tiny:1", 0), ("tiny:1", 0), ("tiny:1", -1)]"#
    );
}

#[tokio::test]
async fn a_failure_inside_a_stream_is_the_last_line() {
    for model in ["fails:1", "lost:1", "stopped:1"] {
        let body =
            format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hi"}}]}}"#);
        let heard = post("/api/chat", &body).await;
        assert_eq!(heard.status, StatusCode::OK);
        let last = heard.text.lines().last().unwrap();
        assert!(last.starts_with("{\"error\":\""), "{model}: {last}");
        assert!(!heard.text.contains("\"done\":true"), "{model}");
    }
}

#[tokio::test]
async fn lists_have_ollamas_fields() {
    expect![[r#"{"models":[{"name":"tiny:1","model":"tiny:1","modified_at":"2023-11-14T22:13:20.123000000Z","size":98765432,"digest":"0404040404040404040404040404040404040404040404040404040404040404","details":{"parent_model":"","format":"gguf","family":"llama","families":["llama"],"parameter_size":"134.5M","quantization_level":"Q4_1","context_length":8192},"capabilities":["completion"],"substrate":{"own":true,"loaded":true,"nodes":1}},{"name":"hf.co/far/away:Q4_1","model":"hf.co/far/away:Q4_1","modified_at":"2023-11-14T22:13:20.123000000Z","size":98765432,"digest":"0404040404040404040404040404040404040404040404040404040404040404","details":{"parent_model":"","format":"gguf","family":"llama","families":["llama"],"parameter_size":"134.5M","quantization_level":"Q4_1","context_length":8192},"capabilities":["completion"],"substrate":{"own":false,"loaded":false,"nodes":1}}]}"#]].assert_eq(&get("/api/tags").await.text);
    expect![[r#"{"models":[{"name":"tiny:1","model":"tiny:1","size":200000000,"digest":"0404040404040404040404040404040404040404040404040404040404040404","details":{"parent_model":"","format":"gguf","family":"llama","families":["llama"],"parameter_size":"134.5M","quantization_level":"Q4_1"},"expires_at":"2999-12-31T23:59:59.000000000Z","size_vram":0,"context_length":2048}],"substrate":[{"job":"06060606060606060606060606060606","role":"requested","model":"tiny:1","scope":"circle","state":"queued","node":null,"position":2,"expected_wait_ms":1500,"why":"2 jobs are ahead","tokens":0,"attempt":1,"age_ms":40},{"job":"06060606060606060606060606060606","role":"requested","model":"tiny:1","scope":"circle","state":"running","node":null,"position":null,"expected_wait_ms":null,"why":null,"tokens":0,"attempt":1,"age_ms":40}]}"#]].assert_eq(&get("/api/ps").await.text);
    expect![[r#"{"version":"0.1.0"}"#]].assert_eq(&get("/api/version").await.text);
    expect!["Ollama is running"].assert_eq(&get("/").await.text);
}

#[tokio::test]
async fn show_knows_models_here_and_elsewhere() {
    check("/api/show", r#"{"model":"tiny:1"}"#, expect![[r#"
        200
        {"license":"Apache-2.0","modelfile":"FROM tiny:1\n","parameters":"num_ctx                        4096","template":"{{ messages }}","system":"","details":{"parent_model":"","format":"gguf","family":"llama","families":["llama"],"parameter_size":"134.5M","quantization_level":"Q4_1","context_length":8192},"model_info":{"general.architecture":"llama","general.name":"Tiny","general.parameter_count":134515008,"llama.context_length":8192},"capabilities":["completion"],"modified_at":"2023-11-14T22:13:20.123000000Z","substrate":{"context":4096,"slots":8,"kv_cache_type":"f16","flash_attention":true,"weights":98,"kv_cache":188,"prefixes":188,"buffers":20,"engine":30,"total":524,"mapped":0,"place":"cpu"}}
    "#]]).await;
    check("/api/show", r#"{"name":"hf.co/far/away:q4_1"}"#, expect![[r#"
        200
        {"license":"Apache-2.0","modelfile":"FROM hf.co/far/away:Q4_1\n","parameters":"","template":"","system":"","details":{"parent_model":"","format":"gguf","family":"llama","families":["llama"],"parameter_size":"134.5M","quantization_level":"Q4_1","context_length":8192},"model_info":{"general.architecture":"llama","general.parameter_count":134515008,"llama.context_length":8192},"capabilities":["completion"],"modified_at":"2023-11-14T22:13:20.123000000Z"}
    "#]]).await;
    check(
        "/api/show",
        r#"{"model":"llama"}"#,
        expect![[r#"
        404
        {"error":"model \"llama\" not found, try pulling it first"}
    "#]],
    )
    .await;
}

#[tokio::test]
async fn a_pull_tells_every_step_and_never_ends_silently() {
    let double = Double::start();
    let mut router = double.router();
    let headers = [
        ("authorization", &*format!("Bearer {ADMIN_KEY}")),
        ("content-type", "application/json"),
    ];
    let mut told = String::new();
    for body in [
        r#"{"model":"tiny:1"}"#,
        r#"{"model":"breaks:1"}"#,
        r#"{"name":"stalls:1"}"#,
        r#"{"model":"tiny:1","stream":false}"#,
        r#"{"model":"breaks:1","stream":false}"#,
        r#"{"model":"absent:1","stream":false}"#,
        r#"{"model":"gated:1","stream":false}"#,
        r#"{"model":"bare:1"}"#,
    ] {
        told += &send(&mut router, request("POST", "/api/pull", &headers, body))
            .await
            .told();
    }
    expect![[r#"
        200
        {"status":"pulling manifest"}
        {"status":"pulling 040404040404","digest":"sha256:0404","total":100}
        {"status":"pulling 040404040404","digest":"sha256:0404","total":100,"completed":100}
        {"status":"verifying sha256 digest"}
        {"status":"writing manifest"}
        {"status":"success"}

        200
        {"status":"pulling manifest"}
        {"status":"pulling 040404040404","digest":"sha256:0404","total":100}
        {"status":"pulling 040404040404","digest":"sha256:0404","total":100,"completed":100}
        {"error":"disk is full"}

        200
        {"status":"pulling manifest"}
        {"status":"pulling 040404040404","digest":"sha256:0404","total":100}
        {"status":"pulling 040404040404","digest":"sha256:0404","total":100,"completed":100}
        {"error":"the pull broke off; ask again and it goes on where it stopped"}

        200
        {"status":"success"}
        500
        {"error":"disk is full"}
        404
        {"error":"a/b does not exist at the hub"}
        403
        {"error":"a/b is private or gated"}
        400
        {"error":"no source: use hf:USER/REPO"}
    "#]]
    .assert_eq(&told);
    assert_eq!(double.seen.changed.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_model_of_another_node_needs_no_pull() {
    let mut told = String::new();
    for key in [ADMIN_KEY, PLAIN_KEY] {
        let double = Double::start();
        let headers = [
            ("authorization", &*format!("Bearer {key}")),
            ("content-type", "application/json"),
        ];
        for body in [
            r#"{"model":"hf.co/far/away:Q4_1"}"#,
            r#"{"model":"hf.co/far/away:Q4_1","stream":false}"#,
        ] {
            let pull = request("POST", "/api/pull", &headers, body);
            told += &send(&mut double.router(), pull).await.told();
        }
    }
    expect![[r#"
        200
        {"status":"hf.co/far/away:Q4_1 is held by another node and usable as it is; nothing is fetched"}
        {"status":"success"}

        200
        {"status":"success"}
        200
        {"status":"hf.co/far/away:Q4_1 is held by another node and usable as it is; nothing is fetched"}
        {"status":"success"}

        200
        {"status":"success"}
    "#]].assert_eq(&told);
}

#[tokio::test]
async fn a_key_sees_its_own_jobs_and_their_place() {
    let double = Double::start();
    let bearer = format!("Bearer {PLAIN_KEY}");
    let ps = request("GET", "/api/ps", &[("authorization", &bearer)], "");
    let heard = send(&mut double.router(), ps).await;
    let told: serde_json::Value = serde_json::from_str(&heard.text).unwrap();
    let jobs = told["substrate"].as_array().unwrap();
    let places: Vec<_> = jobs.iter().map(|job| job["position"].as_u64()).collect();
    assert_eq!(places, [Some(2)], "not the admin's: {told}");
}

#[tokio::test]
async fn a_call_of_a_tool_is_told_as_one_streamed_or_whole() {
    for stream in [false, true] {
        let body = format!(
            r#"{{"model":"calls:1","stream":{stream},"messages":[{{"role":"user","content":"hi"}}],"tools":[{{"type":"function","function":{{"name":"f"}}}}]}}"#
        );
        let told = post("/api/chat", &body).await.text;
        assert!(
            told.contains(r#""tool_calls":[{"function":{"arguments":{"x":1},"name":"f"}}]"#)
                || told.contains(r#""tool_calls":[{"function":{"name":"f","arguments":{"x":1}}}]"#),
            "{told}"
        );
        assert!(told.contains(r#""content":"I look. ""#), "{told}");
        assert!(
            told.contains(r#""done":true,"done_reason":"stop""#),
            "{told}"
        );
        assert_eq!(told.lines().count(), if stream { 3 } else { 1 }, "{told}");
    }
}

#[tokio::test]
async fn vectors_are_cut_to_what_was_asked_and_a_wish_without_texts_loads() {
    let body = r#"{"model":"tiny:1","input":["a","b"],"dimensions":2}"#;
    check("/api/embed", body, expect![[r#"
        200
        {"model":"tiny:1","embeddings":[[0.6,0.8],[-0.6,-0.8]],"total_duration":433000000,"load_duration":0,"prompt_eval_count":6,"substrate":{"job":"00000000000000000000000000000001","node":"0707070707070707070707070707070707070707070707070707070707070707","route":"direct","scope":"circle","wall":"process","isolated":false,"attempts":1,"receipt":"0303030303030303030303030303030303030303030303030303030303030303","model_sha256":"0404040404040404040404040404040404040404040404040404040404040404","timings_ms":{"queue":1,"route":2,"load":0,"prefill":30,"decode":400,"total":433}}}
    "#]]).await;
    check(
        "/api/embeddings",
        r#"{"model":"tiny:1","prompt":"a"}"#,
        expect![[r#"
            200
            {"embedding":[0.6,0.8,0.0]}
        "#]],
    )
    .await;
    check(
        "/api/embed",
        r#"{"model":"tiny:1"}"#,
        expect![[r#"
        200
        {"model":"tiny:1","embeddings":[]}
    "#]],
    )
    .await;
}
