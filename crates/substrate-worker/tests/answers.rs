//! What holds of every answer: whole characters, stop strings gone, resumable, reproducible.

mod support;

use substrate_sandbox::wire::{Failure, Input, Prepare, Sampler};
use substrate_worker::engine::Engine;
use substrate_worker::near_tie::NEAR_TIE;
use support::{Answer, engine, greedy, job, run, user};

const PROMPTS: [&str; 5] = [
    "Write a haiku about the sea.",
    "Explain why the sky is blue.",
    "Give me a recipe for pancakes.",
    "Tell me a story about a dog.",
    "List five animals.",
];

/// Temperature 0.8 over the whole vocabulary, then with every filter and penalty.
fn warm() -> [Sampler; 2] {
    let open = Sampler {
        temperature: 800_000,
        ..greedy()
    };
    let filtered = Sampler {
        top_k: 40,
        top_p: 950_000,
        min_p: 50_000,
        typical_p: 990_000,
        repeat_last_n: 64,
        repeat: 1_100_000,
        presence: 100_000,
        frequency: 100_000,
        ..open
    };
    [open, filtered]
}

#[test]
fn the_same_seed_gives_the_same_text_and_another_seed_another() {
    let mut engine = engine(512);
    for sampler in warm() {
        let first = job(1, &user(PROMPTS[3]), sampler, 24);
        let other = Prepare {
            seed: [4; 32],
            ..first.clone()
        };
        let texts = [&first, &first, &other].map(|job| run(&mut engine, job).ids);
        assert_eq!(texts[0], texts[1]);
        assert_ne!(texts[0], texts[2]);
    }
}

#[test]
fn a_stop_string_across_token_borders_ends_the_answer_and_is_gone() {
    let mut engine = engine(512);
    let whole = run(&mut engine, &job(1, &user(PROMPTS[1]), greedy(), 40)).text();
    // A stop that begins and ends in the middle of words, so of tokens.
    let words: Vec<&str> = whole.split(' ').collect();
    let (third, fourth) = (words[3], words[4]);
    let stop = format!(
        "{} {}",
        &third[third.len() / 2..],
        &fourth[..fourth.len().div_ceil(2)]
    );
    let at = whole.find(&stop).expect("it is in the text");
    let input = Input {
        stop: vec!["never said".into(), stop.clone()],
        ..user(PROMPTS[1])
    };
    let stopped = run(&mut engine, &job(2, &input, greedy(), 40));
    assert_eq!(stopped.text(), whole[..at]);
    assert_eq!(stopped.finish, 1);
    assert!(stopped.ids.len() < 40);
}

/// Makes the model write emoji whatever it wants to say: each is four bytes in several tokens.
#[test]
fn emoji_are_released_whole() {
    let mut engine = engine(512);
    let crabs = engine
        .model()
        .tokenize("🦀👩‍💻é".as_bytes(), false, false)
        .expect("it tokenizes");
    let mut bias: Vec<(u32, i32)> = crabs.iter().map(|&id| (id, 40 * 65_536)).collect();
    bias.sort_unstable();
    bias.dedup();
    let input = Input {
        logit_bias: bias,
        ..user("Write emoji.")
    };
    for sampler in warm() {
        // `run` checks that every release is UTF-8 by itself.
        let answer = run(&mut engine, &job(1, &input, sampler, 60));
        assert!(
            answer.text().chars().any(|c| c.len_utf8() > 2),
            "{}",
            answer.text()
        );
    }
}

#[test]
fn max_tokens_and_the_context_end_an_answer_with_length() {
    let mut engine = engine(512);
    let short = run(&mut engine, &job(1, &user(PROMPTS[3]), greedy(), 5));
    assert_eq!((short.ids.len(), short.finish, short.n_out), (5, 2, 5));
    let text = Input::text("la ".repeat(480), false);
    let full = run(&mut engine, &job(2, &text, greedy(), 4000));
    assert!(
        full.finish == 1 || full.ids.len() < 60,
        "{} tokens",
        full.ids.len()
    );
}

#[test]
fn logprobs_name_the_chosen_token_and_its_rivals() {
    let mut engine = engine(512);
    let sampler = Sampler {
        top_logprobs: Some(3),
        ..greedy()
    };
    let sequence = engine
        .prepare(&job(1, &user(PROMPTS[1]), sampler, 4))
        .expect("sound");
    let mut seen = 0;
    let ran = engine.run(sequence, |event| {
        if let substrate_worker::scheduler::Event::Token { token, .. } = event {
            let logprob = token.logprob.as_ref().expect("asked for");
            assert_eq!(
                (logprob.id, logprob.top[0].0, logprob.top.len()),
                (token.id, token.id, 3)
            );
            assert_eq!(logprob.logprob, logprob.top[0].1);
            assert!(logprob.logprob <= 0 && logprob.top[1].1 <= logprob.top[0].1);
            assert!(!logprob.bytes.is_empty());
            seen += 1;
        }
    });
    ran.expect("the engine runs");
    assert_eq!(seen, 4);
}

