//! What a taken-over worker may do wrong, and when.

use std::io::IoSlice;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::time::Duration;

use substrate_sandbox::wire::{Failure, FromWorker, TokenLogprob, encode};

use crate::play::{CONTEXT, PROMPT, Play, WHOLE, ended, facts};

/// When a mode leaves the honest part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Never.
    Honest,
    /// Before it is sealed, which it only says it is.
    Unsealed,
    /// When it is told to load.
    Load,
    /// Once it is loaded.
    Loaded,
    /// When it is given a prompt.
    Prepare,
    /// When it is told to answer.
    Answer,
    /// When it is told to answer, and it answers no Cancel either.
    Deaf,
}

/// One way to misbehave.
pub struct Mode {
    pub name: &'static str,
    pub when: When,
    /// What it does instead of, or before, the honest part; for the sequence at hand, or 0.
    pub act: fn(&mut Play, u64),
}

const fn mode(name: &'static str, when: When, act: fn(&mut Play, u64)) -> Mode {
    Mode { name, when, act }
}

/// Frames that are sent at once by whoever floods: far more than any grant.
const FLOOD: u32 = 100_000;

/// Between two bytes or tokens of one that is slow.
const SLOW: Duration = Duration::from_millis(50);

pub const ALL: &[Mode] = &[
    mode("honest", When::Honest, |_, _| {}),
    mode("tell what it was sent", When::Answer, tell),
    mode("stay when the pipe closes", When::Honest, |_, _| {}),
    // Before it is sealed.
    mode("only say that it is sealed", When::Unsealed, |_, _| {}),
    mode("pass descriptors", When::Unsealed, pass_descriptors),
    // At the load.
    mode("never load", When::Load, |play, _| play.be_silent()),
    mode("leave at the load", When::Load, |_, _| {
        std::process::exit(0)
    }),
    mode("promise a frame of 4 GiB", When::Load, |play, _| {
        play.send_bytes(&[0xff; 4]);
        play.be_silent()
    }),
    mode("drip a frame", When::Load, drip),
    mode("be sealed for ever", When::Load, |play, _| {
        for _ in 0..FLOOD {
            play.send(&FromWorker::Sealed {
                stage: 1,
                landlock: 2,
                seccomp: true,
            });
        }
    }),
    mode("answer before the load", When::Load, |play, _| {
        play.token(1, 1, b"early")
    }),
    mode("claim all there is", When::Load, |play, _| {
        let mut claimed = facts(u32::MAX);
        claimed.n_vocab = u32::MAX;
        claimed.n_params = u64::MAX;
        claimed.size = u64::MAX;
        claimed.name = "\u{1b}[2Jzebra".repeat(1_000);
        play.send(&FromWorker::Loaded(claimed));
    }),
    mode("fail with much to say", When::Load, |play, _| {
        play.send(&failed(None, "\u{1b}[2Jlong\n".repeat(100_000)));
        play.be_silent()
    }),
    mode("noise at the load", When::Load, noise),
    // Once it is loaded.
    mode("load twice", When::Loaded, |play, _| {
        play.send(&FromWorker::Loaded(facts(CONTEXT)))
    }),
    mode("speak unasked", When::Loaded, |play, _| {
        play.token(77, 1, b"unasked")
    }),
    mode("leave once loaded", When::Loaded, |_, _| {
        std::process::exit(0)
    }),
    mode("read nothing any more", When::Loaded, |play, _| {
        play.be_silent()
    }),
    // When it is given a prompt.
    mode("not take the prompt", When::Prepare, |_, _| {}),
    mode("count too many tokens", When::Prepare, |play, seq| {
        play.send(&FromWorker::Prepared {
            seq,
            n_in: u32::MAX,
        })
    }),
    mode("answer another question", When::Prepare, |play, seq| {
        play.send(&FromWorker::Detokenized {
            seq,
            bytes: b"what".to_vec(),
        })
    }),
    mode("answer for a later job", When::Prepare, |play, seq| {
        play.send(&FromWorker::Prepared {
            seq: seq + 1,
            n_in: PROMPT,
        })
    }),
    mode("refuse with the prompt", When::Prepare, refuse_with_prompt),
    // When it is told to answer.
    mode("never begin", When::Answer, |_, _| {}),
    mode("never begin nor end", When::Deaf, |_, _| {}),
    mode("fall silent in the answer", When::Answer, |play, seq| {
        play.token(seq, 1, b"half");
        play.be_silent()
    }),
    mode("leave in the answer", When::Answer, |play, seq| {
        play.token(seq, 1, b"half");
        std::process::exit(1)
    }),
    mode("leave inside a frame", When::Answer, |play, seq| {
        let frame = whole_frame(seq);
        play.send_bytes(&frame[..frame.len() / 2]);
        std::process::exit(1)
    }),
    mode("flood", When::Answer, |play, seq| {
        for id in 0..FLOOD {
            play.token(seq, id, b"flood ");
        }
        play.be_silent()
    }),
    mode("go on past the end", When::Answer, |play, seq| {
        let most = play.open.iter().find(|open| open.seq == seq);
        let most = most.map_or(0, |open| open.most);
        for id in 0..=most {
            play.token(seq, id, b"more ");
        }
    }),
    mode("drip tokens", When::Answer, |play, seq| {
        for id in 0..8 {
            play.wait(SLOW);
            play.token(seq, id, b"slow ");
        }
        play.finish(seq, WHOLE, 8);
    }),
    mode("speak no text", When::Answer, |play, seq| {
        play.token(seq, 1, b"\xff\xfe")
    }),
    mode("speak without tokens", When::Answer, |play, seq| {
        for _ in 0..3 {
            play.send(&FromWorker::Tokens {
                seq,
                ids: Vec::new(),
                bytes: vec![b'x'; 16],
                logprobs: Vec::new(),
            });
        }
    }),
    mode("send the largest frame", When::Answer, |play, seq| {
        play.send(&FromWorker::Tokens {
            seq,
            ids: vec![1; 100_000],
            bytes: vec![b'x'; 400_000],
            logprobs: Vec::new(),
        });
    }),
    mode("send a larger frame", When::Answer, |play, _| {
        let size = (1u32 << 20) + 1;
        play.send_bytes(&size.to_be_bytes());
        play.send_bytes(&vec![0; size as usize]);
    }),
    mode("send an empty frame", When::Answer, |play, _| {
        play.send_bytes(&[0; 4])
    }),
    mode("send two in one frame", When::Answer, |play, seq| {
        let mut frame = whole_frame(seq);
        let body = frame[4..].to_vec();
        frame.extend(body);
        let size = u32::try_from(frame.len() - 4).unwrap_or(0);
        frame[..4].copy_from_slice(&size.to_be_bytes());
        play.send_bytes(&frame);
    }),
    mode("guess likelihoods", When::Answer, |play, seq| {
        let top = vec![(1, 0, vec![b'x'; 30]); 500];
        let told = TokenLogprob {
            id: 1,
            logprob: i32::MAX,
            top,
            bytes: vec![b'x'; 4_000],
        };
        play.send(&FromWorker::Tokens {
            seq,
            ids: vec![1],
            bytes: b"x".to_vec(),
            logprobs: vec![told],
        });
    }),
    mode("make a vector", When::Answer, |play, seq| {
        play.send(&FromWorker::Row {
            seq,
            row: 0,
            bytes: vec![0xff; 16],
        })
    }),
    mode("read for ever", When::Answer, |play, seq| {
        for n in 0..FLOOD {
            play.send(&FromWorker::Prefilled { seq, n });
        }
    }),
    mode("prepare again", When::Answer, |play, seq| {
        play.send(&FromWorker::Prepared { seq, n_in: 1 })
    }),
    mode("end twice", When::Answer, |play, seq| {
        play.answer(seq, "ok ");
        play.send(&FromWorker::Finished(ended(seq, WHOLE, 1)));
        play.token(seq, 1, b"after the end");
    }),
    mode("end for ever", When::Answer, |play, seq| {
        for _ in 0..FLOOD {
            play.send(&FromWorker::Finished(ended(seq, WHOLE, 1)));
        }
    }),
    mode("end in no known way", When::Answer, |play, seq| {
        play.finish(seq, 200, u32::MAX)
    }),
    mode("lie about its time", When::Answer, |play, seq| {
        play.token(seq, 1, b"ok ");
        let mut done = ended(seq, WHOLE, u32::MAX);
        (done.prefill_us, done.decode_us) = (u64::MAX, u64::MAX);
        (done.min_gap, done.reused) = (i32::MIN, u32::MAX);
        play.open.retain(|open| open.seq != seq);
        play.send(&FromWorker::Finished(done));
    }),
    mode("end with half a character", When::Answer, |play, seq| {
        let mut done = ended(seq, WHOLE, 0);
        done.tail = b"\xc3".to_vec();
        play.send(&FromWorker::Finished(done));
    }),
    mode("answer others' jobs", When::Answer, |play, seq| {
        for other in (0..seq + 4).filter(|other| *other != seq) {
            play.token(other, 1, b"not yours");
            play.send(&FromWorker::Finished(ended(other, WHOLE, 1)));
        }
    }),
    mode("fail with the prompt", When::Answer, |play, seq| {
        let detail = prompt(play, seq);
        play.send(&failed(Some(seq), detail));
    }),
    mode("give up with the prompt", When::Answer, |play, seq| {
        let detail = prompt(play, seq);
        play.send(&failed(None, detail));
        play.be_silent()
    }),
    mode("noise in the answer", When::Answer, noise),
    mode("chaos", When::Answer, chaos),
];

