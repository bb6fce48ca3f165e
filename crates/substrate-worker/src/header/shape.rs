//! What of a header says how much memory its model needs: dimensions, and the bytes of its tensors layer by layer.
//!
//! Invariant: bounded like the reader that fills it: at most [`MAX_NUMBERS`] keys of at most [`MAX_LAYERS`] numbers,
//! and every sum and product saturates, because the file may claim anything.
//! Absent by design: what it all adds up to. That depends on the context and the machine, which the daemon knows.

use std::collections::BTreeMap;

/// llama.cpp's own limit (`LLAMA_MAX_LAYERS`); it refuses a model of more.
pub const MAX_LAYERS: u64 = 512;

/// Keys kept until the architecture is known: those of a model, and as many of a projector beside it.
const MAX_NUMBERS: usize = 64;

/// Bytes of the floats that a recurrent layer's state is kept in.
const FLOAT: u64 = 4;

/// Tensor types that ggml copies into another order on a processor with AVX2, in ggml's numbering: Q4_0, Q4_K, IQ4_NL, MXFP4.
const REPACKED: &[u32] = if cfg!(target_arch = "x86_64") {
    &[2, 12, 20, 39]
} else {
    &[]
};

/// Rows that ggml puts beside each other; a tensor of another number of rows is left as it is.
const REPACKED_ROWS: u64 = 8;

/// What follows the architecture in the keys that are kept.
const KEPT: [&str; 17] = [
    "block_count",
    "embedding_length",
    "feed_forward_length",
    "expert_feed_forward_length",
    "expert_used_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.key_length_mla",
    "attention.sliding_window",
    "full_attention_interval",
    "ssm.conv_kernel",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.group_count",
    "wkv.head_size",
];

/// The dimensions, as the wire carries them to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shape {
    /// Layers.
    pub layers: u32,
    /// Width of what goes from layer to layer.
    pub embedding: u32,
    /// Width inside the feed-forward part, of all experts that compute a token.
    pub feed_forward: u32,
    /// Heads of attention, in the layer that has most.
    pub heads: u32,
    /// Width of one key.
    pub key_length: u32,
    /// Width of one value.
    pub value_length: u32,
    /// Numbers of the keys of one token in all layers.
    pub keys: u64,
    /// Numbers of the values of one token in all layers.
    pub values: u64,
    /// Tokens of the sliding window; 0 if there is none.
    pub window: u32,
    /// Bytes of recurrent state of one sequence.
    pub state: u64,
    /// Bytes of tensors by layer.
    pub layer_bytes: Vec<u64>,
    /// Bytes of the other tensors.
    pub rest_bytes: u64,
    /// Bytes of tensors that are copied into another order when they are loaded.
    pub repacked: u64,
}

/// The numbers kept while a header is read.
#[derive(Default)]
pub struct Numbers(BTreeMap<String, Vec<u64>>);

impl Numbers {
    /// Whether the value of this key is one to keep.
    pub fn wants(&self, key: &str) -> bool {
        let (_, name) = key.split_once('.').unwrap_or_default();
        KEPT.contains(&name) && self.0.len() < MAX_NUMBERS
    }

    /// Keeps a number, or one for each layer.
    pub fn keep(&mut self, key: String, values: Vec<u64>) {
        self.0.insert(key, values);
    }

    /// The layers an architecture has.
    pub fn layers(&self, arch: &str) -> u64 {
        self.of(arch).one("block_count")
    }

    /// The dimensions of an architecture, without its tensors.
    pub fn shape(&self, arch: &str) -> Shape {
        let of = self.of(arch);
        let layers = of.one("block_count").min(MAX_LAYERS);
        let embedding = of.one("embedding_length");
        let heads = of.most("attention.head_count");
        let even = embedding.checked_div(heads).unwrap_or(0);
        let key_length = of.or("attention.key_length", even);
        let value_length = of.or("attention.value_length", even);
        // With latent attention there is one latent per token, kept as a key; values are computed from it.
        let latent = of.one("attention.key_length_mla") > 0;
        let cached = (0..layers).filter(|layer| of.attends(*layer));
        let kv_heads = cached.fold(0u64, |all, layer| all.saturating_add(of.kv_heads(layer)));
        let recurrent = (0..layers).filter(|layer| of.recurs(*layer)).count() as u64;
        let experts = of
            .one("expert_used_count")
            .saturating_mul(of.most("expert_feed_forward_length"));
        Shape {
            layers: small(layers),
            embedding: small(embedding),
            feed_forward: small(of.most("feed_forward_length").max(experts)),
            heads: small(heads),
            key_length: small(key_length),
            value_length: small(value_length),
            keys: kv_heads.saturating_mul(key_length),
            values: if latent {
                0
            } else {
                kv_heads.saturating_mul(value_length)
            },
            window: small(of.one("attention.sliding_window")),
            state: recurrent.saturating_mul(of.state(embedding)),
            layer_bytes: vec![0; layers as usize],
            rest_bytes: 0,
            repacked: 0,
        }
    }

