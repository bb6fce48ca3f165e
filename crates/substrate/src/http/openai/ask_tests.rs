//! OpenAI requests in, jobs or refusals out.

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::http::body;
use crate::http::error::Shape;
use crate::http::tests::{DOT, caller, describe};

fn told(plan: Result<Plan, Refusal>) -> String {
    match plan {
        Ok(plan) => {
            let head = format!(
                "{} of {} stream={} usage={}\n",
                plan.per_prompt,
                plan.asks.len(),
                plan.stream,
                plan.include_usage
            );
            head + &plan.asks.iter().map(describe).collect::<String>()
        }
        Err(refusal) => format!("{}\n", refusal.body(Shape::OpenAi)["error"]),
    }
}

fn chat_told(json: &str) -> String {
    told(body::parse(json.as_bytes()).and_then(|request| chat(request, &caller())))
}

fn check(json: &str, expect: Expect) {
    expect.assert_eq(&chat_told(json));
}

#[test]
fn the_smallest_chat_has_openais_defaults() {
    check(
        r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#,
        expect![[r#"
        1 of 1 stream=false usage=false
        model m choice 0 scope Some(Circle) client Anonymous
        temperature 1000000 top_k 0 top_p 1000000 min_p 0 typical_p 1000000 repeat 1000000/-1 presence 0 frequency 0 n 1 logprobs None
        seed None max None stop [] bias [] tools None
        user: "hi"
    "#]],
    );
}

#[test]
fn every_parameter_arrives() {
    check(
        r#"{"model":"m:1","messages":[{"role":"developer","content":"be brief"},{"role":"user","name":"ann","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
            {"role":"assistant","content":null,"reasoning_content":"hm","tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}}]},
            {"role":"tool","tool_call_id":"c1","content":"42"}],
            "stream":true,"stream_options":{"include_usage":true},"stop":["x","yy"],"seed":-7,"temperature":0.7,"top_p":0.25,"top_k":40,"min_p":0.05,"max_tokens":5,"max_completion_tokens":6,
            "logprobs":true,"top_logprobs":3,"n":2,"logit_bias":{"50":-100,"7":0.5},"presence_penalty":-2,"frequency_penalty":1.5,"user":"u","response_format":{"type":"text"},
            "tools":[{"type":"function","function":{"name":"f","z":1,"a":2}}],"tool_choice":"none","parallel_tool_calls":true,"metadata":{"anything":[1,2]}}"#,
        expect![[r#"
            2 of 2 stream=true usage=true
            model m:1 choice 0 scope Some(Circle) client Anonymous
            temperature 700000 top_k 40 top_p 250000 min_p 50000 typical_p 1000000 repeat 1000000/-1 presence -2000000 frequency 1500000 n 1 logprobs Some(3)
            seed Some(-7) max Some(6) stop ["x", "yy"] bias [(7, 32768), (50, -6553600)] tools None
            system: "be brief"
            user: "a\nb" name=ann
            assistant: "" calls=[{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}}] thinking=hm
            tool: "42" answers=c1
            model m:1 choice 1 scope Some(Circle) client Anonymous
            temperature 700000 top_k 40 top_p 250000 min_p 50000 typical_p 1000000 repeat 1000000/-1 presence -2000000 frequency 1500000 n 1 logprobs Some(3)
            seed Some(-7) max Some(6) stop ["x", "yy"] bias [(7, 32768), (50, -6553600)] tools None
            system: "be brief"
            user: "a\nb" name=ann
            assistant: "" calls=[{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}}] thinking=hm
            tool: "42" answers=c1
        "#]],
    );
}

#[test]
fn nulls_are_absences() {
    let nulls = [
        "stop",
        "seed",
        "temperature",
        "n",
        "tools",
        "tool_choice",
        "stream",
        "stream_options",
        "logit_bias",
        "response_format",
        "max_tokens",
    ]
    .map(|name| format!(",\"{name}\":null"))
    .concat();
    let with = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}]{nulls}}}"#);
    assert_eq!(
        chat_told(&with),
        chat_told(r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#)
    );
}

