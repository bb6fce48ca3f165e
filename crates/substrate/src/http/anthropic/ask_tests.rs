//! Anthropic requests in, jobs or refusals out.

use expect_test::{Expect, expect};

use super::*;
use crate::http::body;
use crate::http::error::Shape;
use crate::http::tests::{DOT, caller, describe};

fn told(json: &str) -> String {
    let plan = body::parse(json.as_bytes()).and_then(|request| messages(request, &caller()));
    match plan {
        Ok(plan) => {
            let head = format!("stream={} thinking={:?}\n", plan.stream, plan.thinking);
            head + &describe(&plan.ask)
        }
        Err(refusal) => format!("{}\n", refusal.body(Shape::Anthropic)["error"]),
    }
}

fn check(json: &str, expect: Expect) {
    expect.assert_eq(&told(json));
}

#[test]
fn the_smallest_request_has_anthropics_defaults() {
    check(
        r#"{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"hi"}]}"#,
        expect![[r#"
            stream=false thinking=Some(Off)
            model m choice 0 scope Some(Circle) client Anonymous
            temperature 1000000 top_k 0 top_p 1000000 min_p 0 typical_p 1000000 repeat 1000000/-1 presence 0 frequency 0 n 1 logprobs None
            seed None max Some(5) stop [] bias [] tools None
            user: "hi"
        "#]],
    );
}

#[test]
fn blocks_become_the_turns_that_templates_know() {
    check(
        r#"{"model":"m:1","max_tokens":5,"system":[{"type":"text","text":"Be brief.","cache_control":{"type":"ephemeral"}},{"type":"text","text":"Be kind."}],
        "messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
        {"role":"assistant","content":[{"type":"thinking","thinking":"hm","signature":"x"},{"type":"redacted_thinking","data":"y"},{"type":"text","text":"I look."},
            {"type":"tool_use","id":"t1","name":"f","input":{"z":1,"a":[2]}},{"type":"tool_use","id":"t2","name":"g","input":{}}]},
        {"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":"42"},{"type":"tool_result","tool_use_id":"t2","is_error":true,"content":[{"type":"text","text":"broken"}]},{"type":"text","text":"and now?"}]}],
        "stop_sequences":["x"],"temperature":0.5,"top_p":0.25,"top_k":7,"stream":true,"thinking":{"type":"enabled","budget_tokens":1024},"metadata":{"user_id":"u"},
        "tools":[{"name":"f","description":"d","input_schema":{"type":"object","z":1,"a":2}},{"type":"custom","name":"g","input_schema":{"type":"object"}}],"tool_choice":{"type":"auto","disable_parallel_tool_use":true}}"#,
        expect![[r#"
            stream=true thinking=Some(On)
            model m:1 choice 0 scope Some(Circle) client Anonymous
            temperature 500000 top_k 7 top_p 250000 min_p 0 typical_p 1000000 repeat 1000000/-1 presence 0 frequency 0 n 1 logprobs None
            seed None max Some(5) stop ["x"] bias [] tools Some("[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"description\":\"d\",\"parameters\":{\"type\":\"object\",\"z\":1,\"a\":2}}},{\"type\":\"function\",\"function\":{\"name\":\"g\",\"parameters\":{\"type\":\"object\"}}}]")
            system: "Be brief.\nBe kind."
            user: "a\nb"
            assistant: "I look." calls=[{"id":"t1","type":"function","function":{"name":"f","arguments":{"z":1,"a":[2]}}},{"id":"t2","type":"function","function":{"name":"g","arguments":{}}}] thinking=hm
            tool: "42" name=f answers=t1
            tool: "broken" name=g answers=t2
            user: "and now?"
        "#]],
    );
}

