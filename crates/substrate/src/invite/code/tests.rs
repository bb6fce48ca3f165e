//! What codes promise: they read back, and a slip of the finger is found.

use proptest::prelude::*;

use super::*;

fn invite() -> Invite {
    Invite {
        network: NetworkId::from_bytes([1; 32]),
        inviter: NodeId::from_bytes([2; 32]),
        addrs: vec![
            "/ip4/192.168.1.7/udp/11536/quic-v1".into(),
            "/ip4/192.168.1.7/tcp/11536".into(),
        ],
        secret: InviteSecret::from_bytes([3; 16]),
        expires_ms: 1_800_000_000_000,
        circle: Some("family".into()),
    }
}

fn same(left: &Invite, right: &Invite) -> bool {
    left == right
}

#[test]
fn a_code_reads_back_however_it_is_pasted() {
    let code = invite().encode();
    assert!(code.starts_with("substrate1"));
    let broken: String = code
        .as_bytes()
        .chunks(40)
        .map(|line| format!("  {}\r\n", std::str::from_utf8(line).unwrap()))
        .collect();
    for pasted in [code.clone(), code.to_uppercase(), broken] {
        assert!(
            same(&Invite::decode(&pasted).ok().unwrap(), &invite()),
            "{pasted}"
        );
    }
}

#[test]
fn one_wrong_character_is_found_by_its_place() {
    let code = invite().encode();
    for at in [10, 57, code.len() - 1] {
        let mut wrong: Vec<char> = code.chars().collect();
        wrong[at] = if wrong[at] == 'q' { 'p' } else { 'q' };
        let found = wrong[at];
        let error = Invite::decode(&wrong.iter().collect::<String>())
            .err()
            .unwrap();
        assert_eq!(
            error,
            InviteError::Mistyped {
                position: at + 1,
                found
            }
        );
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let code = invite().encode();
    let of = |text: &str| Invite::decode(text).err().unwrap();
    assert_eq!(of("hello"), InviteError::NotACode);
    assert_eq!(of(&code[..code.len() - 4]), InviteError::Checksum);
    assert!(
        of(&code.replacen(&code[12..13], "b", 1))
            .to_string()
            .contains("('b') cannot occur")
    );
    assert!(matches!(
        of(&format!("{code}{}", "q".repeat(1000))),
        InviteError::TooLong { .. }
    ));
    assert!(matches!(
        of(&"x".repeat(1 << 20)),
        InviteError::TooLong { .. }
    ));
    let later = bech32::encode_lower::<Bech32m>(Hrp::parse_unchecked(PREFIX), &[2, 0]).unwrap();
    assert_eq!(of(&later), InviteError::Version { found: 2 });
    let short = bech32::encode_lower::<Bech32m>(Hrp::parse_unchecked(PREFIX), &[1, 0]).unwrap();
    assert_eq!(of(&short), InviteError::Malformed { part: "network" });
}

#[test]
fn an_invite_has_one_code() {
    use bech32::primitives::iter::{ByteIterExt, Fe32IterExt};
    let hrp = Hrp::parse_unchecked(PREFIX);
    let bytes = invite().to_bytes(&["/ip4/192.168.1.7/tcp/11536"]);
    let with_tail = |tail: &[Fe32]| -> String {
        let symbols = bytes.iter().copied().bytes_to_fes();
        let symbols = symbols.chain(tail.iter().copied());
        symbols.with_checksum::<Bech32m>(&hrp).chars().collect()
    };
    assert!(Invite::decode(&with_tail(&[])).is_ok());
    for tail in [&[Fe32::Q][..], &[Fe32::L]] {
        let error = Invite::decode(&with_tail(tail)).err().unwrap();
        assert_eq!(error, InviteError::Malformed { part: "end" });
    }
}

#[test]
fn addresses_that_do_not_fit_are_left_out() {
    let mut many = invite();
    many.addrs = (0..20)
        .map(|i| format!("/dns4/{}/tcp/{i}", "a".repeat(100)))
        .collect();
    let code = many.encode();
    assert!(code.len() <= MAX_CODE);
    let read = Invite::decode(&code).ok().unwrap();
    assert!(!read.addrs.is_empty() && many.addrs.starts_with(&read.addrs));
}

proptest! {
    #[test]
    fn every_invite_reads_back(
        network: [u8; 32], inviter: [u8; 32], secret: [u8; 16], expires_ms: u64,
        circle in proptest::option::of("[a-z0-9_.-]{1,30}"), addrs in proptest::collection::vec("/[ -~]{0,40}", 0..8),
    ) {
        let invite = Invite {
            network: NetworkId::from_bytes(network), inviter: NodeId::from_bytes(inviter), addrs,
            secret: InviteSecret::from_bytes(secret), expires_ms, circle,
        };
        let read = Invite::decode(&invite.encode());
        prop_assert!(read.is_ok_and(|read| same(&read, &invite)));
    }

    #[test]
    fn no_text_breaks_the_decoder(text in ".{0,200}", tail in "[qpzry9x8gf2tvdw0s3jn54khce6mua7l]{0,300}") {
        let _ = Invite::decode(&text);
        let _ = Invite::decode(&format!("substrate1{tail}"));
    }

    #[test]
    fn no_bytes_behind_a_good_checksum_break_the_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let code = bech32::encode_lower::<Bech32m>(Hrp::parse_unchecked(PREFIX), &bytes).unwrap();
        let _ = Invite::decode(&code);
    }
}
