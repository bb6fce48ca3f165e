//! Ollama requests in, jobs or refusals out.

use expect_test::{Expect, expect};

use super::*;
use crate::http::body;
use crate::http::error::Shape;
use crate::http::tests::{DOT, caller, describe};

fn told(plan: Result<Plan, Refusal>) -> String {
    match plan {
        Ok(plan) => {
            let keep = plan.keep_alive.map(|keep| keep.seconds);
            let head = format!(
                "{} stream={} keep_alive={keep:?}\n",
                plan.model, plan.stream
            );
            match plan.wanted {
                Wanted::Answer(ask) => head + &describe(&ask),
                wanted => format!("{head}{wanted:?}\n"),
            }
        }
        Err(refusal) => format!("{}\n", refusal.body(Shape::Ollama)),
    }
}

fn chat_told(json: &str) -> String {
    told(body::parse(json.as_bytes()).and_then(|request| chat(request, &caller())))
}

fn generate_told(json: &str) -> String {
    told(body::parse(json.as_bytes()).and_then(|request| generate(request, &caller())))
}

fn check(told: &str, expect: Expect) {
    expect.assert_eq(told);
}

#[test]
fn the_smallest_chat_has_ollamas_defaults() {
    check(
        &chat_told(r#"{"model":"m","messages":[{"role":"User","content":"hi"}]}"#),
        expect![[r#"
        m stream=true keep_alive=None
        model m choice 0 scope Some(Circle) client Anonymous
        temperature 800000 top_k 40 top_p 900000 min_p 0 typical_p 1000000 repeat 1000000/64 presence 0 frequency 0 n 1 logprobs None
        seed None max None stop [] bias [] tools None
        user: "hi"
    "#]],
    );
}

#[test]
fn every_option_arrives() {
    let json = r#"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"assistant","content":"","thinking":"hm","tool_calls":[{"function":{"name":"f","arguments":{"z":1,"a":2}}}]},
        {"role":"tool","tool_name":"f","tool_call_id":"c","content":"42"}],"stream":false,"keep_alive":"1h30m","tools":[],"format":"","think":false,"logprobs":true,"top_logprobs":2,
        "options":{"num_predict":7.0,"seed":42.0,"temperature":0,"top_k":1,"top_p":1,"min_p":0.1,"typical_p":0.5,"repeat_last_n":-1,"repeat_penalty":1.1,"presence_penalty":0.5,"frequency_penalty":-0.5,
        "stop":["a",""],"num_ctx":4096,"num_gpu":99,"mirostat":0,"unknown":{}}}"#;
    check(
        &chat_told(json),
        expect![[r#"
        m stream=false keep_alive=Some(5400)
        model m choice 0 scope Some(Circle) client Anonymous
        temperature 0 top_k 1 top_p 1000000 min_p 100000 typical_p 500000 repeat 1100000/-1 presence 500000 frequency -500000 n 1 logprobs Some(2)
        seed Some(42) max Some(7) stop ["a"] bias [] tools None
        system: "s"
        assistant: "" calls=[{"function":{"name":"f","arguments":{"z":1,"a":2}}}] thinking=hm
        tool: "42" name=f answers=c
    "#]],
    );
}

#[test]
fn generate_makes_a_conversation_unless_raw() {
    check(
        &generate_told(r#"{"model":"m","prompt":"hi","system":"be brief"}"#),
        expect![[r#"
        m stream=true keep_alive=None
        model m choice 0 scope Some(Circle) client Anonymous
        temperature 800000 top_k 40 top_p 900000 min_p 0 typical_p 1000000 repeat 1000000/64 presence 0 frequency 0 n 1 logprobs None
        seed None max None stop [] bias [] tools None
        system: "be brief"
        user: "hi"
    "#]],
    );
    check(
        &generate_told(
            r#"{"model":"m","prompt":"<s>hi","system":"ignored","raw":true,"options":{"seed":-1,"num_predict":-2}}"#,
        ),
        expect![[r#"
        m stream=true keep_alive=None
        model m choice 0 scope Some(Circle) client Anonymous
        temperature 800000 top_k 40 top_p 900000 min_p 0 typical_p 1000000 repeat 1000000/64 presence 0 frequency 0 n 1 logprobs None
        seed None max None stop [] bias [] tools None
        text special=true "<s>hi"
    "#]],
    );
}

#[test]
fn nothing_to_answer_is_load_or_unload() {
    let cases = [
        r#"{"model":"m"}"#,
        r#"{"model":"m","prompt":"","keep_alive":-1}"#,
        r#"{"model":"m","keep_alive":0}"#,
        r#"{"model":"m","keep_alive":"0s"}"#,
        r#"{"name":"m","keep_alive":0.2}"#,
        r#"{"model":"m","keep_alive":"5"}"#,
        r#"{"model":"m","keep_alive":[]}"#,
    ];
    check(
        &cases
            .iter()
            .map(|json| generate_told(json))
            .collect::<String>(),
        expect![[r#"
        m stream=true keep_alive=None
        Load
        m stream=true keep_alive=Some(-1)
        Load
        m stream=true keep_alive=Some(0)
        Unload
        m stream=true keep_alive=Some(0)
        Unload
        m stream=true keep_alive=Some(1)
        Load
        {"error":"keep_alive: invalid duration \"5\" at line 1 column 29"}
        {"error":"keep_alive: invalid type: sequence, expected a number of seconds or a duration such as \"5m\" at line 1 column 28"}
    "#]],
    );
}

#[test]
fn what_cannot_be_right_is_refused_by_name() {
    let bad = [
        r#""options":{"temperature":-1}"#,
        r#""options":{"temperature":11}"#,
        r#""options":{"top_p":2}"#,
        r#""options":{"repeat_penalty":0}"#,
        r#""options":{"num_predict":"many"}"#,
        r#""options":{"num_predict":1.5}"#,
        r#""options":{"repeat_last_n":-2}"#,
        r#""options":[]"#,
        r#""format":"xml""#,
        r#""format":7"#,
        r#""think":1"#,
        r#""think":"hard""#,
        r#""top_logprobs":21"#,
        r#""images":["aGk="]"#,
        r#""suffix":"x""#,
        r#""template":"{{ .Prompt }}""#,
        r#""context":[1,2]"#,
        r#""stream":1"#,
    ];
    let told: String = bad
        .iter()
        .map(|bad| generate_told(&format!(r#"{{"model":"m","prompt":"hi",{bad}}}"#)))
        .collect();
    check(
        &told,
        expect![[r#"
            {"error":"temperature must be between 0 and 10, not -1"}
            {"error":"temperature must be between 0 and 10, not 11"}
            {"error":"top_p must be between 0 and 1, not 2"}
            {"error":"repeat_penalty must be between 0.01 and 10, not 0"}
            {"error":"options.num_predict: must be a whole number at line 1 column 59"}
            {"error":"options.num_predict: must be a whole number, not 1.5 at line 1 column 56"}
            {"error":"repeat_last_n must be between -1 and 1000000, not -2"}
            {"error":"options: invalid length 2, expected an object at line 1 column 39"}
            {"error":"format must be \"json\" or a JSON schema"}
            {"error":"format must be \"json\" or a JSON schema"}
            {"error":"think must be true, false, \"low\", \"medium\", \"high\" or \"max\""}
            {"error":"think must be true, false, \"low\", \"medium\", \"high\" or \"max\""}
            {"error":"top_logprobs must be between 0 and 20, not 21"}
            {"error":"the image cannot be used: it is neither PNG, JPEG nor GIF"}
            {"error":"suffix is not there yet"}
            {"error":"the template is one of Go's, as Ollama writes them, and those are not run here: write it in Jinja, as `tokenizer.chat_template` of GGUF files is, or leave it out to use the file's own"}
            {"error":"context is not there yet"}
            {"error":"stream: invalid type: integer `1`, expected a boolean at line 1 column 37"}
        "#]],
    );
    let bad = [
        r#"{"messages":[{"role":"user","content":"hi"}]}"#,
        r#"{"model":"m","messages":[{"role":"robot","content":"hi"}]}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"hi","images":["aGk="]}]}"#,
        r#"{"model":"m","messages":[{"role":"user","content":["hi"]}]}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function"}]}"#,
    ];
    check(
        &bad.iter().map(|json| chat_told(json)).collect::<String>(),
        expect![[r#"
            {"error":"model is required"}
            {"error":"role 'robot' is not one of system, user, assistant, tool"}
            {"error":"the image cannot be used: it is neither PNG, JPEG nor GIF"}
            {"error":"messages[0].content: invalid type: sequence, expected a string at line 1 column 50"}
            {"error":"a tool needs a function"}
        "#]],
    );
}

#[test]
fn images_come_before_what_is_said_of_them() {
    let chat = chat_told(&format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":"hi","images":["{DOT}","{DOT}"]}}]}}"#
    ));
    assert!(
        chat.contains(r#"user: "hi" image@0=42 image@0=42"#),
        "{chat}"
    );
    let one = format!(r#"{{"model":"m","prompt":"hi","images":["{DOT}"]"#);
    let generate = generate_told(&format!("{one}}}"));
    assert!(generate.contains(r#"user: "hi" image@0=42"#), "{generate}");
    let raw = generate_told(&format!(r#"{one},"raw":true}}"#));
    assert!(
        raw.contains("an image in raw text is not there yet"),
        "{raw}"
    );
    let many = vec![format!("\"{DOT}\""); 17].join(",");
    let many = generate_told(&format!(
        r#"{{"model":"m","prompt":"hi","images":[{many}]}}"#
    ));
    assert!(many.contains("more than 16 elements"), "{many}");
}
