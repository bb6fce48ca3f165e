//! Logarithm and exponential that give the same bits on every machine.
//!
//! Only IEEE 754 addition, subtraction, multiplication, division and bit moves are used, in a fixed
//! order; each is correctly rounded everywhere, so the results are too, whatever libm a node has.
//!
//! Invariant: relative error at most 4 × 2⁻⁵² (about 1e-15) in the stated domains; the golden bits
//! below never change.
//! Absent by design: fused multiply-add, tables that depend on a platform, libm.

/// The high bits of ln 2: 21 trailing zeros, so that a small integer times it is exact.
const LN2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
/// ln 2 − `LN2_HIGH`.
const LN2_LOW: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);
/// 1 / ln 2.
const INVERSE_LN2: f64 = f64::from_bits(0x3ff7_1547_652b_82fe);
/// Adding and subtracting 1.5 × 2⁵² rounds to an integer and leaves it in the low bits.
const ROUNDER: f64 = f64::from_bits(0x4338_0000_0000_0000);
/// Below this `exp` would be subnormal; it answers exp(−708) ≈ 3e-308 there, zero for any sum.
const EXP_FLOOR: f64 = -708.0;

/// Natural logarithm of a positive, finite, normal number.
///
/// x = 2ᵉ·m with m in [√½, √2); ln m = 2·atanh(f), f = (m−1)/(m+1), |f| ≤ 0.1716. The series is cut
/// after f²¹: what is left out is below f²³·2/23 < 3e-19 relative to f.
pub fn ln(x: f64) -> f64 {
    debug_assert!(x.is_normal() && x > 0.0);
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    let f = (m - 1.0) / (m + 1.0);
    let s = f * f;
    let mut tail = 1.0 / 21.0;
    for divisor in [19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        tail = tail * s + 1.0 / divisor;
    }
    let series = 2.0 * f + 2.0 * f * (s * tail);
    let e = exponent as f64;
    e * LN2_HIGH + (series + e * LN2_LOW)
}

/// Exponential of a number that is not positive (larger ones up to 700 work too).
///
/// x = k·ln 2 + r with |r| ≤ 0.347; eʳ by its Taylor polynomial of degree 13, whose first left-out
/// term is below 5e-18. Written without branches, so that loops over it vectorise.
#[inline(always)]
pub fn exp(x: f64) -> f64 {
    let x = if x < EXP_FLOOR { EXP_FLOOR } else { x };
    let shifted = x * INVERSE_LN2 + ROUNDER;
    let k = shifted - ROUNDER;
    let r = (x - k * LN2_HIGH) - k * LN2_LOW;
    let mut p = 1.0 / 6_227_020_800.0;
    for divisor in [
        479_001_600.0,
        39_916_800.0,
        3_628_800.0,
        362_880.0,
        40_320.0,
        5_040.0,
        720.0,
        120.0,
        24.0,
        6.0,
        2.0,
        1.0,
        1.0,
    ] {
        p = p * r + 1.0 / divisor;
    }
    f64::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 52))
}

/// Σ exp(xᵢ − max) over all finite or −∞ `values`, added in order of index.
pub fn sum_exp(values: &[f32], max: f32) -> f64 {
    const LANES: usize = 8;
    let max = f64::from(max);
    let mut sum = 0.0;
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        let mut terms = [0.0; LANES];
        for (term, &value) in terms.iter_mut().zip(chunk) {
            *term = exp(f64::from(value) - max);
        }
        for term in terms {
            sum += term;
        }
    }
    for &value in chunks.remainder() {
        sum += exp(f64::from(value) - max);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Four units in the last place.
    const BOUND: f64 = 4.0 * f64::EPSILON;

    fn close(ours: f64, theirs: f64) -> bool {
        (ours - theirs).abs() <= BOUND * theirs.abs().max(f64::MIN_POSITIVE)
    }

    #[test]
    fn golden_bits_of_the_logarithm() {
        let golden: [(f64, u64); 6] = [
            (1.0, 0),
            (0.5, 0xbfe6_2e42_fefa_39ef),
            (2.0, 0x3fe6_2e42_fefa_39ef),
            (10.0, 0x4002_6bb1_bbb5_5516),
            (1.0 - 1.0 / 33_554_432.0, 0xbe60_0000_0400_0001),
            (1.0 / 33_554_432.0, 0xc031_5424_5733_7d43),
        ];
        for (x, bits) in golden {
            assert!(close(ln(x), x.ln()), "{x}");
            assert_eq!(ln(x).to_bits(), bits, "ln({x}) = {:#018x}", ln(x).to_bits());
        }
    }

    #[test]
    fn golden_bits_of_the_exponential() {
        let golden: [(f64, u64); 4] = [
            (0.0, 0x3ff0_0000_0000_0000),
            (-1.0, 0x3fd7_8b56_362c_ef38),
            (-0.3, 0x3fe7_b4c8_69c3_7c05),
            (-40.0, 0x3c53_9792_499b_1a24),
        ];
        for (x, bits) in golden {
            assert!(close(exp(x), x.exp()), "{x}");
            assert_eq!(
                exp(x).to_bits(),
                bits,
                "exp({x}) = {:#018x}",
                exp(x).to_bits()
            );
        }
    }

    #[test]
    fn the_floor_is_nothing_beside_one() {
        assert_eq!(1.0 + exp(f64::NEG_INFINITY), 1.0);
        assert_eq!(sum_exp(&[0.0, f32::NEG_INFINITY, 0.0], 0.0), 2.0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn ln_stays_within_its_bound(mantissa in 1.0f64..2.0, exponent in -1000i32..1000) {
            let x = mantissa * 2f64.powi(exponent);
            prop_assert!(close(ln(x), x.ln()), "{x} {} {}", ln(x), x.ln());
        }

        #[test]
        fn ln_stays_within_its_bound_near_one(x in 0.9f64..1.1) {
            prop_assert!(close(ln(x), x.ln()), "{x} {} {}", ln(x), x.ln());
        }

        #[test]
        fn exp_stays_within_its_bound(x in -700.0f64..0.0) {
            prop_assert!(close(exp(x), x.exp()), "{x} {} {}", exp(x), x.exp());
        }
    }
}
