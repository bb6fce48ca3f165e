//! The same as llama.cpp: renderings, token ids, greedy answers. Golden files are made by
//! `golden/make.py` from llama.cpp's own server, which says of which revision.

mod support;

use serde_json::Value as Json;
use substrate_sandbox::wire::{Input, Message};
use substrate_worker::ffi::Model;
use substrate_worker::near_tie::{MEASURED_P999, NEAR_TIE, gap_shifts, percentile};
use substrate_worker::template::Template;
use support::{Answer, engine, engine_with, greedy, job, model, run};

/// Finish codes of the receipt.
const FINISH_STOP: u8 = 1;
const FINISH_LENGTH: u8 = 2;

/// Nobody asked for less: half of the answers must be equal to the last token.
const LEAST_EQUAL_SHARE: f64 = 0.5;

fn golden(name: &str) -> Vec<Json> {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("a golden file");
    serde_json::from_str(&text).expect("golden JSON")
}

fn text_of<'a>(json: &'a Json, key: &str) -> &'a str {
    json[key].as_str().unwrap_or_default()
}

fn messages(json: &Json) -> Vec<Message> {
    let optional = |message: &Json, key: &str| message[key].as_str().map(str::to_owned);
    let messages = json.as_array().expect("a list of messages");
    messages
        .iter()
        .map(|message| Message {
            role: text_of(message, "role").into(),
            content: text_of(message, "content").into(),
            name: optional(message, "name"),
            tool_calls: message.get("tool_calls").map(Json::to_string),
            tool_call_id: optional(message, "tool_call_id"),
            thinking: None,
            images: Vec::new(),
        })
        .collect()
}

fn ids_of(json: &Json) -> Vec<u32> {
    let ids = json.as_array().expect("a list of ids");
    ids.iter()
        .map(|id| {
            id.as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .expect("an id")
        })
        .collect()
}

/// `0.6.0-dev` is a nightly of 0.6.0.
fn base(version: &str) -> &str {
    version.split('-').next().unwrap_or(version)
}

#[test]
fn the_golden_files_are_of_the_llama_cpp_that_is_linked() {
    let path = format!("{}/tests/golden/made_by.json", env!("CARGO_MANIFEST_DIR"));
    let made_by = std::fs::read(path).expect("a golden file");
    let made_by: Json = serde_json::from_slice(&made_by).expect("golden JSON");
    let linked = substrate_worker::ffi::version();
    assert_eq!(
        base(text_of(&made_by, "llama.cpp")),
        base(&linked),
        "run golden/make.py with a wheel of the linked version"
    );
}

