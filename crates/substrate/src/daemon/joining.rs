//! Joining by invite: the inviter's welcome, and the joiner's way into another network.
//!
//! Invariant: an invite is redeemed in one transaction, once; the joiner believes only the genesis whose id is in the code.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use substrate_mesh::entries::EntriesCollector;
use substrate_mesh::frame::framed;
use substrate_mesh::join::{JoinFrame, JoinRefusal};
use substrate_mesh::{MeshConfig, MeshStream, Protocol};
use substrate_record::{AnyRecord, Genesis, NodeId, Signed, Verified};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::context::{Context, blocking, unix_ms};
use super::life::{Life, Note};
use crate::door::Joined;
use crate::grpc::desk::Desk;
use crate::invite::{self, Invite, RedeemError};
use crate::store::Member;

/// How long one side waits for the other during a join.
const DEADLINE: Duration = Duration::from_secs(30);

/// Secrets one key may show in vain within [`ATTEMPTS_WITHIN`]: a pasted code that was cut, and a few tries to mend it.
const MAX_ATTEMPTS: u32 = 5;

/// How long a vain attempt counts.
const ATTEMPTS_WITHIN: Duration = Duration::from_secs(600);

/// Keys whose vain attempts are counted. Whoever makes up more keys guesses at 128 random bits all the same.
const COUNTED_KEYS: usize = 256;

/// How often it is looked whether an invite is still open.
const INVITES_EVERY: Duration = Duration::from_secs(30);

/// What a life keeps about joiners.
pub struct Joins {
    looked: Instant,
    attempts: Arc<Attempts>,
}

impl Default for Joins {
    fn default() -> Self {
        Self {
            looked: Instant::now(),
            attempts: Arc::default(),
        }
    }
}

/// Vain attempts lately, by key.
#[derive(Default)]
pub struct Attempts(Mutex<BTreeMap<NodeId, (u32, Instant)>>);

impl Attempts {
    /// Whether this key may try again.
    fn allow(&self, node: &NodeId, now: Instant) -> bool {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.retain(|_, (_, since)| now.duration_since(*since) < ATTEMPTS_WITHIN);
        counted
            .get(node)
            .is_none_or(|(count, _)| *count < MAX_ATTEMPTS)
    }

    fn note(&self, node: NodeId, now: Instant) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.len() >= COUNTED_KEYS && !counted.contains_key(&node) {
            let oldest = counted.iter().min_by_key(|(_, (_, since))| *since);
            if let Some(oldest) = oldest.map(|(node, _)| *node) {
                counted.remove(&oldest);
            }
        }
        counted.entry(node).or_insert((0, now)).0 += 1;
    }
}

impl Life {
    /// A join stream came in.
    pub(super) fn on_joiner(&self, joiner: NodeId, stream: MeshStream) {
        let (context, notes) = (self.context.clone(), self.notes.clone());
        let attempts = self.joins.attempts.clone();
        self.tasks
            .spawn(welcome(context, joiner, stream, notes, attempts));
    }

    /// Lets joiners in no longer once the last invite has expired. Issuing one lets them in at once.
    pub(super) fn mind_invites(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.joins.looked) < INVITES_EVERY {
            return;
        }
        self.joins.looked = now;
        let context = self.context.clone();
        self.tasks.spawn(async move {
            let shared = context.clone();
            let open =
                blocking(move || invite::is_open(&shared.desk.store, &shared.network, unix_ms()));
            match open.await {
                Ok(open) => context.mesh.open_joins(open).await,
                Err(error) => tracing::debug!(%error, "the invites could not be read"),
            }
        });
    }
}

/// The inviter's side: redeem the secret, list the joiner, hand over the genesis and the entries.
async fn welcome(
    context: Arc<Context>,
    joiner: NodeId,
    stream: MeshStream,
    notes: mpsc::Sender<Note>,
    attempts: Arc<Attempts>,
) {
    let (mut reader, mut writer) = framed::<_, JoinFrame>(stream);
    let Ok(JoinFrame::Hello { secret }) = reader.next_within(DEADLINE).await else {
        return;
    };
    let redeemed = match attempts.allow(&joiner, Instant::now()) {
        true => redeem(&context, joiner, secret).await,
        false => Err(RedeemError::TooManyAttempts),
    };
    let answers = match redeemed {
        Ok(circle) => {
            let _ = notes.send(Note::Joined(joiner)).await;
            greeting(&context, circle.as_deref())
        }
        Err(error) => {
            tracing::info!(%joiner, %error, "an invite was refused");
            attempts.note(joiner, Instant::now());
            vec![JoinFrame::Refused {
                why: refusal(&error),
            }]
        }
    };
    let sent = timeout(DEADLINE, async {
        for answer in &answers {
            writer.send(answer).await?;
        }
        writer.close().await
    });
    if !matches!(sent.await, Ok(Ok(()))) {
        tracing::info!(%joiner, "a joiner went away before its welcome was sent");
    }
}

