//! The inviter's side: issued invites by the hash of their secret, each good for one node.
//!
//! Invariant: redeeming is one transaction, so of two nodes that show the same secret exactly one is
//! let in. The same node may show it again, as its first answer may have been lost.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use substrate_record::{NetworkId, NodeId};

use super::Invite;
use crate::store::tables::{CIRCLES, INVITES, key};
use crate::store::{Member, Store, StoreError, add_member, keyed};

/// The most invites of one network that are kept, used ones included.
const MAX_INVITES: usize = 1024;

#[derive(Serialize, Deserialize)]
struct Row {
    circle: Option<String>,
    expires_ms: u64,
    used_by: Option<String>,
}

/// What a joiner gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redeemed {
    /// The circle it is listed in now.
    pub circle: Option<String>,
}

/// Why a secret admits nobody.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedeemError {
    /// Never issued here, or taken back.
    #[error("the invite is not known here")]
    Unknown,
    /// Another node was faster.
    #[error("the invite was used already")]
    Used,
    /// Its time is over.
    #[error("the invite expired")]
    Expired,
    /// This key showed too many wrong secrets lately.
    #[error("too many attempts of this key")]
    TooManyAttempts,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An invite somebody may still use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingInvite {
    /// The hash by which it can be taken back.
    pub id: [u8; 32],
    /// Where it leads.
    pub circle: Option<String>,
    /// When it ends.
    pub expires_ms: u64,
}

/// Keeps an invite's hash, so that its secret will admit one node.
pub fn issue(store: &Store, invite: &Invite, now_ms: u64) -> Result<(), StoreError> {
    let row = Row {
        circle: invite.circle.clone(),
        expires_ms: invite.expires_ms,
        used_by: None,
    };
    store.write(|tx| {
        let mut invites = tx.open_table(INVITES)?;
        let rows = keyed::below::<Row>(&invites, invite.network.as_bytes(), MAX_INVITES)?;
        for (id, _) in rows.iter().filter(|(_, row)| row.expires_ms < now_ms) {
            invites.remove(key(&[invite.network.as_bytes(), id]).as_slice())?;
        }
        if rows
            .iter()
            .filter(|(_, row)| row.expires_ms >= now_ms)
            .count()
            == MAX_INVITES
        {
            return Err(StoreError::TooMany {
                what: "the list of invites",
                limit: MAX_INVITES,
            });
        }
        keyed::put(
            &mut invites,
            &row_key(&invite.network, &hash(invite.secret.as_bytes())),
            &row,
        )
    })
}

/// Lets one node in, and lists it in the invite's circle, all in one transaction.
pub fn redeem(
    store: &Store,
    network: &NetworkId,
    secret: &[u8; 16],
    joiner: NodeId,
    now_ms: u64,
) -> Result<Redeemed, RedeemError> {
    let row_key = row_key(network, &hash(secret));
    let member = Member {
        node: joiner,
        label: String::new(),
        addrs: Vec::new(),
    };
    // A refusal is an answer of the transaction, not its failure: nothing is written, nothing is lost.
    store.write(|tx| {
        let mut invites = tx.open_table(INVITES)?;
        let Some(mut row) = keyed::get::<Row>(&invites, &row_key)? else {
            return Ok(Err(RedeemError::Unknown));
        };
        match &row.used_by {
            Some(user) if *user != joiner.to_string() => return Ok(Err(RedeemError::Used)),
            _ if row.expires_ms < now_ms => return Ok(Err(RedeemError::Expired)),
            _ => row.used_by = Some(joiner.to_string()),
        }
        keyed::put(&mut invites, &row_key, &row)?;
        if let Some(circle) = &row.circle {
            add_member(&mut tx.open_table(CIRCLES)?, network, circle, &member)?;
        }
        Ok(Ok(Redeemed { circle: row.circle }))
    })?
}

/// Invites nobody used yet; whether their time is over, the caller's clock says.
pub fn pending(store: &Store, network: &NetworkId) -> Result<Vec<PendingInvite>, StoreError> {
    let rows = store.read(|tx| {
        keyed::below::<Row>(&tx.open_table(INVITES)?, network.as_bytes(), MAX_INVITES)
    })?;
    let open = rows.into_iter().filter(|(_, row)| row.used_by.is_none());
    Ok(open
        .filter_map(|(id, row)| {
            Some(PendingInvite {
                id: id.try_into().ok()?,
                circle: row.circle,
                expires_ms: row.expires_ms,
            })
        })
        .collect())
}

/// Whether anybody may still come with an invite: one is out and not expired. A used one counts, as its own joiner
/// may have to come again.
pub fn is_open(store: &Store, network: &NetworkId, now_ms: u64) -> Result<bool, StoreError> {
    let rows = store.read(|tx| {
        keyed::below::<Row>(&tx.open_table(INVITES)?, network.as_bytes(), MAX_INVITES)
    })?;
    Ok(rows.iter().any(|(_, row)| row.expires_ms >= now_ms))
}

/// Takes an invite back; `false` if it was not there.
pub fn revoke(store: &Store, network: &NetworkId, id: &[u8; 32]) -> Result<bool, StoreError> {
    store.write(|tx| {
        Ok(tx
            .open_table(INVITES)?
            .remove(row_key(network, id).as_slice())?
            .is_some())
    })
}

/// The secret is 128 random bits, so its plain hash cannot be turned back.
fn hash(secret: &[u8; 16]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

fn row_key(network: &NetworkId, id: &[u8; 32]) -> Vec<u8> {
    key(&[network.as_bytes(), id])
}
