//! Many clients on one node: everyone is served, everyone hears where it stands, nothing grows without bound.

use std::collections::{BTreeMap, VecDeque};

use substrate_node::limits::OWN_LIST;
use substrate_node::{
    Action, AttemptId, ClientId, Config, Event, JobFailure, Lending, LendingTerms, Node, OwnModel,
    Terms, Timestamp, Want,
};
use substrate_record::{Finish, JobId, JobKind, NodeId, RecordId, Scope, SessionNonce, WallTier};

use crate::harness::{Table, entry, id, want};

/// A node with its worker, played in virtual time: every run takes as many ms as its answer has tokens.
struct Shop {
    node: Node,
    now: u64,
    wake: Option<u64>,
    running: BTreeMap<(u64, AttemptId), u32>,
    lengths: BTreeMap<JobId, u32>,
    manifests: u64,
    /// (job, time) in the order of their starts; times of the last news.
    started: Vec<(JobId, u64)>,
    finished: Vec<JobId>,
    refused: Vec<JobFailure>,
    told: BTreeMap<JobId, u64>,
    worst_gap: u64,
}

impl Shop {
    fn new(slots: u32) -> Self {
        Self::keeping(slots, OWN_LIST)
    }

    /// With a list of its own length.
    fn keeping(slots: u32, own_list: usize) -> Self {
        let config = Config {
            own: id('O'),
            session: SessionNonce::from_bytes([1; 16]),
            slots,
            walls: vec![WallTier::Process],
            isolated: false,
            own_list,
        };
        let mut shop = Self {
            node: Node::new(config, 3),
            now: 0,
            wake: None,
            running: BTreeMap::new(),
            lengths: BTreeMap::new(),
            manifests: 0,
            started: Vec::new(),
            finished: Vec::new(),
            refused: Vec::new(),
            told: BTreeMap::new(),
            worst_gap: 0,
        };
        let m = entry("m");
        shop.tell(Event::RegistryChanged(
            [(m, substrate_ledger::registry::Standing::Commons)].into(),
        ));
        shop.tell(Event::OwnModelsChanged(vec![OwnModel {
            entry: m,
            engine_class: "test".into(),
            loaded: true,
            prefill: 1_000_000,
            decode: 1_000_000,
            load_ms: 0,
        }]));
        shop
    }

    fn submit(&mut self, n: u64, client: u64, tokens: u32) {
        self.submit_that(n, client, tokens, false);
    }

    fn submit_that(&mut self, n: u64, client: u64, tokens: u32, patient: bool) {
        let job = JobId::from_bytes(u128::from(n).to_be_bytes());
        self.lengths.insert(job, tokens);
        self.told.insert(job, self.now);
        let want = Want {
            client: ClientId(client),
            max_tokens: tokens,
            deadline_ms: 10_000_000,
            patient,
            ..want("mine", &[])
        };
        self.tell(Event::JobSubmitted { job, want });
    }

    fn tell(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.node.handle(Timestamp(self.now), event) {
                self.perform(action, &mut events);
            }
        }
    }

    fn perform(&mut self, action: Action, events: &mut VecDeque<Event>) {
        match action {
            Action::Offer {
                attempt,
                entry,
                scope,
                resume_tokens,
                ..
            } => {
                events.push_back(self.offer(attempt, entry, scope, resume_tokens));
            }
            Action::ReplyQueued { attempt, news } => events.push_back(Event::PeerQueued {
                attempt,
                position: news.position,
                expected_wait_ms: news.expected_wait_ms,
            }),
            Action::ReplyReady { attempt } => {
                events.push_back(Event::PeerReady { attempt });
                events.push_back(Event::InputArrived { attempt });
            }
            Action::Run { attempt, .. } => {
                let tokens = self.lengths[&attempt.job];
                self.running
                    .insert((self.now + u64::from(tokens), attempt), tokens);
                self.started.push((attempt.job, self.now));
                events.push_back(Event::WorkStarted { attempt, n_in: 1 });
                events.push_back(Event::PeerStarted { attempt, n_in: 1 });
            }
            Action::Settle { attempt, .. } => events.push_back(Event::ReceiptStored { attempt }),
            Action::FinishJob { job } => self.finished.push(job),
            Action::FailJob { why, .. } => self.refused.push(why),
            Action::TellQueued { job, .. }
            | Action::TellStarted {
                attempt: AttemptId { job, .. },
                ..
            } => {
                let last = self.told.insert(job, self.now).expect("a known job");
                self.worst_gap = self.worst_gap.max(self.now - last);
            }
            Action::WakeAt(at) => self.wake = Some(at.0),
            _ => {}
        }
    }

    fn offer(
        &mut self,
        attempt: AttemptId,
        entry: RecordId,
        scope: Scope,
        resume_tokens: u32,
    ) -> Event {
        self.manifests += 1;
        let mut manifest = [0; 32];
        manifest[..8].copy_from_slice(&self.manifests.to_be_bytes());
        let terms = Terms {
            scope,
            entry,
            wall: WallTier::Process,
            isolated: false,
            kind: JobKind::Generate,
            max_tokens: self.lengths[&attempt.job],
            resume_tokens,
            deadline_ms: 10_000_000,
        };
        let (manifest, session) = (RecordId::from_bytes(manifest), self.node.session());
        Event::OfferArrived {
            attempt,
            manifest,
            session,
            terms,
        }
    }

    /// Runs until nothing is left to do.
    fn work(&mut self) {
        while let Some(((at, attempt), tokens)) =
            self.running.first_key_value().map(|(key, n)| (*key, *n))
        {
            match self.wake.filter(|wake| *wake < at) {
                Some(wake) => {
                    self.now = wake;
                    self.wake = None;
                    self.tell(Event::Tick);
                }
                None => {
                    self.now = at;
                    self.running.remove(&(at, attempt));
                    self.tell(Event::WorkFinished { attempt, tokens });
                    self.tell(Event::PeerFinished {
                        attempt,
                        tokens,
                        finish: Finish::Length,
                    });
                }
            }
        }
    }
}

