//! The reckoning by hand for one model, and its laws for any.

use super::*;
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

/// SmolLM2-135M-Instruct Q4_1, as its header says.
fn small() -> Shape {
    Shape {
        layers: 30,
        embedding: 576,
        feed_forward: 1536,
        heads: 9,
        key_length: 64,
        value_length: 64,
        keys: 30 * 3 * 64,
        values: 30 * 3 * 64,
        layer_bytes: vec![2_212_992; 30],
        rest_bytes: 30_085_632,
        ..Shape::default()
    }
}

const VOCABULARY: u32 = 49_152;

fn setting(context: u32, slots: u32) -> Setting {
    Setting {
        context,
        slots,
        cells: context * 2.min(slots),
        apart: false,
        kv: KvType::F16,
        flash_attention: true,
    }
}

fn free(memory: u64, gpus: &[u64]) -> Free {
    Free {
        memory,
        limit: None,
        gpus: gpus.to_vec(),
    }
}

fn placed(setting: &Setting, free: &Free) -> Result<Place, Misfit> {
    place(&small(), VOCABULARY, setting, free)
}

#[test]
fn the_cache_is_reckoned_by_hand() {
    let whole = estimate(&small(), VOCABULARY, &setting(4096, 8));
    assert_eq!(whole.weights, 96_475_392);
    // 30 layers, 3 heads of 64 for keys and for values, two bytes each, 8,192 cells.
    assert_eq!(whole.kv_cache, 30 * 3 * 64 * 2 * 2 * 8192);
    assert_eq!(whole.prefixes, whole.kv_cache);
}

#[test]
fn a_quantised_cache_takes_its_blocks() {
    let of = |kv| {
        let setting = Setting {
            kv,
            ..setting(4096, 1)
        };
        estimate(&small(), VOCABULARY, &setting).kv_cache
    };
    let f16 = of(KvType::F16);
    assert_eq!(of(KvType::Q8_0), f16 * 34 / 64);
    assert_eq!(of(KvType::Q4_0), f16 * 18 / 64);
}

#[test]
fn plain_attention_needs_room_for_every_score() {
    let plain = Setting {
        flash_attention: false,
        ..setting(4096, 1)
    };
    let scores = 9 * 4096 * 512 * 4;
    let buffers = |setting: &Setting| estimate(&small(), VOCABULARY, setting).buffers;
    assert!(buffers(&plain) > buffers(&setting(4096, 1)) + scores / 2);
    assert!(buffers(&plain) > scores);
}

#[test]
fn a_recurrent_model_has_a_state_for_each_lane_and_keeps_no_prefixes() {
    let shape = Shape {
        keys: 0,
        values: 0,
        state: 1000,
        ..small()
    };
    let whole = estimate(&shape, VOCABULARY, &setting(4096, 3));
    assert_eq!((whole.kv_cache, whole.prefixes), (4 * 1000, 0));
}

#[test]
fn memory_counts_as_free_by_four_fifths() {
    let setting = setting(4096, 8);
    let needs = estimate(&small(), VOCABULARY, &setting).total();
    let enough = needs * 5 / 4 + 2;
    assert_eq!(placed(&setting, &free(enough, &[])), Ok(Place::Cpu));
    let misfit = placed(&setting, &free(needs, &[])).expect_err("all of it may not be taken");
    assert_eq!((misfit.needs, misfit.free), (needs, needs));
    assert_eq!(misfit.may, share(needs));
    assert!(!misfit.over_limit);
}

#[test]
fn the_owners_limit_holds_whatever_is_free() {
    let setting = setting(4096, 8);
    let limited = Free {
        limit: Some(100 * MIB),
        ..free(64 * GIB, &[])
    };
    let misfit = placed(&setting, &limited).expect_err("over the limit");
    assert!(misfit.over_limit);
    assert_eq!(misfit.may, 100 * MIB);
}