#[test]
fn tools_are_shown_to_the_model_unless_their_use_is_forbidden() {
    let with = |more: &str| {
        format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}],"tools":[{{"type":"function","function":{{"name":"f"}}}}]{more}}}"#
        )
    };
    assert!(chat_told(&with(r#","tool_choice":"none""#)).contains("tools None"));
    for more in [
        "",
        r#","tool_choice":"auto""#,
        r#","tool_choice":"required""#,
    ] {
        let told = chat_told(&with(more));
        assert!(told.contains("tools Some("), "{told}");
    }
    let both = chat_told(&with(r#","response_format":{"type":"json_object"}"#));
    assert!(
        both.contains("a schema for the answer beside tools is not there yet"),
        "{both}"
    );
    let odd = chat_told(&with(
        r#","tool_choice":{"type":"function","function":{"name":"g"}}"#,
    ));
    assert!(odd.contains("\"param\":\"tool_choice\""), "{odd}");
}

#[test]
fn what_cannot_be_right_is_refused_by_name() {
    let bad = [
        r#""temperature":-0.1"#,
        r#""temperature":2.1"#,
        r#""temperature":"hot""#,
        r#""top_p":1.5"#,
        r#""top_k":1.5"#,
        r#""min_p":-1"#,
        r#""presence_penalty":3"#,
        r#""frequency_penalty":-3"#,
        r#""n":0"#,
        r#""n":9"#,
        r#""n":1000000000"#,
        r#""n":1e9"#,
        r#""max_tokens":0"#,
        r#""max_completion_tokens":-1"#,
        r#""top_logprobs":2"#,
        r#""logprobs":true,"top_logprobs":21"#,
        r#""stop":["ok",""]"#,
        r#""stop":7"#,
        r#""logit_bias":{"x":1}"#,
        r#""logit_bias":{"1":101}"#,
        r#""logit_bias":{"1":1,"01":1}"#,
        r#""response_format":{"type":"xml"}"#,
        r#""response_format":{"type":"json_schema","json_schema":{}}"#,
        r#""tools":{}"#,
        r#""tool_choice":"required""#,
        r#""tool_choice":{"type":"function","function":{"name":"f"}}"#,
        r#""tool_choice":"maybe""#,
        r#""functions":[]"#,
        r#""seed":1.5"#,
        r#""stream":"yes""#,
    ];
    let told: String = bad
        .iter()
        .map(|bad| {
            chat_told(&format!(
                r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}],{bad}}}"#
            ))
        })
        .collect();
    expect![[r#"
        {"code":"invalid_value","message":"temperature must be between 0 and 2, not -0.1","param":"temperature","type":"invalid_request_error"}
        {"code":"invalid_value","message":"temperature must be between 0 and 2, not 2.1","param":"temperature","type":"invalid_request_error"}
        {"code":"invalid_request","message":"temperature: invalid type: string \"hot\", expected f64 at line 1 column 76","param":"temperature","type":"invalid_request_error"}
        {"code":"invalid_value","message":"top_p must be between 0 and 1, not 1.5","param":"top_p","type":"invalid_request_error"}
        {"code":"invalid_value","message":"top_k must be a whole number, not 1.5","param":"top_k","type":"invalid_request_error"}
        {"code":"invalid_value","message":"min_p must be between 0 and 1, not -1","param":"min_p","type":"invalid_request_error"}
        {"code":"invalid_value","message":"presence_penalty must be between -2 and 2, not 3","param":"presence_penalty","type":"invalid_request_error"}
        {"code":"invalid_value","message":"frequency_penalty must be between -2 and 2, not -3","param":"frequency_penalty","type":"invalid_request_error"}
        {"code":"invalid_value","message":"n must be between 1 and 8, not 0","param":"n","type":"invalid_request_error"}
        {"code":"invalid_value","message":"n must be between 1 and 8, not 9","param":"n","type":"invalid_request_error"}
        {"code":"invalid_value","message":"n must be between 1 and 8, not 1000000000","param":"n","type":"invalid_request_error"}
        {"code":"invalid_request","message":"n: invalid type: floating point `1000000000.0`, expected i64 at line 1 column 64","param":"n","type":"invalid_request_error"}
        {"code":"invalid_value","message":"max_tokens must be at least 1, not 0","param":"max_tokens","type":"invalid_request_error"}
        {"code":"invalid_value","message":"max_completion_tokens must be at least 1, not -1","param":"max_completion_tokens","type":"invalid_request_error"}
        {"code":"invalid_value","message":"top_logprobs needs logprobs: true","param":"top_logprobs","type":"invalid_request_error"}
        {"code":"invalid_value","message":"top_logprobs must be between 0 and 20, not 21","param":"top_logprobs","type":"invalid_request_error"}
        {"code":"invalid_value","message":"every stop string must have 1 to 1024 bytes, not 0","param":"stop","type":"invalid_request_error"}
        {"code":"invalid_request","message":"stop: invalid type: integer `7`, expected a string or a list of at most 64 strings at line 1 column 65","param":"stop","type":"invalid_request_error"}
        {"code":"invalid_value","message":"logit_bias must map token ids to numbers","param":"logit_bias","type":"invalid_request_error"}
        {"code":"invalid_value","message":"logit_bias must be between -100 and 100, not 101","param":"logit_bias","type":"invalid_request_error"}
        {"code":"invalid_value","message":"logit_bias names a token twice","param":"logit_bias","type":"invalid_request_error"}
        {"code":"not_implemented","message":"response_format 'xml' is not there yet","param":"response_format","type":"invalid_request_error"}
        {"code":"invalid_value","message":"response_format.json_schema.schema is missing","param":"response_format","type":"invalid_request_error"}
        {"code":"invalid_value","message":"tools must be a list","param":"tools","type":"invalid_request_error"}
        {"code":"invalid_value","message":"tool_choice asks for a call, and there are no tools","param":"tool_choice","type":"invalid_request_error"}
        {"code":"invalid_value","message":"tool_choice asks for a call, and there are no tools","param":"tool_choice","type":"invalid_request_error"}
        {"code":"invalid_value","message":"tool_choice must be auto, none, required or a function","param":"tool_choice","type":"invalid_request_error"}
        {"code":"not_implemented","message":"the deprecated parameter functions (use tools) is not there yet","param":"functions","type":"invalid_request_error"}
        {"code":"invalid_request","message":"seed: invalid type: floating point `1.5`, expected i64 at line 1 column 67","param":"seed","type":"invalid_request_error"}
        {"code":"invalid_request","message":"stream: invalid type: string \"yes\", expected a boolean at line 1 column 71","param":"stream","type":"invalid_request_error"}
    "#]].assert_eq(&told);
}

#[test]
fn bad_messages_are_refused_by_place() {
    let bad = [
        r#"{"model":"m"}"#,
        r#"{"model":"m","messages":[]}"#,
        r#"{"messages":[{"role":"user","content":"hi"}]}"#,
        r#"{"model":"a b","messages":[{"role":"user","content":"hi"}]}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"hi"},{"role":"robot","content":"hi"}]}"#,
        r#"{"model":"m","messages":[{"content":"hi"}]}"#,
        r#"{"model":"m","messages":[{"role":"user","content":7}]}"#,
        r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}"#,
    ];
    let told: String = bad.iter().map(|bad| chat_told(bad)).collect();
    expect![[r#"
        {"code":"invalid_value","message":"messages must not be empty","param":"messages","type":"invalid_request_error"}
        {"code":"invalid_value","message":"messages must not be empty","param":"messages","type":"invalid_request_error"}
        {"code":"invalid_value","message":"model is required","param":"model","type":"invalid_request_error"}
        {"code":"invalid_value","message":"invalid model name 'a b'","param":"model","type":"invalid_request_error"}
        {"code":"invalid_value","message":"role 'robot' is not one of system, developer, user, assistant, tool","param":"messages[1].role","type":"invalid_request_error"}
        {"code":"invalid_request","message":"messages[0]: missing field `role` at line 1 column 41","param":"messages[0]","type":"invalid_request_error"}
        {"code":"invalid_request","message":"messages[0].content: invalid type: integer `7`, expected a string or a list of content parts at line 1 column 51","param":"messages[0].content","type":"invalid_request_error"}
        {"code":"invalid_value","message":"an image must be a data: URI with base64 in it, not 'x'","param":"messages[0].content","type":"invalid_request_error"}
    "#]].assert_eq(&told);
}

#[test]
fn completions_are_text_without_a_template() {
    let told = |json: &str| {
        told(body::parse(json.as_bytes()).and_then(|request| completion(request, &caller())))
    };
    let cases = [
        r#"{"model":"m","prompt":"once"}"#,
        r#"{"model":"m","prompt":["a","b"],"n":2,"logprobs":5,"max_tokens":99999999}"#,
        r#"{"model":"m"}"#,
        r#"{"model":"m","prompt":[1,2]}"#,
        r#"{"model":"m","prompt":"a","echo":true}"#,
        r#"{"model":"m","prompt":"a","suffix":"b"}"#,
        r#"{"model":"m","prompt":"a","best_of":2}"#,
        r#"{"model":"m","prompt":"a","logprobs":21}"#,
        r#"{"model":"m","prompt":["a","b"],"n":8}"#,
    ];
    expect![[r#"
        1 of 1 stream=false usage=false
        model m choice 0 scope Some(Circle) client Anonymous
        temperature 1000000 top_k 0 top_p 1000000 min_p 0 typical_p 1000000 repeat 1000000/-1 presence 0 frequency 0 n 1 logprobs None
        seed None max None stop [] bias [] tools None
        text special=true "once"
        2 of 4 stream=false usage=false
        model m choice 0 scope Some(Circle) client Anonymous
        temperature 1000000 top_k 0 top_p 1000000 min_p 0 typical_p 1000000 repeat 1000000/-1 presence 0 frequency 0 n 1 logprobs Some(5)
        seed None max Some(1048576) stop [] bias [] tools None
        text special=true "a"
        model m choice 1 scope Some(Circle) client Anonymous
        temperature 1000000 top_k 0 top_p 1000000 min_p 0 typical_p 1000000 repeat 1000000/-1 presence 0 frequency 0 n 1 logprobs Some(5)
        seed None max Some(1048576) stop [] bias [] tools None
        text special=true "a"
        model m choice 0 scope Some(Circle) client Anonymous
        temperature 1000000 top_k 0 top_p 1000000 min_p 0 typical_p 1000000 repeat 1000000/-1 presence 0 frequency 0 n 1 logprobs Some(5)
        seed None max Some(1048576) stop [] bias [] tools None
        text special=true "b"
        model m choice 1 scope Some(Circle) client Anonymous
        temperature 1000000 top_k 0 top_p 1000000 min_p 0 typical_p 1000000 repeat 1000000/-1 presence 0 frequency 0 n 1 logprobs Some(5)
        seed None max Some(1048576) stop [] bias [] tools None
        text special=true "b"
        {"code":"invalid_value","message":"prompt must be a string or a list of strings","param":"prompt","type":"invalid_request_error"}
        {"code":"invalid_request","message":"prompt[0]: invalid type: integer `1`, expected a string at line 1 column 24","param":"prompt[0]","type":"invalid_request_error"}
        {"code":"not_implemented","message":"echo is not there yet","param":"echo","type":"invalid_request_error"}
        {"code":"not_implemented","message":"suffix is not there yet","param":"suffix","type":"invalid_request_error"}
        {"code":"not_implemented","message":"best_of other than n is not there yet","param":"best_of","type":"invalid_request_error"}
        {"code":"invalid_value","message":"logprobs must be between 0 and 20, not 21","param":"logprobs","type":"invalid_request_error"}
        {"code":"invalid_value","message":"n times the number of prompts must be at most 8","param":"prompt","type":"invalid_request_error"}
    "#]].assert_eq(&cases.iter().map(|json| told(json)).collect::<String>());
}

proptest! {
    #[test]
    fn no_bytes_break_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = body::parse::<ChatRequest>(&bytes);
    }

    #[test]
    fn no_json_breaks_the_mapping(value in r#"(null|true|-?[0-9]{1,20}(\.[0-9])?|"[a-z]{0,3}"|\[\]|\[\["x"\]\]|\{"1":[0-9]\})"#, field in 0..FIELDS.len()) {
        let json = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}],"prompt":"x","{}":{value}}}"#, FIELDS[field]);
        let _ = body::parse(json.as_bytes()).and_then(|request| chat(request, &caller()));
        let _ = body::parse(json.as_bytes()).and_then(|request| completion(request, &caller()));
    }
}

const FIELDS: [&str; 18] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "seed",
    "stop",
    "max_tokens",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "tools",
    "tool_choice",
    "response_format",
    "stream_options",
    "best_of",
];

#[test]
fn images_stand_where_they_were_among_the_text() {
    let image = format!(
        r#"{{"type":"image_url","image_url":{{"url":"data:image/gif;base64,{DOT}","detail":"low"}}}}"#
    );
    let content = format!(
        r#"[{{"type":"text","text":"a"}},{{"type":"text","text":"b"}},{image},{{"type":"text","text":"c"}},{{"type":"text","text":"d"}},{image}]"#
    );
    let told = chat_told(&format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":{content}}}]}}"#
    ));
    let said = told.lines().last();
    assert_eq!(
        said,
        Some(r#"user: "a\nbc\nd" image@3=42 image@6=42"#),
        "{told}"
    );
    let web = chat_told(
        r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":"https://example.org/a.png"}]}]}"#,
    );
    assert!(web.contains("not fetched from the web"), "{web}");
}