fn failed(seq: Option<u64>, detail: String) -> FromWorker {
    let why = Failure::Internal;
    FromWorker::Failed { seq, why, detail }
}

fn prompt(play: &Play, seq: u64) -> String {
    let open = play.open.iter().find(|open| open.seq == seq);
    open.map_or_else(String::new, |open| {
        String::from_utf8_lossy(&open.input).into_owned()
    })
}

fn refuse_with_prompt(play: &mut Play, seq: u64) {
    let detail = prompt(play, seq);
    play.open.retain(|open| open.seq != seq);
    play.send(&failed(Some(seq), detail));
}

fn whole_frame(seq: u64) -> Vec<u8> {
    let token = FromWorker::Tokens {
        seq,
        ids: vec![1],
        bytes: b"a token".to_vec(),
        logprobs: Vec::new(),
    };
    encode(&token).unwrap_or_default()
}

/// Answers with every message that it was ever sent: what a worker that is taken over knows.
fn tell(play: &mut Play, seq: u64) {
    let all = play.heard.join("\n");
    let mut rest = all.as_str();
    let mut id = 0;
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(rest.floor_char_boundary(8_000));
        play.token(seq, id, piece.as_bytes());
        (rest, id) = (more, id + 1);
    }
    play.finish(seq, WHOLE, id);
}