#[test]
fn one_graphics_processor_that_holds_it_wins_and_it_is_the_freest() {
    let on = |gpus: &[u64]| placed(&setting(4096, 8), &free(8 * GIB, gpus));
    assert_eq!(on(&[]), Ok(Place::Cpu));
    assert_eq!(on(&[8 * GIB]), Ok(Place::Gpu { index: 0 }));
    assert_eq!(
        on(&[2 * GIB, 8 * GIB, 8 * GIB]),
        Ok(Place::Gpu { index: 1 })
    );
}

#[test]
fn what_does_not_fit_a_graphics_processor_is_split_by_layers() {
    let on = |gpu: u64| placed(&setting(4096, 8), &free(8 * GIB, &[gpu]));
    let Ok(Place::Split { index: 0, layers }) = on(200 * MIB) else {
        panic!("{:?}", on(200 * MIB));
    };
    assert!((1..30).contains(&layers), "{layers}");
    let Ok(Place::Split { layers: more, .. }) = on(240 * MIB) else {
        panic!("{:?}", on(240 * MIB));
    };
    assert!(more > layers, "{more} layers with more memory");
    // A processor that has no room for one layer beside the buffers is left alone.
    assert_eq!(on(20 * MIB), Ok(Place::Cpu));
}

#[test]
fn a_split_whose_rest_does_not_fit_the_memory_is_none() {
    let setting = setting(4096, 8);
    assert!(placed(&setting, &free(100 * MIB, &[200 * MIB])).is_err());
}

fn shapes() -> impl Strategy<Value = Shape> {
    any::<([u32; 7], [u64; 5], Vec<u64>)>().prop_map(|(small, large, layer_bytes)| Shape {
        layers: small[0],
        embedding: small[1],
        feed_forward: small[2],
        heads: small[3],
        key_length: small[4],
        value_length: small[5],
        window: small[6],
        keys: large[0],
        values: large[1],
        state: large[2],
        rest_bytes: large[3],
        repacked: large[4],
        layer_bytes,
    })
}

fn settings() -> impl Strategy<Value = Setting> {
    let kv = prop_oneof![Just(KvType::F16), Just(KvType::Q8_0), Just(KvType::Q4_0)];
    any::<([u32; 3], [bool; 2])>()
        .prop_flat_map(move |rest| (Just(rest), kv.clone()))
        .prop_map(
            |(([context, slots, cells], [flash_attention, apart]), kv)| Setting {
                context,
                slots,
                cells,
                apart,
                kv,
                flash_attention,
            },
        )
}

#[test]
fn cells_of_ones_own_are_a_context_for_each_and_a_smaller_mask() {
    let together = setting(2048, 8);
    let apart = Setting {
        apart: true,
        ..together
    };
    let [together, apart] =
        [together, apart].map(|setting| estimate(&small(), VOCABULARY, &setting));
    // Nine lanes of a context each, instead of two contexts.
    assert_eq!(apart.kv_cache * 2, together.kv_cache * 9);
    assert_eq!(apart.prefixes, together.prefixes);
    assert!(apart.buffers < together.buffers);
}

proptest! {
    #[test]
    fn no_dimensions_break_the_reckoning(
        shape in shapes(), n_vocab in any::<u32>(), setting in settings(),
        memory in any::<u64>(), gpus in proptest::collection::vec(any::<u64>(), 0..3),
    ) {
        let whole = estimate(&shape, n_vocab, &setting);
        prop_assert!(whole.peak() >= whole.total());
        let found = place(&shape, n_vocab, &setting, &free(memory, &gpus));
        if found == Ok(Place::Cpu) {
            prop_assert!(whole.total() <= share(memory));
        }
    }

    #[test]
    fn more_is_never_less(
        shape in shapes(), n_vocab in any::<u32>(), setting in settings(), more in any::<[u32; 3]>(),
    ) {
        let larger = Setting {
            context: setting.context.saturating_add(more[0]),
            slots: setting.slots.saturating_add(more[1]),
            cells: setting.cells.saturating_add(more[2]),
            ..setting
        };
        let total = |setting: &Setting| estimate(&shape, n_vocab, setting).total();
        prop_assert!(total(&larger) >= total(&setting));
    }
}
