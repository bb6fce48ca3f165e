//! What must hold in every run, judged by the simulator's own truth.
//!
//! Invariant: nothing here asks a node what it believes; scopes, circles and lengths of answers are the plan's.
//! Absent by design: tolerance. One violation ends the run.

use std::collections::BTreeMap;
use std::fmt;

use substrate_record::{JobId, RecordId, Scope};

use crate::terms::{JobFailure, Want};

use super::plan::CIRCLE;

/// Longest time a waiting client may go without news: the promised 2 s, and what a drifting clock and a tick add.
pub(crate) const NEWS_GAP_MS: u64 = 2_050;

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// Jobs submitted by nodes that lived to see the end of them.
    pub jobs: u64,
    /// Of these, answered in full. All of them, or a rule is broken.
    pub finished: u64,
    /// Jobs whose asker died or went away, excused.
    pub excused: u64,
    /// Offers made.
    pub offers: u64,
    /// Offers and inputs that reached a node, each checked against the scope.
    pub shown: u64,
    /// Of these, outside the scope. Zero, or a rule is broken.
    pub leaks: u64,
    /// Answers that went on at another node.
    pub moved: u64,
    /// Streams taken up again at the same node.
    pub resumed: u64,
    /// Offers refused.
    pub refused: u64,
    /// Longest time a waiting client went without news, in ms.
    pub news_gap_ms: u64,
    /// Median and 99th percentile of submission to start, in ms.
    pub wait_ms: (u64, u64),
    /// From the end of the partition until every node knew every other's word since, in ms.
    pub converged_ms: Option<u64>,
    /// Capability messages carried.
    pub gossip: u64,
    /// Events handled by all nodes.
    pub events: u64,
    /// Actions ordered by all nodes.
    pub actions: u64,
    /// A digest of every action in order; equal seeds give equal digests.
    pub trace: u64,
}

/// A rule that did not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A job was offered or shown to a node outside its scope.
    ScopeHeld,
    /// A manifest was accepted twice, or a job's receipt countersigned twice.
    RunOnce,
    /// A new attempt was offered before the last was closed.
    OneAttempt,
    /// Work began for a requester whose stream had closed.
    NotUnasked,
    /// A job did not end well although a capable node in scope lived.
    NoneLost,
    /// The client got more or fewer tokens than the answer has.
    WholeAnswer,
    /// A waiting client heard nothing for too long.
    NewsInTime,
    /// Views had not converged two gossip intervals after the partition healed.
    Converged,
    /// A node asked to be woken without end.
    Quiet,
}

/// Where and when a rule broke. The seed replays it exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Seed of the plan.
    pub seed: u64,
    /// Virtual time, ms.
    pub at_ms: u64,
    /// Which rule.
    pub rule: Rule,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {}: {:?} broken at {} ms: {}",
            self.seed, self.rule, self.at_ms, self.what
        )
    }
}

impl std::error::Error for Broken {}

/// What the simulator itself knows of a job.
#[derive(Debug)]
pub(crate) struct Truth {
    pub asker: usize,
    pub want: Want,
    submitted: u64,
    /// Number of the attempt that is offered and not closed.
    open: Option<u32>,
    /// Tokens of closed and settled attempts.
    received: u32,
    settled: u32,
    /// Last time the client heard anything, while it waits.
    waits_since: Option<u64>,
    started: bool,
    ended: bool,
    orphaned: bool,
    cancelled: bool,
}

pub(crate) struct Rules {
    seed: u64,
    pub now: u64,
    pub figures: Figures,
    pub broken: Option<Broken>,
    jobs: BTreeMap<JobId, Truth>,
    accepted: BTreeMap<RecordId, u32>,
    waits: Vec<u64>,
    /// First time after the heal at which (observer, author) was heard, and who must hear whom.
    heard: BTreeMap<(usize, usize), u64>,
    healed: Option<u64>,
}

