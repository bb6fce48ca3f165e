//! The one place that knows the node's API: a small language for events, and one line of text per action.
//!
//! Nodes are single capital letters; `O` is the node under test. Entries: `m` is approved for the commons, `d` is signed by
//! `O`'s own device, `c` by the device of `C`, who is in `O`'s circle with `D`. Jobs are `j1`, attempts `j1#2`.
//! `+500` lets time pass, waking the node when it asked to be woken; `S j1#1 beats for 9000` does so with heartbeats. `WakeAt` is not shown: it has its own tests.

use std::collections::BTreeMap;
use std::fmt::Write;

use expect_test::Expect;
use substrate_ledger::registry::Standing;
use substrate_node::limits::OWN_LIST;
use substrate_node::{
    Action, AttemptId, Audience, ClientId, Config, Event, Lending, LendingTerms, Node, OwnModel,
    Placement, QueueNews, Refusal, Terms, Timestamp, Want, WorkFailure,
};
use substrate_record::{
    Capability, ContentHash, Finish, Hardware, JobId, JobKind, ModelOffer, NetworkId, NodeId,
    Place, Record, RecordId, Scope, SessionNonce, SigningKey, Stream, Verified, WallTier,
};

/// Runs a script against a fresh node with two slots and compares what it did.
#[track_caller]
pub fn check(script: &str, expected: Expect) {
    let mut table = Table::new(2);
    table.play(script);
    expected.assert_eq(&table.text);
}

/// A node and the table being written.
pub struct Table {
    pub node: Node,
    pub text: String,
    pub now: u64,
    wake: Option<Timestamp>,
    models: Vec<OwnModel>,
    seqs: BTreeMap<char, u64>,
    manifests: u8,
    names: BTreeMap<NodeId, char>,
}

impl Table {
    pub fn new(slots: u32) -> Self {
        let config = Config {
            own: id('O'),
            session: SessionNonce::from_bytes([1; 16]),
            slots,
            walls: vec![WallTier::Process],
            isolated: true,
            own_list: OWN_LIST,
        };
        let mut table = Self {
            node: Node::new(config, 7),
            text: String::new(),
            now: 0,
            wake: None,
            models: Vec::new(),
            seqs: BTreeMap::new(),
            manifests: 0,
            names: ('A'..='Z').map(|letter| (id(letter), letter)).collect(),
        };
        let registry = [
            (entry("m"), Standing::Commons),
            (entry("d"), Standing::Device(id('O'))),
            (entry("c"), Standing::Device(id('C'))),
        ];
        table.handle(Event::RegistryChanged(BTreeMap::from(registry)));
        table.handle(Event::CircleChanged(vec![id('C'), id('D')]));
        table
    }

    pub fn play(&mut self, script: &str) {
        for line in script
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
        {
            let _ = writeln!(self.text, "{line}");
            if let Some(ms) = line.strip_prefix('+') {
                self.pass(ms.parse().expect("milliseconds"));
            } else if let Some((beat, ms)) = line.split_once(" for ") {
                self.pass_beating(
                    &beat.split(" and ").collect::<Vec<_>>(),
                    ms.parse().expect("milliseconds"),
                );
            } else {
                let event = self.event(line);
                self.handle(event);
            }
        }
    }

    /// Lets time pass; every `WakeAt` on the way is honoured.
    pub fn pass(&mut self, ms: u64) {
        let end = self.now + ms;
        while let Some(Timestamp(at)) = self.wake.filter(|at| at.0 <= end) {
            self.now = at;
            self.wake = None;
            self.handle(Event::Tick);
        }
        self.now = end;
    }

    /// Lets time pass with a heartbeat every 500 ms.
    fn pass_beating(&mut self, beats: &[&str], ms: u64) {
        for _ in 0..ms / 500 {
            self.pass(500);
            for beat in beats {
                let event = self.event(beat);
                self.handle(event);
            }
        }
        self.pass(ms % 500);
    }

    pub fn handle(&mut self, event: Event) {
        let ticking = matches!(event, Event::Tick);
        let now = self.now;
        for action in self.node.handle(Timestamp(now), event) {
            if let Action::WakeAt(at) = action {
                assert!(at.0 > now, "woken in the past");
                self.wake = Some(at);
                continue;
            }
            let at = if ticking {
                format!("{now}: ")
            } else {
                String::new()
            };
            let line = self.show(&action);
            let _ = writeln!(self.text, "    {at}{line}");
        }
    }

