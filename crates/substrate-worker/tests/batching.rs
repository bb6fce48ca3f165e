//! Many sequences in one engine: nobody waits for another's prompt or reader, nothing leaks, prefixes are
//! one's own, and whoever loses its cells still gets its answer.

mod support;

use std::collections::BTreeMap;

use substrate_sandbox::wire::{
    FromWorker, INITIAL_GRANT, Input, Message, Prepare, Sampler, ToWorker,
};
use substrate_worker::engine::{Engine, LoadOptions};
use substrate_worker::ffi::Interrupt;
use substrate_worker::near_tie::NEAR_TIE;
use substrate_worker::scheduler::{Event, SPARE_LANES};
use support::{Answer, Client, greedy, job, model, run, user};

const QUESTIONS: [&str; 6] = [
    "Name three rivers.",
    "Why is the sky blue?",
    "Write one sentence about a dog.",
    "What is a prime number?",
    "Give me a recipe for tea.",
    "List four colours.",
];

/// An engine whose sequences share their cells, and one in which each has its own.
fn both_ways(slots: u32, n_ctx: u32, cells: u32) -> [Engine; 2] {
    [false, true].map(|apart| {
        let mut engine = batching(slots, n_ctx, cells, apart);
        engine.spread();
        engine
    })
}

fn batching(slots: u32, n_ctx: u32, cells: u32, apart: bool) -> Engine {
    let options = LoadOptions {
        n_ctx,
        slots,
        cells,
        apart,
        pool: 2,
        ..LoadOptions::default()
    };
    Engine::load(&model(), &options, Interrupt::default()).expect("the test model loads")
}

/// Runs all jobs together; `watch` sees the events of each step.
fn run_all(engine: &mut Engine, jobs: &[Prepare], mut watch: impl FnMut(&[Event])) -> Vec<Answer> {
    let mut answers: BTreeMap<u64, Answer> = BTreeMap::new();
    for job in jobs {
        let mut sequence = engine.prepare(job).expect("the job is sound");
        sequence.grant(u32::MAX);
        engine.submit(sequence);
        answers.insert(job.seq, Answer::default());
    }
    let mut events = Vec::new();
    while !engine.scheduler().is_idle() {
        engine.step(&mut events);
        watch(&events);
        for event in events.drain(..) {
            match event {
                Event::Prefilled { .. } => {}
                Event::Token { seq, token } => {
                    let answer = answers.entry(seq).or_default();
                    answer.ids.push(token.id);
                    answer.gaps.push(token.gap);
                    answer.text.extend(token.bytes);
                }
                Event::Finished(finished) => {
                    let answer = answers.entry(finished.seq).or_default();
                    answer.text.extend(finished.tail);
                    answer.finish = finished.finish;
                    answer.n_out = finished.n_out;
                }
                Event::Failed { seq, why } => panic!("{seq} failed: {why}"),
            }
        }
    }
    answers.into_values().collect()
}

/// Whether two greedy answers are one, or part at a near-tie.
fn same_up_to_a_tie(left: &Answer, right: &Answer) -> Result<bool, String> {
    match left.ids.iter().zip(&right.ids).position(|(a, b)| a != b) {
        None if left.ids.len() == right.ids.len() => Ok(true),
        None => Err("one is a part of the other".into()),
        Some(at) => {
            let gap = left.gaps[at].min(right.gaps[at]);
            if gap <= NEAR_TIE {
                Ok(false)
            } else {
                Err(format!("they part at {at}, where the gap is {gap}"))
            }
        }
    }
}