#[test]
fn a_choice_binds_the_answer_to_a_call() {
    let bound = |choice: &str| {
        let json = format!(
            r#"{{"model":"m","max_tokens":5,"messages":[{{"role":"user","content":"hi"}}],"tools":[{{"name":"f"}},{{"name":"g"}}],"tool_choice":{choice}}}"#
        );
        let plan = body::parse(json.as_bytes()).and_then(|request| messages(request, &caller()));
        let input = plan.map(|plan| plan.ask.input).expect("it is sound");
        (input.tools.is_some(), input.schema.unwrap_or_default())
    };
    assert_eq!(bound(r#"{"type":"none"}"#), (false, String::new()));
    assert_eq!(bound(r#"{"type":"auto"}"#), (true, String::new()));
    let (_, any) = bound(r#"{"type":"any"}"#);
    assert!(
        any.contains(r#""const":"f""#) && any.contains(r#""const":"g""#),
        "{any}"
    );
    let (_, one) = bound(r#"{"type":"tool","name":"g"}"#);
    assert!(
        !one.contains(r#""const":"f""#) && one.contains(r#""const":"g""#),
        "{one}"
    );
}

#[test]
fn what_cannot_be_right_is_refused_by_name() {
    let hi = r#""max_tokens":5,"messages":[{"role":"user","content":"hi"}]"#;
    let content = |content: &str| {
        format!(r#""max_tokens":5,"messages":[{{"role":"user","content":{content}}}]"#)
    };
    let bad = [
        r#""messages":[{"role":"user","content":"hi"}]"#.to_owned(),
        r#""max_tokens":0,"messages":[{"role":"user","content":"hi"}]"#.to_owned(),
        r#""max_tokens":5,"messages":[]"#.to_owned(),
        r#""max_tokens":5,"messages":[{"role":"system","content":"hi"}]"#.to_owned(),
        r#""max_tokens":5,"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"{"}]"#.to_owned(),
        content(r#"[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"aGk="}}]"#),
        content(r#"[{"type":"tool_result","content":"42"}]"#),
        content(r#"[{"type":"tool_result","tool_use_id":"t","content":[{"type":"image"}]}]"#),
        content("7"),
        format!(r#"{hi},"temperature":1.5"#),
        format!(r#"{hi},"thinking":{{"type":"sometimes"}}"#),
        format!(r#"{hi},"tools":[{{"type":"web_search_20250305","name":"web_search"}}]"#),
        format!(r#"{hi},"tools":[{{"name":"a b"}}]"#),
        format!(r#"{hi},"tools":[{{"name":"f"}}],"tool_choice":{{"type":"sometimes"}}"#),
        format!(r#"{hi},"tools":[{{"name":"f"}}],"tool_choice":{{"type":"tool","name":"g"}}"#),
        format!(r#"{hi},"tool_choice":{{"type":"any"}}"#),
        format!(r#"{hi},"stop_sequences":[""]"#),
    ];
    let bad = bad
        .iter()
        .map(|bad| told(&format!(r#"{{"model":"m",{bad}}}"#)));
    expect![[r#"
        {"message":"max_tokens is required","type":"invalid_request_error"}
        {"message":"max_tokens must be at least 1, not 0","type":"invalid_request_error"}
        {"message":"messages must not be empty","type":"invalid_request_error"}
        {"message":"role 'system' is not one of user, assistant","type":"invalid_request_error"}
        {"message":"an answer that the client begins (the last turn is the assistant's) is not there yet","type":"invalid_request_error"}
        {"message":"the image cannot be used: it is neither PNG, JPEG nor GIF","type":"invalid_request_error"}
        {"message":"messages[0].content[0].tool_use_id is required","type":"invalid_request_error"}
        {"message":"messages[0].content[0].content: a content block of type 'image' is not there yet","type":"invalid_request_error"}
        {"message":"messages[0].content: invalid type: integer `7`, expected a string or a list of at most 1024 parts at line 1 column 66","type":"invalid_request_error"}
        {"message":"temperature must be between 0 and 1, not 1.5","type":"invalid_request_error"}
        {"message":"thinking.type must be enabled, disabled or adaptive, not 'sometimes'","type":"invalid_request_error"}
        {"message":"a tool of type 'web_search_20250305' is not there yet","type":"invalid_request_error"}
        {"message":"a tool's name has 1 to 64 letters, digits, underscores, dashes or dots, unlike 'a b'","type":"invalid_request_error"}
        {"message":"tool_choice.type must be auto, any, tool or none, not 'sometimes'","type":"invalid_request_error"}
        {"message":"tool_choice names 'g', which is not offered","type":"invalid_request_error"}
        {"message":"tool_choice asks for a call, and there are no tools","type":"invalid_request_error"}
        {"message":"every stop string must have 1 to 1024 bytes, not 0","type":"invalid_request_error"}
    "#]].assert_eq(&bad.collect::<String>());
}

#[test]
fn images_stand_where_they_were_in_turns_and_in_results() {
    let image = format!(
        r#"{{"type":"image","source":{{"type":"base64","media_type":"image/gif","data":"{DOT}"}}}}"#
    );
    let result = format!(r#"{{"type":"tool_result","tool_use_id":"t","content":[{image}]}}"#);
    let told = told(&format!(
        r#"{{"model":"m","max_tokens":5,"messages":[{{"role":"user","content":[{{"type":"text","text":"a"}},{image},{{"type":"text","text":"b"}},{result},{image}]}}]}}"#
    ));
    let said: Vec<&str> = told.lines().skip(4).collect();
    assert_eq!(
        said,
        [
            r#"user: "ab" image@1=42"#,
            r#"tool: "" answers=t image@0=42"#,
            r#"user: "" image@0=42"#,
        ],
        "{told}"
    );
}