/// A frame that is always about to be whole.
fn drip(play: &mut Play, _: u64) {
    play.send_bytes(&(1u32 << 20).to_be_bytes());
    loop {
        play.wait(SLOW);
        play.send_bytes(&[0]);
    }
}

fn noise(play: &mut Play, _: u64) {
    for _ in 0..64 {
        let bytes = play.dice.bytes(4_096);
        play.send_bytes(&bytes);
    }
}

/// Frames of every kind with numbers at their edges, some of them damaged.
fn chaos(play: &mut Play, seq: u64) {
    for _ in 0..play.dice.below(40) {
        let frame = any_frame(play, seq);
        let mut bytes = encode(&frame).unwrap_or_default();
        if play.dice.roll(8) == 0 && !bytes.is_empty() {
            let at = play.dice.below(bytes.len());
            bytes[at] ^= 1 << play.dice.roll(8);
        }
        if play.dice.roll(16) == 0 {
            bytes.truncate(play.dice.below(bytes.len()));
        }
        play.send_bytes(&bytes);
    }
    match play.dice.roll(3) {
        0 => std::process::exit(0),
        1 => play.be_silent(),
        _ => play.answer(seq, "ok "),
    }
}

fn any_frame(play: &mut Play, seq: u64) -> FromWorker {
    let dice = &mut play.dice;
    let seq = match dice.roll(4) {
        0 => dice.edge(),
        1 => seq.saturating_sub(dice.roll(3)),
        _ => seq,
    };
    match dice.roll(14) {
        0 => FromWorker::Sealed {
            stage: 2,
            landlock: 2,
            seccomp: true,
        },
        1 => FromWorker::Loaded(facts(dice.edge32())),
        2 => FromWorker::Inspected(facts(dice.edge32())),
        3 => {
            let n_in = dice.edge32();
            FromWorker::Prepared { seq, n_in }
        }
        4 => {
            let n = dice.edge32();
            FromWorker::Prefilled { seq, n }
        }
        5 => {
            let row = dice.edge32();
            let bytes = dice.bytes(64);
            FromWorker::Row { seq, row, bytes }
        }
        6 => {
            let mut done = ended(seq, dice.roll(6) as u8, dice.edge32());
            (done.prefill_us, done.decode_us) = (dice.edge(), dice.edge());
            done.tail = dice.bytes(8);
            FromWorker::Finished(done)
        }
        7 => {
            let ids = vec![dice.edge32(); dice.below(300)];
            FromWorker::Tokenized { seq, ids }
        }
        8 => {
            let bytes = dice.bytes(64);
            FromWorker::Detokenized { seq, bytes }
        }
        9 => {
            let text = "x".repeat(dice.below(1_000));
            FromWorker::Rendered { seq, text }
        }
        10 => {
            let (prefill, decode) = (dice.edge(), dice.edge());
            FromWorker::Benched {
                seq,
                prefill,
                decode,
            }
        }
        11 => failed((dice.roll(4) > 0).then_some(seq), "chaos ".repeat(40)),
        _ => {
            let ids = vec![dice.edge32(); dice.below(3)];
            let bytes = match dice.roll(3) {
                0 => dice.bytes(20),
                _ => b"word ".repeat(dice.below(4)),
            };
            FromWorker::Tokens {
                seq,
                ids,
                bytes,
                logprobs: Vec::new(),
            }
        }
    }
}

