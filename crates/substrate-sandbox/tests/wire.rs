//! The pipe's messages and the job's input: laws as properties, lies as cases.

#[path = "wire/strategies.rs"]
mod strategies;

use proptest::prelude::*;
use substrate_sandbox::wire::{
    DecodeError, Decoder, EncodeError, FromWorker, Input, Message, Prompt, ReadError, ToWorker,
    Wire, decode, encode, read, write,
};

use strategies::{from_worker, to_worker};

proptest! {
    #[test]
    fn every_message_to_a_worker_comes_back(message in to_worker()) {
        comes_back(&message);
    }

    #[test]
    fn every_message_from_a_worker_comes_back(message in from_worker()) {
        comes_back(&message);
    }

    #[test]
    fn any_bytes_give_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = decode::<FromWorker>(&bytes);
        let _ = decode::<ToWorker>(&bytes);
        let _ = read::<FromWorker>(&mut bytes.as_slice());
        let mut decoder = Decoder::<FromWorker>::new();
        decoder.push(&bytes);
        while let Ok(Some(_)) = decoder.pop() {}
    }

    #[test]
    fn a_flipped_bit_gives_a_message_or_an_error(
        message in from_worker(),
        place in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let mut frame = encode(&message).unwrap();
        let place = place.index(frame.len());
        frame[place] ^= 1 << bit;
        let _ = read::<FromWorker>(&mut frame.as_slice());
    }

    #[test]
    fn a_stream_may_be_cut_anywhere(
        messages in prop::collection::vec(from_worker(), 1..5),
        pieces in prop::collection::vec(1..40_usize, 1..20),
    ) {
        let stream: Vec<u8> = messages.iter().flat_map(|message| encode(message).unwrap()).collect();
        let mut decoder = Decoder::new();
        let mut decoded: Vec<FromWorker> = Vec::new();
        let mut rest = stream.as_slice();
        for piece in pieces.iter().cycle() {
            let (now, later) = rest.split_at(rest.len().min(*piece));
            decoder.push(now);
            while let Some(message) = decoder.pop().unwrap() {
                decoded.push(message);
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert!(decoder.is_empty());
        prop_assert!(decoded == messages);
    }

    #[test]
    fn a_stream_that_ends_early_says_so(message in from_worker(), cut in any::<prop::sample::Index>()) {
        let frame = encode(&message).unwrap();
        let cut = cut.index(frame.len());
        match read::<FromWorker>(&mut &frame[..cut]) {
            Ok(None) => prop_assert_eq!(cut, 0),
            Err(ReadError::Torn) => prop_assert_ne!(cut, 0),
            other => prop_assert!(false, "{:?}", other),
        }
    }
}

fn comes_back<M: Wire + PartialEq + std::fmt::Debug>(message: &M) {
    let frame = encode(message).unwrap();
    let mut stream = Vec::new();
    write(&mut stream, message).unwrap();
    assert_eq!(stream, frame);
    let mut stream = stream.as_slice();
    assert!(read::<M>(&mut stream).unwrap().as_ref() == Some(message));
    assert!(read::<M>(&mut stream).unwrap().is_none());
}

/// What a frame with this header and body is refused for.
fn refusal(header: u32, body: &[u8]) -> DecodeError {
    let mut frame = header.to_be_bytes().to_vec();
    frame.extend(body);
    let mut decoder = Decoder::<FromWorker>::new();
    decoder.push(&frame);
    let error = decoder.pop().unwrap_err();
    // An error is final: a good frame after it is not believed.
    decoder.push(&encode(&FromWorker::Prefilled { seq: 1, n: 1 }).unwrap());
    assert_eq!(decoder.pop().unwrap_err(), error);
    match read::<FromWorker>(&mut frame.as_slice()) {
        Err(ReadError::Decode(same)) => assert_eq!(same, error),
        other => panic!("{other:?}"),
    }
    error
}

#[test]
fn an_empty_frame_is_refused() {
    assert_eq!(refusal(0, b""), DecodeError::Empty);
}

#[test]
fn a_frame_over_the_limit_is_refused_by_its_header_alone() {
    let limit = FromWorker::MAX_FRAME;
    for size in [limit as u32 + 1, u32::MAX] {
        let size_found = size as usize;
        assert_eq!(
            refusal(size, b""),
            DecodeError::TooLarge {
                size: size_found,
                limit
            }
        );
    }
}

#[test]
fn a_frame_of_another_kind_is_refused() {
    assert!(matches!(refusal(1, &[200]), DecodeError::Malformed(_)));
}

#[test]
fn bytes_after_a_message_are_refused() {
    let frame = encode(&FromWorker::Prefilled { seq: 1, n: 1 }).unwrap();
    let body = [&frame[4..], b"!!"].concat();
    assert_eq!(refusal(body.len() as u32, &body), DecodeError::Trailing(2));
}

#[test]
fn a_count_that_lies_allocates_nothing() {
    // Tokens of sequence 0 that claims 2^35 ids in a frame of a few bytes.
    let body = [5, 0, 0xff, 0xff, 0xff, 0xff, 0x7f];
    assert!(matches!(
        refusal(body.len() as u32, &body),
        DecodeError::Malformed(_)
    ));
}

#[test]
fn a_message_over_the_limit_is_not_sent() {
    let message = FromWorker::Detokenized {
        seq: 1,
        bytes: vec![0; FromWorker::MAX_FRAME],
    };
    assert!(matches!(
        encode(&message),
        Err(EncodeError::TooLarge { .. })
    ));
    let mut sent = Vec::new();
    assert!(write(&mut sent, &message).is_err());
    assert!(sent.is_empty());
}

#[test]
fn no_text_reaches_a_log() {
    const SECRET: &str = "the marker";
    let text = SECRET.to_owned();
    let ids = vec![31_337];
    let input = Input::chat(vec![Message::new("user", SECRET)]);
    let shown = format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        ToWorker::Tokenize {
            seq: 1,
            text: text.clone(),
            special: false
        },
        ToWorker::Detokenize {
            seq: 1,
            ids: ids.clone()
        },
        ToWorker::Render {
            seq: 1,
            input: SECRET.into()
        },
        FromWorker::Tokens {
            seq: 1,
            ids,
            bytes: SECRET.into(),
            logprobs: vec![]
        },
        FromWorker::Rendered { seq: 1, text },
        input,
        input.prompt,
    );
    assert!(
        !shown.contains(SECRET) && !shown.contains("31337"),
        "{shown}"
    );
    let Prompt::Chat(messages) = input.prompt else {
        return;
    };
    assert_eq!(format!("{:?}", messages[0]), "Message(10 bytes)");
}
