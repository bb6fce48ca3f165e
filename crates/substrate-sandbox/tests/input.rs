//! The input's one encoding: what comes back, what is refused, and that it is CBOR at all.

use ciborium::Value;
use proptest::{collection::vec, option::of, prelude::*};
use substrate_sandbox::wire::{
    Image, Input, InputError, Message, Prompt, Thinking,
    image::{
        ImageError, Kind, Look, MAX_IMAGE, MAX_IMAGES, MAX_POINTS, MAX_POINTS_TOGETHER, MAX_SIDE,
    },
    input::{
        CborError, MAX_INPUT, MAX_LABEL, MAX_LOGIT_BIAS, MAX_MESSAGES, MAX_STOP, MAX_STOPS,
        MAX_TEMPLATE, MAX_TEXTS,
    },
};

proptest! {
    #[test]
    fn every_input_comes_back(input in input()) {
        let bytes = input.to_cbor_bytes().unwrap();
        prop_assert!(Input::from_cbor_bytes(&bytes).unwrap() == input);
    }

    #[test]
    fn any_bytes_are_an_error_or_the_one_encoding(bytes in vec(any::<u8>(), 0..256)) {
        one_encoding(&bytes);
    }

    #[test]
    fn a_damaged_input_is_an_error_or_the_one_encoding(
        input in input(),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = input.to_cbor_bytes().unwrap();
        let place = place.index(bytes.len());
        bytes[place] = byte;
        one_encoding(&bytes);
        one_encoding(&bytes[..place]);
    }

    #[test]
    fn another_implementation_writes_the_same_bytes(input in input()) {
        let bytes = input.to_cbor_bytes().unwrap();
        let value: Value = ciborium::from_reader(bytes.as_slice()).unwrap();
        let mut again = Vec::new();
        ciborium::into_writer(&value, &mut again).unwrap();
        prop_assert_eq!(again, bytes);
    }
}

fn one_encoding(bytes: &[u8]) {
    if let Ok(input) = Input::from_cbor_bytes(bytes) {
        assert_eq!(input.to_cbor_bytes().unwrap(), bytes);
    }
}

fn input() -> impl Strategy<Value = Input> {
    let prompt = prop_oneof![
        vec(message(), 0..5).prop_map(Prompt::Chat),
        any::<(String, bool)>().prop_map(|(text, special)| Prompt::Text { text, special }),
    ];
    let bias = prop::collection::btree_map(any::<u32>(), any::<i32>(), 0..4);
    (
        prompt,
        any::<[Option<String>; 3]>(),
        vec(".{1,9}", 0..3),
        bias,
        of(prop::sample::select(&Thinking::ALL[..])),
    )
        .prop_map(
            |(prompt, [tools, schema, template], stop, bias, thinking)| Input {
                template: template.filter(|_| matches!(prompt, Prompt::Chat(_))),
                prompt,
                tools,
                schema,
                stop,
                logit_bias: bias.into_iter().collect(),
                thinking,
            },
        )
        .boxed()
        .prop_union(
            (vec(any::<String>(), 1..4), any::<bool>())
                .prop_map(|(texts, truncate)| Input::texts(texts, truncate))
                .boxed(),
        )
}

fn message() -> impl Strategy<Value = Message> {
    (
        ".{0,9}",
        any::<String>(),
        of(".{0,9}"),
        of(".{0,9}"),
        any::<[Option<String>; 2]>(),
        vec((any::<prop::sample::Index>(), gif()), 0..3),
    )
        .prop_map(
            |(role, content, name, tool_call_id, [tool_calls, thinking], images)| Message {
                images: placed(&content, images),
                role,
                content,
                name,
                tool_calls,
                tool_call_id,
                thinking,
            },
        )
}

/// A header of a GIF, and anything behind it: nobody here looks further.
fn gif() -> impl Strategy<Value = Vec<u8>> {
    (1_u16..200, 1_u16..100, vec(any::<u8>(), 0..9)).prop_map(|(width, height, rest)| {
        let sides = [width + 100, height + 100].map(u16::to_le_bytes).concat();
        [&b"GIF89a"[..], &sides, &rest].concat()
    })
}

/// Images at characters of a text, in their order.
fn placed(text: &str, images: Vec<(prop::sample::Index, Vec<u8>)>) -> Vec<Image> {
    let places: Vec<usize> = (0..=text.len())
        .filter(|at| text.is_char_boundary(*at))
        .collect();
    let mut placed: Vec<Image> = images
        .into_iter()
        .map(|(index, bytes)| Image {
            at: places[index.index(places.len())] as u32,
            bytes,
        })
        .collect();
    placed.sort_by_key(|image| image.at);
    placed
}

