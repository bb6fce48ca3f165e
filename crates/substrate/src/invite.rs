//! Invites: one pasteable, checksummed code that lets one machine join.
//!
//! A code is bech32m (BIP 350) with the prefix `substrate`: its checksum finds any slip of the finger,
//! and usually which character it was. It carries what a joiner needs to find the inviter and to be
//! let in once: the network, the inviter's key and addresses, a secret, an expiry by the inviter's
//! clock, and the circle it leads into.
//!
//! Invariant: the inviter keeps only the secret's hash; a secret admits one node.
//!
//! Absent by design: trust in the code. The joiner still checks the Genesis against the network's id
//! and the connection against the inviter's key.

mod code;
mod reach;
mod redeem;

pub use code::{Invite, InviteError, InviteSecret, MAX_ADDRS};
pub use reach::reachable;
pub use redeem::{PendingInvite, RedeemError, Redeemed, is_open, issue, pending, redeem, revoke};
