//! The owner's settings: what `config.toml` says, and what holds when it says nothing.
//!
//! Invariant: a file with a key we do not know, or a value of the wrong kind, is refused as a whole
//! and the error names key and line; nothing is guessed, because `lending` is about other people's
//! use of this machine.
//!
//! Absent by design: secrets (an API key is kept as its hash), and any way to log prompts.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use substrate_node::limits::OWN_LIST;
use substrate_record::NodeId;
use substrate_tee::Policy;
use subtle::ConstantTimeEq;

use crate::files::FileError;
use crate::home::Home;
use crate::models::names::ModelName;

mod edit;
mod environment;
mod place;
mod values;

pub use edit::{ApiSecret, KeyGrant, LendingChange, add_api_key, remove_api_key, set_lending};
pub use values::{
    ByteSize, CacheType, Hours, IdleSpan, KeepAlive, LoadTimeout, MicrovmUse, ScopeName,
};

/// Settings are read whole into memory; a larger file is not a settings file.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Everything the owner may decide.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What is lent to others.
    pub lending: Lending,
    /// The HTTP listener.
    pub api: Api,
    /// How other nodes are found.
    pub mesh: MeshSettings,
    /// How models are kept in memory.
    pub models: ModelSettings,
    /// Which walls beside the usual one are tried at the start.
    pub walls: WallSettings,
    /// Which trusted execution environments are believed.
    pub tee: TeeSettings,
    /// What is logged.
    pub log: LogSettings,
}

/// What is lent to others. Off until the owner says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lending {
    /// Whether at all.
    pub when: When,
    /// Cores the engine uses at most, for the owner's own jobs too; `None` = all that are free.
    pub cores: Option<u32>,
    /// Memory one worker may map, for the owner's own jobs too; `None` = the machine's. Read at the start.
    pub memory: Option<ByteSize>,
    /// Models lent, by name; empty = all.
    pub models: Vec<String>,
    /// Kinds of job; empty = all.
    pub job_types: Vec<JobType>,
    /// Local time of day; `None` = always.
    pub hours: Option<Hours>,
    /// How long the owner must have left the machine alone before it is lent again.
    pub idle_after: IdleSpan,
    /// Programs that pause lending while they run, by the names `ps -o comm` shows.
    #[serde(deserialize_with = "values::programs")]
    pub pause_for: Vec<String>,
    /// Nothing is lent while this file exists.
    #[serde(deserialize_with = "values::absolute_path")]
    pub busy_file: Option<PathBuf>,
    /// Who may ask.
    pub requesters: Requesters,
}

impl Lending {
    /// Whether the list of models lets this one be lent.
    pub fn lends(&self, model: &ModelName) -> bool {
        self.models.is_empty() || self.models.iter().any(|listed| is_name(listed, model))
    }

    /// What is on the list of models and means none of those held.
    pub fn unknown_models<'a>(
        &self,
        held: impl Iterator<Item = &'a ModelName> + Clone,
    ) -> Vec<&str> {
        let listed = self.models.iter().map(String::as_str);
        listed
            .filter(|listed| !held.clone().any(|held| is_name(listed, held)))
            .collect()
    }
}

/// As everywhere else, case and the usual tag do not matter.
fn is_name(listed: &str, model: &ModelName) -> bool {
    listed
        .parse::<ModelName>()
        .is_ok_and(|listed| listed == *model)
}

/// When this machine works for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// Never.
    #[default]
    Off,
    /// While its owner does not use it.
    Idle,
    /// Always; the owner's own jobs still go first.
    Always,
}

/// A kind of job the owner may refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobType {
    /// Answers.
    Generate,
    /// Vectors.
    Embed,
}

/// Who may ask. A key on both lists is denied.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Requesters {
    /// Only these; empty = anybody in the job's scope.
    #[serde(deserialize_with = "values::node_ids")]
    pub allow: Vec<NodeId>,
    /// Never these.
    #[serde(deserialize_with = "values::node_ids")]
    pub deny: Vec<NodeId>,
}

