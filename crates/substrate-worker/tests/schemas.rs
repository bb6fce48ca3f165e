//! Answers bound to a JSON schema: they are what the schema says, at any temperature, also after a resume, and
//! a schema that cannot be followed is refused with a reason that does not repeat it.

mod support;

use serde_json::{Value, json};
use substrate_sandbox::wire::{Failure, Input, Prepare, Sampler};
use substrate_worker::engine::Engine;
use support::{Answer, engine, greedy, job, run, user};

fn bound(question: &str, schema: &Value) -> Input {
    Input {
        schema: Some(schema.to_string()),
        ..user(question)
    }
}

fn answer(engine: &mut Engine, seq: u64, schema: &Value, sampler: Sampler) -> Answer {
    let input = bound("Describe a person.", schema);
    let asked = Prepare {
        seed: [seq as u8; 32],
        ..job(seq, &input, sampler, 200)
    };
    run(engine, &asked)
}

/// A schema, and what every answer to it must be.
type Case = (Value, fn(&Value) -> bool);

fn cases() -> Vec<Case> {
    vec![
        (
            json!({
                "type": "object",
                "properties": {
                    "name": { "type": "string", "maxLength": 20 },
                    "age": { "type": "integer", "minimum": 0, "maximum": 120 },
                },
                "required": ["name", "age"],
                "additionalProperties": false,
            }),
            |value| {
                let age = value["age"].as_u64();
                value["name"].is_string() && age.is_some_and(|age| age <= 120)
            },
        ),
        (
            json!({ "type": "array", "items": { "enum": ["red", "green", "blue"] }, "minItems": 2, "maxItems": 4 }),
            |value| {
                let colours = ["red", "green", "blue"];
                value.as_array().is_some_and(|list| {
                    (2..=4).contains(&list.len())
                        && list
                            .iter()
                            .all(|each| colours.iter().any(|colour| each == colour))
                })
            },
        ),
        (json!({ "type": "boolean" }), Value::is_boolean),
        (
            json!({
                "type": "object",
                "properties": { "points": {
                    "type": "array", "minItems": 1, "maxItems": 2,
                    "items": { "$ref": "#/$defs/point" },
                } },
                "required": ["points"],
                "additionalProperties": false,
                "$defs": { "point": {
                    "type": "object",
                    "properties": {
                        "x": { "type": "integer", "minimum": 0, "maximum": 9 },
                        "y": { "anyOf": [{ "type": "null" }, { "const": "up" }] },
                    },
                    "required": ["x", "y"],
                    "additionalProperties": false,
                } },
            }),
            |value| {
                value["points"].as_array().is_some_and(|points| {
                    points.iter().all(|point| {
                        point["x"].as_u64().is_some_and(|x| x < 10)
                            && (point["y"].is_null() || point["y"] == "up")
                    })
                })
            },
        ),
    ]
}

#[test]
fn every_answer_is_what_its_schema_says() {
    let mut engine = engine(1024);
    let hot = Sampler {
        temperature: 1_500_000,
        ..greedy()
    };
    let usual = Sampler {
        temperature: 800_000,
        top_k: 40,
        top_p: 900_000,
        repeat_last_n: 64,
        repeat: 1_100_000,
        ..greedy()
    };
    let mut seq = 0;
    for (schema, holds) in cases() {
        for sampler in [greedy(), usual, hot, hot] {
            seq += 1;
            let answer = answer(&mut engine, seq, &schema, sampler);
            let text = answer.text();
            let value: Value = serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{schema}: {error}: {text}"));
            assert!(holds(&value), "{schema}: {text}");
            assert_eq!(answer.finish, 1, "it ends by itself: {text}");
        }
    }
}

#[test]
fn an_answer_resumed_elsewhere_keeps_to_its_schema() {
    let mut engine = engine(1024);
    let (schema, holds) = cases().swap_remove(0);
    let whole = answer(&mut engine, 1, &schema, greedy());
    for cut in [1, whole.ids.len() / 2, whole.ids.len() - 1] {
        let rest = Prepare {
            resume: whole.ids[..cut].to_vec(),
            ..job(2, &bound("Describe a person.", &schema), greedy(), 200)
        };
        let rest = run(&mut engine, &rest);
        let ids = [&whole.ids[..cut], &rest.ids].concat();
        let mut text = Vec::new();
        for id in ids {
            engine.model().piece(id, false, &mut text).expect("a token");
        }
        let value: Value = serde_json::from_slice(&text).expect("json");
        assert!(holds(&value), "{value}");
    }
}

/// A model that would write one digit for ever, held to numbers of a length that others can read.
#[test]
fn a_number_has_an_end() {
    let mut engine = engine(1024);
    let threes = engine
        .model()
        .tokenize(b"3", false, false)
        .expect("a digit");
    let schema =
        json!({ "type": "array", "items": { "type": "number" }, "minItems": 1, "maxItems": 2 });
    let input = Input {
        logit_bias: threes.iter().map(|id| (*id, 50 << 16)).collect(),
        ..bound("What is ten divided by three?", &schema)
    };
    for seq in 1..=4 {
        let asked = Prepare {
            seed: [seq as u8; 32],
            ..job(seq, &input, greedy(), 200)
        };
        let answer = run(&mut engine, &asked);
        let text = answer.text();
        assert_eq!(answer.finish, 1, "it ends by itself: {text}");
        let value: Value = serde_json::from_str(&text).expect("json");
        assert!(text.contains("3333333333"), "{text}");
        assert!(value[0].is_number(), "{text}");
    }
}

/// More digits than usual, where the schema asks for them.
#[test]
fn a_schema_that_asks_for_long_numbers_gets_them() {
    let mut engine = engine(1024);
    let schema = json!({ "type": "number", "minimum": 1e-30, "maximum": 2e-30 });
    let text = answer(&mut engine, 1, &schema, greedy()).text();
    let value: f64 = text.parse().expect("a number");
    // The grammar's own rounding at the ends is no matter here: that it ends with more than twenty digits is.
    assert!((0.9e-30..2.1e-30).contains(&value), "{text}");
    assert!(text.len() > 30, "{text}");
}

#[test]
fn a_schema_that_cannot_be_followed_is_refused_and_not_repeated() {
    let engine = engine(512);
    let secret = "zebra-quartz";
    let deep = format!(
        "{}{}",
        r#"{"items":"#.repeat(2000),
        "{}".to_owned() + &"}".repeat(2000)
    );
    let wide: Vec<String> = (0..40_000).map(|n| format!("\"{secret}{n}\"")).collect();
    let bad = [
        format!("{{\"{secret}"),
        format!("\"{secret}\""),
        format!(r##"{{"$ref":"#/nowhere/{secret}"}}"##),
        format!(r#"{{"$ref":"https://example.org/{secret}"}}"#),
        format!(r#"{{"type":"{secret}"}}"#),
        r#"{"type":"integer","minimum":5,"maximum":4}"#.to_owned(),
        r#"{"enum":[]}"#.to_owned(),
        format!(r#"{{"type":"string","pattern":"({secret}"}}"#),
        deep,
        format!(r#"{{"enum":[{}]}}"#, wide.join(",")),
    ];
    for schema in bad {
        let input = Input {
            schema: Some(schema.clone()),
            ..user("x")
        };
        let start: String = schema.chars().take(60).collect();
        match engine.prepare(&job(1, &input, greedy(), 9)) {
            Ok(_) => panic!("accepted: {start}"),
            Err(refusal) => {
                assert_eq!(refusal.why, Failure::BadInput, "{start}");
                assert!(!refusal.detail.contains(secret), "{}", refusal.detail);
            }
        }
    }
}
