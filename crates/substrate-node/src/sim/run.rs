//! The loop: virtual time, what is due, and what every machine does when its node orders something.
//!
//! Invariant: everything happens in the order of (time, order of scheduling), so a seed replays exactly.
//! Absent by design: real time.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::rc::Rc;

use substrate_record::{Capability, JobId, NodeId, Verified};

use crate::draws::Draws;
use crate::event::Event;
use crate::limits::GOSSIP_INTERVAL_MS;
use crate::terms::Want;

use super::machine::Machine;
use super::network::{Frame, Stream, StreamKey};
use super::plan::{Flaw, Plan};
use super::rules::{Broken, Figures, Rule, Rules};

/// Overlay neighbours each node dials; with those that dial it, twice as many on average.
const DEGREE: u64 = 4;

/// Events one virtual millisecond may take before a node is taken to spin.
const SPIN: u64 = 100_000;

/// Something that will happen.
#[expect(
    clippy::large_enum_variant,
    reason = "a simulation holds thousands at most"
)]
pub(crate) enum Due {
    Submit(u32),
    Wake {
        to: usize,
        life: u32,
    },
    Report {
        to: usize,
        life: u32,
        event: Event,
    },
    Frame {
        key: StreamKey,
        line: u32,
        to_provider: bool,
        frame: Frame,
    },
    Cancel {
        to: usize,
        job: JobId,
    },
    Beat(StreamKey),
    Replay(StreamKey),
    Gossip {
        to: usize,
        from: usize,
        word: Rc<Word>,
        direct: bool,
    },
    Begin {
        at: usize,
        life: u32,
        key: StreamKey,
    },
    Stride {
        at: usize,
        life: u32,
        key: StreamKey,
    },
    Kill(usize),
    Revive(usize),
    Cut,
    Heal,
    /// Two gossip intervals after the heal.
    Judge,
}

/// A published capability on its way.
pub(crate) struct Word {
    pub record: Verified<Capability>,
    pub author: usize,
    pub published: u64,
}

pub(crate) struct Sim<'p> {
    pub plan: &'p Plan,
    pub draws: Draws,
    pub now: u64,
    pub ids: Vec<NodeId>,
    pub machines: Vec<Machine>,
    pub streams: BTreeMap<StreamKey, Stream>,
    pub rules: Rules,
    pub cut: bool,
    pub index: BTreeMap<NodeId, usize>,
    pub neighbours: Vec<Vec<usize>>,
    agenda: BTreeMap<(u64, u64), Due>,
    scheduled: u64,
    pub manifests: u64,
    submitted: u32,
    pub healed: bool,
    pub trace: Trace,
}

/// Runs a plan to its end.
///
/// # Errors
/// The first rule that did not hold, with the seed that replays it.
pub fn run(plan: &Plan) -> Result<Figures, Broken> {
    let mut sim = Sim::new(plan);
    sim.prepare();
    let mut at_once = 0;
    while let Some(((at, _), due)) = sim.agenda.pop_first() {
        at_once = if at == sim.now { at_once + 1 } else { 0 };
        sim.now = at;
        sim.rules.now = at;
        if at_once > SPIN {
            return Err(Broken {
                seed: plan.seed,
                at_ms: at,
                rule: Rule::Quiet,
                what: "events without end".into(),
            });
        }
        sim.perform_due(due);
        if let Some(broken) = sim.rules.broken.take() {
            return Err(broken);
        }
        if sim.over() {
            break;
        }
    }
    sim.conclude()
}

impl<'p> Sim<'p> {
    fn new(plan: &'p Plan) -> Self {
        let mut draws = Draws::new(plan.seed);
        let machines: Vec<_> = (0..plan.nodes)
            // Clocks start anywhere in a month and run up to 200 ppm fast.
            .map(|index| Machine::new(plan, index, draws.below(2_592_000_000), draws.below(200)))
            .collect();
        let ids: Vec<_> = machines.iter().map(|machine| machine.id).collect();
        Self {
            plan,
            index: ids
                .iter()
                .enumerate()
                .map(|(index, id)| (*id, index))
                .collect(),
            neighbours: overlay(plan.nodes, &mut draws),
            draws,
            now: 0,
            ids,
            machines,
            streams: BTreeMap::new(),
            rules: Rules::new(plan.seed),
            cut: false,
            agenda: BTreeMap::new(),
            scheduled: 0,
            manifests: 0,
            submitted: 0,
            healed: false,
            trace: Trace(0xcbf2_9ce4_8422_2325),
        }
    }

    fn prepare(&mut self) {
        for index in 0..self.plan.nodes {
            self.start(index);
        }
        // Jobs begin once the first words have gone round.
        let span = self.plan.span_ms;
        for n in 0..self.plan.jobs {
            let at = 10_000 + self.draws.below(span);
            self.at(at, Due::Submit(n));
        }
        for index in (0..self.plan.nodes).filter(|index| self.plan.dies(*index)) {
            let at = 20_000 + self.draws.below(span);
            self.at(at, Due::Kill(index));
        }
        if let Some((cut, heal)) = self.plan.partition {
            self.at(cut, Due::Cut);
            self.at(heal, Due::Heal);
            self.at(heal + 2 * GOSSIP_INTERVAL_MS, Due::Judge);
        }
    }