    // ---- from text to events ---------------------------------------------------------------

    fn event(&mut self, line: &str) -> Event {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            ["own", what @ ..] => self.own(what),
            ["walls", names @ ..] => {
                let wall = |name: &&str| match *name {
                    "process" => WallTier::Process,
                    "microvm" => WallTier::Microvm,
                    other => panic!("cannot read wall {other:?}"),
                };
                Event::WallsChanged(names.iter().map(wall).collect())
            }
            ["lend", "off"] => Event::LendingChanged(Lending::Off),
            ["lend", scope, slots, rest @ ..] => Event::LendingChanged(lending(scope, slots, rest)),
            ["circle", who @ ..] => {
                Event::CircleChanged(who.iter().map(|name| node(name)).collect())
            }
            ["approve", what @ ..] => Event::RegistryChanged(
                what.iter()
                    .map(|name| (entry(name), Standing::Commons))
                    .collect(),
            ),
            ["peer", who] => Event::PeerUp {
                node: node(who),
                rtt_ms: 10,
                session: SessionNonce::from_bytes([2; 16]),
            },
            ["restarted", who] => Event::PeerUp {
                node: node(who),
                rtt_ms: 10,
                session: SessionNonce::from_bytes([3; 16]),
            },
            ["gone", who] => Event::PeerDown { node: node(who) },
            ["drain"] => Event::Draining,
            ["renewed"] => Event::SessionRenewed(SessionNonce::from_bytes([9; 16])),
            ["gossip", rest @ ..] => self.capability(rest, false),
            ["direct", rest @ ..] => self.capability(rest, true),
            ["submit", job, scope, options @ ..] => Event::JobSubmitted {
                job: job_id(job),
                want: want(scope, options),
            },
            ["cancel", job] => Event::JobCancelled { job: job_id(job) },
            ["stored", who, at] => Event::ReceiptStored {
                attempt: attempt(who, at),
            },
            ["offer", from, at, scope, options @ ..] => {
                self.offer(attempt(from, at), scope, options)
            }
            ["from", from, at, what @ ..] => provider_event(attempt(from, at), what),
            [who, at, what @ ..] => requester_event(attempt(who, at), what),
            _ => panic!("cannot read {line:?}"),
        }
    }

    fn own(&mut self, what: &[&str]) -> Event {
        let cold = what.contains(&"cold");
        let models = what
            .iter()
            .filter(|word| **word != "cold")
            .map(|name| OwnModel {
                entry: entry(name),
                engine_class: "test".into(),
                loaded: !cold,
                prefill: 100_000,
                decode: 10_000,
                load_ms: 3_000,
            });
        self.models = models.collect();
        Event::OwnModelsChanged(self.models.clone())
    }

    fn offer(&mut self, attempt: AttemptId, scope: &str, options: &[&str]) -> Event {
        self.manifests += 1;
        let mut manifest = [self.manifests; 32];
        let mut session = [1; 16];
        let mut terms = Terms {
            scope: scope_of(scope),
            entry: entry("m"),
            wall: WallTier::Process,
            isolated: false,
            kind: JobKind::Generate,
            max_tokens: 100,
            resume_tokens: 0,
            deadline_ms: 600_000,
        };
        for option in options {
            match option.split_once('=') {
                Some(("manifest", n)) => manifest = [n.parse().expect("a number"); 32],
                Some(("session", n)) => session = [n.parse().expect("a number"); 16],
                Some(("deadline", ms)) => terms.deadline_ms = ms.parse().expect("milliseconds"),
                Some(("entry", name)) => terms.entry = entry(name),
                Some(("wall", "microvm")) => terms.wall = WallTier::Microvm,
                None if *option == "isolated" => terms.isolated = true,
                _ => panic!("cannot read option {option:?}"),
            }
        }
        let (manifest, session) = (
            RecordId::from_bytes(manifest),
            SessionNonce::from_bytes(session),
        );
        Event::OfferArrived {
            attempt,
            manifest,
            session,
            terms,
        }
    }

    /// `X m,c speed=100 slots=2 queue=0 seq=1 by=Y` (sent by Y, written by X); `tee=claimed`, `tee=believed`.
    fn capability(&mut self, words: &[&str], direct: bool) -> Event {
        let author = words[0].chars().next().expect("a node");
        let seq = self.seqs.entry(author).or_default();
        *seq += 1;
        let mut spec = Spec {
            seq: *seq,
            from: author,
            speed: 10,
            slots: 2,
            queue: 0,
            tee: false,
        };
        let mut attested = false;
        for option in &words[2..] {
            let (name, value) = option.split_once('=').expect("name=value");
            match name {
                "by" => spec.from = value.chars().next().expect("a node"),
                "seq" => spec.seq = value.parse().expect("a number"),
                "speed" => spec.speed = value.parse().expect("a number"),
                "slots" => spec.slots = value.parse().expect("a number"),
                "queue" => spec.queue = value.parse().expect("a number"),
                "tee" => {
                    spec.tee = true;
                    attested = value == "believed";
                }
                _ => panic!("cannot read option {option:?}"),
            }
        }
        let entries = words[1].split(',').filter(|name| *name != "-");
        let record = signed(author, entries.map(entry).collect(), &spec);
        Event::CapabilitySeen {
            record,
            from: id(spec.from),
            direct,
            attested,
        }
    }

    // ---- from actions to text --------------------------------------------------------------

    fn show(&self, action: &Action) -> String {
        let at = |attempt: &AttemptId| format!("{} {}", self.name(&attempt.peer), short(attempt));
        match action {
            Action::Offer {
                attempt,
                entry,
                scope,
                resume_tokens,
                previous,
            } => {
                let resumed = if *resume_tokens > 0 {
                    format!(" resuming {resume_tokens}")
                } else {
                    String::new()
                };
                let after = previous.map_or(String::new(), |number| format!(" after #{number}"));
                format!(
                    "offer {} {} {}{resumed}{after}",
                    at(attempt),
                    entry_name(entry),
                    scope_name(*scope)
                )
            }
            Action::Resume { attempt } => format!("resume {}", at(attempt)),
            Action::CloseAttempt {
                attempt,
                tokens,
                why,
            } => format!("close {} {tokens} tokens: {why:?}", at(attempt)),
            Action::Settle { attempt, tokens } => format!("settle {} {tokens} tokens", at(attempt)),
            Action::TellQueued { job, news } => {
                format!("tell {}: {}", job_name(job), self.news(news))
            }
            Action::TellStarted { attempt, n_in } => {
                format!("tell started {} {n_in} in", at(attempt))
            }
            Action::TellMoved {
                job,
                from,
                after_tokens,
                why,
            } => {
                format!(
                    "tell {} left {} after {after_tokens}: {why:?}",
                    job_name(job),
                    self.name(from)
                )
            }
            Action::FailJob { job, why } => format!("fail {}: {why}", job_name(job)),
            Action::FinishJob { job } => format!("finish {}", job_name(job)),
            Action::ReplyQueued { attempt, news } => {
                format!("reply {}: {}", at(attempt), self.news(news))
            }
            Action::ReplyReady { attempt } => format!("reply {}: ready", at(attempt)),
            Action::ReplyRefused {
                attempt,
                why,
                retry_after_ms,
            } => {
                format!(
                    "reply {}: refused {why:?}, again in {retry_after_ms}",
                    at(attempt)
                )
            }
            Action::Run {
                attempt,
                entry,
                isolated,
            } => {
                let alone = if *isolated { " alone" } else { "" };
                format!("run {} {}{alone}", at(attempt), entry_name(entry))
            }
            Action::PauseWork { attempt } => format!("pause {}", at(attempt)),
            Action::ResumeWork { attempt } => format!("go on {}", at(attempt)),
            Action::StopWork { attempt, why } => format!("stop {}: {why:?}", at(attempt)),
            Action::Load { entry } => format!("load {}", entry_name(entry)),
            Action::Publish {
                audience,
                models,
                slots,
                queue,
            } => {
                let audience = if *audience == Audience::Gossip {
                    "all"
                } else {
                    "circle"
                };
                let names: Vec<_> = models
                    .iter()
                    .map(|offer| entry_name(&offer.entry))
                    .collect();
                format!(
                    "publish to {audience}: [{}] slots {slots} queue {queue}",
                    names.join(" ")
                )
            }
            Action::Forward { .. } => "forward".into(),
            Action::Drop { why, .. } => format!("drop: {why:?}"),
            Action::RenewSession => "renew session".into(),
            Action::WakeAt(at) => format!("wake at {}", at.0),
        }
    }

    fn news(&self, news: &QueueNews) -> String {
        let mut why = news.why.to_string();
        for (node, letter) in &self.names {
            why = why.replace(&node.short(), &letter.to_string());
        }
        format!(
            "{} ahead, {} ms, {why}",
            news.position, news.expected_wait_ms
        )
    }

    fn name(&self, node: &NodeId) -> char {
        self.names[node]
    }
}

