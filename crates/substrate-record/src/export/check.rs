//! Whether the records of a job fit each other.
//!
//! Invariant: each check looks only at a record and at those before it, so the first record that
//! does not fit is the one that is named.
//!
//! Absent by design: signatures, which were checked on reading, and verdicts.

use super::report::tokens_received;
use super::{Attempt, Export, ExportError, Location, Role};
use crate::{ContentHash, Half, JobManifest, RecordId, Verified};

/// What does not fit, before its place in the file is looked up.
pub(super) struct Contradiction {
    attempt: Option<usize>,
    record: Role,
    what: &'static str,
}

impl Contradiction {
    pub(super) fn located(self, export: &Export, file: &[u8]) -> ExportError {
        let record = self.bytes(export).unwrap_or_default();
        let offset = file
            .windows(record.len().max(1))
            .position(|window| window == record);
        let at = Location {
            attempt: self.attempt,
            record: self.record,
            offset: offset.unwrap_or_default(),
        };
        let what = self.what;
        ExportError::Contradiction { at, what }
    }

    fn bytes<'a>(&self, export: &'a Export) -> Option<&'a [u8]> {
        let attempt = self.attempt.and_then(|index| export.attempts.get(index));
        match self.record {
            Role::Genesis => Some(export.genesis.bytes()),
            Role::Entry(index) => export.entries.get(index).map(Verified::bytes),
            Role::Manifest => attempt.map(|attempt| attempt.manifest.bytes()),
            Role::Accept => attempt?.accept.as_ref().map(Verified::bytes),
            Role::Ack(index) => attempt?.acks.get(index).map(Verified::bytes),
            Role::ReceiptW => attempt?.receipt_w.as_ref().map(Verified::bytes),
            Role::ReceiptR => attempt?.receipt_r.as_ref().map(Verified::bytes),
        }
    }
}

/// Checks every record of the export against those before it.
pub(super) fn check(export: &Export) -> Result<(), Contradiction> {
    check_entries(export)?;
    for (index, attempt) in export.attempts.iter().enumerate() {
        let previous = index.checked_sub(1).map(|before| &export.attempts[before]);
        let check = Check {
            export,
            attempt,
            index,
        };
        check.manifest(previous)?;
        check.accept()?;
        check.acks()?;
        check.receipt_w()?;
        check.receipt_r()?;
    }
    Ok(())
}

/// An entry belongs here if a manifest names it, or another entry with the very same body.
fn check_entries(export: &Export) -> Result<(), Contradiction> {
    let named = |id: RecordId| {
        let mut manifests = export
            .attempts
            .iter()
            .map(|attempt| attempt.manifest.body());
        manifests.any(|manifest| manifest.entry == id || manifest.adapter == Some(id))
    };
    for (index, entry) in export.entries.iter().enumerate() {
        let mut equals = export
            .entries
            .iter()
            .filter(|other| other.body() == entry.body());
        if !equals.any(|equal| named(equal.id())) {
            return Err(Contradiction {
                attempt: None,
                record: Role::Entry(index),
                what: "no manifest names this model entry or an equal one",
            });
        }
    }
    Ok(())
}

/// One attempt under examination.
struct Check<'a> {
    export: &'a Export,
    attempt: &'a Attempt,
    index: usize,
}