    fn of<'a>(&'a self, arch: &'a str) -> Of<'a> {
        Of {
            numbers: &self.0,
            arch,
        }
    }
}

impl Shape {
    /// Counts a tensor in.
    pub fn add(&mut self, tensor: &Tensor<'_>) {
        let layer = layer_of(tensor.name);
        let place = layer.and_then(|layer| self.layer_bytes.get_mut(layer));
        let is_multiplied = place.is_some() || tensor.name == "output.weight";
        let place = place.unwrap_or(&mut self.rest_bytes);
        *place = place.saturating_add(tensor.bytes);
        let is_matrix = tensor.rows > 1 && tensor.rows.is_multiple_of(REPACKED_ROWS);
        if is_multiplied && is_matrix && REPACKED.contains(&tensor.kind) {
            self.repacked = self.repacked.saturating_add(tensor.bytes);
        }
    }
}

/// A tensor as the list of them describes it.
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type, in ggml's numbering.
    pub kind: u32,
    /// Its second dimension, 1 if it has none.
    pub rows: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// `blk.17.attn_q.weight` is of layer 17.
fn layer_of(name: &str) -> Option<usize> {
    let (number, _) = name.strip_prefix("blk.")?.split_once('.')?;
    number.parse().ok()
}

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The numbers of one architecture.
struct Of<'a> {
    numbers: &'a BTreeMap<String, Vec<u64>>,
    arch: &'a str,
}

impl Of<'_> {
    fn all(&self, name: &str) -> &[u64] {
        let found = self.numbers.get(&format!("{}.{name}", self.arch));
        found.map_or(&[], Vec::as_slice)
    }

    fn one(&self, name: &str) -> u64 {
        self.all(name).first().copied().unwrap_or(0)
    }

    fn most(&self, name: &str) -> u64 {
        self.all(name).iter().copied().max().unwrap_or(0)
    }

    fn or(&self, name: &str, otherwise: u64) -> u64 {
        self.all(name).first().copied().unwrap_or(otherwise)
    }

    /// Of a key that has one number for all layers, or one for each.
    fn at(&self, name: &str, layer: u64) -> Option<u64> {
        match self.all(name) {
            [] => None,
            [one] => Some(*one),
            all => Some(all.get(layer as usize).copied().unwrap_or(0)),
        }
    }

    fn kv_heads(&self, layer: u64) -> u64 {
        let own = self.at("attention.head_count_kv", layer);
        own.or_else(|| self.at("attention.head_count", layer))
            .unwrap_or(0)
    }

    /// Whether tokens leave keys and values in this layer.
    fn attends(&self, layer: u64) -> bool {
        match self.one("full_attention_interval") {
            0 => self.kv_heads(layer) > 0,
            every => (layer + 1).is_multiple_of(every),
        }
    }

    /// Whether this layer has a state. A hybrid says which by an interval, or by a layer without heads; one that says
    /// neither has both kinds in every layer.
    fn recurs(&self, layer: u64) -> bool {
        if self.one("ssm.state_size") == 0 && self.one("wkv.head_size") == 0 {
            return false;
        }
        let mixed = self.one("full_attention_interval") > 0
            || self.all("attention.head_count_kv").len() > 1;
        !mixed || !self.attends(layer)
    }

    /// Bytes of one layer's state, as llama.cpp reckons them (`n_embd_r` and `n_embd_s`).
    fn state(&self, embedding: u64) -> u64 {
        let head = self.one("wkv.head_size");
        if head > 0 {
            let shifted = embedding.saturating_mul(2);
            return FLOAT.saturating_mul(embedding.saturating_mul(head).saturating_add(shifted));
        }
        let (inner, state) = (self.one("ssm.inner_size"), self.one("ssm.state_size"));
        let groups = self.one("ssm.group_count").saturating_mul(2);
        let width = inner.saturating_add(groups.saturating_mul(state));
        let seen = self.one("ssm.conv_kernel").saturating_sub(1);
        let kept = seen.saturating_mul(width);
        FLOAT.saturating_mul(kept.saturating_add(inner.saturating_mul(state)))
    }
}