/// The HTTP listener. A bind that is not loopback is refused by the daemon unless a key exists.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Addresses; `["127.0.0.1:11535"]`, add `127.0.0.1:11434` to stand in for Ollama.
    pub listen: Vec<SocketAddr>,
    /// Host names it answers to beside loopback's and its own address, such as `box.lan`.
    #[serde(deserialize_with = "values::host_names")]
    pub names: Vec<String>,
    /// Browser origins allowed beside the machine's own.
    pub origins: Vec<String>,
    /// The widest scope a job without an own wish gets.
    pub default_scope: ScopeName,
    /// Keys of remote callers.
    pub keys: Vec<ApiKey>,
    /// Jobs of this machine's clients, waiting or running, before the next is told to come back; 1 to 1024.
    #[serde(deserialize_with = "values::max_queue")]
    pub max_queue: u32,
}

/// One API key, as its hash.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Shown in `jobs` and in limits.
    pub name: String,
    /// SHA-256 of the key, in hex.
    #[serde(deserialize_with = "values::hash")]
    pub sha256: [u8; 32],
    /// The widest scope its jobs may use.
    #[serde(default)]
    pub scope: ScopeName,
    /// Whether it may also make, copy, delete and sign by pulling; otherwise it asks and reads.
    #[serde(default)]
    pub admin: bool,
    /// Requests in a minute; `None` = no limit.
    pub per_minute: Option<u32>,
    /// Jobs at once; `None` = no limit.
    pub concurrent: Option<u32>,
}

/// How other nodes are found.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeshSettings {
    /// Multiaddresses to listen on.
    pub listen: Vec<String>,
    /// Peers that are always dialled.
    pub peers: Vec<String>,
    /// Look around in the local network.
    pub mdns: bool,
    /// Take part in the distributed hash table.
    pub kad: bool,
}

/// How models are kept in memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSettings {
    /// How long an unused model stays loaded.
    pub keep_alive: KeepAlive,
    /// How long a load may take.
    pub load_timeout: LoadTimeout,
    /// Context to allocate, in tokens; `None` = by the model and the memory.
    pub context: Option<u32>,
    /// Answers a model gives at the same time; `None` = the built-in number. The engine bounds it.
    pub parallel: Option<NonZeroU32>,
    /// Threads of the engine, whatever else runs; `None` = as many as there are free cores at each moment.
    pub threads: Option<NonZeroU32>,
    /// Models loaded at the same time; `None` = the built-in number.
    pub max_loaded: Option<NonZeroU32>,
    /// How the numbers of the cache are kept; less than `f16` needs flash attention.
    pub kv_cache_type: CacheType,
    /// Whether attention may be fused; `None` = as the engine thinks best for the model.
    pub flash_attention: Option<bool>,
    /// Whether each answer may have the cells of a whole context to itself once many run; `None` = if they take a small part of
    /// what is free.
    pub own_cells: Option<bool>,
    /// Whether an answer that runs alone guesses its next tokens by prompt lookup; `None` = it does.
    pub prompt_lookup: Option<bool>,
}

impl ModelSettings {
    /// A quantised cache is only ever read by fused attention.
    fn check(&self) -> Result<(), ConfigError> {
        if self.kv_cache_type != CacheType::F16 && self.flash_attention == Some(false) {
            return Err(ConfigError::PlainCache {
                kv: self.kv_cache_type,
            });
        }
        Ok(())
    }
}

/// Which walls beside the usual one are tried at the start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WallSettings {
    /// Whether virtual machines are.
    pub microvm: MicrovmUse,
    /// Whose signature makes a guest image good; `None` = it must be the one that was installed.
    #[serde(deserialize_with = "values::image_key")]
    pub image_key: Option<[u8; 32]>,
}

