//! Published samples verify, and nothing that differs from them in a bit does.

mod support;

use expect_test::{Expect, expect};
use proptest::prelude::*;
use substrate_tee::{Evidence, MAX_EVIDENCE};

use support::{Judge, TDX, all, snp, tdx};

fn check(evidence: &Evidence, expected: Expect) {
    let attested = Judge::of(evidence)
        .judge(evidence)
        .expect("a published sample verifies");
    let length = evidence.encode().unwrap().len();
    expected.assert_eq(&format!(
        "{} {} {}\nunchecked {:?}\n{length} bytes\n",
        attested.platform().name(),
        hex::encode(attested.measurement()),
        attested.svns(),
        attested.unchecked(),
    ));
}

#[test]
fn the_report_of_a_milan_verifies() {
    check(
        &snp(),
        expect![[r#"
        milan 7a1e5c266c0108dbc9bb94fa926951320940915d0aafb42464bd88b579ea158d3e1a0dc39b2c60bd95b9c480cd81841f 0.3.0.8.115
        unchecked [Revocation, Freshness]
        2555 bytes
    "#]],
    );
}

#[test]
fn quotes_of_three_kinds_verify() {
    check(
        &tdx(0),
        expect![[r#"
        tdx fa13bff786ec94614334ea98d2b49c80d3d029670e86b5615c02afcf50ad9d7a3b02f453567bb20d598b5acf7014d598 6.1.3
        unchecked [Revocation, TcbStatus, Freshness]
        3206 bytes
    "#]],
    );
    check(
        &tdx(1),
        expect![[r#"
        tdx f2cba5732e7220072e7bdf3edab1c3cdb8b9ce1a1bbde8d86cb3edaf812af6672433d2d8f8fa05d8354595210117b5a7 7.1.3
        unchecked [Revocation, TcbStatus, Freshness]
        3276 bytes
    "#]],
    );
    check(
        &tdx(2),
        expect![[r#"
        tdx 41d3ff7d447b47c8100fb2e982fe023a08429f8babcc630c0d74766afa0a51d31203e01ba7f9fdcfa287765c66b6f6bf 15.1.4
        unchecked [Revocation, TcbStatus, Freshness]
        3514 bytes
    "#]],
    );
}

#[test]
fn the_longest_quote_fits_only_as_it_is_taken_apart() {
    assert!(TDX[2].len() > MAX_EVIDENCE);
    assert!(tdx(2).encode().unwrap().len() < MAX_EVIDENCE);
}

#[test]
fn evidence_has_one_encoding() {
    for evidence in all() {
        let bytes = evidence.encode().unwrap();
        assert_eq!(Evidence::decode(&bytes).as_ref(), Ok(&evidence));
        assert_eq!(Evidence::decode(&bytes).unwrap().encode().unwrap(), bytes);
    }
}

/// Every byte: the report, its signature, the certificates, the padding, the lengths. The other quotes take their turn below.
#[test]
fn no_byte_of_a_report_or_quote_can_be_changed() {
    for evidence in [snp(), tdx(0)] {
        let judge = Judge::of(&evidence);
        let good = evidence.encode().unwrap();
        judge.judge_bytes(&good).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(
                judge.judge_bytes(&bad).is_err(),
                "byte {at} of {}",
                good.len()
            );
        }
    }
}

#[test]
fn every_beginning_is_refused() {
    for evidence in all() {
        let good = evidence.encode().unwrap();
        for end in 0..good.len() {
            assert!(Evidence::decode(&good[..end]).is_err());
        }
        let longer = [&good[..], &[0]].concat();
        assert!(Evidence::decode(&longer).is_err());
    }
    for quote in TDX {
        // Zeroes at the end are a buffer's; what is before them is needed to the last byte.
        let end = quote.iter().rposition(|byte| *byte != 0).unwrap();
        for end in 0..end {
            assert!(Evidence::from_tdx_quote(&quote[..end]).is_err(), "{end}");
        }
    }
}

proptest! {
    #[test]
    fn changes_of_any_kind_are_refused(which in 0usize..4, at in any::<prop::sample::Index>(), flip in 1u8..) {
        let evidence = all().swap_remove(which);
        let mut bytes = evidence.encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(Judge::of(&evidence).judge_bytes(&bytes).is_err());
    }

    #[test]
    fn a_quote_with_changed_lengths_is_an_error_or_the_same(
        which in 0usize..3, at in any::<prop::sample::Index>(), byte: u8,
    ) {
        let mut quote = TDX[which].to_vec();
        let at = at.index(quote.len());
        quote[at] = byte;
        if let Ok(read) = Evidence::from_tdx_quote(&quote) {
            prop_assert_eq!(Evidence::decode(&read.encode().unwrap()), Ok(read));
        }
    }

    #[test]
    fn garbage_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..MAX_EVIDENCE + 9)) {
        prop_assert!(Evidence::decode(&bytes).is_err());
        prop_assert!(Evidence::from_tdx_quote(&bytes).is_err());
        prop_assert!(Evidence::from_snp(&bytes, &bytes).is_err());
    }
}