#[test]
fn templates_render_as_llama_cpp_renders_them() {
    let model = Model::load(&model()).expect("the test model loads");
    let cases = golden("templates.json");
    assert!(cases.len() >= 80, "only {} renderings", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let source = match text_of(case, "template") {
            "gguf" => model.chat_template().expect("the model has a template"),
            name => {
                let folder = env!("CARGO_MANIFEST_DIR");
                let path = format!("{folder}/tests/golden/templates/{name}.jinja");
                std::fs::read_to_string(path).expect("a template")
            }
        };
        let template = Template::compile(&source, "<|im_start|>", "<|im_end|>").expect("compiles");
        let tools = case.get("tools").map(Json::to_string);
        let rendered = template.render(&messages(&case["messages"]), tools.as_deref(), None, true);
        let rendered = rendered.map(|text| String::from_utf8_lossy(&text).into_owned());
        let expected = text_of(case, "rendered");
        if rendered.as_deref() != Ok(expected) {
            let name = (text_of(case, "template"), text_of(case, "case"));
            wrong.push(format!(
                "{name:?}\n  expected {expected:?}\n  rendered {rendered:?}"
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} differ:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

#[test]
fn token_ids_are_llama_cpps() {
    let model = Model::load(&model()).expect("the test model loads");
    let cases = golden("tokens.json");
    assert!(cases.len() >= 300);
    for case in cases {
        let text = text_of(&case, "text");
        let ids = model
            .tokenize(text.as_bytes(), false, false)
            .expect("it tokenizes");
        assert_eq!(ids, ids_of(&case["ids"]), "{text:?}");
    }
}

/// Tokens that `golden/make.py` asked for.
const GOLDEN_TOKENS: u32 = 40;

/// How an answer stands to llama.cpp's.
#[derive(Debug, PartialEq)]
enum Parity {
    /// The same ids to the last, ended for the same reason.
    Equal,
    /// The first difference is at this position, where the best two were this far apart.
    Tie(usize, f64),
    /// What no rounding explains, from this position on.
    Wrong(usize),
}

/// `stop` is the server's word: `eos` or `limit`. Its ids include the one that ends the generation, as ours do.
fn parity(expected: &[u32], stop: &str, answer: &Answer) -> Parity {
    let finish = match stop {
        "eos" => FINISH_STOP,
        "limit" => FINISH_LENGTH,
        other => panic!("golden answers end by eos or limit, not {other}"),
    };
    let ids = &answer.ids;
    let shared = expected.iter().zip(ids).take_while(|(a, b)| a == b).count();
    if shared == expected.len() && shared == ids.len() {
        return if answer.finish == finish {
            Parity::Equal
        } else {
            Parity::Wrong(shared)
        };
    }
    match answer.gaps.get(shared) {
        // Where either side has no token to compare, no near-tie can be the reason.
        Some(&gap) if shared < expected.len() && gap <= NEAR_TIE => Parity::Tie(shared, gap),
        _ => Parity::Wrong(shared),
    }
}

#[test]
fn an_answer_that_is_short_long_or_ended_otherwise_is_not_equal() {
    let answer = |ids: &[u32], finish| Answer {
        ids: ids.to_vec(),
        gaps: vec![0.0; ids.len()],
        finish,
        ..Answer::default()
    };
    let of = |stop, answer| parity(&[5, 6, 2], stop, &answer);
    assert_eq!(of("eos", answer(&[5, 6, 2], FINISH_STOP)), Parity::Equal);
    assert_eq!(
        of("eos", answer(&[5, 6, 2], FINISH_LENGTH)),
        Parity::Wrong(3)
    );
    assert_eq!(
        of("limit", answer(&[5, 6, 2], FINISH_STOP)),
        Parity::Wrong(3)
    );
    assert_eq!(of("eos", answer(&[], FINISH_STOP)), Parity::Wrong(0));
    assert_eq!(of("eos", answer(&[5, 6], FINISH_STOP)), Parity::Wrong(2));
    assert_eq!(
        of("eos", answer(&[5, 6, 2, 7], FINISH_STOP)),
        Parity::Wrong(3)
    );
    assert_eq!(of("eos", answer(&[5, 7], FINISH_STOP)), Parity::Tie(1, 0.0));
    let mut far = answer(&[5, 7, 2], FINISH_STOP);
    far.gaps[1] = NEAR_TIE + 0.1;
    assert_eq!(of("eos", far), Parity::Wrong(1));
}

/// Both sides with plain attention: fused attention rounds differently in every build.
#[test]
fn greedy_answers_are_llama_cpps_up_to_near_ties() {
    let mut engine = engine_with(2048, false);
    let cases = golden("answers.json");
    assert!(cases.len() >= 50, "only {} answers", cases.len());
    let (mut equal, mut ties, mut wrong) = (0, Vec::new(), Vec::new());
    for (index, case) in cases.iter().enumerate() {
        let expected = ids_of(&case["ids"]);
        assert!(!expected.is_empty(), "golden answer {index} is empty");
        let input = Input::chat(messages(&case["messages"]));
        let answer = run(
            &mut engine,
            &job(index as u64, &input, greedy(), GOLDEN_TOKENS),
        );
        match parity(&expected, text_of(case, "stop"), &answer) {
            Parity::Equal => equal += 1,
            Parity::Tie(at, gap) => ties.push((index, at, gap)),
            Parity::Wrong(at) => wrong.push((index, at, answer.finish, answer.text())),
        }
    }
    let share = f64::from(equal) / cases.len() as f64;
    println!(
        "equal to llama.cpp's server: {equal} of {} ({share:.2})",
        cases.len()
    );
    println!("first difference a near-tie (answer, position, gap): {ties:?}");
    assert!(wrong.is_empty(), "not near-ties: {wrong:?}");
    assert!(share >= LEAST_EQUAL_SHARE, "equal share {share:.2}");
}

/// The short form of `examples/near_tie.rs`: the constant still describes this build.
#[test]
fn the_near_tie_constant_is_still_true() {
    let mut engine = engine(512);
    let mut shifts = gap_shifts(&mut engine, 0, 511).expect("the engine runs");
    let [p99, worst] = [990, 1000].map(|per_mille| percentile(&mut shifts, per_mille));
    println!(
        "{} positions: p99 {p99:.4}, largest {worst:.4} logits",
        shifts.len()
    );
    assert!(
        p99 <= MEASURED_P999 && worst <= 2.0 * MEASURED_P999,
        "p99 {p99}, largest {worst}"
    );
}

/// A small generator of its own: the lines must never change.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        // Knuth's MMIX constants.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % sides
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.roll(from.len())]
    }
}

const WORDS: [&[&str]; 9] = [
    &[
        "the", "Quick", "BROWN", "fox's", "don't", "naïve", "café", "Straße", "x", "1234567",
        "3.14",
    ],
    &[
        "привет",
        "мир",
        "Ёж",
        "γειά",
        "κόσμε",
        "Ωμέγα",
        "ğüş",
        "łódź",
        "Åse",
    ],
    &[
        "你好",
        "世界",
        "東京",
        "カタカナ",
        "ひらがな",
        "안녕하세요",
        "한국어",
        "𠮷野家",
    ],
    &[
        "مرحبا",
        "بالعالم",
        "שלום",
        "नमस्ते",
        "ไทย",
        "தமிழ்",
        "ქართული",
        "አማርኛ",
    ],
    &["🦀", "👩‍💻", "👍🏽", "🇪🇺", "❤️", "🏳️‍🌈", "☃", "𝔘𝔫𝔦", "e\u{301}"],
    &[
        "fn f()", "{", "}", "=>", "&&", "!=", "<div>", "</a>", "\\n", "0xFF", "//", "`x`", "$x",
        "#!",
    ],
    &[
        "\t",
        "\u{1}",
        "\u{1b}[0m",
        "\u{7f}",
        "\u{85}",
        "\u{a0}",
        "\u{200b}",
        "\u{feff}",
        "\u{202e}",
    ],
    &[
        "  ", "    ", "\n", "\n\n", "\r\n", " \n ", "...", "--", "'s", "\"q\"",
    ],
    &[
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "[INST]",
        "</s>",
        "<s>",
        "<unk>",
    ],
];

fn lines() -> Vec<String> {
    let mut dice = Dice(20_261_122);
    let made = (0..2000).map(|_| {
        let mut line = String::new();
        for _ in 0..1 + dice.roll(8) {
            let kind = dice.roll(WORDS.len());
            line.push_str(dice.pick(WORDS[kind]));
            line.push_str(dice.pick(&["", " ", " ", "  "]));
        }
        line
    });
    let real = include_str!("parity.rs")
        .lines()
        .chain(include_str!("golden/make.py").lines());
    made.chain(real.map(str::to_owned))
        .filter(|line| !line.is_empty())
        .collect()
}

#[test]
fn text_survives_the_way_through_tokens() {
    let model = Model::load(&model()).expect("the test model loads");
    let lines = lines();
    assert!(lines.len() >= 2000);
    for line in lines {
        for special in [false, true] {
            let ids = model
                .tokenize(line.as_bytes(), false, special)
                .expect("it tokenizes");
            let mut bytes = Vec::new();
            for id in ids {
                model
                    .piece(id, special, &mut bytes)
                    .expect("a token of the vocabulary");
            }
            assert_eq!(String::from_utf8_lossy(&bytes), line, "special {special}");
        }
    }
}
