//! What a pull tells, in the lines Ollama's clients parse, to any number of watchers.
//!
//! Invariant: every watcher sees every step in order; of a step that counts bytes it sees the first,
//! the last, and as many between as it reads in time. Nothing is buffered for a slow one.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use substrate_record::ContentHash;
use tokio::sync::watch;

use super::PullError;
use crate::models::catalogue::Held;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// `pulling manifest`, `pulling 0123456789ab`, `verifying sha256 digest`, `writing manifest`, `success`.
    pub status: String,
    /// `sha256:…`, while bytes are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Bytes in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Bytes here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<u64>,
}

/// How a pull ended.
#[derive(Clone)]
pub(super) enum Outcome {
    Done(Box<Held>),
    Failed(Arc<PullError>),
}

/// The steps of one pull, and its end.
pub(super) struct Watched {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// A handful: each step once.
    steps: Vec<Progress>,
    outcome: Option<Outcome>,
}

/// How far one watcher has read.
#[derive(Default)]
pub(super) struct Cursor {
    step: usize,
    told: Option<Progress>,
}

impl Default for Watched {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Watched {
    /// The next step.
    pub(super) fn tell(&self, status: &str) {
        self.push(Progress {
            status: status.to_owned(),
            digest: None,
            total: None,
            completed: None,
        });
    }

    /// The step that counts bytes, first time and every further time.
    pub(super) fn count(&self, digest: Option<&ContentHash>, total: u64, completed: u64) {
        let digest = digest.map(ToString::to_string);
        let short = digest.as_deref().map_or("file", |digest| &digest[..12]);
        let digest = digest.as_deref().map(|digest| format!("sha256:{digest}"));
        let line = Progress {
            status: format!("pulling {short}"),
            digest,
            total: Some(total),
            completed: Some(completed),
        };
        self.push(line);
    }

    fn push(&self, line: Progress) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.steps.last_mut() {
            Some(last) if last.status == line.status => *last = line,
            _ => state.steps.push(line),
        }
        drop(state);
        self.changed.send_modify(|version| *version += 1);
    }

    pub(super) fn end(&self, outcome: Result<Box<Held>, Arc<PullError>>) {
        let outcome = match outcome {
            Ok(held) => Outcome::Done(held),
            Err(error) => Outcome::Failed(error),
        };
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .outcome = Some(outcome);
        self.changed.send_modify(|version| *version += 1);
    }

    pub(super) fn is_over(&self) -> bool {
        self.outcome().is_some()
    }

    pub(super) fn outcome(&self) -> Option<Outcome> {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .outcome
            .clone()
    }

    /// The next line this watcher has not seen; `None` at the end.
    pub(super) async fn next(&self, cursor: &mut Cursor) -> Option<Progress> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            match self.look(cursor) {
                Look::Line(line) => return Some(line),
                Look::Over => return None,
                Look::Wait => changed.changed().await.ok()?,
            }
        }
    }

    fn look(&self, cursor: &mut Cursor) -> Look {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match state.steps.get(cursor.step) {
                Some(line) if cursor.told.as_ref() != Some(line) => {
                    cursor.told = Some(line.clone());
                    return Look::Line(line.clone());
                }
                Some(_) if cursor.step + 1 < state.steps.len() => {
                    cursor.step += 1;
                    cursor.told = None;
                }
                _ if state.outcome.is_some() => return Look::Over,
                _ => return Look::Wait,
            }
        }
    }
}

enum Look {
    Line(Progress),
    Wait,
    Over,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_late_watcher_sees_every_step_and_the_last_count() {
        let watched = Watched::default();
        let mut early = Cursor::default();
        watched.tell("pulling manifest");
        assert_eq!(
            watched.next(&mut early).await.unwrap().status,
            "pulling manifest"
        );
        let digest = ContentHash::of(b"x");
        for done in 0..5 {
            watched.count(Some(&digest), 4, done);
        }
        assert_eq!(watched.next(&mut early).await.unwrap().completed, Some(4));
        watched.tell("success");
        watched.end(Err(Arc::new(PullError::Stopped)));
        let (mut late, mut lines) = (Cursor::default(), Vec::new());
        while let Some(line) = watched.next(&mut late).await {
            lines.push(serde_json::to_string(&line).unwrap());
        }
        let hex = digest.to_string();
        let counted = format!(
            r#"{{"status":"pulling {}","digest":"sha256:{hex}","total":4,"completed":4}}"#,
            &hex[..12]
        );
        assert_eq!(
            lines,
            [
                r#"{"status":"pulling manifest"}"#,
                &counted,
                r#"{"status":"success"}"#
            ]
        );
    }
}
