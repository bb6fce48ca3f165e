//! What the sampler promises: determinism, exact skipping, and the distribution it claims.

use super::*;
use proptest::prelude::*;

fn settings() -> wire::Sampler {
    wire::Sampler {
        temperature: 1_000_000,
        top_k: 0,
        top_p: 1_000_000,
        min_p: 0,
        typical_p: 1_000_000,
        repeat_last_n: 64,
        repeat: 1_000_000,
        presence: 0,
        frequency: 0,
        n: 1,
        top_logprobs: None,
    }
}

fn sampler(settings: wire::Sampler, bias: &[(u32, i32)], n: usize) -> Sampler {
    Sampler::new(&settings, bias, n as u32).expect("valid settings")
}

fn seed(n: u64) -> [u8; 32] {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&n.to_le_bytes());
    seed
}

/// Which ids ever come out, over many positions.
fn drawn(settings: wire::Sampler, logits: &[f32]) -> Vec<u32> {
    let mut sampler = sampler(settings, &[], logits.len());
    let mut ids: Vec<u32> = (0..4000)
        .map(|position| {
            sampler
                .choose(logits, &seed(1), position)
                .expect("finite logits")
                .id
        })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Logits of the given probabilities.
fn logits_of(probabilities: &[f64]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln() as f32).collect()
}

#[test]
fn at_temperature_zero_the_lowest_id_of_the_largest_wins() {
    let mut sampler = sampler(
        wire::Sampler {
            temperature: 0,
            ..settings()
        },
        &[],
        20,
    );
    let mut logits = vec![0.0; 20];
    logits[17] = 3.0;
    logits[4] = 3.0;
    let choice = sampler.choose(&logits, &seed(0), 0);
    assert_eq!(choice, Some(Choice { id: 4, gap: 0.0 }));
    logits[4] = 3.5;
    let choice = sampler.choose(&logits, &seed(0), 0);
    assert_eq!(choice, Some(Choice { id: 4, gap: 0.5 }));
}

#[test]
fn logits_without_a_finite_one_choose_nothing() {
    let mut greedy = sampler(
        wire::Sampler {
            temperature: 0,
            ..settings()
        },
        &[],
        9,
    );
    assert_eq!(greedy.choose(&[f32::NAN; 9], &seed(0), 0), None);
    assert_eq!(greedy.choose(&[f32::NEG_INFINITY; 9], &seed(0), 0), None);
}

#[test]
fn top_k_keeps_the_k_likeliest_and_the_lower_id_on_a_tie() {
    let logits = logits_of(&[0.1, 0.3, 0.1, 0.3, 0.2]);
    assert_eq!(
        drawn(
            wire::Sampler {
                top_k: 3,
                ..settings()
            },
            &logits
        ),
        [1, 3, 4]
    );
    assert_eq!(
        drawn(
            wire::Sampler {
                top_k: 4,
                ..settings()
            },
            &logits
        ),
        [0, 1, 3, 4]
    );
    assert_eq!(
        drawn(
            wire::Sampler {
                top_k: 1,
                ..settings()
            },
            &logits
        ),
        [1]
    );
}

#[test]
fn top_p_keeps_the_shortest_prefix_that_reaches_p() {
    let logits = logits_of(&[0.5, 0.3, 0.15, 0.05]);
    assert_eq!(
        drawn(
            wire::Sampler {
                top_p: 500_000,
                ..settings()
            },
            &logits
        ),
        [0]
    );
    assert_eq!(
        drawn(
            wire::Sampler {
                top_p: 790_000,
                ..settings()
            },
            &logits
        ),
        [0, 1]
    );
    assert_eq!(
        drawn(
            wire::Sampler {
                top_p: 940_000,
                ..settings()
            },
            &logits
        ),
        [0, 1, 2]
    );
    assert_eq!(
        drawn(
            wire::Sampler {
                top_p: 0,
                ..settings()
            },
            &logits
        ),
        [0]
    );
}