#[test]
fn answers_made_together_are_those_made_alone_up_to_near_ties() {
    for mut engine in both_ways(8, 512, 2048) {
        let jobs: Vec<Prepare> = (1..)
            .zip(QUESTIONS)
            .map(|(seq, question)| job(seq, &user(question), greedy(), 24))
            .collect();
        let together = run_all(&mut engine, &jobs, |_| {});
        let mut equal = 0;
        for (job, together) in jobs.iter().zip(&together) {
            let alone = run(&mut engine, job);
            match same_up_to_a_tie(&alone, together) {
                Ok(same) => equal += usize::from(same),
                Err(why) => panic!("question {}: {why}", job.seq),
            }
        }
        println!("equal to the answer made alone: {equal} of {}", jobs.len());
        assert!(equal * 2 >= jobs.len(), "{equal} of {}", jobs.len());
        assert_eq!(engine.scheduler().lanes(), (8 + SPARE_LANES as usize, 0, 0));
    }
}

#[test]
fn a_long_prompt_does_not_stop_the_answers_under_way() {
    for mut engine in both_ways(4, 2048, 4096) {
        let mut jobs: Vec<Prepare> = (1..)
            .zip(&QUESTIONS[..3])
            .map(|(seq, question)| job(seq, &user(question), greedy(), 40))
            .collect();
        let long = "the quick brown fox jumps over the lazy dog ".repeat(180);
        jobs.push(job(9, &Input::text(long.as_str(), false), greedy(), 2));
        // Tokens of the three answers that each step before the long prompt's first token brought.
        let (mut brought, mut read) = (Vec::new(), false);
        run_all(&mut engine, &jobs, |events| {
            let made = |which: u64| move |event: &&Event| matches!(event, Event::Token { seq, .. } if *seq == which);
            read |= events.iter().any(|event| made(9)(&event));
            if !read {
                let with = (1..=3).filter(|seq| events.iter().any(|event| made(*seq)(&event)));
                brought.push(with.count());
            }
        });
        assert!(
            brought.len() >= 3,
            "a prompt of over 1,600 tokens is read in pieces: {brought:?}"
        );
        // The first step reads the short prompts. Where batches are quick, answers stand still in every second.
        let still = |pair: &[usize]| pair == [0, 0];
        assert!(
            brought.iter().skip(1).all(|count| [0, 3].contains(count)),
            "{brought:?}"
        );
        assert!(!brought[1..].windows(2).any(still), "{brought:?}");
    }
}

/// A conversation turn by turn, as a client sends it: everything said so far, then one more question.
#[test]
fn a_conversation_reads_only_what_is_new() {
    for mut engine in both_ways(2, 2048, 4096) {
        let mut messages = Vec::new();
        let mut turns = Vec::new();
        for (seq, question) in (1..).zip(QUESTIONS.iter().cycle().take(10)) {
            messages.push(Message::new("user", *question));
            let asked = Prepare {
                reuse: true,
                ..job(seq, &Input::chat(messages.clone()), greedy(), 16)
            };
            let before = engine.scheduler().counters();
            let n_in = engine.prepare(&asked).expect("a sound job").n_in();
            let answer = run_all(&mut engine, &[asked], |_| {}).remove(0);
            let after = engine.scheduler().counters();
            let (read, reused) = (
                after.prefilled - before.prefilled,
                after.reused - before.reused,
            );
            assert_eq!(read + reused, u64::from(n_in), "turn {seq}");
            turns.push((read, reused));
            messages.push(Message::new("assistant", answer.text()));
        }
        println!("(read, reused) by turn: {turns:?}");
        let [first, .., last] = turns.as_slice() else {
            unreachable!("ten turns")
        };
        assert_eq!(first.1, 0);
        // What is new in a turn: the end of the last answer, the question, the marks around them.
        assert!(turns[1..].iter().all(|(read, _)| *read <= 48), "{turns:?}");
        assert!(last.1 > 8 * last.0, "{turns:?}");
    }
}

