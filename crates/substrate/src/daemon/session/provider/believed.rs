//! What a worker's frame must be before anything of it is passed on, stored or signed.
//!
//! Invariant: pure; what passes is what a requester takes, so that no worker can make its daemon break the protocol towards others.
//! Absent by design: whether the words are good. Audits tell that, not the pipe.

use substrate_mesh::job::MAX_TEXT;
use substrate_mesh::token::{MAX_IDS, MAX_TOKEN_BYTES};
use substrate_record::JobKind;
use substrate_sandbox::wire::{Finished, FromWorker, TokenLogprob};

use crate::daemon::session::output::is_vector;

/// Bytes of likelihoods in one frame: twenty alternatives of the longest token each, with room; a frame of the stream has 64 KiB.
const MOST_LIKELIHOODS: usize = 24 * 1024;

/// The receipt's codes of how an answer ended.
const ENDS: std::ops::RangeInclusive<u8> = 1..=4;

/// The code of an answer that is whole.
const WHOLE: u8 = 1;

/// What was asked of the worker, and what it has given.
pub struct Asked {
    /// Words or vectors.
    pub kind: JobKind,
    /// Tokens or rows it may make in this attempt.
    pub most: u32,
    /// Tokens or rows it has made.
    pub made: u32,
    /// Alternatives to tell with each token, if any are to be told.
    pub top: Option<u32>,
}

/// Whether a frame can be an honest worker's.
///
/// # Errors
/// What is wrong with it.
pub fn check(asked: &Asked, frame: &FromWorker) -> Result<(), &'static str> {
    match frame {
        FromWorker::Tokens {
            ids,
            bytes,
            logprobs,
            ..
        } => tokens(asked, ids, bytes, logprobs),
        FromWorker::Row { row, bytes, .. } => self::row(asked, *row, bytes),
        FromWorker::Finished(done) => end(asked, done),
        FromWorker::Prefilled { .. } | FromWorker::Failed { .. } => Ok(()),
        _ => Err("an answer to something that was not asked"),
    }
}

fn tokens(
    asked: &Asked,
    ids: &[u32],
    bytes: &[u8],
    logprobs: &[TokenLogprob],
) -> Result<(), &'static str> {
    if asked.kind != JobKind::Generate {
        return Err("words where vectors were asked for");
    }
    if ids.is_empty() || ids.len() > MAX_IDS {
        return Err("text without tokens, or too many at once");
    }
    if ids.len() > (asked.most - asked.made.min(asked.most)) as usize {
        return Err("more tokens than were asked for");
    }
    text(bytes)?;
    let Some(top) = asked.top else {
        return match logprobs {
            [] => Ok(()),
            _ => Err("likelihoods that nobody asked for"),
        };
    };
    let told = logprobs.iter().map(|told| told.id);
    if !told.eq(ids.iter().copied()) || !logprobs.iter().all(|told| told.top.len() <= top as usize)
    {
        return Err("likelihoods of something else");
    }
    let texts = logprobs.iter().flat_map(|told| {
        let others = told.top.iter().map(|(.., bytes)| bytes.len());
        others.chain([told.bytes.len()])
    });
    let (all, longest) = texts.fold((0, 0), |(all, longest), one| (all + one, one.max(longest)));
    match all <= MOST_LIKELIHOODS && longest <= MAX_TOKEN_BYTES {
        true => Ok(()),
        false => Err("likelihoods longer than tokens are"),
    }
}

fn row(asked: &Asked, row: u32, bytes: &[u8]) -> Result<(), &'static str> {
    if asked.kind != JobKind::Embed || row != asked.made || row >= asked.most {
        return Err("a vector that nobody asked for");
    }
    match bytes.len() <= MAX_TEXT && is_vector(bytes) {
        true => Ok(()),
        false => Err("a vector that is none"),
    }
}

fn end(asked: &Asked, done: &Finished) -> Result<(), &'static str> {
    text(&done.tail)?;
    if !ENDS.contains(&done.finish) {
        return Err("an end of no known kind");
    }
    let missing = asked.kind == JobKind::Embed && asked.made < asked.most;
    match missing && done.finish == WHOLE {
        true => Err("fewer vectors than there are texts"),
        false => Ok(()),
    }
}