    pub fn at(&mut self, at: u64, due: Due) {
        self.scheduled += 1;
        self.agenda.insert((at, self.scheduled), due);
    }

    pub fn after(&mut self, ms: u64, due: Due) {
        self.at(self.now + ms, due);
    }

    fn over(&self) -> bool {
        let judged = self.plan.partition.is_none() || self.rules.figures.converged_ms.is_some();
        judged && self.submitted == self.plan.jobs && self.rules.all_ended()
    }

    /// Every node that never died must have heard every other that offers a model, since the heal.
    fn judge_convergence(&mut self) {
        let plan = self.plan;
        let steady: Vec<_> = (0..plan.nodes).filter(|index| !plan.dies(*index)).collect();
        let speakers: Vec<_> = steady
            .iter()
            .copied()
            .filter(|index| plan.has_model(*index))
            .collect();
        self.rules.judge_convergence(&steady, &speakers);
    }

    fn conclude(mut self) -> Result<Figures, Broken> {
        self.rules.conclude();
        self.rules.figures.trace = self.trace.0;
        match self.rules.broken {
            Some(broken) => Err(broken),
            None => Ok(self.rules.figures),
        }
    }

    fn perform_due(&mut self, due: Due) {
        match due {
            Due::Submit(n) => self.on_submit(n),
            Due::Wake { to, life } => {
                if self.machines[to].life == life
                    && self.machines[to].wake.is_some_and(|at| at <= self.now)
                {
                    self.machines[to].wake = None;
                    self.tell(to, Event::Tick);
                }
            }
            Due::Report { to, life, event } => {
                if self.machines[to].life == life {
                    self.tell(to, event);
                }
            }
            Due::Frame {
                key,
                line,
                to_provider,
                frame,
            } => self.on_frame(key, line, to_provider, frame),
            Due::Cancel { to, job } => {
                self.rules.cancelled(&job);
                self.tell(to, Event::JobCancelled { job });
            }
            Due::Beat(key) => self.on_beat(key),
            Due::Replay(key) => self.on_replay(key),
            Due::Gossip {
                to,
                from,
                word,
                direct,
            } => self.on_gossip(to, from, word, direct),
            Due::Begin { at, life, key } if self.machines[at].life == life => {
                self.on_begin(at, key)
            }
            Due::Stride { at, life, key } if self.machines[at].life == life => {
                self.on_stride(at, key)
            }
            Due::Begin { .. } | Due::Stride { .. } => {}
            Due::Kill(index) => self.kill(index),
            Due::Revive(index) => self.start(index),
            Due::Cut => self.set_cut(true),
            Due::Heal => self.set_cut(false),
            Due::Judge => self.judge_convergence(),
        }
    }

    fn on_submit(&mut self, n: u32) {
        self.submitted += 1;
        let (asker, want) = self.plan.draw_job(&mut self.draws);
        if self.machines[asker].node.is_none() {
            return;
        }
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        let job = JobId::from_bytes(bytes);
        self.rules.submitted(job, asker, want.clone());
        let want = self.as_told(want);
        self.tell(asker, Event::JobSubmitted { job, want });
        if self.draws.below(1_000) < self.plan.cancel_permille {
            let patience = self.draws.below(6_000);
            self.after(patience, Due::Cancel { to: asker, job });
        }
    }

    /// The want as the node gets it: the client's, unless the daemon is broken on purpose.
    fn as_told(&self, want: Want) -> Want {
        match self.plan.flaw {
            Some(Flaw::ScopeWidened) => Want {
                scope: substrate_record::Scope::Commons,
                entries: vec![Plan::commons_entry()],
                ..want
            },
            _ => want,
        }
    }

    /// Reports an event and performs what the node orders.
    pub fn tell(&mut self, to: usize, event: Event) {
        if self.plan.flaw == Some(Flaw::FailoverDeaf)
            && matches!(
                event,
                Event::Tick
                    | Event::StreamLost { .. }
                    | Event::DialFailed { .. }
                    | Event::PeerDown { .. }
            )
        {
            return;
        }
        let now = self.machines[to].clock(self.now);
        let Some(node) = self.machines[to].node.as_mut() else {
            return;
        };
        let actions = node.handle(now, event);
        self.rules.figures.events += 1;
        self.rules.figures.actions += actions.len() as u64;
        for action in actions {
            self.trace.note(self.now, to, &action);
            self.perform(to, action);
        }
    }
}

/// A ring, so that it is connected, and random chords.
fn overlay(nodes: usize, draws: &mut Draws) -> Vec<Vec<usize>> {
    let mut edges = std::collections::BTreeSet::new();
    for a in 0..nodes {
        edges.insert((a, (a + 1) % nodes));
        for _ in 1..DEGREE {
            edges.insert((a, draws.below(nodes as u64) as usize));
        }
    }
    let mut neighbours = vec![Vec::new(); nodes];
    for (a, b) in edges {
        if a != b && !neighbours[a].contains(&b) {
            neighbours[a].push(b);
            neighbours[b].push(a);
        }
    }
    neighbours
}

/// FNV-1a over the text of every action, when and by whom: what a node did tells what it was told.
pub(crate) struct Trace(u64);

impl Trace {
    pub fn note(&mut self, now: u64, to: usize, what: &impl std::fmt::Debug) {
        // Writing to a number cannot fail.
        let _ = write!(self, "{now} {to} {what:?}");
    }
}

impl Write for Trace {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}