#[test]
fn nobody_gets_at_anothers_prefixes_and_a_repeatable_job_uses_none() {
    for mut engine in both_ways(2, 1024, 2048) {
        let text = "a secret that is long enough to be worth keeping in the cache for later use "
            .repeat(4);
        let asked = |seq, partition, reuse| Prepare {
            partition: [partition; 32],
            reuse,
            ..job(seq, &Input::text(text.as_str(), false), greedy(), 2)
        };
        let mut reused = |job: Prepare| {
            let before = engine.scheduler().counters().reused;
            run_all(&mut engine, &[job], |_| {});
            engine.scheduler().counters().reused - before
        };
        assert_eq!(reused(asked(1, 1, true)), 0, "the first reads it all");
        assert_eq!(
            reused(asked(2, 2, true)),
            0,
            "another requester reads it all"
        );
        assert!(reused(asked(3, 1, true)) > 40, "its own is found");
        assert_eq!(
            reused(asked(4, 1, false)),
            0,
            "a repeatable job looks for none"
        );
    }
}

#[test]
fn a_prefix_that_made_way_for_others_is_put_back_and_goes_on_as_if_it_had_stayed() {
    for mut engine in both_ways(2, 512, 1024) {
        let asked = |seq, partition, question: &str, reuse| Prepare {
            partition: [partition; 32],
            reuse,
            ..job(seq, &user(question), greedy(), 24)
        };
        let long = format!("{} Say it in other words.", QUESTIONS.join(" "));
        run_all(&mut engine, &[asked(1, 1, &long, true)], |_| {});
        assert_eq!(
            engine.scheduler().lanes(),
            (2, 1, 0),
            "it lies in the cells"
        );
        run_all(&mut engine, &[asked(2, 2, QUESTIONS[0], true)], |_| {});
        assert_eq!(
            engine.scheduler().lanes(),
            (2, 1, 0),
            "another took its place"
        );
        let before = engine.scheduler().counters().reused;
        let back = run_all(&mut engine, &[asked(3, 1, &long, true)], |_| {}).remove(0);
        let reused = engine.scheduler().counters().reused - before;
        let alone = run(&mut engine, &asked(4, 1, &long, false));
        let n_in = engine
            .prepare(&asked(5, 1, &long, true))
            .expect("a sound job")
            .n_in();
        assert_eq!(reused, u64::from(n_in) - 1, "all but the last token");
        if let Err(why) = same_up_to_a_tie(&alone, &back) {
            panic!("put back: {why}");
        }
    }
}

#[test]
fn a_prompt_that_is_being_answered_is_not_read_again_for_its_next_choice() {
    for mut engine in both_ways(4, 1024, 2048) {
        let text = "a long system prompt that every request of this client begins with ".repeat(8);
        let asked = |seq, tokens| Prepare {
            reuse: true,
            ..job(seq, &Input::text(text.as_str(), false), greedy(), tokens)
        };
        let mut first = engine.prepare(&asked(1, 8)).expect("a sound job");
        first.grant(100);
        engine.submit(first);
        let mut events = Vec::new();
        engine.step(&mut events);
        let read = engine.scheduler().counters().prefilled;
        assert!(read > 60, "the first has read its prompt: {read}");
        run_all(&mut engine, &[asked(2, 3)], |_| {});
        assert_eq!(engine.scheduler().counters().prefilled, read + 1);
    }
}