struct Spec {
    seq: u64,
    from: char,
    speed: u64,
    slots: u32,
    queue: u32,
    tee: bool,
}

fn requester_event(attempt: AttemptId, what: &[&str]) -> Event {
    let number = |word: &str| word.parse().expect("a number");
    match what {
        ["queued", position, wait] => Event::PeerQueued {
            attempt,
            position: position.parse().expect("a number"),
            expected_wait_ms: wait.parse().expect("milliseconds"),
        },
        ["ready"] => Event::PeerReady { attempt },
        ["started"] => Event::PeerStarted { attempt, n_in: 9 },
        ["tokens", n] => Event::PeerProgress {
            attempt,
            prefilled: 9,
            tokens: number(n),
        },
        ["finishes", n] => Event::PeerFinished {
            attempt,
            tokens: number(n),
            finish: Finish::Stop,
        },
        ["gives-up", n] => Event::PeerFinished {
            attempt,
            tokens: number(n),
            finish: Finish::Cancelled,
        },
        ["fails", n] => Event::PeerFinished {
            attempt,
            tokens: number(n),
            finish: Finish::Failed,
        },
        ["refuses", why, ms] => Event::PeerRefused {
            attempt,
            why: refusal(why),
            retry_after_ms: ms.parse().expect("milliseconds"),
        },
        ["beats"] => Event::PeerHeartbeat { attempt },
        ["breaks"] => Event::StreamLost {
            attempt,
            connected: true,
        },
        ["cut-off"] => Event::StreamLost {
            attempt,
            connected: false,
        },
        ["resumes"] => Event::PeerResumed { attempt },
        ["cannot-resume"] => Event::ResumeFailed { attempt },
        ["cheats"] => Event::PeerMisbehaved { attempt },
        ["unreachable"] => Event::DialFailed { attempt },
        _ => panic!("cannot read {what:?}"),
    }
}