impl Check<'_> {
    fn manifest(&self, previous: Option<&Attempt>) -> Result<(), Contradiction> {
        let manifest = self.attempt.manifest.body();
        let ensure = |holds, what| self.ensure(Role::Manifest, holds, what);
        let known = |id| self.export.entries.iter().any(|entry| entry.id() == id);
        ensure(
            known(manifest.entry),
            "its model entry is not in the export",
        )?;
        let Some(previous) = previous else {
            let from_nothing = !manifest.parents.is_empty() || manifest.resume_tokens == 0;
            return ensure(
                from_nothing,
                "it goes on from tokens of no attempt before it",
            );
        };
        let before = previous.manifest.body();
        let requester = previous.manifest.author();
        ensure(
            self.attempt.manifest.author() == requester,
            "another requester signed it",
        )?;
        ensure(manifest.job == before.job, "it is about another job")?;
        ensure(
            manifest.scope <= before.scope,
            "it has a wider scope than the attempt before",
        )?;
        ensure(
            manifest.attempt > before.attempt,
            "attempts are not numbered in sequence",
        )?;
        if manifest.attempt - before.attempt > 1 {
            return ensure(
                !manifest.parents.is_empty(),
                "it names no attempt before it",
            );
        }
        self.follows(previous)
    }

    /// The attempt right before this one is in the export too, so the two must join.
    fn follows(&self, previous: &Attempt) -> Result<(), Contradiction> {
        let manifest = self.attempt.manifest.body();
        let ensure = |holds, what| self.ensure(Role::Manifest, holds, what);
        ensure(
            manifest.parents == [previous.manifest.id()],
            "its parent is not the attempt before",
        )?;
        let received = tokens_received(previous);
        let resumable = previous.manifest.body().resume_tokens;
        ensure(
            manifest.resume_tokens <= resumable.saturating_add(received),
            "it goes on from tokens nobody received",
        )
    }

    fn accept(&self) -> Result<(), Contradiction> {
        let Some(accept) = &self.attempt.accept else {
            return Ok(());
        };
        let manifest = self.attempt.manifest.body();
        let ensure = |holds, what| self.ensure(Role::Accept, holds, what);
        ensure(
            accept.author() == manifest.provider,
            "another node than the provider signed it",
        )?;
        let body = accept.body();
        ensure(
            body.manifest == self.attempt.manifest.id(),
            "it accepts another manifest",
        )?;
        ensure(
            body.wall.satisfies(manifest.wall),
            "its wall is weaker than demanded",
        )
    }

    fn acks(&self) -> Result<(), Contradiction> {
        let mut before = (0, 0);
        for (index, ack) in self.attempt.acks.iter().enumerate() {
            let ensure = |holds, what| self.ensure(Role::Ack(index), holds, what);
            let Some(accept) = &self.attempt.accept else {
                return ensure(false, "it acknowledges an attempt without an accept");
            };
            let body = ack.body();
            let requester = self.attempt.manifest.author();
            ensure(
                ack.author() == requester,
                "another node than the requester signed it",
            )?;
            ensure(
                self.is_about(body.manifest, body.accept),
                "it is about another attempt",
            )?;
            ensure(
                body.n_in == accept.body().n_in,
                "its n_in is not the accept's",
            )?;
            let now = (body.prefilled, body.tokens);
            ensure(
                before.0 <= now.0 && before.1 <= now.1,
                "it takes back an earlier ack",
            )?;
            before = now;
        }
        Ok(())
    }

    fn receipt_w(&self) -> Result<(), Contradiction> {
        let Some(receipt) = &self.attempt.receipt_w else {
            return Ok(());
        };
        let ensure = |holds, what| self.ensure(Role::ReceiptW, holds, what);
        let Some(accept) = &self.attempt.accept else {
            return ensure(false, "it is a receipt for an attempt without an accept");
        };
        let (body, manifest) = (receipt.body(), self.attempt.manifest.body());
        ensure(
            receipt.author() == manifest.provider,
            "another node than the provider signed it",
        )?;
        ensure(
            self.is_about(body.manifest, body.accept),
            "it is about another attempt",
        )?;
        ensure(
            self.is_weight_of(manifest, body.model_sha256),
            "its model is not the entry's",
        )?;
        let input = body.input_commitment == manifest.input_commitment;
        ensure(input, "its input is not the manifest's")?;
        ensure(
            body.n_in == accept.body().n_in,
            "its n_in is not the accept's",
        )?;
        ensure(
            body.n_out <= manifest.max_tokens,
            "it claims more tokens than were asked for",
        )
    }

    fn receipt_r(&self) -> Result<(), Contradiction> {
        let Some(receipt) = &self.attempt.receipt_r else {
            return Ok(());
        };
        let ensure = |holds, what| self.ensure(Role::ReceiptR, holds, what);
        let (body, manifest) = (receipt.body(), &self.attempt.manifest);
        let requester = manifest.author();
        ensure(
            receipt.author() == requester,
            "another node than the requester signed it",
        )?;
        ensure(
            body.manifest == manifest.id(),
            "it is about another attempt",
        )?;
        let answered = match body.half {
            Half::ReceiptW(id) => self
                .attempt
                .receipt_w
                .as_ref()
                .is_some_and(|half| half.id() == id),
            Half::Accept(id) => self
                .attempt
                .accept
                .as_ref()
                .is_some_and(|half| half.id() == id),
            Half::Manifest => true,
        };
        ensure(answered, "it answers a record that is not in this attempt")
    }

    fn is_about(&self, manifest: RecordId, accept: RecordId) -> bool {
        let own = self.attempt.accept.as_ref().map(Verified::id);
        manifest == self.attempt.manifest.id() && Some(accept) == own
    }

    fn is_weight_of(&self, manifest: &JobManifest, digest: ContentHash) -> bool {
        let mut entries = self.export.entries.iter();
        let entry = entries.find(|entry| entry.id() == manifest.entry);
        entry.is_some_and(|entry| entry.body().weights().any(|file| file.sha256 == digest))
    }

    fn ensure(&self, record: Role, holds: bool, what: &'static str) -> Result<(), Contradiction> {
        if holds {
            return Ok(());
        }
        Err(Contradiction {
            attempt: Some(self.index),
            record,
            what,
        })
    }
}