/// An answer that repeats its prompt, one that repeats itself and one that does neither: with guesses and without, bound to a
/// schema and drawn at random.
#[test]
fn guesses_change_how_many_steps_an_answer_takes_and_nothing_else() {
    let plain = LoadOptions {
        n_ctx: 1024,
        pool: 2,
        prompt_lookup: false,
        ..LoadOptions::default()
    };
    let guessing = LoadOptions {
        prompt_lookup: true,
        ..plain.clone()
    };
    let [mut plain, mut guessing] = [plain, guessing].map(|options| {
        Engine::load(&model(), &options, Interrupt::default()).expect("the test model loads")
    });
    let verse =
        "The red fox crossed the frozen river, and seven grey geese flew over it at dawn.\n";
    let copied = Input::text(format!("{}The red fox", verse.repeat(3)), false);
    let mut bound = user("Name three colours of a fox.");
    bound.schema = Some(
        r#"{"type":"array","items":{"enum":["red","red-brown","grey"]},"minItems":3,"maxItems":3}"#
            .into(),
    );
    let warm = Sampler {
        temperature: 700_000,
        ..greedy()
    };
    let jobs = [
        job(1, &copied, greedy(), 60),
        job(2, &copied, warm, 60),
        job(3, &Input::text("1 1 1 1 1 1", false), greedy(), 40),
        job(4, &user("What is the sea?"), greedy(), 40),
        job(5, &bound, greedy(), 40),
    ];
    let mut steps = Vec::new();
    for job in &jobs {
        let mut count = [0, 0];
        let [left, right] = [(&mut plain, 0), (&mut guessing, 1)].map(|(engine, at)| {
            let mut answers = run_all(engine, std::slice::from_ref(job), |_| count[at] += 1);
            answers.pop().expect("one answer")
        });
        if let Err(why) = same_up_to_a_tie(&left, &right) {
            panic!("job {}: {why}", job.seq);
        }
        steps.push(count);
    }
    println!("steps without and with guesses: {steps:?}");
    assert!(
        steps[0][1] * 2 < steps[0][0],
        "a copy is guessed: {steps:?}"
    );
    assert!(
        steps.iter().all(|[without, with]| with <= without),
        "{steps:?}"
    );
}

/// Six answers that go on while every lane gets cells of its own, because together they have grown long.
#[test]
fn answers_go_on_where_they_were_when_cells_are_spread() {
    let jobs: Vec<Prepare> = (1..)
        .zip(QUESTIONS)
        .map(|(seq, question)| {
            let text = format!("{} {question}", "Look at the sea. ".repeat(30));
            job(seq, &user(&text), greedy(), 24)
        })
        .collect();
    let kept = Prepare {
        reuse: true,
        ..job(50, &user(&"What is a lighthouse? ".repeat(8)), greedy(), 8)
    };
    let mut engine = batching(8, 512, 2048, true);
    let before = run(&mut engine, &kept);
    assert_eq!(engine.context().cells(), 2048, "one pool for one answer");
    let words = |job: &Prepare| u64::from(engine.prepare(job).expect("a sound job").n_in());
    let to_read: u64 = jobs.iter().map(words).sum();
    let read = engine.scheduler().counters().prefilled;
    let together = run_all(&mut engine, &jobs, |_| {});
    assert_eq!(engine.context().cells(), 9 * 512, "a context for each lane");
    let read = engine.scheduler().counters().prefilled - read;
    assert_eq!(read, to_read, "nothing was read twice");
    let mut alone = batching(1, 512, 512, false);
    for (job, together) in jobs.iter().zip(&together) {
        if let Err(why) = same_up_to_a_tie(&run(&mut alone, job), together) {
            panic!("question {}: {why}", job.seq);
        }
    }
    let read = engine.scheduler().counters().prefilled;
    let again = run(&mut engine, &Prepare { seq: 51, ..kept });
    assert_eq!(again.ids, before.ids, "a kept prefix came along");
    assert_eq!(engine.scheduler().counters().prefilled, read + 1);
}

#[test]
fn whoever_loses_its_cells_still_gets_its_answer() {
    // Room for two answers of three: each grows to some 140 tokens.
    let mut engine = batching(3, 256, 256, false);
    let jobs: Vec<Prepare> = (1..=3)
        .map(|seq| {
            let story = format!("Write a long story about the number {seq}.");
            job(seq, &user(&story), greedy(), 90)
        })
        .collect();
    let together = run_all(&mut engine, &jobs, |_| {});
    assert!(
        engine.scheduler().counters().preempted > 0,
        "the cells did not suffice"
    );
    for (job, together) in jobs.iter().zip(&together) {
        let alone = run(&mut engine, job);
        if let Err(why) = same_up_to_a_tie(&alone, together) {
            panic!("story {}: {why}", job.seq);
        }
    }
}