/// Sends its own descriptors along with every byte of a good frame: a reader that takes them in would run out of room for more.
fn pass_descriptors(play: &mut Play, _: u64) {
    let loaded = encode(&FromWorker::Loaded(facts(CONTEXT))).unwrap_or_default();
    for byte in loaded {
        if pass(play.pipe.as_raw_fd(), &[byte]).is_err() {
            std::process::exit(4);
        }
    }
}

/// One byte and three descriptors.
fn pass(pipe: i32, bytes: &[u8]) -> Result<(), std::io::Error> {
    const DESCRIPTORS: [i32; 3] = [0, 1, 2];
    const SPACE: usize = 64;
    #[repr(align(8))]
    struct Control([u8; SPACE]);
    let mut control = Control([0; SPACE]);
    let payload = IoSlice::new(bytes);
    // SAFETY: every pointer is to a local that outlives the call; the header lies in `control`, which is aligned for it and has room
    // for it and three descriptors (CMSG_SPACE(12) = 32).
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = (&raw const payload).cast_mut().cast();
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        let length = size_of::<[i32; 3]>() as u32;
        message.msg_controllen = libc::CMSG_SPACE(length) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(length) as _;
        libc::CMSG_DATA(header)
            .cast::<[i32; 3]>()
            .write_unaligned(DESCRIPTORS);
        libc::sendmsg(pipe, &raw const message, libc::MSG_NOSIGNAL)
    };
    match sent {
        1.. => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