/// The least PNG of these sides that a header can be.
fn png(width: u32, height: u32) -> Vec<u8> {
    let sides = [width, height].map(u32::to_be_bytes).concat();
    [&b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"[..], &sides].concat()
}

fn jpeg(width: u16, height: u16) -> Vec<u8> {
    // A comment, a fill byte, then the frame of a progressive picture.
    let head = b"\xff\xd8\xff\xfe\0\x04hi\xff\xff\xc2\0\x0b\x08";
    [&head[..], &[height, width].map(u16::to_be_bytes).concat()].concat()
}

#[test]
fn an_image_is_known_by_its_header() {
    let gif = b"GIF87a\x02\0\x01\0".to_vec();
    for (bytes, kind, width, height) in [
        (png(640, 480), Kind::Png, 640, 480),
        (jpeg(300, 200), Kind::Jpeg, 300, 200),
        (gif, Kind::Gif, 2, 1),
        (png(MAX_SIDE, 1024), Kind::Png, MAX_SIDE, 1024),
    ] {
        let look = Look {
            kind,
            width,
            height,
        };
        assert_eq!(Look::at(&bytes), Ok(look));
        for end in 12..bytes.len() {
            assert_eq!(
                Look::at(&bytes[..end]),
                Err(ImageError::Header),
                "{kind:?} {end}"
            );
        }
    }
}

#[test]
fn an_image_that_no_worker_would_decode_is_refused() {
    let points = |width, height| Err(ImageError::Points { width, height });
    for (bytes, refused) in [
        (Vec::new(), Err(ImageError::Kind)),
        (b"<svg>".to_vec(), Err(ImageError::Kind)),
        (b"RIFF\0\0\0\0WEBPVP8 ".to_vec(), Err(ImageError::WebP)),
        (png(0, 5), points(0, 5)),
        (png(60_000, 60_000), points(60_000, 60_000)),
        (png(4097, 4096), points(4097, 4096)),
        (png(MAX_SIDE + 1, 300), points(MAX_SIDE + 1, 300)),
        (png(1, 130), points(1, 130)),
        (b"\xff\xd8\xff\xda\0\x02".to_vec(), Err(ImageError::Header)),
        (
            vec![0; MAX_IMAGE + 1],
            Err(ImageError::Bytes(MAX_IMAGE + 1)),
        ),
    ] {
        assert_eq!(Look::at(&bytes), refused);
    }
    assert!(
        Look::at(&png(4096, 4096)).is_ok_and(|look| u64::from(look.width).pow(2) == MAX_POINTS)
    );
}

proptest! {
    #[test]
    fn any_image_is_within_the_limits_or_refused(
        head in prop::sample::select(vec![png(3, 3), jpeg(3, 3), b"GIF89a".to_vec()]),
        keep in 0_usize..30,
        rest in vec(any::<u8>(), 0..40),
    ) {
        let bytes = [&head[..keep.min(head.len())], &rest].concat();
        if let Ok(look) = Look::at(&bytes) {
            prop_assert!((1..=MAX_SIDE).contains(&look.width) && (1..=MAX_SIDE).contains(&look.height));
            prop_assert!(u64::from(look.width) * u64::from(look.height) <= MAX_POINTS);
        }
    }
}

#[test]
fn images_stand_at_characters_in_order_and_are_not_too_many() {
    let said = |images: &[(u32, Vec<u8>)]| {
        let images = images.iter().map(|(at, bytes)| Image {
            at: *at,
            bytes: bytes.clone(),
        });
        let message = Message {
            images: images.collect(),
            ..Message::new("user", "äb")
        };
        Input::chat(vec![message]).to_cbor_bytes().map(drop)
    };
    let sound = png(9, 9);
    let at = |at| (at, sound.clone());
    assert_eq!(said(&[at(0), at(0), at(2), at(3)]), Ok(()));
    for (images, number) in [
        (vec![at(1)], 1),
        (vec![at(0), at(4)], 2),
        (vec![at(2), at(0)], 2),
    ] {
        assert_eq!(said(&images), Err(InputError::ImagePlace(number)));
    }
    let many = vec![at(0); MAX_IMAGES + 1];
    assert!(matches!(
        said(&many),
        Err(InputError::TooLarge { what: "images", .. })
    ));
    let large = || (0, png(4096, 4096));
    assert_eq!(said(&[large(), large()]), Ok(()));
    let together = MAX_POINTS_TOGETHER + 81;
    assert_eq!(
        said(&[large(), large(), at(0)]),
        Err(InputError::Points(together))
    );
    let why = ImageError::Kind;
    assert_eq!(
        said(&[at(0), (0, vec![1, 2])]),
        Err(InputError::Image { number: 2, why })
    );
    // A list of images with nothing in it has a second encoding, and is none.
    let mut bytes = Input::chat(vec![Message::new("user", "hi")])
        .to_cbor_bytes()
        .unwrap();
    let map = bytes.iter().rposition(|byte| *byte == 0xa2).unwrap();
    bytes[map] = 0xa3;
    bytes.extend([7, 0x80]);
    assert!(Input::from_cbor_bytes(&bytes).is_err());
}

#[test]
fn the_encoding_is_fixed() {
    let mut input = Input::chat(vec![Message::new("user", "hi")]);
    input.stop = vec!["\n".to_owned()];
    input.logit_bias = vec![(5, -65_536), (300, 1)];
    let hex: String = input
        .to_cbor_bytes()
        .unwrap()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(
        hex,
        "a30181a201647573657202626869058161 0a06828205 39ffff8219012c01".replace(' ', "")
    );
    let mut thinks = Input::text("", false);
    thinks.thinking = Some(Thinking::Max);
    let thinks = thinks.to_cbor_bytes().unwrap();
    assert_eq!(thinks, [0xa2, 2, 0xa2, 1, 0x60, 2, 0xf4, 7, 5]);
    let text = Input::text("hi", true).to_cbor_bytes().unwrap();
    assert_eq!(text, [0xa1, 2, 0xa2, 1, 0x62, b'h', b'i', 2, 0xf5]);
    let texts = Input::texts(vec!["hi".to_owned()], false);
    let expected = [0xa1, 9, 0xa2, 1, 0x81, 0x62, b'h', b'i', 2, 0xf4];
    assert_eq!(texts.to_cbor_bytes().unwrap(), expected);
}

fn refused(bytes: &[u8], expected: &str) {
    let error = Input::from_cbor_bytes(bytes)
        .expect_err("refused")
        .to_string();
    assert_eq!(error, expected);
}

#[test]
fn what_is_not_canonical_is_refused() {
    let text = |rest: &[u8]| [&[0xa1, 2, 0xa2, 1], rest].concat();
    refused(
        &text(&[0x78, 1, b'h', 2, 0xf5]),
        "input is not canonical: not in shortest form",
    );
    refused(
        &text(&[0x7f, 0x61, b'h', 0xff, 2, 0xf5]),
        "input is not canonical: not in shortest form",
    );
    refused(
        &text(&[0x61, b'h', 2, 0xf5, 0]),
        "input is not canonical: 1 bytes after the last item",
    );
    refused(
        &text(&[0x61, 0xff, 2, 0xf5]),
        "input is not canonical: text is not utf-8",
    );
    refused(
        &text(&[0x7b, 255, 255, 255, 255, 255, 255, 255, 255]),
        "input is not canonical: ends inside an item",
    );
    refused(
        &text(&[0x41, b'h', 2, 0xf5]),
        "input is not canonical: unexpected item 0x40",
    );
    refused(
        &[0xc0, 0xa0],
        "input is not canonical: unexpected item 0xc0",
    );
    refused(&[], "input is not canonical: ends inside an item");
}

#[test]
fn fields_that_do_not_belong_are_refused() {
    let text = [2, 0xa2, 1, 0x60, 2, 0xf4];
    let with = |head: u8, rest: &[u8]| [&[head][..], &text, rest].concat();
    refused(&[0xa0], "unexpected field 1 in input");
    refused(&[0xa1, 3, 0x60], "unexpected field 3 in input");
    // The last label there is, then any other: found by fuzzing, the error itself overflowed.
    refused(
        &[&[0xa8, 0x1b][..], &[0xff; 8], &[0]].concat(),
        "unexpected field 18446744073709551615 in input",
    );
    refused(&with(0xa2, &[9, 0x60]), "unexpected field 9 in input");
    refused(
        &with(0xa2, &[7, 0x60]),
        "input is not canonical: unexpected item 0x60",
    );
    refused(
        &with(0xa2, &[7, 6]),
        "input is not canonical: number out of range",
    );
    refused(&with(0xa2, &[2, 0x60]), "unexpected field 2 in input");
    refused(
        &with(0xa3, &[4, 0x60, 3, 0x60]),
        "unexpected field 3 in input",
    );
    refused(&with(0xa2, &[5, 0x80]), "unexpected field 5 in input");
    refused(&with(0xa2, &[6, 0x80]), "unexpected field 6 in input");
    refused(
        &[0xa1, 1, 0x81, 0xa1, 1, 0x60],
        "unexpected field 2 in message",
    );
    refused(
        &with(0xa2, &[6, 0x81, 0x83, 1, 1, 1]),
        "unexpected field 3 in logit_bias",
    );
}

#[test]
fn counts_that_lie_are_refused_without_allocating() {
    let messages = [&[0xa1, 1, 0x9b][..], &u64::MAX.to_be_bytes()].concat();
    let error = Input::from_cbor_bytes(&messages).unwrap_err();
    assert!(matches!(
        error,
        InputError::TooLarge {
            what: "messages",
            ..
        }
    ));
    refused(
        &[0xa1, 1, 0x19, 0x0f, 0xff],
        "input is not canonical: unexpected item 0x00",
    );
    refused(
        &[0xa1, 1, 0x99, 0x0f, 0xff],
        "input is not canonical: ends inside an item",
    );
}

#[test]
fn limits_hold_in_both_directions() {
    let text = |n: usize| "x".repeat(n);
    let plain = || Input::text("", false);
    let stops = |stop| Input { stop, ..plain() };
    let biases = |n: u32| Input {
        logit_bias: (0..n).map(|id| (id, 0)).collect(),
        ..plain()
    };
    let templated = |n| Input {
        template: Some(text(n)),
        ..Input::chat(Vec::new())
    };
    let cases = [
        (
            Input::text(text(MAX_INPUT - 100), false),
            Input::text(text(MAX_INPUT), false),
        ),
        (
            Input::chat(vec![Message::default(); MAX_MESSAGES]),
            Input::chat(vec![Message::default(); MAX_MESSAGES + 1]),
        ),
        (
            stops(vec![text(1); MAX_STOPS]),
            stops(vec![text(1); MAX_STOPS + 1]),
        ),
        (stops(vec![text(MAX_STOP)]), stops(vec![text(MAX_STOP + 1)])),
        (
            biases(MAX_LOGIT_BIAS as u32),
            biases(MAX_LOGIT_BIAS as u32 + 1),
        ),
        (
            Input::chat(vec![Message::new(text(MAX_LABEL), "")]),
            Input::chat(vec![Message::new(text(MAX_LABEL + 1), "")]),
        ),
        (templated(MAX_TEMPLATE), templated(MAX_TEMPLATE + 1)),
        (
            Input::texts(vec![text(1); MAX_TEXTS], true),
            Input::texts(vec![text(1); MAX_TEXTS + 1], true),
        ),
    ];
    for (fits, too_large) in cases {
        let bytes = fits.to_cbor_bytes().unwrap();
        assert!(Input::from_cbor_bytes(&bytes).unwrap() == fits);
        assert!(matches!(
            too_large.to_cbor_bytes(),
            Err(InputError::TooLarge { .. })
        ));
    }
    assert!(matches!(
        Input::from_cbor_bytes(&vec![0; MAX_INPUT + 1]),
        Err(InputError::TooLarge { what: "input", .. })
    ));
}

#[test]
fn a_template_goes_with_messages_only() {
    let template = Some("{{ messages }}".to_owned());
    let text = Input {
        template,
        ..Input::text("a", false)
    };
    assert_eq!(text.to_cbor_bytes(), Err(InputError::Template));
    // The same bytes by hand.
    refused(
        &[0xa2, 2, 0xa2, 1, 0x60, 2, 0xf4, 8, 0x61, b'x'],
        "a template goes with messages only",
    );
}

#[test]
fn texts_stand_alone() {
    let none = Input::texts(Vec::new(), true);
    assert_eq!(none.to_cbor_bytes(), Err(InputError::Texts));
    let texts = Input::texts(vec!["a".to_owned()], true);
    let schema = Some("{}".to_owned());
    let bound = Input { schema, ..texts };
    assert_eq!(bound.to_cbor_bytes(), Err(InputError::Texts));
    // The same bytes by hand, and no text at all.
    refused(
        &[0xa2, 9, 0xa2, 1, 0x81, 0x60, 2, 0xf5, 3, 0x60],
        "unexpected field 3 in input",
    );
    refused(
        &[0xa1, 9, 0xa2, 1, 0x80, 2, 0xf5],
        "texts to embed are one or more, and nothing goes with them",
    );
}

#[test]
fn an_empty_stop_and_unsorted_biases_are_refused() {
    let mut input = Input::text("", false);
    input.stop = vec![String::new()];
    assert_eq!(input.to_cbor_bytes(), Err(InputError::EmptyStop));
    input.stop.clear();
    for bias in [vec![(2, 0), (1, 0)], vec![(1, 0), (1, 0)]] {
        input.logit_bias = bias;
        assert_eq!(input.to_cbor_bytes(), Err(InputError::BiasOrder));
    }
    let error = InputError::from(CborError::OutOfRange);
    assert_eq!(
        error.to_string(),
        "input is not canonical: number out of range"
    );
}