/// Sequences of the test of leaks: several times through every lane. `prove` asks a daemon a thousand times.
const SEQUENCES: usize = 100;

/// Knuth's MMIX generator: the same chaos every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[test]
fn cancelled_and_half_read_sequences_leak_nothing() {
    for mut engine in both_ways(8, 512, 1024) {
        let mut dice = Dice(7);
        let (mut seq, mut events, mut live) = (0, Vec::new(), Vec::new());
        let mut ended = 0;
        while ended < SEQUENCES {
            while live.len() < 12 {
                seq += 1;
                let words = "word ".repeat(dice.roll(24) as usize + 1);
                let asked = Prepare {
                    partition: [dice.roll(3) as u8; 32],
                    reuse: dice.roll(2) == 0,
                    ..job(
                        seq,
                        &Input::text(words.as_str(), false),
                        greedy(),
                        dice.roll(4) as u32 + 1,
                    )
                };
                let mut sequence = engine.prepare(&asked).expect("a sound job");
                if dice.roll(4) > 0 {
                    sequence.grant(100);
                }
                engine.submit(sequence);
                live.push(seq);
            }
            engine.step(&mut events);
            let gone: Vec<u64> = events
                .drain(..)
                .filter_map(|event| match event {
                    Event::Finished(finished) => Some(finished.seq),
                    Event::Failed { seq, why } => panic!("{seq} failed: {why}"),
                    _ => None,
                })
                .collect();
            let cancelled: Vec<u64> = live.iter().copied().filter(|_| dice.roll(6) == 0).collect();
            for seq in cancelled.iter().filter(|seq| !gone.contains(seq)) {
                assert_eq!(engine.cancel(*seq).map(|finished| finished.finish), Some(3));
            }
            let before = live.len();
            live.retain(|seq| !gone.contains(seq) && !cancelled.contains(seq));
            ended += before - live.len();
        }
        for seq in live {
            engine.cancel(seq);
        }
        let (free, kept, running) = engine.scheduler().lanes();
        assert_eq!((free + kept, running), (8 + SPARE_LANES as usize, 0));
        assert!(engine.scheduler().is_idle());
        // Every cell is free again: an answer over the whole context fits.
        let whole = Input::text("word ".repeat(480), false);
        let answer = run(&mut engine, &job(5000, &whole, greedy(), 20));
        assert!(answer.n_out > 0);
        let (free, kept, _) = engine.scheduler().lanes();
        assert_eq!(free + kept, 8 + SPARE_LANES as usize);
    }
}

#[test]
fn a_reader_without_grants_stops_its_own_answer_and_no_other() {
    let mut worker = Client::start(&model());
    worker.load_slots(1024, 2, 2048);
    worker.prepare(job(1, &user(QUESTIONS[4]), greedy(), 200));
    worker.prepare(job(2, &user(QUESTIONS[4]), greedy(), 100));
    for seq in [1, 2] {
        worker.send(ToWorker::Begin { seq });
    }
    // Only the second is granted more.
    let (mut first, mut second) = (0, 0);
    let finished = loop {
        match worker.next() {
            FromWorker::Tokens { seq: 1, .. } | FromWorker::Prefilled { seq: 1, .. } => first += 1,
            FromWorker::Tokens { seq: 2, .. } | FromWorker::Prefilled { seq: 2, .. } => {
                second += 1;
                worker.send(ToWorker::Grant { seq: 2, frames: 1 });
            }
            FromWorker::Finished(finished) => break finished,
            other => panic!("unexpected: {other:?}"),
        }
    };
    assert_eq!((finished.seq, first), (2, INITIAL_GRANT));
    assert!(
        second > INITIAL_GRANT,
        "an answer of {second} frames does not tell"
    );
    worker.send(ToWorker::Grant {
        seq: 1,
        frames: 400,
    });
    assert!(worker.finish(1).2.n_out > INITIAL_GRANT);
}