/// A store that cannot be written is not the joiner's business: to it the secret is unknown for now.
fn refusal(error: &RedeemError) -> JoinRefusal {
    match error {
        RedeemError::Used => JoinRefusal::Used,
        RedeemError::Expired => JoinRefusal::Expired,
        RedeemError::TooManyAttempts => JoinRefusal::TooManyAttempts,
        _ => JoinRefusal::UnknownSecret,
    }
}

async fn redeem(
    context: &Arc<Context>,
    joiner: NodeId,
    secret: [u8; 16],
) -> Result<Option<String>, RedeemError> {
    let context = context.clone();
    blocking(move || {
        let store = &context.desk.store;
        let redeemed = invite::redeem(store, &context.network, &secret, joiner, unix_ms())?;
        if let Some(circle) = &redeemed.circle {
            let member = Member {
                node: joiner,
                label: joiner.short(),
                addrs: Vec::new(),
            };
            store
                .circle_add(&context.network, circle, &member)
                .map_err(RedeemError::Store)?;
        }
        Ok(redeemed.circle)
    })
    .await
}

fn greeting(context: &Context, circle: Option<&str>) -> Vec<JoinFrame> {
    let genesis = context.desk.genesis.clone();
    let keys = &genesis.body().registry_keys;
    let entries = context.desk.records.entries().unwrap_or_default();
    let own = context.me;
    let shown = |author: NodeId| keys.contains(&author) || (circle.is_some() && author == own);
    let members = circle.map(|_| vec![own]).unwrap_or_default();
    let records = entries.iter().filter(|entry| shown(entry.author()));
    JoinFrame::welcome(
        genesis.bytes().to_vec(),
        members,
        records.map(|entry| entry.bytes().to_vec()),
    )
}

/// The joiner's side, into another network. Afterwards the desk's current network is the inviter's; models held here came along.
///
/// # Errors
/// What stood in the way, in words; then nothing has changed.
pub async fn join(desk: Arc<Desk>, invite: Invite, identity: MeshConfig) -> anyhow::Result<Joined> {
    let (mesh, mut events) = substrate_mesh::start(MeshConfig {
        network: invite.network,
        rules_hash: None,
        ..identity
    })
    .await?;
    // The temporary mesh's events matter to nobody; its channel must not fill.
    let sink = tokio::spawn(async move { while events.recv().await.is_some() {} });
    let welcomed = knock(&mesh, &invite).await;
    mesh.shutdown().await;
    sink.abort();
    let (genesis, entries) = welcomed?;
    blocking(move || settle(&desk, &invite, &genesis, entries)).await
}

/// The joiner's side, into a circle of the network it is in already.
///
/// # Errors
/// As [`join`].
pub async fn enlist(context: Arc<Context>, invite: Invite) -> anyhow::Result<Joined> {
    let (genesis, entries) = knock(&context.mesh, &invite).await?;
    context.put(entries).await?;
    blocking(move || {
        list_inviter(&context.desk, &invite)?;
        Ok(Joined {
            network: genesis.body().name.clone(),
            left: None,
        })
    })
    .await
}

/// Asks the inviter over an existing mesh of the same network.
///
/// # Errors
/// No address answers, or the invite is refused.
pub async fn knock(
    mesh: &substrate_mesh::Mesh,
    invite: &Invite,
) -> anyhow::Result<(Verified<Genesis>, Vec<AnyRecord>)> {
    reach(mesh, invite).await?;
    let stream = mesh
        .open(invite.inviter, Protocol::Join)
        .await
        .context("the inviter takes no join stream")?;
    let (mut reader, mut writer) = framed::<_, JoinFrame>(stream);
    writer
        .send(&JoinFrame::Hello {
            secret: *invite.secret.as_bytes(),
        })
        .await?;
    let genesis = match reader
        .next_within(DEADLINE)
        .await
        .context("the inviter broke off")?
    {
        JoinFrame::Welcome { genesis, .. } => genesis,
        JoinFrame::Refused { why } => bail!("the inviter refused: {why}"),
        _ => bail!("the inviter does not keep to the protocol"),
    };
    let mut collected = EntriesCollector::default();
    loop {
        match reader
            .next_within(DEADLINE)
            .await
            .context("the inviter broke off")?
        {
            JoinFrame::Entries { records } => collected.push(records)?,
            JoinFrame::Done { entries } => {
                return open_welcome(invite, &genesis, &collected.finish(entries)?);
            }
            _ => bail!("the inviter does not keep to the protocol"),
        }
    }
}

