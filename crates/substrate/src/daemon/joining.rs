//! Joining by invite: the inviter's welcome, and the joiner's way into another network.
//!
//! Invariant: an invite is redeemed in one transaction, once; the joiner believes only the genesis whose id is in the code.

use std::sync::Arc;
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
use tokio::time::timeout;

use super::context::{Context, blocking, unix_ms};
use super::life::Note;
use crate::door::Joined;
use crate::grpc::desk::Desk;
use crate::invite::{self, Invite, RedeemError};
use crate::store::Member;

/// How long one side waits for the other during a join.
const DEADLINE: Duration = Duration::from_secs(30);

/// Entries sent in a welcome; the full registry follows after hello.
const MAX_WELCOME_ENTRIES: usize = 256;

/// The inviter's side: redeem the secret, list the joiner, hand over the genesis and the entries.
pub async fn welcome(
    context: Arc<Context>,
    joiner: NodeId,
    stream: MeshStream,
    notes: mpsc::Sender<Note>,
) {
    let (mut reader, mut writer) = framed::<_, JoinFrame>(stream);
    let Ok(JoinFrame::Hello { secret }) = reader.next_within(DEADLINE).await else {
        return;
    };
    let answers = match redeem(&context, joiner, secret).await {
        Ok(circle) => {
            let _ = notes.send(Note::Joined(joiner)).await;
            greeting(&context, circle.as_deref())
        }
        Err(error) => {
            tracing::info!(%joiner, %error, "an invite was refused");
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
    let records = entries
        .iter()
        .filter(|entry| shown(entry.author()))
        .take(MAX_WELCOME_ENTRIES);
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
    let entries = entries
        .iter()
        .map(|bytes| AnyRecord::open(bytes, &invite.network))
        .collect::<Result<_, _>>()?;
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