/// Which trusted execution environments of other nodes are believed. None until the owner names their images.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TeeSettings {
    /// Guests, each as `"<platform> <measurement> <least security versions>"`.
    #[serde(deserialize_with = "values::guests")]
    pub accept: Policy,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// Prompts and answers.
    pub prompts: PromptLogging,
}

/// There is one value, so that a reader of the file sees the promise and cannot break it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptLogging {
    /// Prompts and answers are never logged.
    #[default]
    Never,
}

/// Port of the HTTP listener, one above Ollama's 11434 and its proxy's.
pub const API_PORT: u16 = 11535;

/// Jobs of this node's clients that it keeps, unless its owner wants fewer: the longest list a node has (DESIGN 5).
const MAX_QUEUE: u32 = OWN_LIST as u32;

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], API_PORT))],
            names: Vec::new(),
            origins: Vec::new(),
            default_scope: ScopeName::Circle,
            keys: Vec::new(),
            max_queue: MAX_QUEUE,
        }
    }
}

impl Default for MeshSettings {
    fn default() -> Self {
        let listen = ["/ip4/0.0.0.0/udp/11536/quic-v1", "/ip4/0.0.0.0/tcp/11536"];
        Self {
            listen: listen.map(String::from).to_vec(),
            peers: Vec::new(),
            mdns: true,
            kad: true,
        }
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// One key or one line is wrong.
    #[error("{}:{line}:{column}: {key}: {why}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// The key, with its table: `lending.cores`.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// A fall-back from the environment is wrong.
    #[error("{variable}: {why}")]
    Environment {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Each is possible, and both together are not.
    #[error(
        "models.kv_cache_type: {kv} needs flash attention, and models.flash_attention (or OLLAMA_FLASH_ATTENTION) is off: \
         set one of them otherwise, the cache to \"f16\" or flash_attention to true"
    )]
    PlainCache {
        /// As set.
        kv: CacheType,
    },
    /// Not a settings file at all.
    #[error("{} is {size} bytes long, settings may have {MAX_CONFIG_BYTES}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// An API key of that name exists.
    #[error("an API key named '{name}' exists already")]
    KeyExists {
        /// As asked.
        name: String,
    },
    /// A name a person could not tell from another.
    #[error("'{name}' cannot name an API key: use letters, digits, '-' and '_', at most 64")]
    KeyName {
        /// As asked.
        name: String,
    },
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Config {
    /// The settings of a home; without a file, the defaults and the environment.
    pub fn load(home: &Home) -> Result<Self, ConfigError> {
        let path = home.config_file();
        Self::parse_with(&read(&path)?, &path, &|name| std::env::var(name).ok())
    }

    /// Settings from text alone.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        Self::parse_with(text, path, &|_| None)
    }

    /// Settings from text; where it is silent, from Ollama's variables.
    pub fn parse_with(
        text: &str,
        path: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut config: Self =
            toml::from_str(text).map_err(|error| place::bad(text, path, &error))?;
        let said = place::Said::of(text);
        environment::fall_back(&mut config, &said, env)?;
        config.models.check()?;
        Ok(config)
    }

    /// The API key a caller showed. Every stored hash is compared, in constant time.
    pub fn api_key_of(&self, presented: &str) -> Option<&ApiKey> {
        let hash: [u8; 32] = Sha256::digest(presented.as_bytes()).into();
        let mut found = None;
        for key in &self.api.keys {
            if bool::from(key.sha256.ct_eq(&hash)) {
                found = Some(key);
            }
        }
        found
    }
}

/// The file's text; an absent file is an empty one.
fn read(path: &Path) -> Result<String, ConfigError> {
    let size = match std::fs::metadata(path) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(FileError::at("read", path)(error).into()),
    };
    if size > MAX_CONFIG_BYTES {
        return Err(ConfigError::TooLarge {
            path: path.to_path_buf(),
            size,
        });
    }
    let bytes = std::fs::read(path).map_err(FileError::at("read", path))?;
    String::from_utf8(bytes).map_err(|error| place::not_text(path, &error))
}

#[cfg(test)]
mod tests;
