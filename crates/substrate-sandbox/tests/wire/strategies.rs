//! Messages of every kind, for properties.

use proptest::{collection::vec, option::of, prelude::*};
use substrate_sandbox::wire::{
    Failure, Finished, FromWorker, KvType, Load, ModelFacts, OnGpu, Prepare, Sampler, Shape,
    ToWorker, TokenLogprob,
};

pub fn to_worker() -> impl Strategy<Value = ToWorker> {
    let seq = any::<u64>();
    prop_oneof![
        (
            any::<[u32; 5]>(),
            kv(),
            any::<[bool; 5]>(),
            of(any::<[u32; 2]>())
        )
            .prop_map(
                |(
                    [n_ctx, slots, cells, threads, batch_threads],
                    kv,
                    [flash_attention, projector, adapter, apart, prompt_lookup],
                    gpu,
                )| {
                    ToWorker::Load(Load {
                        n_ctx,
                        slots,
                        cells,
                        threads,
                        batch_threads,
                        kv,
                        flash_attention,
                        projector,
                        adapter,
                        apart,
                        prompt_lookup,
                        gpu: gpu.map(|[device, layers]| OnGpu { device, layers }),
                    })
                }
            ),
        Just(ToWorker::Inspect),
        prepare().prop_map(ToWorker::Prepare),
        seq.prop_map(|seq| ToWorker::Begin { seq }),
        seq.prop_map(|seq| ToWorker::Cancel { seq }),
        seq.prop_map(|seq| ToWorker::Pause { seq }),
        seq.prop_map(|seq| ToWorker::Resume { seq }),
        any::<(u64, u32)>().prop_map(|(seq, frames)| ToWorker::Grant { seq, frames }),
        any::<(u32, u32)>().prop_map(|(decode, batch)| ToWorker::Threads { decode, batch }),
        any::<(u64, String, bool)>().prop_map(|(seq, text, special)| ToWorker::Tokenize {
            seq,
            text,
            special
        }),
        any::<(u64, Vec<u32>)>().prop_map(|(seq, ids)| ToWorker::Detokenize { seq, ids }),
        any::<(u64, Vec<u8>)>().prop_map(|(seq, input)| ToWorker::Render { seq, input }),
        any::<(u64, u32, u32)>().prop_map(|(seq, prefill, decode)| ToWorker::Bench {
            seq,
            prefill,
            decode
        }),
        Just(ToWorker::Shutdown),
    ]
}

pub fn from_worker() -> impl Strategy<Value = FromWorker> {
    prop_oneof![
        any::<(u8, u8, bool)>().prop_map(|(stage, landlock, seccomp)| FromWorker::Sealed {
            stage,
            landlock,
            seccomp
        }),
        facts().prop_map(FromWorker::Loaded),
        facts().prop_map(FromWorker::Inspected),
        any::<(u64, u32)>().prop_map(|(seq, n_in)| FromWorker::Prepared { seq, n_in }),
        any::<(u64, u32)>().prop_map(|(seq, n)| FromWorker::Prefilled { seq, n }),
        (any::<(u64, Vec<u32>, Vec<u8>)>(), vec(logprob(), 0..3)).prop_map(
            |((seq, ids, bytes), logprobs)| FromWorker::Tokens {
                seq,
                ids,
                bytes,
                logprobs
            }
        ),
        any::<(u64, u32, Vec<u8>)>().prop_map(|(seq, row, bytes)| FromWorker::Row {
            seq,
            row,
            bytes
        }),
        finished().prop_map(FromWorker::Finished),
        any::<(u64, Vec<u32>)>().prop_map(|(seq, ids)| FromWorker::Tokenized { seq, ids }),
        any::<(u64, Vec<u8>)>().prop_map(|(seq, bytes)| FromWorker::Detokenized { seq, bytes }),
        any::<(u64, String)>().prop_map(|(seq, text)| FromWorker::Rendered { seq, text }),
        any::<(u64, u64, u64)>().prop_map(|(seq, prefill, decode)| FromWorker::Benched {
            seq,
            prefill,
            decode
        }),
        (of(any::<u64>()), failure(), any::<String>())
            .prop_map(|(seq, why, detail)| FromWorker::Failed { seq, why, detail }),
    ]
}