#[test]
fn five_hundred_clients_with_two_jobs_each_are_all_answered_and_told_every_two_seconds() {
    let mut shop = Shop::new(4);
    for n in 0..1_000 {
        shop.submit(n, n % 500, 100);
    }
    shop.work();
    assert_eq!((shop.finished.len(), shop.refused.len()), (1_000, 0));
    assert!(
        shop.worst_gap <= 2_000,
        "{} ms without news",
        shop.worst_gap
    );
    assert!(shop.node.jobs().is_empty() && shop.node.work().is_empty());
}

#[test]
fn a_list_of_a_thousand_jobs_does_not_starve_the_client_who_comes_last() {
    let mut shop = Shop::new(1);
    for n in 0..1_000 {
        shop.submit(n, 1, 100);
    }
    shop.submit(1_000, 2, 100);
    shop.work();
    let late = JobId::from_bytes(1_000_u128.to_be_bytes());
    let place = shop
        .started
        .iter()
        .position(|(job, _)| *job == late)
        .expect("it was started");
    assert!(
        place <= 2,
        "the second client's only job was number {place}"
    );
    assert_eq!(shop.finished.len(), 1_001);
}

#[test]
fn whoever_waits_for_words_goes_before_a_thousand_jobs_that_may_wait() {
    let mut shop = Shop::new(1);
    for n in 0..1_000 {
        shop.submit_that(n, 1, 10, true);
    }
    // The same client's own, and another's that was served far more.
    shop.submit(1_000, 1, 100);
    shop.submit(1_001, 2, 100);
    shop.submit(1_002, 2, 100);
    shop.work();
    let first: Vec<_> = shop.started.iter().take(4).map(|(job, _)| *job).collect();
    let expected = [0, 1_000, 1_001, 1_002_u128];
    assert_eq!(first, expected.map(|n| JobId::from_bytes(n.to_be_bytes())));
    assert_eq!(shop.finished.len(), 1_003);
}

#[test]
fn an_owner_who_wants_a_shorter_list_gets_it() {
    let mut shop = Shop::keeping(1, 3);
    for n in 0..4 {
        shop.submit(n, n, 10);
    }
    assert_eq!(
        shop.refused,
        [JobFailure::ListFull {
            waiting: 3,
            retry_after_ms: 2_000
        }]
    );
    shop.work();
    assert_eq!(shop.finished.len(), 3);
}

#[test]
fn one_job_more_than_the_list_holds_is_refused_with_a_time_to_come_back() {
    let mut shop = Shop::new(1);
    for n in 0..1_025 {
        shop.submit(n, n, 10);
    }
    assert_eq!(
        shop.refused,
        [JobFailure::ListFull {
            waiting: 1_024,
            retry_after_ms: 2_000
        }]
    );
    shop.work();
    assert_eq!(shop.finished.len(), 1_024);
}

#[test]
fn clients_with_long_answers_get_no_more_tokens_than_those_with_short_ones() {
    let mut shop = Shop::new(1);
    for n in 0..200 {
        let (client, tokens) = if n % 2 == 0 { (1, 400) } else { (2, 40) };
        shop.submit(n, client, tokens);
    }
    shop.work();
    // While both wait, ten short answers are served for each long one.
    let short = shop
        .started
        .iter()
        .take(66)
        .filter(|(job, _)| shop.lengths[job] == 40)
        .count();
    assert!(
        (55..=61).contains(&short),
        "{short} of the first 66 were short"
    );
}

#[test]
fn a_million_manifests_leave_a_bounded_memory_and_ask_for_one_new_session() {
    let mut table = Table::new(1);
    table.play("own m");
    let lent = LendingTerms {
        widest: Scope::Commons,
        slots: 1,
        only_nodes: Vec::new(),
        refused_nodes: Vec::new(),
        refused_entries: Vec::new(),
        refused_kinds: Vec::new(),
    };
    table.handle(Event::LendingChanged(Lending::On(lent)));
    let (mut renewals, mut from) = (0, [0; 32]);
    for n in 0..(1_u64 << 20) + 10 {
        from[..8].copy_from_slice(&n.to_be_bytes());
        let attempt = AttemptId {
            job: JobId::from_bytes([1; 16]),
            number: 1,
            peer: NodeId::from_bytes(from),
        };
        let terms = Terms {
            scope: Scope::Mine,
            entry: entry("m"),
            wall: WallTier::Process,
            isolated: false,
            kind: JobKind::Generate,
            max_tokens: 1,
            resume_tokens: 0,
            deadline_ms: 1,
        };
        let session = table.node.session();
        let event = Event::OfferArrived {
            attempt,
            manifest: RecordId::from_bytes(from),
            session,
            terms,
        };
        let actions = table.node.handle(Timestamp(0), event);
        renewals += actions
            .iter()
            .filter(|action| matches!(action, Action::RenewSession))
            .count();
    }
    assert_eq!(renewals, 1);
}