impl Rules {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            now: 0,
            figures: Figures::default(),
            broken: None,
            jobs: BTreeMap::new(),
            accepted: BTreeMap::new(),
            waits: Vec::new(),
            heard: BTreeMap::new(),
            healed: None,
        }
    }

    fn require(&mut self, holds: bool, rule: Rule, what: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() {
            self.broken = Some(Broken {
                seed: self.seed,
                at_ms: self.now,
                rule,
                what: what(),
            });
        }
    }

    pub fn job(&self, job: &JobId) -> Option<&Truth> {
        self.jobs.get(job)
    }

    pub fn submitted(&mut self, job: JobId, asker: usize, want: Want) {
        let truth = Truth {
            asker,
            want,
            submitted: self.now,
            open: None,
            received: 0,
            settled: 0,
            waits_since: Some(self.now),
            started: false,
            ended: false,
            orphaned: false,
            cancelled: false,
        };
        self.jobs.insert(job, truth);
    }

    /// An offer, or an input, is on its way to, or has arrived at, a node.
    pub fn shown(&mut self, job: &JobId, signed: Scope, to: usize) {
        let Some(truth) = self.jobs.get(job) else {
            return;
        };
        let (asker, scope) = (truth.asker, truth.want.scope);
        let inside = match scope {
            Scope::Mine => asker == to,
            Scope::Circle => asker / CIRCLE == to / CIRCLE,
            Scope::Commons => true,
        };
        self.figures.shown += 1;
        self.figures.leaks += u64::from(!inside);
        self.require(inside && signed <= scope, Rule::ScopeHeld, || {
            format!(
                "job {job} of node {asker} in scope {scope:?} reached node {to}, signed {signed:?}"
            )
        });
    }

    pub fn offered(&mut self, job: &JobId, number: u32) {
        self.figures.offers += 1;
        let Some(truth) = self.jobs.get_mut(job) else {
            return;
        };
        let before = truth.open.replace(number);
        self.require(before.is_none(), Rule::OneAttempt, || {
            format!("job {job}: {number} offered beside {before:?}")
        });
    }

    pub fn closed(&mut self, job: &JobId, number: u32, tokens: u32) {
        let Some(truth) = self.jobs.get_mut(job) else {
            return;
        };
        truth.received += tokens;
        let open = truth.open.take();
        self.require(open == Some(number), Rule::OneAttempt, || {
            format!("job {job}: closed {number}, open {open:?}")
        });
    }

    pub fn accepted(&mut self, manifest: RecordId, stream_stands: bool) {
        let times = self.accepted.entry(manifest).or_default();
        *times += 1;
        let times = *times;
        self.require(times == 1, Rule::RunOnce, || {
            format!("manifest {manifest} accepted {times} times")
        });
        self.require(stream_stands, Rule::NotUnasked, || {
            format!("manifest {manifest} accepted on a closed stream")
        });
    }

    /// A receipt was countersigned `ok`.
    pub fn settled(&mut self, job: &JobId, manifest: RecordId, tokens: u32) {
        let accepted = self.accepted.get(&manifest).copied().unwrap_or(0);
        let Some(truth) = self.jobs.get_mut(job) else {
            return;
        };
        truth.settled += 1;
        truth.received += tokens;
        truth.open = None;
        let (settled, received, length) = (truth.settled, truth.received, truth.want.max_tokens);
        self.require(settled == 1 && accepted == 1, Rule::RunOnce, || {
            format!("job {job} settled {settled} times, its manifest accepted {accepted} times")
        });
        self.require(received == length, Rule::WholeAnswer, || {
            format!("job {job}: {received} tokens received of {length}")
        });
    }

    /// The client heard something while it waits.
    pub fn told(&mut self, job: &JobId) {
        let Some(truth) = self.jobs.get_mut(job).filter(|truth| !truth.ended) else {
            return;
        };
        let now = self.now;
        let gap = truth
            .waits_since
            .replace(now)
            .map_or(0, |since| now.saturating_sub(since));
        self.figures.news_gap_ms = self.figures.news_gap_ms.max(gap);
        self.require(gap <= NEWS_GAP_MS, Rule::NewsInTime, || {
            format!("job {job}: no news for {gap} ms")
        });
    }

    pub fn started(&mut self, job: &JobId) {
        self.told(job);
        let Some(truth) = self.jobs.get_mut(job) else {
            return;
        };
        truth.waits_since = None;
        if !std::mem::replace(&mut truth.started, true) {
            self.waits.push(self.now - truth.submitted);
        }
    }

    pub fn finished(&mut self, job: &JobId) {
        let Some(truth) = self.jobs.get_mut(job) else {
            return;
        };
        let twice = std::mem::replace(&mut truth.ended, true);
        let (received, length) = (truth.received, truth.want.max_tokens);
        truth.cancelled = false;
        self.figures.finished += u64::from(!truth.orphaned);
        self.require(!twice, Rule::RunOnce, || format!("job {job} ended twice"));
        self.require(received == length, Rule::WholeAnswer, || {
            format!("job {job}: {received} tokens received of {length}")
        });
    }

    /// The client goes away. A job that was answered before does not notice.
    pub fn cancelled(&mut self, job: &JobId) {
        if let Some(truth) = self.jobs.get_mut(job).filter(|truth| !truth.ended) {
            truth.cancelled = true;
        }
    }

    pub fn failed(&mut self, job: &JobId, why: &JobFailure) {
        if let (JobFailure::Cancelled, Some(truth)) =
            (why, self.jobs.get_mut(job).filter(|truth| truth.cancelled))
        {
            truth.ended = true;
            return;
        }
        self.require(false, Rule::NoneLost, || format!("job {job} failed: {why}"));
    }

    pub fn asker_died(&mut self, node: usize) {
        let lost = self
            .jobs
            .values_mut()
            .filter(|truth| truth.asker == node && !truth.ended);
        for truth in lost {
            truth.ended = true;
            truth.orphaned = true;
        }
    }

    pub fn healed(&mut self) {
        self.healed = Some(self.now);
        self.heard.clear();
    }

    /// A node took in a word another published after the heal.
    pub fn heard(&mut self, observer: usize, author: usize, published: u64) {
        if self.healed.is_some_and(|healed| published >= healed) {
            let now = self.now;
            self.heard.entry((observer, author)).or_insert(now);
        }
    }

    /// True once every job has come to its end.
    pub fn all_ended(&self) -> bool {
        self.jobs.values().all(|truth| truth.ended)
    }

    /// Judges what can only be judged at the end.
    pub fn conclude(&mut self) {
        let open = self
            .jobs
            .iter()
            .find(|(_, truth)| !truth.ended)
            .map(|(job, truth)| (*job, truth.asker));
        self.require(open.is_none(), Rule::NoneLost, || {
            format!("job and asker {open:?} had no end")
        });
        let excused = |truth: &&Truth| truth.orphaned || truth.cancelled;
        self.figures.excused = self.jobs.values().filter(excused).count() as u64;
        self.figures.jobs = self.jobs.len() as u64 - self.figures.excused;
        self.waits.sort_unstable();
        let at = |share: usize| {
            self.waits
                .get(self.waits.len() * share / 100)
                .copied()
                .unwrap_or(0)
        };
        self.figures.wait_ms = (at(50), at(99));
    }

    /// Two gossip intervals after the heal: has every observer heard every author since?
    pub fn judge_convergence(&mut self, observers: &[usize], authors: &[usize]) {
        let healed = self.healed.unwrap_or(0);
        let mut worst = 0;
        for (observer, author) in observers
            .iter()
            .flat_map(|o| authors.iter().map(move |a| (*o, *a)))
        {
            if observer == author {
                continue;
            }
            let after = self.heard.get(&(observer, author)).map(|at| at - healed);
            worst = worst.max(after.unwrap_or(u64::MAX));
            self.require(after.is_some(), Rule::Converged, || {
                format!(
                    "node {observer} has heard nothing of node {author} since the partition healed"
                )
            });
        }
        self.figures.converged_ms = Some(worst);
    }
}
