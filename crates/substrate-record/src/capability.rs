//! A Capability: what a node offers right now, measured, re-sent every minute and never logged.
//!
//! Invariant: speeds are integers in millitokens per second. Absent by design: anything about
//! prefixes or prompts (warmth is each requester's own memory), and prices.

use crate::error::FieldError;
use crate::fields::{Blob, List, Maybe, Plain, Text, body, cbor_codes, cbor_map};
use crate::{ContentHash, InNetwork, RecordId, Stream};

/// The name of a processor or GPU as its maker prints it.
const MAX_DEVICE_NAME: usize = 128;
/// Sixteen is the largest common single-machine GPU count.
const MAX_GPUS: usize = 16;
/// Models one capability may name. An offer is about 110 bytes; 64 of them leave half the record for the rest.
pub const MAX_OFFERS: usize = 64;
/// One of each tier.
const MAX_WALLS: usize = 6;
/// Bytes of attestation evidence. Quotes are 1 to 5 KiB; with full lists one still fits into the record.
pub const MAX_TEE: usize = 5 * 1024;
/// A version and a commit hash.
const MAX_BUILD: usize = 96;
/// `llama.cpp/<rev>/<backend>/<level>` with a full commit hash and a long GPU name.
pub(crate) const MAX_ENGINE_CLASS: usize = 128;

/// What a node offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// The machine.
    pub hardware: Hardware,
    /// The models it serves.
    pub models: Vec<ModelOffer>,
    /// Bytes free for another model.
    pub free_memory: u64,
    /// Jobs it runs at once.
    pub slots: u32,
    /// Jobs waiting.
    pub queue: u32,
    /// The walls whose own probe passed.
    pub walls: Vec<WallTier>,
    /// Attestation evidence, if it claims the `tee` tier.
    pub tee: Option<Vec<u8>>,
    /// The daemon's version and commit.
    pub build: String,
    /// The worker binary that runs jobs.
    pub worker_sha256: ContentHash,
}

/// The machine, as far as routing and plausibility need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hardware {
    /// The processor's name.
    pub cpu: String,
    /// Physical cores.
    pub cores: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// GPUs, if any.
    pub gpus: Vec<Gpu>,
    /// Bytes free for models on disk.
    pub storage: u64,
    /// Bytes per second upstream, if known.
    pub bandwidth: Option<u64>,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// Bytes of its memory.
    pub memory: u64,
}

/// One model a node serves, at the speed it measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelOffer {
    /// The ModelEntry.
    pub entry: RecordId,
    /// Which build of which engine runs it on what.
    pub engine_class: String,
    /// Whether it is in memory.
    pub loaded: bool,
    /// Millitokens per second reading the prompt.
    pub prefill: u64,
    /// Millitokens per second generating.
    pub decode: u64,
}

/// What stands between a job and the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WallTier {
    /// The process wall of builds before its suite passed. This build demands and offers [`WallTier::Process`].
    Basic = 1,
    /// The process wall with GPU devices let in.
    ProcessGpu = 2,
    /// The full process wall.
    Process = 3,
    /// A virtual machine of its own.
    Microvm = 4,
    /// The same under software emulation; serves only who names it.
    MicrovmEmulated = 5,
    /// A trusted execution environment; serves only who names it.
    Tee = 6,
}

impl WallTier {
    /// Whether this wall is at least what a job demands. The first four are in order; emulated
    /// machines and TEEs promise something else and match by name only.
    ///
    /// ```
    /// use substrate_record::WallTier;
    /// assert!(WallTier::Microvm.satisfies(WallTier::Process));
    /// assert!(!WallTier::Tee.satisfies(WallTier::Basic));
    /// ```
    pub fn satisfies(self, demand: WallTier) -> bool {
        let by_name = |tier: WallTier| tier > WallTier::Microvm;
        if by_name(self) || by_name(demand) {
            return self == demand;
        }
        self >= demand
    }

    /// Whether it is a virtual machine, of which each job has one for itself.
    pub fn is_machine(self) -> bool {
        matches!(self, Self::Microvm | Self::MicrovmEmulated)
    }
}

cbor_codes!(WallTier {
    Basic,
    ProcessGpu,
    Process,
    Microvm,
    MicrovmEmulated,
    Tee
});
cbor_map!(Gpu {
    1 => name: Text(MAX_DEVICE_NAME),
    2 => memory: Plain,
});
cbor_map!(Hardware {
    1 => cpu: Text(MAX_DEVICE_NAME),
    2 => cores: Plain,
    3 => memory: Plain,
    4 => gpus: List(MAX_GPUS, Plain),
    5 => storage: Plain,
    6 => bandwidth: Maybe(Plain),
});
cbor_map!(ModelOffer {
    1 => entry: Plain,
    2 => engine_class: Text(MAX_ENGINE_CLASS),
    3 => loaded: Plain,
    4 => prefill: Plain,
    5 => decode: Plain,
});
cbor_map!(Capability {
    1 => hardware: Plain,
    2 => models: List(MAX_OFFERS, Plain),
    3 => free_memory: Plain,
    4 => slots: Plain,
    5 => queue: Plain,
    6 => walls: List(MAX_WALLS, Plain),
    7 => tee: Maybe(Blob(MAX_TEE)),
    8 => build: Text(MAX_BUILD),
    9 => worker_sha256: Plain,
});
body!(Capability, Some(Stream::Cap));

impl InNetwork for Capability {}

impl Capability {
    fn consistent(&self) -> Result<(), FieldError> {
        Ok(())
    }
}
