//! What is simulated: how many nodes of which conduct, which jobs, which faults.
//!
//! Invariant: in every circle of five the first node is honest, holds the commons' model and never dies, and every node that
//! asks for `mine` holds its own model: so no job lacks a capable node in its scope, and none may be lost.
//! Absent by design: figures. What came of it is in `rules`.

use crate::draws::Draws;
use crate::terms::{ClientId, Placement, Want};
use substrate_record::{JobKind, RecordId, Scope, WallTier};

/// Nodes per circle.
pub(crate) const CIRCLE: usize = 5;

/// A simulation to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Drives everything.
    pub seed: u64,
    /// Nodes; a multiple of 5 keeps circles whole.
    pub nodes: usize,
    /// Jobs submitted, over all nodes.
    pub jobs: u32,
    /// Only `mine` jobs; else a third of each scope.
    pub only_mine: bool,
    /// Milliseconds over which jobs are submitted.
    pub span_ms: u64,
    /// Nodes die and come back, silently or with their connections closed.
    pub deaths: bool,
    /// Some nodes lie about speed, refuse after the offer, vanish mid-answer, stall.
    pub liars: bool,
    /// Gossip messages lost, and streams broken, per thousand.
    pub loss_permille: u64,
    /// Reports repeated and manifests replayed, per thousand.
    pub repeat_permille: u64,
    /// Clients that go away within seconds, per thousand.
    pub cancel_permille: u64,
    /// Workers that crash, per thousand runs.
    pub crash_permille: u64,
    /// The network is cut in two at the first moment and whole again at the second.
    pub partition: Option<(u64, u64)>,
    /// What is broken on purpose, so that the rules can be seen to bite.
    pub flaw: Option<Flaw>,
}

/// A deliberate fault in the daemon around every node, which the rules must catch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Jobs reach the node with a wider scope than their client chose.
    ScopeWidened,
    /// The node hears nothing of silence, broken streams and failed dials.
    FailoverDeaf,
    /// A replayed manifest reaches the node under a fresh id.
    ReplayUnseen,
    /// A late `Finished` of a closed attempt is countersigned too.
    LateSettled,
    /// Capabilities are not published any more once the partition heals.
    GossipMute,
    /// The worker starts although the requester's stream has closed.
    StartUnasked,
}

/// How a machine treats others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conduct {
    Honest,
    /// Claims twenty times its speed.
    Boaster,
    /// Takes no offer, whatever it claims.
    Refuser,
    /// Stops sending anything in the middle of an answer.
    Vanisher,
    /// Heartbeats for ever and gets nowhere.
    Staller,
}

impl Plan {
    /// A hundred nodes with every fault at once.
    pub fn storm(seed: u64) -> Self {
        Self {
            seed,
            nodes: 100,
            jobs: 3_000,
            only_mine: false,
            span_ms: 600_000,
            deaths: true,
            liars: true,
            loss_permille: 10,
            repeat_permille: 20,
            cancel_permille: 40,
            crash_permille: 10,
            partition: Some((200_000, 300_000)),
            flaw: None,
        }
    }

    /// A hundred thousand `mine` jobs beside faster strangers and friends, with crashing workers.
    pub fn mine(seed: u64) -> Self {
        Self {
            // Some are asked of dead machines, some are cancelled: a hundred thousand are left.
            jobs: 106_000,
            only_mine: true,
            span_ms: 1_500_000,
            partition: None,
            ..Self::storm(seed)
        }
    }

    pub(crate) fn conduct(&self, index: usize) -> Conduct {
        if !self.liars || index % CIRCLE != 3 {
            return Conduct::Honest;
        }
        match (index / CIRCLE) % 4 {
            0 => Conduct::Boaster,
            1 => Conduct::Refuser,
            2 => Conduct::Vanisher,
            _ => Conduct::Staller,
        }
    }

    pub(crate) fn dies(&self, index: usize) -> bool {
        self.deaths && index % CIRCLE == 1
    }

    /// The fifth of each circle has no model: it only asks.
    pub(crate) fn has_model(&self, index: usize) -> bool {
        index % CIRCLE != 4
    }

    /// Which half of a cut network a node is in.
    pub(crate) fn side(&self, index: usize) -> bool {
        index / CIRCLE < self.nodes / CIRCLE / 2
    }

    /// The commons' model.
    pub(crate) fn commons_entry() -> RecordId {
        RecordId::from_bytes([0xc0; 32])
    }

    /// A node's own model, signed by its own device.
    pub(crate) fn own_entry(index: usize) -> RecordId {
        let mut bytes = [0xd0; 32];
        bytes[..8].copy_from_slice(&(index as u64).to_be_bytes());
        RecordId::from_bytes(bytes)
    }

    /// One job: who asks, and what.
    pub(crate) fn draw_job(&self, draws: &mut Draws) -> (usize, Want) {
        let asker = draws.below(self.nodes as u64) as usize;
        let scope = match draws.below(3) {
            _ if self.only_mine => Scope::Mine,
            0 => Scope::Mine,
            1 => Scope::Circle,
            _ => Scope::Commons,
        };
        // Who has no model cannot ask itself.
        let asker = if scope == Scope::Mine && !self.has_model(asker) {
            asker - 1
        } else {
            asker
        };
        let own = scope == Scope::Mine && draws.one_in(2);
        let elsewhere = scope > Scope::Mine && draws.one_in(2);
        let want = Want {
            entries: vec![if own {
                Self::own_entry(asker)
            } else {
                Self::commons_entry()
            }],
            scope,
            placement: if elsewhere {
                Placement::Elsewhere
            } else {
                Placement::Any
            },
            wall: WallTier::Process,
            isolated: false,
            kind: JobKind::Generate,
            n_in_estimate: 64,
            max_tokens: 16 + draws.below(112) as u32,
            deadline_ms: 3_600_000,
            client: ClientId(draws.below(3)),
            patient: false,
        };
        (asker, want)
    }
}
