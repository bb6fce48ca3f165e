//! One requested answer through all its attempts: what was asked, and every token received so far.
//!
//! Invariant: at most one attempt's session holds the answer at a time (it is behind an async lock), so no
//! token is appended twice and an attempt never starts before the last one has signed what it received.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::LazyLock;
use std::time::Instant;

use sha2::{Digest, Sha256};
use substrate_mesh::input::Partition;
use substrate_record::{
    Commitment, JobKind, JobManifest, NodeId, RecordId, Salt, Sampler, Verified, WallTier, commit,
    output_bytes,
};
use substrate_sandbox::wire::input::{Input, Prompt};
use tokio::sync::mpsc;
use zeroize::Zeroize;

use crate::daemon::context::draw;
use crate::door::{Ask, Client, JobEvent, Summary, Timings};

/// Manifests kept per job. A job that was refused more often keeps the latest: the older ones count nothing.
const MAX_MANIFESTS: usize = 64;

/// Behind the names of clients; drawn anew at each start, which costs the prefixes left at others.
static SECRET: LazyLock<[u8; 32]> = LazyLock::new(draw);

/// What the requester keeps of a job until its client has the end of it.
pub struct Answer {
    /// Where its client listens.
    pub events: mpsc::Sender<JobEvent>,
    /// Words or vectors.
    pub kind: JobKind,
    /// Canonical input bytes, sent on the stream and committed in each manifest.
    pub input: Vec<u8>,
    /// The seed's base, PROTOCOL.md 3: 8 bytes from the client, or 32 drawn here.
    pub seed: Vec<u8>,
    /// The client whose prefixes a provider may use of its cache; none if it gave a seed, and so wants its prompt read whole
    /// (docs/decisions/0009), or a worker of its own, which has none.
    pub client: Option<Client>,
    /// As signed in each manifest.
    pub sampler: Sampler,
    /// Tokens of the whole answer at most; of vectors, the texts.
    pub max_tokens: u32,
    /// Demanded wall.
    pub wall: WallTier,
    /// A worker of its own is demanded.
    pub isolated: bool,
    /// How long the client waits with nothing coming, in milliseconds: from `since`, and from each token on.
    pub deadline_ms: u64,
    /// Every id received, over all attempts; of vectors, the numbers of the rows.
    pub ids: Vec<u32>,
    /// Manifests of the attempts so far, the latest last: the parent of the next, and what an export shows.
    pub manifests: VecDeque<Verified<JobManifest>>,
    /// Prompt tokens by the latest Accept.
    pub n_in: u32,
    /// What the last node that refused said, for the client if the job itself is at fault.
    pub last_refusal: Option<String>,
    /// When the client asked.
    pub since: Instant,
    /// When it got its last token.
    pub fed: Option<Instant>,
    /// When the latest attempt was offered.
    pub offered: Option<Instant>,
    /// When its wait for a place ended.
    pub ready: Option<Instant>,
    /// Where the time went.
    pub timings: Timings,
    /// What the client is to be told at the end, after an attempt that was closed before it could be settled: its provider may
    /// vanish after the last token, and then there is no next one.
    pub unsettled: Option<Box<Summary>>,
}

/// The salts of one attempt, drawn by the requester and sent with the input.
#[derive(Clone, Copy)]
pub struct Salts {
    /// Of the seed.
    pub seed: Salt,
    /// Of the input.
    pub input: Salt,
    /// Of the resumed ids.
    pub resume: Salt,
    /// Of the output.
    pub output: Salt,
}

impl Salts {
    /// Fresh ones.
    pub fn draw() -> Self {
        let fresh = || Salt::from_bytes(draw());
        Self {
            seed: fresh(),
            input: fresh(),
            resume: fresh(),
            output: fresh(),
        }
    }

    /// Commitment to resumed and own ids together.
    pub fn commit_output(&self, ids: &[u32]) -> Commitment {
        commit(&self.output, &output_bytes(ids))
    }
}

/// The seed's base for one choice of a request.
///
/// Choice 0 is PROTOCOL.md 3 itself. Each further choice of a request is a job of its own, whose base is the
/// seed that choice would have had inside one job, so that `n` choices are the same however they are run.
pub fn seed_base(seed: Option<i64>, choice: u32) -> Vec<u8> {
    let base = match seed {
        Some(seed) => seed.to_le_bytes().to_vec(),
        None => draw::<32>().to_vec(),
    };
    if choice == 0 {
        base
    } else {
        substrate_record::seed_for_choice(&base, choice).to_vec()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.input.zeroize();
        self.ids.zeroize();
    }
}

