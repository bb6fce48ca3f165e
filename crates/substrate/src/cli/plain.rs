//! Arguments that several commands share: scopes, walls, spans of time, nodes, jobs.

use std::time::Duration;

use clap::ValueEnum;
use substrate_api::v1;
use substrate_record::{JobId, NodeId};

/// How far from this machine a prompt may travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scope {
    /// This machine only
    Mine,
    /// The machines of your circles
    Circle,
    /// Strangers' machines, which can read the prompt
    Commons,
}

impl Scope {
    /// As the contract says it.
    pub fn code(self) -> i32 {
        match self {
            Self::Mine => v1::Scope::Mine,
            Self::Circle => v1::Scope::Circle,
            Self::Commons => v1::Scope::Commons,
        }
        .into()
    }
}

/// The code of a scope that may have been left out.
pub fn scope_code(scope: Option<Scope>) -> i32 {
    scope.map_or(v1::Scope::Unspecified.into(), Scope::code)
}

/// What the answering worker must be walled in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Wall {
    /// The process wall, or what builds before its suite passed had of it
    Basic,
    /// The process wall with a GPU let through
    #[value(name = "process+gpu")]
    ProcessGpu,
    /// The process wall, demanded by default
    Process,
    /// A virtual machine
    Microvm,
    /// A virtual machine under software emulation
    MicrovmEmulated,
    /// An attested trusted execution environment
    Tee,
}

impl Wall {
    /// As the contract says it.
    pub fn code(self) -> i32 {
        match self {
            Self::Basic => v1::Wall::Basic,
            Self::ProcessGpu => v1::Wall::ProcessGpu,
            Self::Process => v1::Wall::Process,
            Self::Microvm => v1::Wall::Microvm,
            Self::MicrovmEmulated => v1::Wall::MicrovmEmulated,
            Self::Tee => v1::Wall::Tee,
        }
        .into()
    }
}

/// A span such as `90s`, `10m`, `24h` or `7days`.
pub fn span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// A node's whole key.
pub fn node(text: &str) -> Result<NodeId, String> {
    text.parse().map_err(|_| {
        "a node is named by the 64 hex digits of its key, as `substrate peers` shows".to_owned()
    })
}

/// A job's whole id.
pub fn job(text: &str) -> Result<JobId, String> {
    text.parse().map_err(|_| {
        "a job is named by the 32 hex digits of its id, as `substrate jobs` shows".to_owned()
    })
}