#[test]
fn min_p_keeps_what_is_likely_enough_beside_the_likeliest() {
    let logits = logits_of(&[0.5, 0.3, 0.15, 0.05]);
    assert_eq!(
        drawn(
            wire::Sampler {
                min_p: 290_000,
                ..settings()
            },
            &logits
        ),
        [0, 1, 2]
    );
    assert_eq!(
        drawn(
            wire::Sampler {
                min_p: 1_000_000,
                ..settings()
            },
            &logits
        ),
        [0]
    );
    let both = wire::Sampler {
        min_p: 290_000,
        top_k: 2,
        ..settings()
    };
    assert_eq!(drawn(both, &logits), [0, 1]);
}

#[test]
fn typical_drops_what_is_too_likely_as_well() {
    // Entropy 1.14 nats: 0.3 (1.20 nats) is the most typical, then 0.5 (0.69), then 0.15 (1.90).
    let logits = logits_of(&[0.5, 0.3, 0.15, 0.05]);
    assert_eq!(
        drawn(
            wire::Sampler {
                typical_p: 200_000,
                ..settings()
            },
            &logits
        ),
        [1]
    );
    assert_eq!(
        drawn(
            wire::Sampler {
                typical_p: 700_000,
                ..settings()
            },
            &logits
        ),
        [0, 1]
    );
}

#[test]
fn penalties_see_the_last_tokens_only() {
    let penal = wire::Sampler {
        temperature: 0,
        repeat_last_n: 2,
        repeat: 2_000_000,
        presence: 250_000,
        frequency: 500_000,
        ..settings()
    };
    let mut sampler = sampler(penal, &[], 3);
    let logits = [4.0, 3.9, -1.0];
    for id in [0, 0, 0] {
        sampler.accept(id);
    }
    // 4 / 2 − 2 · 0.5 − 0.25 = 0.75
    let choice = sampler.choose(&logits, &seed(0), 0).expect("finite logits");
    assert_eq!(choice.id, 1);
    assert!((choice.gap - 3.15).abs() < 1e-6);
    sampler.accept(2);
    sampler.accept(2);
    assert_eq!(
        sampler
            .choose(&logits, &seed(0), 0)
            .expect("finite logits")
            .id,
        0
    );
}

#[test]
fn a_bias_moves_a_token_by_its_logits() {
    let greedy = wire::Sampler {
        temperature: 0,
        ..settings()
    };
    let mut sampler = sampler(greedy, &[(1, 3 * 65_536), (2, -100 * 65_536)], 3);
    let choice = sampler.choose(&[1.0, 0.0, 50.0], &seed(0), 0);
    assert_eq!(choice, Some(Choice { id: 1, gap: 2.0 }));
}

#[test]
fn settings_out_of_range_are_refused() {
    let refused = |settings, bias: &[(u32, i32)]| Sampler::new(&settings, bias, 10).err();
    let zero = wire::Sampler {
        repeat: 0,
        ..settings()
    };
    assert_eq!(
        refused(zero, &[]),
        Some(SettingsError::OutOfRange("repeat penalty"))
    );
    assert_eq!(
        refused(settings(), &[(10, 1)]),
        Some(SettingsError::UnknownToken(10))
    );
}

/// Pearson's chi-square of many draws against softmax, at a fixed seed.
fn chi_square(settings: wire::Sampler, probabilities: &[f64], draws: u64) -> f64 {
    let logits = logits_of(probabilities);
    let mut sampler = sampler(settings, &[], logits.len());
    let mut counts = vec![0u64; logits.len()];
    for position in 0..draws {
        let choice = sampler
            .choose(&logits, &seed(42), position)
            .expect("finite logits");
        counts[choice.id as usize] += 1;
    }
    let total: f64 = probabilities.iter().sum();
    counts
        .iter()
        .zip(probabilities)
        .map(|(&n, p)| {
            let expected = p / total * draws as f64;
            (n as f64 - expected).powi(2) / expected
        })
        .sum()
}

#[test]
fn the_gumbel_maximum_draws_from_the_softmax() {
    let p: Vec<f64> = (1..=40).map(|n| f64::from(n) / 820.0).collect();
    // 39 degrees of freedom: 99.9 % of honest samplers stay under 72.1.
    let chi = chi_square(settings(), &p, 200_000);
    assert!(chi < 72.1, "chi-square {chi}");
}

