//! What memory a model needs before it is loaded, and where it fits: a pure reckoning over its header's dimensions.
//!
//! What is counted is what the worker's process holds at its worst: every cell of the cache and every kept prefix in
//! use, and a whole batch under way. Weights are mapped from the file and counted whole, because they are all read
//! for every token; of those that the engine copies into another order, the mapped originals are told apart
//! ([`Estimate::mapped`]): the kernel takes them back when it needs the memory.
//!
//! Invariant: total: any dimensions, of a file that lies too, give a number, and a larger context or more slots never
//! a smaller one.
//! Absent by design: reading files, asking the machine, and unloading anything.

use substrate_sandbox::wire::{KvType, Shape};

/// Tokens of one batch of the engine, and so rows of its intermediate results (the worker's `MAX_BATCH`).
const BATCH: u64 = 512;

/// llama.cpp makes caches of whole multiples of this.
const CELL_PADDING: u64 = 256;

/// Bytes of a float, and of a half, in which the mask of fused attention is kept.
const FLOAT: u64 = 4;
const HALF: u64 = 2;

/// Rows of the width of the embedding that live at once in a layer: what came in, its norm, and what comes out.
const ROWS_OF_EMBEDDING: u64 = 4;

/// Rows of the width of the feed-forward part: gate, up, and their product.
const ROWS_OF_FEED_FORWARD: u64 = 3;

/// Lanes of the engine beside the slots (the worker's `SPARE_LANES`).
const SPARE_LANES: u64 = 1;

/// Rows of a step that may have logits, however few lanes there are: a token and the guesses at those after it (the worker's
/// `lookup::MOST`).
const LEAST_OUTPUTS: u64 = 5;

/// What a worker holds before and beside any model: its program, the engine's tables, stacks and buffers of the pipe.
/// Measured with the demo model: its resident bytes after loading, less weights, cache and vocabulary.
const PROGRAM: u64 = 16 * MIB;

/// What the engine's vocabulary takes for each of its entries: text, its hash entries both ways, its merges.
const PER_TOKEN_OF_VOCABULARY: u64 = 300;

/// Bytes of the bookkeeping of one cell: its position and the set of lanes it belongs to.
const PER_CELL: u64 = 56;

/// The share of free memory that a model may take, in percent. The rest is for what free memory is needed for besides,
/// and for what the reckoning misses; Ollama's is the same.
const SHARE_PERCENT: u64 = 80;

const MIB: u64 = 1 << 20;

/// How a model would be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Tokens of one conversation.
    pub context: u32,
    /// Answers at a time.
    pub slots: u32,
    /// Tokens the cache holds for all of them, and those of kept prefixes at most.
    pub cells: u32,
    /// Whether each answer may get a whole context's cells to itself instead, once many run.
    pub apart: bool,
    /// How the cache's numbers are kept.
    pub kv: KvType,
    /// Whether attention is fused.
    pub flash_attention: bool,
}

/// What it would take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Estimate {
    /// Weights.
    pub weights: u64,
    /// Cells of the cache, and recurrent state.
    pub kv_cache: u64,
    /// Kept prefixes that lie apart from the cells, at most.
    pub prefixes: u64,
    /// Intermediate results of a whole batch, and logits.
    pub buffers: u64,
    /// The engine itself.
    pub engine: u64,
    /// Mapped originals of weights that were copied into another order: resident until the kernel needs the memory.
    pub mapped: u64,
}

impl Estimate {
    /// What must be free for it.
    pub fn total(&self) -> u64 {
        [
            self.weights,
            self.kv_cache,
            self.prefixes,
            self.buffers,
            self.engine,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }

    /// The most that is resident, while the kernel has no other use for it.
    pub fn peak(&self) -> u64 {
        self.total().saturating_add(self.mapped)
    }
}

/// Memory of a machine as it is now, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Free {
    /// Free memory.
    pub memory: u64,
    /// What one model may take at most, by the owner's word.
    pub limit: Option<u64>,
    /// Free memory of each graphics processor that the engine can compute on; empty for an engine built without.
    pub gpus: Vec<u64>,
}

/// Where a model would run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// All on one graphics processor.
    Gpu {
        /// Which.
        index: usize,
    },
    /// So many layers on a graphics processor, the rest in memory.
    Split {
        /// Which.
        index: usize,
        /// Layers on it.
        layers: u32,
    },
    /// All in memory.
    Cpu,
}

impl Place {
    /// In words that lists show.
    pub fn word(self) -> String {
        match self {
            Self::Gpu { index } => format!("gpu {index}"),
            Self::Split { index, layers } => format!("{layers} layers on gpu {index}, rest on cpu"),
            Self::Cpu => "cpu".to_owned(),
        }
    }
}

/// It fits nowhere here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Misfit {
    /// What it needs.
    pub needs: u64,
    /// What it may have: the share of free memory, or the owner's limit.
    pub may: u64,
    /// What is free.
    pub free: u64,
    /// Whether it is the owner's limit that it is over.
    pub over_limit: bool,
}