fn prepare() -> impl Strategy<Value = Prepare> {
    (
        any::<(u64, Vec<u8>, [u8; 32], Vec<u32>, u32)>(),
        sampler(),
        any::<([u8; 32], bool)>(),
    )
        .prop_map(
            |((seq, input, seed, resume, max_tokens), sampler, (partition, reuse))| Prepare {
                seq,
                input,
                sampler,
                seed,
                resume,
                max_tokens,
                partition,
                reuse,
            },
        )
}

fn sampler() -> impl Strategy<Value = Sampler> {
    (
        any::<[u64; 5]>(),
        any::<(u32, u32, i32)>(),
        any::<[i64; 2]>(),
        of(any::<u32>()),
    )
        .prop_map(
            |([temperature, top_p, min_p, typical_p, repeat], (top_k, n, last), [a, b], top)| {
                Sampler {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    typical_p,
                    repeat_last_n: last,
                    repeat,
                    presence: a,
                    frequency: b,
                    n,
                    top_logprobs: top,
                }
            },
        )
}

fn kv() -> impl Strategy<Value = KvType> {
    prop_oneof![Just(KvType::F16), Just(KvType::Q8_0), Just(KvType::Q4_0)]
}

fn shape() -> impl Strategy<Value = Shape> {
    any::<([u32; 7], [u64; 5], Vec<u64>)>().prop_map(|(small, large, layer_bytes)| {
        let [
            layers,
            embedding,
            feed_forward,
            heads,
            key_length,
            value_length,
            window,
        ] = small;
        let [keys, values, state, rest_bytes, repacked] = large;
        Shape {
            layers,
            embedding,
            feed_forward,
            heads,
            key_length,
            value_length,
            keys,
            values,
            window,
            state,
            layer_bytes,
            rest_bytes,
            repacked,
        }
    })
}

fn facts() -> impl Strategy<Value = ModelFacts> {
    (
        any::<[u64; 2]>(),
        any::<[u32; 3]>(),
        any::<[String; 5]>(),
        any::<[Option<String>; 2]>(),
        shape(),
        any::<bool>(),
    )
        .prop_map(
            |(
                [n_params, size],
                [n_ctx_train, n_ctx, n_vocab],
                texts,
                [template, licence],
                shape,
                is_adapter,
            )| {
                let [arch, quant, name, backend, build] = texts;
                ModelFacts {
                    arch,
                    quant,
                    name,
                    n_params,
                    n_ctx_train,
                    n_ctx,
                    n_vocab,
                    template,
                    licence,
                    size,
                    backend,
                    build,
                    shape,
                    is_adapter,
                }
            },
        )
}

fn logprob() -> impl Strategy<Value = TokenLogprob> {
    any::<(u32, i32, Vec<(u32, i32, Vec<u8>)>, Vec<u8>)>().prop_map(|(id, logprob, top, bytes)| {
        TokenLogprob {
            id,
            logprob,
            top,
            bytes,
        }
    })
}

fn finished() -> impl Strategy<Value = Finished> {
    any::<((u64, u8, Vec<u8>, i32), [u32; 3], [u64; 2])>().prop_map(
        |((seq, finish, tail, min_gap), [n_out, reused, prefilled], [prefill_us, decode_us])| {
            Finished {
                seq,
                finish,
                n_out,
                tail,
                prefill_us,
                decode_us,
                min_gap,
                reused,
                prefilled,
            }
        },
    )
}

fn failure() -> impl Strategy<Value = Failure> {
    prop_oneof![
        Just(Failure::BadModel),
        Just(Failure::OutOfMemory),
        any::<(u32, u32)>().prop_map(|(used, limit)| Failure::ContextOverflow { used, limit }),
        Just(Failure::BadInput),
        Just(Failure::BadTemplate),
        Just(Failure::Unsupported),
        Just(Failure::Internal),
    ]
}
