//! The graphics processors that the engine itself can compute on, by its own list.
//!
//! Invariant: an answer is bounded in size and in time, and one that is none is an error that says so.
//! Absent by design: this program's own way to any of them. What else the machine has is told by [`super::detect`].

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::{MAX_GPUS, cut};

/// The longest answer: far above sixteen devices with long names.
const MAX_ANSWER: u64 = 64 * 1024;

/// How long it may take: a driver that wakes a sleeping card takes seconds.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);

/// A graphics processor as the engine sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct EngineGpu {
    /// The engine's name for it, such as `Vulkan0`.
    pub name: String,
    /// Its maker's.
    pub description: String,
    /// It shares the machine's memory.
    pub integrated: bool,
    /// Bytes it has.
    pub total: u64,
    /// Bytes of them that are free now.
    pub free: u64,
}

/// Why the engine's list is not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineGpusError {
    /// It could not be asked.
    #[error("the engine could not be asked for its devices")]
    Ask(#[source] io::Error),
    /// It did not answer.
    #[error("the engine did not tell its devices within {} s", ANSWERS_WITHIN.as_secs())]
    Silent,
    /// Not a list of devices.
    #[error("what the engine told of its devices is no list of them")]
    Answer(#[source] serde_json::Error),
}

/// Asks the worker's program, which has no model and no job then.
///
/// # Errors
/// It cannot be started, is silent, or answers something else.
pub async fn engine_gpus(worker: &Path) -> Result<Vec<EngineGpu>, EngineGpusError> {
    let mut child = Command::new(worker)
        .arg("--devices")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(EngineGpusError::Ask)?;
    let mut told = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = stdout.take(MAX_ANSWER);
        let read = timeout(ANSWERS_WITHIN, stdout.read_to_end(&mut told)).await;
        read.map_err(|_| EngineGpusError::Silent)?
            .map_err(EngineGpusError::Ask)?;
    }
    parse(&told)
}

fn parse(told: &[u8]) -> Result<Vec<EngineGpu>, EngineGpusError> {
    let mut gpus: Vec<EngineGpu> = serde_json::from_slice(told).map_err(EngineGpusError::Answer)?;
    gpus.truncate(MAX_GPUS);
    for gpu in &mut gpus {
        gpu.name = cut(&gpu.name);
        gpu.description = cut(&gpu.description);
    }
    Ok(gpus)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_engines_list_is_read() {
        let told = br#"[{"name":"Vulkan0","description":"A\ncard","integrated":false,"total":8,"free":5}]"#;
        let gpus = parse(told).unwrap();
        assert_eq!((gpus[0].name.as_str(), gpus[0].free), ("Vulkan0", 5));
        assert_eq!(gpus[0].description, "Acard", "no control characters");
        assert!(parse(b"[]").unwrap().is_empty());
        assert!(matches!(parse(b""), Err(EngineGpusError::Answer(_))));
        assert!(parse(br#"[{"name":"x"}]"#).is_err());
    }

    #[tokio::test]
    async fn a_program_that_tells_nothing_is_an_error() {
        let silent = engine_gpus(Path::new("/bin/true")).await;
        assert!(matches!(silent, Err(EngineGpusError::Answer(_))));
        let absent = engine_gpus(Path::new("/nonexistent/worker")).await;
        assert!(matches!(absent, Err(EngineGpusError::Ask(_))));
    }

    proptest! {
        #[test]
        fn no_answer_is_a_panic(told in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&told);
        }
    }
}