/// Resumes `whole` after `cut` ids and gives where it first differs, if not at a near-tie.
fn resumed(engine: &mut Engine, job: &Prepare, whole: &Answer, cut: usize) -> Result<bool, String> {
    let released: usize = {
        let mut part = run(
            engine,
            &Prepare {
                max_tokens: cut as u32,
                ..job.clone()
            },
        );
        // What the first worker had released after `cut` ids, without its held-back tail.
        part.ids.truncate(cut);
        if part.ids != whole.ids[..cut] {
            return Err("the first part already differs".into());
        }
        released_after(engine, job, &part.ids)
    };
    let rest = Prepare {
        resume: whole.ids[..cut].to_vec(),
        ..job.clone()
    };
    let rest = run(engine, &rest);
    let expected = &whole.ids[cut..];
    if let Some(at) = expected.iter().zip(&rest.ids).position(|(a, b)| a != b) {
        let gap = whole.gaps[cut + at].min(rest.gaps[at]);
        return if gap <= NEAR_TIE {
            Ok(false)
        } else {
            Err(format!("at {at}, gap {gap}"))
        };
    }
    let text = [&whole.text[..released], &rest.text].concat();
    if text != whole.text {
        return Err("the text has a seam".into());
    }
    if rest.n_out as usize != expected.len() || rest.finish != whole.finish {
        return Err(format!("n_out {} finish {}", rest.n_out, rest.finish));
    }
    Ok(true)
}

/// Bytes released by the time the ids were made: the emitter is a function of the ids.
fn released_after(engine: &Engine, job: &Prepare, ids: &[u32]) -> usize {
    let input = Input::from_cbor_bytes(&job.input).expect("a sound input");
    let mut emitter = substrate_worker::emitter::Emitter::new(&input.stop);
    let mut out = Vec::new();
    for &id in ids {
        let mut piece = Vec::new();
        engine
            .model()
            .piece(id, false, &mut piece)
            .expect("a known token");
        emitter.push(&piece, &mut out);
    }
    out.len()
}

#[test]
fn a_resumed_answer_goes_on_without_a_seam() {
    let mut engine = engine(512);
    let [open, filtered] = warm();
    let (mut equal, mut all) = (0, 0);
    for (index, prompt) in PROMPTS.iter().enumerate() {
        let sampler = [greedy(), open, filtered][index % 3];
        let input = Input {
            stop: vec!["zebra".into()],
            ..user(prompt)
        };
        let job = job(index as u64, &input, sampler, 30);
        let whole = run(&mut engine, &job);
        for cut in [1, whole.ids.len() / 2, whole.ids.len() - 1] {
            all += 1;
            match resumed(&mut engine, &job, &whole, cut) {
                Ok(same) => equal += usize::from(same),
                Err(why) => panic!("{prompt} after {cut}: {why}"),
            }
        }
    }
    // Read again as they were written, the ids round alike: no near-tie falls the other way (docs/decisions/0012).
    assert_eq!(equal, all);
}

/// The gaps between the two best tell rounding apart where the ids do not.
#[test]
fn what_is_read_again_rounds_as_it_did_when_it_was_written() {
    let mut engine = engine(512);
    let long = format!(
        "{} Say it again.",
        "The sea is wide and the sky is blue. ".repeat(8)
    );
    for (index, prompt) in [PROMPTS[1], &long].into_iter().enumerate() {
        let job = job(index as u64, &user(prompt), greedy(), 100);
        let whole = run(&mut engine, &job);
        assert!(whole.ids.len() > 70, "{} tokens", whole.ids.len());
        for cut in [1, 30, 63, 64, 70] {
            let resume = whole.ids[..cut].to_vec();
            let rest = run(
                &mut engine,
                &Prepare {
                    resume,
                    ..job.clone()
                },
            );
            assert_eq!(rest.ids, whole.ids[cut..], "after {cut}");
            assert_eq!(rest.gaps, whole.gaps[cut..], "after {cut}");
        }
    }
}

#[test]
fn resuming_a_finished_answer_finishes_at_once() {
    let mut engine = engine(512);
    let job = job(1, &user(PROMPTS[4]), greedy(), 6);
    let whole = run(&mut engine, &job);
    let again = run(
        &mut engine,
        &Prepare {
            resume: whole.ids.clone(),
            ..job
        },
    );
    assert_eq!((again.n_out, again.finish), (0, 2));
    let eos = engine.model().eos().expect("the model has an end");
    let ended = Prepare {
        resume: vec![eos],
        ..self::job(2, &user(PROMPTS[4]), greedy(), 6)
    };
    let ended = run(&mut engine, &ended);
    assert_eq!((ended.n_out, ended.finish), (0, 1));
}

#[test]
fn a_template_of_the_inputs_own_writes_what_the_model_reads() {
    let mut engine = engine(512);
    let own = |template: &str| Input {
        template: Some(template.into()),
        ..user("Hi")
    };
    let rendered = engine.render(&own(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    ));
    assert_eq!(rendered.expect("it renders"), b"<user>Hi");
    let plain = engine.render(&user("Hi")).expect("it renders");
    assert!(String::from_utf8_lossy(&plain).contains("<|im_start|>user"));
    // What does not compile, does not end, or speaks for itself is refused, and not in its own words.
    for (template, why) in [
        ("{% for m in messages %}", "fails in line"),
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
            "too many steps",
        ),
        ("{{ raise_exception('words') }}", "it raised an exception"),
    ] {
        let refused = engine.render(&own(template)).expect_err(template);
        assert_eq!(refused.why, Failure::BadTemplate);
        assert!(refused.detail.contains(why), "{}", refused.detail);
        assert!(!refused.detail.contains("words"), "{}", refused.detail);
    }
    let answer = run(&mut engine, &job(1, &user(PROMPTS[4]), greedy(), 4));
    assert_eq!(answer.ids.len(), 4);
}