/// Dials all addresses of the invite at once: there are at most [`invite::MAX_ADDRS`], and one that leads nowhere
/// must not keep the good one waiting.
async fn reach(mesh: &substrate_mesh::Mesh, invite: &Invite) -> anyhow::Result<()> {
    let dials = invite.addrs.iter().take(invite::MAX_ADDRS);
    let mut dials: FuturesUnordered<_> = dials
        .map(|addr| async move { (addr, timeout(DEADLINE, mesh.dial(addr)).await) })
        .collect();
    let mut last = None;
    while let Some((addr, dialled)) = dials.next().await {
        match dialled {
            Ok(Ok(node)) if node == invite.inviter => return Ok(()),
            Ok(Ok(node)) => last = Some(format!("{addr} is node {node}, not the inviter")),
            Ok(Err(error)) => last = Some(format!("{addr}: {error}")),
            Err(_) => last = Some(format!("{addr}: no answer in {} s", DEADLINE.as_secs())),
        }
    }
    bail!(
        "no address in the invite reaches the inviter: {}",
        last.unwrap_or_else(|| "it names none".to_owned())
    )
}

fn open_welcome(
    invite: &Invite,
    genesis: &[u8],
    entries: &[Vec<u8>],
) -> anyhow::Result<(Verified<Genesis>, Vec<AnyRecord>)> {
    let genesis = Signed::<Genesis>::decode(genesis)?.verify_genesis()?;
    if genesis.network() != invite.network {
        bail!("the inviter sent the genesis of another network than the code names");
    }
    let entries: Vec<_> = entries
        .iter()
        .map(|bytes| AnyRecord::open(bytes, &invite.network))
        .collect::<Result<_, _>>()?;
    let keys = &genesis.body().registry_keys;
    let own = invite.circle.as_ref().map(|_| invite.inviter);
    let asked_for = |record: &AnyRecord| match record {
        AnyRecord::ModelEntry(entry) => {
            keys.contains(&entry.author()) || own == Some(entry.author())
        }
        _ => false,
    };
    let entries = entries.into_iter().filter(asked_for).collect();
    Ok((genesis, entries))
}

fn settle(
    desk: &Desk,
    invite: &Invite,
    genesis: &Verified<Genesis>,
    entries: Vec<AnyRecord>,
) -> anyhow::Result<Joined> {
    desk.store.add_network(genesis)?;
    desk.store.records(invite.network).put(&entries)?;
    list_inviter(desk, invite)?;
    let catalogue = crate::models::catalogue::Catalogue::new(desk.store.clone(), invite.network);
    catalogue.carry_over(&desk.network(), &desk.device, unix_ms())?;
    desk.store.set_current_network(&invite.network)?;
    Ok(Joined {
        network: genesis.body().name.clone(),
        left: Some(desk.genesis.body().name.clone()),
    })
}

fn list_inviter(desk: &Desk, invite: &Invite) -> anyhow::Result<()> {
    let peer = crate::store::PeerAddrs {
        addrs: invite.addrs.clone(),
        last_seen_ms: unix_ms(),
    };
    desk.store
        .save_peer(&invite.network, &invite.inviter, &peer)?;
    if let Some(circle) = &invite.circle {
        let member = Member {
            node: invite.inviter,
            label: invite.inviter.short(),
            addrs: invite.addrs.clone(),
        };
        desk.store.circle_add(&invite.network, circle, &member)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_shows_wrong_secrets_is_stopped_for_ten_minutes() {
        let attempts = Attempts::default();
        let (guesser, other) = (NodeId::from_bytes([1; 32]), NodeId::from_bytes([2; 32]));
        for _ in 0..MAX_ATTEMPTS {
            assert!(attempts.allow(&guesser, Instant::now()));
            attempts.note(guesser, Instant::now());
        }
        assert!(!attempts.allow(&guesser, Instant::now()));
        assert!(attempts.allow(&other, Instant::now()));
        assert!(attempts.allow(&guesser, Instant::now() + ATTEMPTS_WITHIN));
    }

    #[test]
    fn the_keys_counted_are_bounded() {
        let attempts = Attempts::default();
        for i in 0..2 * COUNTED_KEYS {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&(i as u64).to_be_bytes());
            attempts.note(NodeId::from_bytes(key), Instant::now());
        }
        assert_eq!(attempts.0.lock().expect("unpoisoned").len(), COUNTED_KEYS);
    }
}
