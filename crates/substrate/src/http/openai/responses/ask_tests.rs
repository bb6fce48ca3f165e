//! Requests of the responses API in, jobs or refusals out.

use expect_test::{Expect, expect};

use super::*;
use crate::http::body;
use crate::http::error::Shape;
use crate::http::tests::{DOT, caller, describe};

fn told(json: &str) -> String {
    let plan = body::parse(json.as_bytes()).and_then(|request| responses(request, &caller()));
    match plan {
        Ok(plan) => {
            let head = format!("stream={} thinking={:?}\n", plan.stream, plan.thinking);
            let schema = plan.ask.input.schema.as_deref().unwrap_or("none");
            head + &format!("schema {schema}\n") + &describe(&plan.ask)
        }
        Err(refusal) => format!("{}\n", refusal.body(Shape::OpenAi)["error"]),
    }
}

fn check(json: &str, expect: Expect) {
    expect.assert_eq(&told(json));
}

#[test]
fn the_smallest_request_has_openais_defaults() {
    check(
        r#"{"model":"m","input":"hi"}"#,
        expect![[r#"
        stream=false thinking=None
        schema none
        model m choice 0 scope Some(Circle) client Anonymous
        temperature 1000000 top_k 0 top_p 1000000 min_p 0 typical_p 1000000 repeat 1000000/-1 presence 0 frequency 0 n 1 logprobs None
        seed None max None stop [] bias [] tools None
        user: "hi"
    "#]],
    );
}

#[test]
fn items_become_the_turns_that_templates_know() {
    check(
        r#"{"model":"m:1","instructions":"Be brief.","input":[{"role":"developer","content":"Be kind."},{"type":"message","role":"user","content":[{"type":"input_text","text":"a"},{"type":"input_text","text":"b"}]},
        {"type":"reasoning","id":"rs_1","summary":[],"encrypted_content":"x"},
        {"type":"message","id":"msg_1","role":"assistant","status":"completed","content":[{"type":"output_text","text":"I look.","annotations":[]}]},
        {"type":"function_call","id":"fc_1","call_id":"c1","name":"f","arguments":"{\"z\":1}","status":"completed"},{"type":"function_call","call_id":"c2","name":"g","arguments":""},
        {"type":"function_call_output","call_id":"c1","output":"42"},{"type":"function_call_output","call_id":"c2","output":[{"type":"input_text","text":"broken"}]},
        {"type":"function_call","call_id":"c3","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c3","output":"43"}],
        "max_output_tokens":7,"temperature":0.5,"top_p":0.25,"stream":true,"store":true,"reasoning":{"effort":"high","summary":"auto"},"include":["reasoning.encrypted_content"],"truncation":"disabled",
        "tools":[{"type":"function","name":"f","description":"d","parameters":{"type":"object","z":1,"a":2},"strict":true},{"type":"function","name":"g"}],"tool_choice":"auto","parallel_tool_calls":false,"metadata":{"a":"b"}}"#,
        expect![[r#"
            stream=true thinking=Some(High)
            schema none
            model m:1 choice 0 scope Some(Circle) client Anonymous
            temperature 500000 top_k 0 top_p 250000 min_p 0 typical_p 1000000 repeat 1000000/-1 presence 0 frequency 0 n 1 logprobs None
            seed None max Some(7) stop [] bias [] tools Some("[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"description\":\"d\",\"parameters\":{\"type\":\"object\",\"z\":1,\"a\":2}}},{\"type\":\"function\",\"function\":{\"name\":\"g\"}}]")
            system: "Be brief."
            system: "Be kind."
            user: "a\nb"
            assistant: "I look." calls=[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"z\":1}"}},{"id":"c2","type":"function","function":{"name":"g","arguments":"{}"}}]
            tool: "42" name=f answers=c1
            tool: "broken" name=g answers=c2
            assistant: "" calls=[{"id":"c3","type":"function","function":{"name":"f","arguments":"{}"}}]
            tool: "43" name=f answers=c3
        "#]],
    );
}