#[test]
fn temperature_bends_the_distribution_as_it_should() {
    let p = [0.5, 0.25, 0.125, 0.125];
    // At T = 0.5 the probabilities are squared. 3 degrees of freedom: 99.9 % under 16.3.
    let squared: Vec<f64> = p.iter().map(|p| p * p).collect();
    let logits = logits_of(&p);
    let mut sampler = sampler(
        wire::Sampler {
            temperature: 500_000,
            ..settings()
        },
        &[],
        4,
    );
    let mut counts = [0f64; 4];
    for position in 0..100_000 {
        counts[sampler
            .choose(&logits, &seed(5), position)
            .expect("finite logits")
            .id as usize] += 1.0;
    }
    let total: f64 = squared.iter().sum();
    let chi: f64 = counts
        .iter()
        .zip(&squared)
        .map(|(n, p)| {
            let expected = p / total * 100_000.0;
            (n - expected).powi(2) / expected
        })
        .sum();
    assert!(chi < 16.3, "chi-square {chi}");
}

/// The definition, without any skipping.
fn slow_choice(logits: &[f32], temperature: u64, seed: &[u8; 32], position: u64) -> (u32, f64) {
    let mut noise = Noise::new(seed, position);
    let mut sums: Vec<(f64, u32)> = (0..)
        .zip(logits)
        .map(|(id, &logit)| {
            let scaled = f64::from(logit) * MILLION / temperature as f64;
            (scaled + crate::noise::gumbel(noise.word24(id)), id)
        })
        .collect();
    sums.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    (
        sums[0].1,
        (sums[0].0 - sums[1].0) * temperature as f64 / MILLION,
    )
}

/// Top-p by its definition: everything weighed, everything sorted.
fn slow_nucleus(logits: &[f32], top_p: f64) -> Vec<u32> {
    let weights: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp()).collect();
    let whole: f64 = weights.iter().sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let mut sum = 0.0;
    let mut kept: Vec<u32> = Vec::new();
    for id in order {
        kept.push(id as u32);
        sum += weights[id] / whole;
        if sum >= top_p {
            break;
        }
    }
    kept.sort_unstable();
    kept
}

proptest! {
    #[test]
    fn the_nucleus_is_what_its_definition_says(
        logits in prop::collection::vec(-4.0f32..4.0, 1..900), top_p in 1u64..999_000,
    ) {
        let filters = Filters::new(&wire::Sampler { top_p, ..settings() });
        let max = top_two(&logits).expect("finite logits").best;
        let mut pool = Vec::new();
        filters.select(&logits, max, &mut pool);
        let expected = slow_nucleus(&logits, top_p as f64 / 1e6);
        // Rounding may move the cut by one token.
        prop_assert!(pool.len().abs_diff(expected.len()) <= 1);
        let shared = pool.iter().filter(|c| expected.contains(&c.id)).count();
        prop_assert_eq!(shared, pool.len().min(expected.len()));
    }

    #[test]
    fn skipping_never_changes_the_choice_or_its_gap(
        logits in prop::collection::vec(-30.0f32..30.0, 2..200),
        temperature in 1u64..3_000_000, position in any::<u64>(), key in any::<u64>(),
    ) {
        let mut sampler = sampler(wire::Sampler { temperature, ..settings() }, &[], logits.len());
        let choice = sampler.choose(&logits, &seed(key), position).expect("finite logits");
        let (id, gap) = slow_choice(&logits, temperature, &seed(key), position);
        prop_assert_eq!(choice.id, id);
        prop_assert_eq!(choice.gap, gap);
    }

    #[test]
    fn top_two_are_what_sorting_says(logits in prop::collection::vec(-5.0f32..5.0, 2..100)) {
        let got = top_two(&logits).expect("finite logits");
        let mut sorted: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        prop_assert_eq!((got.id as usize, got.best, got.second), (sorted[0].0, sorted[0].1, sorted[1].1));
    }

    #[test]
    fn keep_top_is_what_sorting_says(
        logits in prop::collection::vec((-9i8..9).prop_map(f32::from), 1..400), k in 1usize..80,
    ) {
        let mut pool = Vec::new();
        crate::candidates::keep_top(&logits, k, &mut pool);
        let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        sorted.truncate(k);
        let mut expected: Vec<u32> = sorted.iter().map(|c| c.0).collect();
        expected.sort_unstable();
        prop_assert_eq!(pool.iter().map(|c| c.id).collect::<Vec<_>>(), expected);
    }
}
