//! The lines between a host and its guest: each has one form, and everything else is an error.

use proptest::prelude::*;
use substrate_sandbox::guest::{FromGuest, MAX_LINE, Start, ToGuest, read_line};

fn to_guest() -> impl Strategy<Value = ToGuest> {
    prop_oneof![
        any::<[u8; 32]>().prop_map(ToGuest::Seed),
        Just(ToGuest::Forget),
        any::<([u64; 3], u64)>()
            .prop_map(|(files, memory)| ToGuest::Start(Start { files, memory })),
        any::<([u64; 3], u64)>()
            .prop_map(|(files, memory)| ToGuest::Breach(Start { files, memory })),
        Just(ToGuest::Look),
        Just(ToGuest::Kill),
    ]
}

fn from_guest() -> impl Strategy<Value = FromGuest> {
    prop_oneof![
        any::<u32>().prop_map(|version| FromGuest::Ready { version }),
        Just(FromGuest::Seeded),
        Just(FromGuest::Forgotten),
        Just(FromGuest::Started),
        any::<bool>().prop_map(FromGuest::Sealed),
        any::<(bool, i32, u64)>().prop_map(|(by_signal, code, sent)| FromGuest::Ended {
            by_signal,
            code,
            sent
        }),
        "[ -~]{0,500}".prop_map(FromGuest::Failed),
    ]
}

fn heard(line: &[u8]) -> std::io::Result<Option<FromGuest>> {
    read_line(&mut &line[..])
}

proptest! {
    #[test]
    fn every_line_comes_back(to in to_guest(), from in from_guest()) {
        let line = format!("{to}\n{from}\n");
        let mut bytes = line.as_bytes();
        let told: Option<ToGuest> = read_line(&mut bytes).unwrap();
        prop_assert!(told == Some(to));
        let said: Option<FromGuest> = read_line(&mut bytes).unwrap();
        prop_assert_eq!(said, Some(from));
        prop_assert!(read_line::<FromGuest>(&mut bytes).unwrap().is_none());
    }

    #[test]
    fn what_is_heard_has_one_form(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(Some(said)) = heard(&bytes) {
            let line = format!("{said}\n");
            prop_assert!(bytes.starts_with(line.as_bytes()));
        }
    }

    #[test]
    fn an_error_of_any_text_is_one_line(text in ".{0,2000}") {
        let line = format!("{}\n", FromGuest::Failed(text));
        prop_assert!(line.len() <= MAX_LINE + 1);
        prop_assert!(matches!(heard(line.as_bytes()), Ok(Some(FromGuest::Failed(_)))));
    }
}

#[test]
fn other_lines_mean_nothing() {
    for line in [
        "\n",
        "ready\n",
        "ready 01\n",
        "ready +1\n",
        "ready 1 2\n",
        "READY 1\n",
        "sealed 2\n",
        "ended 0 0\n",
        "ended 0 0 -1\n",
        "ready 4294967296\n",
        "failed \u{1b}[2J\n",
        "started ",
    ] {
        assert!(heard(line.as_bytes()).is_err(), "{line:?}");
    }
    let endless = [b'a'; 10_000];
    let mut rest = &endless[..];
    assert!(read_line::<FromGuest>(&mut rest).is_err());
    // It stopped where no line can go on.
    assert_eq!(rest.len(), endless.len() - MAX_LINE - 1);
}
