//! Circles: the keys their owner listed, by circle, with a label only this machine sees.
//!
//! Invariant: a key is listed only by a call that its owner caused: an invite it made or used.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use substrate_record::{NetworkId, NodeId};

use super::keyed::{below, get, put};
use super::tables::{CIRCLES, key};
use super::{Store, StoreError};

/// The most members of one circle: friends, a class, a family.
const MAX_MEMBERS: usize = 256;

/// The most rows over all circles of a network.
const MAX_ROWS: usize = 16 * MAX_MEMBERS;

/// The longest name of a circle.
const MAX_NAME: usize = 64;

/// The most addresses kept of one member.
const MAX_ADDRS: usize = 16;

/// A key listed in a circle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Whose machine.
    pub node: NodeId,
    /// What its owner is called here.
    pub label: String,
    /// Where it was last reached.
    pub addrs: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    label: String,
    addrs: Vec<String>,
}

/// Whether a circle can have this name.
pub fn valid_circle_name(name: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(plain)
}

impl Store {
    /// Lists a key in a circle, or renews what is known of it.
    pub fn circle_add(
        &self,
        network: &NetworkId,
        circle: &str,
        member: &Member,
    ) -> Result<(), StoreError> {
        self.write(|tx| add_member(&mut tx.open_table(CIRCLES)?, network, circle, member))
    }

    /// Takes a key off a circle; `false` if it was not on it.
    pub fn circle_remove(
        &self,
        network: &NetworkId,
        circle: &str,
        node: &NodeId,
    ) -> Result<bool, StoreError> {
        let prefix = prefix(network, circle)?;
        self.write(|tx| {
            Ok(tx
                .open_table(CIRCLES)?
                .remove(key(&[&prefix, node.as_bytes()]).as_slice())?
                .is_some())
        })
    }

    /// The members of a circle.
    pub fn circle(&self, network: &NetworkId, circle: &str) -> Result<Vec<Member>, StoreError> {
        let prefix = prefix(network, circle)?;
        self.read(|tx| {
            let rows = below::<Row>(&tx.open_table(CIRCLES)?, &prefix, MAX_MEMBERS)?;
            rows.into_iter()
                .map(|(rest, row)| member(&rest, row))
                .collect()
        })
    }

    /// All circles with their members.
    pub fn circles(&self, network: &NetworkId) -> Result<Vec<(String, Vec<Member>)>, StoreError> {
        self.read(|tx| {
            let mut circles: Vec<(String, Vec<Member>)> = Vec::new();
            for (rest, row) in below::<Row>(&tx.open_table(CIRCLES)?, network.as_bytes(), MAX_ROWS)?
            {
                let end = rest
                    .iter()
                    .position(|byte| *byte == 0)
                    .unwrap_or(rest.len());
                let name = String::from_utf8_lossy(&rest[..end]).into_owned();
                let member = member(rest.get(end + 1..).unwrap_or_default(), row)?;
                match circles.last_mut() {
                    Some((last, members)) if *last == name => members.push(member),
                    _ => circles.push((name, vec![member])),
                }
            }
            Ok(circles)
        })
    }

    /// Every key listed in some circle.
    pub fn circle_members(&self, network: &NetworkId) -> Result<BTreeSet<NodeId>, StoreError> {
        let circles = self.circles(network)?;
        Ok(circles
            .into_iter()
            .flat_map(|(_, members)| members)
            .map(|member| member.node)
            .collect())
    }
}

/// Lists a key; also called inside the transaction that redeems an invite.
pub(crate) fn add_member(
    table: &mut redb::Table<'_, &'static [u8], &'static [u8]>,
    network: &NetworkId,
    circle: &str,
    member: &Member,
) -> Result<(), StoreError> {
    let prefix = prefix(network, circle)?;
    let row_key = key(&[&prefix, member.node.as_bytes()]);
    let known = get::<Row>(table, &row_key)?;
    if known.is_none() && below::<Row>(table, &prefix, MAX_MEMBERS)?.len() == MAX_MEMBERS {
        return Err(StoreError::TooMany {
            what: "a circle",
            limit: MAX_MEMBERS,
        });
    }
    let mut row = Row {
        label: member.label.chars().take(MAX_NAME).collect(),
        addrs: member.addrs.clone(),
    };
    row.addrs.truncate(MAX_ADDRS);
    if let Some(known) = known {
        // An owner's own label and a known address are not lost to a renewal that has none.
        row.label = if row.label.is_empty() {
            known.label
        } else {
            row.label
        };
        row.addrs = if row.addrs.is_empty() {
            known.addrs
        } else {
            row.addrs
        };
    }
    put(table, &row_key, &row)
}

fn prefix(network: &NetworkId, circle: &str) -> Result<Vec<u8>, StoreError> {
    if !valid_circle_name(circle) {
        return Err(StoreError::BadCircleName {
            name: circle.chars().take(MAX_NAME).collect(),
        });
    }
    Ok(key(&[network.as_bytes(), circle.as_bytes(), &[0]]))
}

fn member(node: &[u8], row: Row) -> Result<Member, StoreError> {
    let node = node.try_into().map_err(|_| StoreError::Corrupt {
        detail: "a circle's key is not a node's".to_owned(),
    })?;
    Ok(Member {
        node: NodeId::from_bytes(node),
        label: row.label,
        addrs: row.addrs,
    })
}