impl Answer {
    /// A new answer to `ask`, whose canonical input is `input`.
    pub fn new(
        ask: &Ask,
        input: Vec<u8>,
        wall: WallTier,
        max_tokens: u32,
        events: mpsc::Sender<JobEvent>,
    ) -> Self {
        Self {
            events,
            kind: kind_of(&ask.input),
            input,
            seed: seed_base(ask.seed, ask.choice),
            client: (ask.seed.is_none() && !ask.isolated).then(|| ask.client.clone()),
            sampler: ask.sampler,
            max_tokens,
            wall,
            isolated: ask.isolated,
            deadline_ms: ask.deadline_ms,
            ids: Vec::new(),
            manifests: VecDeque::new(),
            n_in: 0,
            last_refusal: None,
            since: Instant::now(),
            fed: None,
            offered: None,
            ready: None,
            timings: Timings::default(),
            unsettled: None,
        }
    }

    /// What the next attempt is asked: all of it, or the texts whose vectors have not come.
    pub fn asked_now(&self) -> Cow<'_, [u8]> {
        if self.kind == JobKind::Generate || self.ids.is_empty() {
            return Cow::Borrowed(&self.input);
        }
        // These bytes were encoded here, from texts of which at least one is left.
        let left = Input::from_cbor_bytes(&self.input).and_then(|mut input| {
            if let Prompt::Texts { texts, .. } = &mut input.prompt {
                texts.drain(..self.ids.len().min(texts.len()));
            }
            input.to_cbor_bytes()
        });
        left.map_or(Cow::Borrowed(&self.input), Cow::Owned)
    }

    /// Ids the next attempt goes on from. Rows are not gone on from: their texts are left out instead.
    pub fn resumed_now(&self) -> &[u32] {
        match self.kind {
            JobKind::Generate => &self.ids,
            JobKind::Embed => &[],
        }
    }

    /// Whose prefixes `provider` may use.
    pub fn partition_at(&self, provider: &NodeId) -> Option<Partition> {
        let client = self.client.as_ref()?;
        Some(partition_of(client, provider))
    }

    /// Takes note of an attempt's manifest.
    pub fn remember(&mut self, manifest: Verified<JobManifest>) {
        if self.manifests.len() == MAX_MANIFESTS {
            self.manifests.pop_front();
        }
        self.manifests.push_back(manifest);
    }

    /// The manifest a new attempt names as its parent.
    pub fn parent(&self) -> Option<RecordId> {
        self.manifests.back().map(Verified::id)
    }

    /// What is left of the client's patience.
    pub fn deadline_left_ms(&self) -> u64 {
        let waits_since = self.fed.unwrap_or(self.since);
        self.deadline_ms.saturating_sub(millis(waits_since))
    }
}

/// What kind of work an input asks for.
pub fn kind_of(input: &Input) -> JobKind {
    match input.prompt {
        Prompt::Texts { .. } => JobKind::Embed,
        Prompt::Chat(_) | Prompt::Text { .. } => JobKind::Generate,
    }
}

/// Milliseconds since `start`.
pub fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The name of a client at `provider`. Without the secret it cannot be linked to the client, nor to its names elsewhere.
fn partition_of(client: &Client, provider: &NodeId) -> Partition {
    let mut hash = Sha256::new_with_prefix(b"substrate/partition/v1");
    hash.update(*SECRET);
    hash.update(provider.as_bytes());
    match client {
        Client::Owner => hash.update([0]),
        Client::Anonymous => hash.update([1]),
        Client::Key(name) => hash.update([&[2], name.as_bytes()].concat()),
    }
    let digest: [u8; 32] = hash.finalize().into();
    std::array::from_fn(|at| digest[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_has_one_name_at_each_provider_and_no_two_are_alike() {
        let key = |name: &str| Client::Key(name.to_owned());
        let clients = [Client::Owner, Client::Anonymous, key("owner"), key("ann")];
        let names = || -> std::collections::BTreeSet<Partition> {
            let each = |client| [1, 2].map(|n| partition_of(client, &NodeId::from_bytes([n; 32])));
            clients.iter().flat_map(each).collect()
        };
        assert_eq!(names().len(), 8);
        assert_eq!(names(), names());
    }
}
