//! The loop over a model that makes vectors: as the engine's, but a step is a batch of texts.
//!
//! Invariant: as the engine's loop: every message that has come is obeyed between two steps, and writing blocks.
//! Absent by design: what such a model has not: rendering, ids to text.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use substrate_sandbox::wire::{Failure, FromWorker, Prepare, ToWorker};
use zeroize::Zeroize;

use super::{MAX_WAITING, Out};
use crate::embedder::{Embedder, Event, Request};
use crate::inbox::{Inbox, Work};
use crate::refusal::Refusal;
use crate::sequence::Finish;

pub(super) struct Worker<W> {
    pub(super) out: Out<W>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) embedder: Embedder,
    pub(super) prepared: BTreeMap<u64, Request>,
}

impl<W: Write> Worker<W> {
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            if !self.embedder.can_step() {
                self.out.flush()?;
                let work = self.inbox.wait();
                if !self.obey(work)? {
                    return Ok(());
                }
            }
            while let Some(work) = self.inbox.poll() {
                if !self.obey(work)? {
                    return Ok(());
                }
            }
            self.step()?;
        }
    }

    /// False when the daemon leaves.
    fn obey(&mut self, work: Work) -> io::Result<bool> {
        match work {
            Work::Leave => return Ok(false),
            Work::Message(message) => self.on_message(message)?,
            Work::Refused(seq) => {
                let refusal = Refusal::new(Failure::OutOfMemory, "too many messages wait");
                self.out.refuse(Some(seq), refusal)?;
            }
        }
        Ok(true)
    }

    fn step(&mut self) -> io::Result<()> {
        if let Some((_, threads)) = self.inbox.threads() {
            self.embedder.set_threads(threads);
        }
        let mut events = Vec::new();
        self.inbox
            .set_interruptible(self.embedder.worth_interrupting());
        self.embedder.step(&mut events);
        self.inbox.set_interruptible(Vec::new());
        for event in events {
            match event {
                Event::Row { seq, row, bytes } => {
                    self.out.send(&FromWorker::Row { seq, row, bytes })?;
                }
                Event::Finished(finished) => self.out.send(&FromWorker::Finished(finished))?,
                Event::Failed { seq, why } => self.out.refuse(Some(seq), why.into())?,
            }
        }
        self.out.flush()
    }

    fn on_message(&mut self, message: ToWorker) -> io::Result<()> {
        match message {
            ToWorker::Prepare(job) => self.on_prepare(job),
            ToWorker::Begin { seq } => {
                if let Some(request) = self.prepared.remove(&seq) {
                    self.embedder.submit(request);
                }
                Ok(())
            }
            ToWorker::Cancel { seq } => self.on_cancel(seq),
            ToWorker::Grant { seq, frames } => {
                self.embedder.grant(seq, frames);
                Ok(())
            }
            ToWorker::Pause { seq } => {
                self.embedder.pause(seq, true);
                Ok(())
            }
            ToWorker::Resume { seq } => {
                self.embedder.pause(seq, false);
                Ok(())
            }
            ToWorker::Bench { seq, prefill, .. } => self.on_bench(seq, prefill),
            ToWorker::Tokenize { seq, mut text, .. } => {
                text.zeroize();
                self.unsupported(seq)
            }
            ToWorker::Render { seq, mut input } => {
                input.zeroize();
                self.unsupported(seq)
            }
            ToWorker::Detokenize { seq, .. } => self.unsupported(seq),
            ToWorker::Load(_) | ToWorker::Inspect => {
                let refusal = Refusal::new(Failure::BadInput, "a model is already loaded");
                self.out.refuse(None, refusal)
            }
            // The inbox has taken note of these before their turn; Shutdown never gets here.
            ToWorker::Threads { .. } | ToWorker::Shutdown => Ok(()),
        }
    }

    fn unsupported(&mut self, seq: u64) -> io::Result<()> {
        let detail = "this model makes vectors of texts, and nothing else";
        let refusal = Refusal::new(Failure::Unsupported, detail);
        self.out.refuse(Some(seq), refusal)
    }

    fn on_prepare(&mut self, mut job: Prepare) -> io::Result<()> {
        let seq = job.seq;
        let prepared = self.prepare(&job);
        job.input.zeroize();
        match prepared {
            Ok(request) => {
                let n_in = request.n_in();
                self.prepared.insert(seq, request);
                self.out.send(&FromWorker::Prepared { seq, n_in })
            }
            Err(refusal) => self.out.refuse(Some(seq), refusal),
        }
    }

    fn prepare(&self, job: &Prepare) -> Result<Request, Refusal> {
        if self.embedder.holds(job.seq) || self.prepared.contains_key(&job.seq) {
            return Err(Refusal::new(Failure::BadInput, "the sequence id is in use"));
        }
        if self.prepared.len() >= MAX_WAITING {
            return Err(Refusal::new(
                Failure::OutOfMemory,
                "too many sequences wait",
            ));
        }
        self.embedder.prepare(job)
    }

    /// An unknown request has ended already.
    fn on_cancel(&mut self, seq: u64) -> io::Result<()> {
        let finished = match self.prepared.remove(&seq) {
            Some(request) => Some(request.finished(Finish::Cancelled)),
            None => self.embedder.cancel(seq),
        };
        match finished {
            Some(finished) => self.out.send(&FromWorker::Finished(finished)),
            None => Ok(()),
        }
    }

    /// A row costs nothing beyond its text's tokens, so both rates are the one of reading.
    fn on_bench(&mut self, seq: u64, tokens: u32) -> io::Result<()> {
        if !self.embedder.is_idle() {
            let refusal = Refusal::new(Failure::Unsupported, "a request is running");
            return self.out.refuse(Some(seq), refusal);
        }
        if let Some((_, threads)) = self.inbox.threads() {
            self.embedder.set_threads(threads);
        }
        match self.embedder.bench(tokens) {
            Ok(rate) => self.out.send(&FromWorker::Benched {
                seq,
                prefill: rate,
                decode: rate,
            }),
            Err(error) => self.out.refuse(Some(seq), error.into()),
        }
    }
}