fn provider_event(attempt: AttemptId, what: &[&str]) -> Event {
    let number = |word: &str| word.parse().expect("a number");
    match what {
        ["input"] => Event::InputArrived { attempt },
        ["begun"] => Event::WorkStarted { attempt, n_in: 9 },
        ["made", n] => Event::WorkProgress {
            attempt,
            prefilled: 9,
            tokens: number(n),
        },
        ["done", n] => Event::WorkFinished {
            attempt,
            tokens: number(n),
        },
        ["crashed"] => Event::WorkFailed {
            attempt,
            why: WorkFailure::Crashed,
        },
        ["overflowed"] => Event::WorkFailed {
            attempt,
            why: WorkFailure::ContextOverflow,
        },
        ["cancels"] => Event::RequesterCancelled { attempt },
        ["breaks"] => Event::RequesterLost { attempt },
        ["resumes"] => Event::RequesterResumed { attempt },
        ["beats"] => Event::RequesterHeartbeat { attempt },
        _ => panic!("cannot read {what:?}"),
    }
}

pub fn want(scope: &str, options: &[&str]) -> Want {
    let mut want = Want {
        entries: vec![entry("m")],
        scope: scope_of(scope),
        placement: Placement::Any,
        wall: WallTier::Process,
        isolated: false,
        kind: JobKind::Generate,
        n_in_estimate: 10,
        max_tokens: 100,
        deadline_ms: 600_000,
        client: ClientId(0),
        patient: false,
    };
    for option in options {
        match option.split_once('=') {
            None if *option == "elsewhere" => want.placement = Placement::Elsewhere,
            None if *option == "patient" => want.patient = true,
            None if *option == "tee" => want.wall = WallTier::Tee,
            None if *option == "isolated" => want.isolated = true,
            Some(("at", name)) => want.placement = Placement::Node(node(name)),
            Some(("entry", name)) => want.entries = vec![entry(name)],
            Some(("deadline", ms)) => want.deadline_ms = ms.parse().expect("milliseconds"),
            Some(("client", n)) => want.client = ClientId(n.parse().expect("a number")),
            _ => panic!("cannot read option {option:?}"),
        }
    }
    want
}