#[test]
fn a_format_or_a_choice_binds_the_answer() {
    let bound = |more: &str| {
        let json = format!(r#"{{"model":"m","input":"hi",{more}}}"#);
        let plan = body::parse(json.as_bytes()).and_then(|request| responses(request, &caller()));
        let input = plan.map(|plan| plan.ask.input).expect("it is sound");
        input.schema.unwrap_or_default()
    };
    assert_eq!(bound(r#""text":{"format":{"type":"text"}}"#), "");
    assert_eq!(
        bound(r#""text":{"format":{"type":"json_object"}}"#),
        ANY_OBJECT
    );
    let schema = r#""text":{"format":{"type":"json_schema","name":"n","strict":true,"schema":{"type":"integer"}},"verbosity":"low"}"#;
    assert_eq!(bound(schema), r#"{"type":"integer"}"#);
    let tools =
        r#""tools":[{"type":"function","name":"f"},{"type":"function","name":"g"}],"tool_choice""#;
    assert_eq!(bound(&format!(r#"{tools}:"none""#)), "");
    let any = bound(&format!(r#"{tools}:"required""#));
    assert!(
        any.contains(r#""const":"f""#) && any.contains(r#""const":"g""#),
        "{any}"
    );
    let one = bound(&format!(r#"{tools}:{{"type":"function","name":"g"}}"#));
    assert!(
        !one.contains(r#""const":"f""#) && one.contains(r#""const":"g""#),
        "{one}"
    );
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let input = |input: &str| format!(r#""input":{input}"#);
    let hi = r#""input":"hi""#;
    let bad = [
        input("[]"),
        input("7"),
        input(r#"[{"role":"robot","content":"hi"}]"#),
        input(r#"[{"role":"user","content":[{"type":"input_image","image_url":"x"}]}]"#),
        input(r#"[{"type":"item_reference","id":"msg_1"}]"#),
        input(r#"[{"type":"web_search_call","id":"ws_1"}]"#),
        input(r#"[{"type":"function_call","name":"f","arguments":"{}"}]"#),
        format!(r#"{hi},"previous_response_id":"resp_1""#),
        format!(r#"{hi},"conversation":"conv_1""#),
        format!(r#"{hi},"background":true"#),
        format!(r#"{hi},"prompt":{{"id":"p"}}"#),
        format!(r#"{hi},"truncation":"auto""#),
        format!(r#"{hi},"include":["message.output_text.logprobs"]"#),
        format!(r#"{hi},"max_output_tokens":0"#),
        format!(r#"{hi},"temperature":3"#),
        format!(r#"{hi},"reasoning":{{"effort":"hard"}}"#),
        format!(r#"{hi},"text":{{"format":{{"type":"xml"}}}}"#),
        format!(r#"{hi},"text":{{"format":{{"type":"json_schema","name":"n"}}}}"#),
        format!(r#"{hi},"tools":[{{"type":"web_search"}}]"#),
        format!(
            r#"{hi},"tools":[{{"type":"function","name":"f"}}],"tool_choice":{{"type":"allowed_tools"}}"#
        ),
        format!(r#"{hi},"tool_choice":"required""#),
    ];
    let bad = bad
        .iter()
        .map(|bad| told(&format!(r#"{{"model":"m",{bad}}}"#)));
    expect![[r#"
        {"code":"invalid_value","message":"input must be a string or a list of items, and not empty","param":"input","type":"invalid_request_error"}
        {"code":"invalid_request","message":"input: invalid type: integer `7`, expected a string or a list of at most 4096 parts at line 1 column 22","param":"input","type":"invalid_request_error"}
        {"code":"invalid_value","message":"role 'robot' is not one of system, developer, user, assistant","param":"input[0].role","type":"invalid_request_error"}
        {"code":"invalid_value","message":"an image must be a data: URI with base64 in it, not 'x'","param":"input[0].content","type":"invalid_request_error"}
        {"code":"invalid_value","message":"input[0]: no item is stored: send it instead of its id","param":"input[0]","type":"invalid_request_error"}
        {"code":"not_implemented","message":"an item of type 'web_search_call' is not there yet","param":"input[0]","type":"invalid_request_error"}
        {"code":"invalid_value","message":"input[0].call_id is required","param":"input[0].call_id","type":"invalid_request_error"}
        {"code":"invalid_value","message":"no response is stored: send the whole conversation as input","param":"previous_response_id","type":"invalid_request_error"}
        {"code":"invalid_value","message":"no response is stored: send the whole conversation as input","param":"conversation","type":"invalid_request_error"}
        {"code":"not_implemented","message":"background is not there yet","param":"background","type":"invalid_request_error"}
        {"code":"not_implemented","message":"prompt is not there yet","param":"prompt","type":"invalid_request_error"}
        {"code":"not_implemented","message":"truncation is not there yet","param":"truncation","type":"invalid_request_error"}
        {"code":"not_implemented","message":"message.output_text.logprobs is not there yet","param":"include","type":"invalid_request_error"}
        {"code":"invalid_value","message":"max_output_tokens must be at least 1, not 0","param":"max_output_tokens","type":"invalid_request_error"}
        {"code":"invalid_value","message":"temperature must be between 0 and 2, not 3","param":"temperature","type":"invalid_request_error"}
        {"code":"invalid_value","message":"reasoning.effort must be none, minimal, low, medium, high or xhigh, not 'hard'","param":"reasoning.effort","type":"invalid_request_error"}
        {"code":"not_implemented","message":"text.format 'xml' is not there yet","param":"text.format","type":"invalid_request_error"}
        {"code":"invalid_value","message":"text.format.schema is missing","param":"text.format","type":"invalid_request_error"}
        {"code":"not_implemented","message":"a tool of type 'web_search' is not there yet","param":"tools[0].type","type":"invalid_request_error"}
        {"code":"not_implemented","message":"a tool_choice of type 'allowed_tools' is not there yet","param":"tool_choice","type":"invalid_request_error"}
        {"code":"invalid_value","message":"tool_choice asks for a call, and there are no tools","param":"tool_choice","type":"invalid_request_error"}
    "#]].assert_eq(&bad.collect::<String>());
}

#[test]
fn images_stand_where_they_were_among_the_text() {
    let told = told(&format!(
        r#"{{"model":"m","input":[{{"role":"user","content":[{{"type":"input_text","text":"a"}},{{"type":"input_image","image_url":"data:image/gif;base64,{DOT}"}}]}}]}}"#
    ));
    assert!(told.contains(r#"user: "a" image@1=42"#), "{told}");
}