/// What a model of this shape and vocabulary takes when it is loaded like this.
pub fn estimate(shape: &Shape, n_vocab: u32, setting: &Setting) -> Estimate {
    let together = u64::from(setting.cells.max(setting.context)).next_multiple_of(CELL_PADDING);
    let lanes = u64::from(setting.slots.max(1)) + SPARE_LANES;
    // Cells that one row of attention looks through, and all of them.
    let (reach, cells) = if setting.apart {
        let own = u64::from(setting.context).next_multiple_of(CELL_PADDING);
        (own, own.saturating_mul(lanes))
    } else {
        (together, together)
    };
    let of = |cells: u64| cells.saturating_mul(cell_bytes(shape, setting.kv));
    let vocabulary = u64::from(n_vocab).saturating_mul(PER_TOKEN_OF_VOCABULARY);
    let recurrent = shape.state > 0;
    Estimate {
        weights: weights(shape),
        kv_cache: of(cells).saturating_add(shape.state.saturating_mul(lanes)),
        // Cells of a recurrent model cannot be shared, so nothing of them is kept apart.
        prefixes: if recurrent { 0 } else { of(together) },
        buffers: buffers(shape, n_vocab, reach, lanes, setting.flash_attention),
        engine: PROGRAM
            .saturating_add(vocabulary)
            .saturating_add(cells.saturating_mul(PER_CELL)),
        mapped: shape.repacked,
    }
}

/// Where it fits by the 80 % rule: one graphics processor that holds all of it, else one that holds some layers, else memory.
///
/// # Errors
/// Nowhere.
pub fn place(shape: &Shape, n_vocab: u32, setting: &Setting, free: &Free) -> Result<Place, Misfit> {
    let whole = estimate(shape, n_vocab, setting);
    let best = (free.gpus.iter().copied().enumerate()).max_by_key(|(index, free)| {
        // The first of equals.
        (*free, std::cmp::Reverse(*index))
    });
    // Kept prefixes are copied out of the cells into memory, wherever the cells are.
    let host = whole.engine.saturating_add(whole.prefixes);
    if let Some((index, gpu)) = best {
        if whole.total() - host <= share(gpu) && host <= share(free.memory) {
            return Ok(Place::Gpu { index });
        }
        if let Some(layers) = layers_on(shape, &whole, share(gpu), share(free.memory)) {
            return Ok(Place::Split { index, layers });
        }
    }
    let needs = whole.total();
    let over_limit = free.limit.is_some_and(|limit| needs > limit);
    let may = share(free.memory).min(free.limit.unwrap_or(u64::MAX));
    if needs <= may {
        return Ok(Place::Cpu);
    }
    Err(Misfit {
        needs,
        may,
        free: free.memory,
        over_limit: over_limit && needs <= share(free.memory),
    })
}

/// Bytes as people read them.
pub fn in_words(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = UNITS.iter().find(|(_, unit)| bytes >= *unit);
    match unit {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

/// The share of free memory that a model may take.
pub fn share(free: u64) -> u64 {
    u64::try_from(u128::from(free) * u128::from(SHARE_PERCENT) / 100).unwrap_or(u64::MAX)
}

/// The most layers that fit beside the buffers of a graphics processor, if the rest fits the memory; at least one.
fn layers_on(shape: &Shape, whole: &Estimate, gpu: u64, memory: u64) -> Option<u32> {
    let cache_of_layer = whole.kv_cache / u64::from(shape.layers.max(1));
    let mut used = whole.buffers;
    let mut count = 0;
    for bytes in &shape.layer_bytes {
        used = used.saturating_add(*bytes).saturating_add(cache_of_layer);
        if used > gpu {
            break;
        }
        count += 1;
    }
    let on_gpu = used_by(&shape.layer_bytes[..count])
        .saturating_add(cache_of_layer.saturating_mul(count as u64));
    // Buffers are on both sides: each computes its own layers.
    let rest = whole.total().saturating_sub(on_gpu);
    (count > 0 && rest <= memory).then(|| u32::try_from(count).unwrap_or(u32::MAX))
}

fn weights(shape: &Shape) -> u64 {
    used_by(&shape.layer_bytes).saturating_add(shape.rest_bytes)
}

fn used_by(layers: &[u64]) -> u64 {
    layers.iter().copied().fold(0, u64::saturating_add)
}

/// Bytes of the keys and values of one token.
fn cell_bytes(shape: &Shape, kv: KvType) -> u64 {
    let (block, bytes) = kv.block();
    let of = |numbers: u64| numbers.div_ceil(block).saturating_mul(bytes);
    of(shape.keys).saturating_add(of(shape.values))
}

/// The graph's buffer: its widest place, which is a layer's attention, its feed-forward part, or the logits; beside it the
/// mask, which lives as long as the graph does.
fn buffers(shape: &Shape, n_vocab: u32, cells: u64, lanes: u64, flash_attention: bool) -> u64 {
    let rows = BATCH.min(cells);
    let width = |numbers: u64| numbers.saturating_mul(rows).saturating_mul(FLOAT);
    let embedding = width(u64::from(shape.embedding)).saturating_mul(ROWS_OF_EMBEDDING);
    let heads = u64::from(shape.heads);
    let queries = width(heads.saturating_mul(u64::from(shape.key_length)));
    let scores = width(heads.saturating_mul(cells));
    let attention = if flash_attention {
        queries.saturating_mul(2)
    } else {
        queries.saturating_add(scores)
    };
    let mask = cells
        .saturating_mul(rows)
        .saturating_mul(if flash_attention { HALF } else { FLOAT });
    let feed_forward = width(u64::from(shape.feed_forward)).saturating_mul(ROWS_OF_FEED_FORWARD);
    let logits = u64::from(n_vocab)
        .saturating_mul(lanes.max(LEAST_OUTPUTS))
        .saturating_mul(FLOAT);
    let widest = attention.max(feed_forward).max(logits);
    // Logits are copied out once more, for every lane.
    [embedding, mask, widest, logits]
        .into_iter()
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests;