fn lending(scope: &str, slots: &str, rest: &[&str]) -> Lending {
    let named = |mark: &str| {
        let nodes = rest.iter().filter_map(|word| word.strip_prefix(mark));
        nodes.map(node).collect()
    };
    Lending::On(LendingTerms {
        widest: scope_of(scope),
        slots: slots.parse().expect("slots"),
        only_nodes: named("only="),
        refused_nodes: named("not="),
        refused_entries: Vec::new(),
        refused_kinds: Vec::new(),
    })
}

fn refusal(word: &str) -> Refusal {
    match word {
        "full" => Refusal::QueueFull,
        "context" => Refusal::ContextOverflow,
        "scope" => Refusal::OutOfScope,
        "worker" => Refusal::WorkerFailed,
        _ => panic!("cannot read refusal {word:?}"),
    }
}

fn signed(author: char, entries: Vec<RecordId>, spec: &Spec) -> Verified<Capability> {
    let offer = |entry| ModelOffer {
        entry,
        engine_class: "test".into(),
        loaded: true,
        prefill: spec.speed * 10_000,
        decode: spec.speed * 1_000,
    };
    let hardware = Hardware {
        cpu: "test".into(),
        cores: 1,
        memory: 1,
        gpus: Vec::new(),
        storage: 1,
        bandwidth: None,
    };
    let body = Capability {
        hardware,
        models: entries.into_iter().map(offer).collect(),
        free_memory: 1,
        slots: spec.slots,
        queue: spec.queue,
        walls: if spec.tee {
            vec![WallTier::Process, WallTier::Tee]
        } else {
            vec![WallTier::Process]
        },
        tee: None,
        build: "test".into(),
        worker_sha256: ContentHash::from_bytes([0; 32]),
    };
    let prev = (spec.seq > 1).then(|| RecordId::from_bytes([3; 32]));
    let place = Some(Place {
        stream: Stream::Cap,
        seq: spec.seq,
        prev,
    });
    let record = Record {
        author: id(author),
        place,
        epoch: 0,
        claimed_ms: 0,
        deps: Vec::new(),
        body,
    };
    record
        .sign(&key(author), &NetworkId::from_bytes([1; 32]))
        .expect("a well-formed capability")
}

fn key(letter: char) -> SigningKey {
    SigningKey::from_bytes(&[letter as u8; 32])
}

pub fn id(letter: char) -> NodeId {
    NodeId::from_bytes(key(letter).verifying_key().to_bytes())
}

fn node(name: &str) -> NodeId {
    id(name.chars().next().expect("a node"))
}

pub fn entry(name: &str) -> RecordId {
    RecordId::from_bytes([name.as_bytes()[0]; 32])
}

fn entry_name(entry: &RecordId) -> String {
    char::from(entry.as_bytes()[0]).to_string()
}

fn job_id(name: &str) -> JobId {
    let n: u128 = name
        .strip_prefix('j')
        .and_then(|n| n.parse().ok())
        .expect("a job such as j1");
    JobId::from_bytes(n.to_be_bytes())
}

fn job_name(job: &JobId) -> String {
    format!("j{}", u128::from_be_bytes(*job.as_bytes()))
}

fn attempt(peer: &str, name: &str) -> AttemptId {
    let (job, number) = name.split_once('#').expect("an attempt such as j1#1");
    AttemptId {
        job: job_id(job),
        number: number.parse().expect("a number"),
        peer: node(peer),
    }
}

fn short(attempt: &AttemptId) -> String {
    format!("{}#{}", job_name(&attempt.job), attempt.number)
}

fn scope_of(name: &str) -> Scope {
    match name {
        "mine" => Scope::Mine,
        "circle" => Scope::Circle,
        "commons" => Scope::Commons,
        _ => panic!("no scope {name:?}"),
    }
}

fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Mine => "mine",
        Scope::Circle => "circle",
        Scope::Commons => "commons",
    }
}
