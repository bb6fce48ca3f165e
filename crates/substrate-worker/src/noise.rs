//! The shared noise of sampling (PROTOCOL.md 3): one Gumbel number per (seed, position, token).
//!
//! A noise word is word `token mod 16` of block `token / 16` of ChaCha8 in the original layout,
//! keyed by the choice's seed, with the position as nonce. Any token's noise can be computed alone,
//! so an auditor needs no state and the sampler may skip what cannot win.
//!
//! Invariant: the same on every machine, for ever; golden vectors hold it.
//! Absent by design: a stream position, any other source of randomness.

use std::sync::LazyLock;

use crate::portable::ln;

/// "expand 32-byte k", ChaCha's constants.
const SIGMA: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// Words in a block, and so tokens that share one.
pub const BLOCK_TOKENS: usize = 16;

/// Slack for [`reach`]: far above the logarithm's error, far below any gap that matters.
const SLACK: f64 = 1e-9;

/// Noise words by bits: how far the noise of a word with these top eight bits can reach.
static REACH: LazyLock<[f64; 256]> =
    LazyLock::new(|| std::array::from_fn(|top| gumbel(((top as u32 + 1) << 16) - 1) + SLACK));

/// No noise is larger than this.
pub fn max_reach() -> f64 {
    REACH[255]
}

/// An upper bound of `gumbel(word24)` for the price of a table look-up.
#[inline]
pub fn reach(table: &[f64; 256], word24: u32) -> f64 {
    table[(word24 >> 16) as usize & 0xff]
}

/// The table behind [`reach`]; fetched once per draw.
pub fn reach_table() -> &'static [f64; 256] {
    &REACH
}

/// The Gumbel number of the upper 24 bits of a noise word: −ln(−ln u), u = (w + ½) / 2²⁴.
pub fn gumbel(word24: u32) -> f64 {
    let u = (f64::from(word24) + 0.5) / 16_777_216.0;
    -ln(-ln(u))
}

/// The noise of one position of one choice.
pub struct Noise {
    state: [u32; 16],
    block: Option<u32>,
    words: [u32; 16],
}

impl Noise {
    /// The noise at `position` (index of the generated token) under `seed`.
    pub fn new(seed: &[u8; 32], position: u64) -> Noise {
        let mut state = [0; 16];
        state[..4].copy_from_slice(&SIGMA);
        for (word, bytes) in state[4..12].iter_mut().zip(seed.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        state[14] = position as u32;
        state[15] = (position >> 32) as u32;
        Noise {
            state,
            block: None,
            words: [0; 16],
        }
    }

    /// The upper 24 bits of `token`'s noise word.
    #[inline]
    pub fn word24(&mut self, token: u32) -> u32 {
        let block = token / BLOCK_TOKENS as u32;
        if self.block != Some(block) {
            self.state[12] = block;
            self.words = chacha8(&self.state);
            self.block = Some(block);
        }
        self.words[token as usize % BLOCK_TOKENS] >> 8
    }
}

/// One block of ChaCha8 (Bernstein 2008) from a whole input state.
fn chacha8(input: &[u32; 16]) -> [u32; 16] {
    let mut x = *input;
    for _ in 0..4 {
        quarter(&mut x, 0, 4, 8, 12);
        quarter(&mut x, 1, 5, 9, 13);
        quarter(&mut x, 2, 6, 10, 14);
        quarter(&mut x, 3, 7, 11, 15);
        quarter(&mut x, 0, 5, 10, 15);
        quarter(&mut x, 1, 6, 11, 12);
        quarter(&mut x, 2, 7, 8, 13);
        quarter(&mut x, 3, 4, 9, 14);
    }
    for (word, &start) in x.iter_mut().zip(input) {
        *word = word.wrapping_add(start);
    }
    x
}

#[inline(always)]
fn quarter(x: &mut [u32; 16], a: usize, b: usize, c: usize, d: usize) {
    x[a] = x[a].wrapping_add(x[b]);
    x[d] = (x[d] ^ x[a]).rotate_left(16);
    x[c] = x[c].wrapping_add(x[d]);
    x[b] = (x[b] ^ x[c]).rotate_left(12);
    x[a] = x[a].wrapping_add(x[b]);
    x[d] = (x[d] ^ x[a]).rotate_left(8);
    x[c] = x[c].wrapping_add(x[d]);
    x[b] = (x[b] ^ x[c]).rotate_left(7);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    /// The keystream of ChaCha8 with an all-zero key and nonce (ecrypt's set 1 has the same words).
    #[test]
    fn the_zero_key_gives_the_published_keystream() {
        let block = chacha8(&Noise::new(&[0; 32], 0).state);
        let bytes: Vec<u8> = block.iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(
            bytes[..16],
            [
                0x3e, 0x00, 0xef, 0x2f, 0x89, 0x5f, 0x40, 0xd6, 0x7f, 0x5b, 0xb8, 0xe8, 0x1f, 0x09,
                0xa5, 0xa1
            ]
        );
    }

    #[test]
    fn the_golden_gumbel_numbers_hold() {
        let golden: [(u32, u64); 5] = [
            (0, 0xc006_d1a3_a471_dfc0),
            (1, 0xc006_4b80_26d0_4b6f),
            (0x5e_2d58, 0xbe6e_23c0_fdce_6714),
            (0x80_0000, 0x3fd7_74f2_f832_8948),
            (0xff_ffff, 0x4031_5424_56f3_7d43),
        ];
        for (word, bits) in golden {
            let g = gumbel(word);
            let u = (f64::from(word) + 0.5) / 16_777_216.0;
            let theirs = -(-u.ln()).ln();
            assert!((g - theirs).abs() < 1e-13, "{word}");
            assert_eq!(
                g.to_bits(),
                bits,
                "gumbel({word:#x}) = {:#018x}",
                g.to_bits()
            );
        }
    }

    #[test]
    fn the_reach_bounds_every_word_of_a_sample() {
        let table = reach_table();
        for word in (0..1 << 24).step_by(251).chain([0, (1 << 24) - 1]) {
            assert!(gumbel(word) < reach(table, word));
            assert!(gumbel(word) < max_reach());
        }
    }

    proptest! {
        #[test]
        fn the_layout_is_the_original_one(
            seed in any::<[u8; 32]>(), position in any::<u64>(), token in 0u32..1 << 20,
        ) {
            let mut reference = ChaCha8Rng::from_seed(seed);
            reference.set_stream(position);
            reference.set_word_pos(u128::from(token));
            prop_assert_eq!(Noise::new(&seed, position).word24(token), reference.next_u32() >> 8);
        }
    }
}
