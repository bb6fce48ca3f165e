//! The loads both sides are put under, each giving one figure.
//!
//! Invariant: no two prompts of a run begin alike by design, only by the chance of a word or two, so neither side finds
//! anything in its cache; both sides of a pair get the same prompts.
//! Absent by design: sleeps. A load begins when what it waits for has happened.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::client::{Ask, Came, Side};

/// Tokens of a short answer under load, and of one alone.
const SHORT_ANSWER: u32 = 48;
const LONG_ANSWER: u32 = 96;
/// Words of prompts: about 1.3 tokens each for this vocabulary.
const SHORT_PROMPT: usize = 24;
/// Words of a text that is copied, of which so many stand there already: the rest is the answer.
const COPIED: usize = 80;
const COPY_BEGUN: usize = 4;
const PREFILL_PROMPT: usize = 600;
/// A prompt of about 2,000 tokens.
const LONG_PROMPT: usize = 1_430;
/// Answers that run when the long prompt comes.
const RUNNING: usize = 8;
/// Tokens of each of them: ours make one for each piece of the long prompt, some eight in all, so this is enough to go on
/// until it is read.
const RUNNING_ANSWER: u32 = 96;
/// Pieces each of them has made before the long prompt comes.
const UNDER_WAY: usize = 4;

const WORDS: [&str; 32] = [
    "river", "stone", "window", "garden", "winter", "letter", "music", "harbour", "engine",
    "paper", "mountain", "story", "yellow", "quiet", "market", "teacher", "island", "bridge",
    "copper", "forest", "evening", "number", "village", "ocean", "silver", "kitchen", "planet",
    "summer", "doctor", "shadow", "candle", "morning",
];

/// A server under load.
#[derive(Clone, Copy)]
pub struct Target {
    /// Which.
    pub side: Side,
    /// Where.
    pub api: SocketAddr,
}

/// Text of `words` words and the number that nothing else has. It comes last: digits are tokens of their own, and prompts
/// of neighbouring numbers would begin alike.
pub fn text(number: u64, words: usize) -> String {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = || {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        WORDS[usize::try_from(state % WORDS.len() as u64).unwrap_or(0)]
    };
    // The first draws of neighbouring numbers are neighbours too.
    for _ in 0..8 {
        draw();
    }
    let mut text = String::new();
    for _ in 0..words {
        text.push_str(draw());
        text.push(' ');
    }
    text + &number.to_string()
}

impl Target {
    fn ask(self, number: u64, words: usize, tokens: u32) -> Result<Came> {
        let prompt = text(number, words);
        self.side.ask(self.api, &Ask { prompt, tokens }, || {})
    }

    /// Tokens per second of one answer alone.
    pub fn decode(self, number: u64) -> Result<f64> {
        self.ask(number, SHORT_PROMPT, LONG_ANSWER)?.decode_rate()
    }

    /// Tokens per second of one answer alone that writes down once more what it has read three times.
    pub fn copy(self, number: u64) -> Result<f64> {
        let once = text(number, COPIED);
        let begun: Vec<&str> = once.split(' ').take(COPY_BEGUN).collect();
        let prompt = format!("{once}\n{once}\n{once}\n{}", begun.join(" "));
        let tokens = LONG_ANSWER;
        let came = self.side.ask(self.api, &Ask { prompt, tokens }, || {})?;
        came.decode_rate()
    }

    /// Prompt tokens per second, up to the first token.
    pub fn prefill(self, number: u64) -> Result<f64> {
        let came = self.ask(number, PREFILL_PROMPT, 1)?;
        Ok(came.prompt_tokens as f64 / came.first()?.as_secs_f64())
    }

    /// Milliseconds to the first token of a short prompt on an idle server: the way there and back.
    pub fn first_token(self, number: u64) -> Result<f64> {
        Ok(self.ask(number, 4, 1)?.first()?.as_secs_f64() * 1e3)
    }

    /// Tokens per second of `clients` clients together, from the first request to the last token.
    pub fn throughput(self, number: u64, clients: u64) -> Result<f64> {
        let start = Instant::now();
        let came =
            together((0..clients).map(|client| {
                move || self.ask(number * 100 + client, SHORT_PROMPT, SHORT_ANSWER)
            }))?;
        let tokens: u64 = came.iter().map(|came| came.tokens).sum();
        Ok(tokens as f64 / start.elapsed().as_secs_f64())
    }

    /// A long prompt that comes while answers run: its time to the first token, and the gaps between the
    /// tokens of the running answers meanwhile.
    pub fn amid(self, number: u64) -> Result<(Duration, Vec<Duration>)> {
        let pieces = AtomicUsize::new(0);
        let start = Instant::now();
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..RUNNING as u64)
                .map(|client| {
                    let pieces = &pieces;
                    scope.spawn(move || {
                        let ask = Ask {
                            prompt: text(number * 100 + client, SHORT_PROMPT),
                            tokens: RUNNING_ANSWER,
                        };
                        let began = start.elapsed();
                        let came = self.side.ask(self.api, &ask, || {
                            pieces.fetch_add(1, Ordering::Relaxed);
                        })?;
                        anyhow::Ok((began, came))
                    })
                })
                .collect();
            while pieces.load(Ordering::Relaxed) < RUNNING * UNDER_WAY {
                std::thread::sleep(Duration::from_millis(5));
            }
            let asked = start.elapsed();
            let long = self.ask(number * 100 + 99, LONG_PROMPT, 1)?;
            let until = asked + long.first()?;
            let mut gaps = Vec::new();
            for answer in running {
                let (began, came) = answer.join().expect("no client panics")?;
                let times: Vec<Duration> = came.times.iter().map(|time| began + *time).collect();
                let within = times
                    .windows(2)
                    .filter(|pair| pair[1] > asked && pair[0] < until);
                gaps.extend(within.map(|pair| pair[1] - pair[0]));
            }
            Ok((long.first()?, gaps))
        })
    }
}

/// Runs all at once and waits for all.
fn together<T: Send, F: FnOnce() -> Result<T> + Send>(
    work: impl Iterator<Item = F>,
) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = work.map(|work| scope.spawn(work)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no client panics"))
            .collect()
    })
}

/// The gap that 95 of 100 do not exceed, in milliseconds.
pub fn p95(gaps: &[Duration]) -> Result<f64> {
    let value = xtask::stream::quantile(gaps, 0.95).context("no gaps")?;
    Ok(value.as_secs_f64() * 1e3)
}