fn text(bytes: &[u8]) -> Result<(), &'static str> {
    match bytes.len() <= MAX_TEXT && std::str::from_utf8(bytes).is_ok() {
        true => Ok(()),
        false => Err("text that is not whole UTF-8, or too long for a token"),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn asked(kind: JobKind, made: u32, top: Option<u32>) -> Asked {
        let most = 4;
        Asked {
            kind,
            most,
            made,
            top,
        }
    }

    fn words(ids: &[u32], bytes: &[u8]) -> FromWorker {
        FromWorker::Tokens {
            seq: 1,
            ids: ids.to_vec(),
            bytes: bytes.to_vec(),
            logprobs: Vec::new(),
        }
    }

    fn vector(row: u32, components: &[f32]) -> FromWorker {
        let bytes = components.iter().flat_map(|one| one.to_le_bytes());
        FromWorker::Row {
            seq: 1,
            row,
            bytes: bytes.collect(),
        }
    }

    fn ended(finish: u8, tail: &[u8]) -> FromWorker {
        FromWorker::Finished(Finished {
            seq: 1,
            finish,
            n_out: 0,
            tail: tail.to_vec(),
            prefill_us: 0,
            decode_us: 0,
            min_gap: 0,
            reused: 0,
            prefilled: 0,
        })
    }

    fn likely(ids: &[u32], told: &[u32], top: usize, length: usize) -> FromWorker {
        let logprobs = told.iter().map(|&id| TokenLogprob {
            id,
            logprob: 0,
            top: vec![(0, 0, vec![0; length]); top],
            bytes: Vec::new(),
        });
        FromWorker::Tokens {
            seq: 1,
            ids: ids.to_vec(),
            bytes: Vec::new(),
            logprobs: logprobs.collect(),
        }
    }

    #[test]
    fn frames_are_believed_if_an_honest_worker_could_have_sent_them() {
        use JobKind::{Embed, Generate};
        let long = vec![b'a'; MAX_TEXT + 1];
        let cases = [
            ("a token", Generate, 0, None, words(&[7], b"a")),
            ("the last token", Generate, 3, None, words(&[7], b"")),
            ("one more", Generate, 4, None, words(&[7], b"")),
            ("two for one", Generate, 3, None, words(&[7, 8], b"")),
            ("no token", Generate, 0, None, words(&[], b"a")),
            ("half a character", Generate, 0, None, words(&[7], b"\xc3")),
            ("a long one", Generate, 0, None, words(&[7], &long)),
            ("words", Embed, 0, None, words(&[7], b"a")),
            ("unasked", Generate, 0, None, likely(&[7], &[7], 1, 1)),
            ("likely", Generate, 0, Some(2), likely(&[7], &[7], 2, 1)),
            ("untold", Generate, 0, Some(2), words(&[7], b"a")),
            ("another's", Generate, 0, Some(2), likely(&[7], &[8], 2, 1)),
            ("more", Generate, 0, Some(2), likely(&[7], &[7], 3, 1)),
            ("longer", Generate, 0, Some(2), likely(&[7], &[7], 2, 513)),
            ("a row", Embed, 1, None, vector(1, &[0.6, 0.8])),
            ("again", Embed, 2, None, vector(1, &[0.6, 0.8])),
            ("beyond", Embed, 4, None, vector(4, &[0.6, 0.8])),
            ("no number", Embed, 1, None, vector(1, &[f32::NAN])),
            ("empty", Embed, 1, None, vector(1, &[])),
            ("a vector", Generate, 1, None, vector(1, &[1.0])),
            ("the end", Generate, 2, None, ended(1, b"!")),
            ("no end", Generate, 2, None, ended(9, b"")),
            ("half an end", Generate, 2, None, ended(1, b"\xc3")),
            ("all rows", Embed, 4, None, ended(1, b"")),
            ("not all", Embed, 3, None, ended(1, b"")),
            ("cancelled", Embed, 3, None, ended(3, b"")),
        ];
        let told = cases.map(|(name, kind, made, top, frame)| {
            let verdict = check(&asked(kind, made, top), &frame);
            format!("{name}: {}\n", verdict.err().unwrap_or("believed"))
        });
        expect![[r#"
            a token: believed
            the last token: believed
            one more: more tokens than were asked for
            two for one: more tokens than were asked for
            no token: text without tokens, or too many at once
            half a character: text that is not whole UTF-8, or too long for a token
            a long one: text that is not whole UTF-8, or too long for a token
            words: words where vectors were asked for
            unasked: likelihoods that nobody asked for
            likely: believed
            untold: likelihoods of something else
            another's: likelihoods of something else
            more: likelihoods of something else
            longer: likelihoods longer than tokens are
            a row: believed
            again: a vector that nobody asked for
            beyond: a vector that nobody asked for
            no number: a vector that is none
            empty: a vector that is none
            a vector: a vector that nobody asked for
            the end: believed
            no end: an end of no known kind
            half an end: text that is not whole UTF-8, or too long for a token
            all rows: believed
            not all: fewer vectors than there are texts
            cancelled: believed
        "#]]
        .assert_eq(&told.concat());
    }

    #[test]
    fn what_was_not_asked_is_not_an_answer() {
        let other = FromWorker::Tokenized {
            seq: 1,
            ids: Vec::new(),
        };
        assert!(check(&asked(JobKind::Generate, 0, None), &other).is_err());
    }
}
