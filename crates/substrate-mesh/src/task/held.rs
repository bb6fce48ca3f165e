//! Gossip that arrived before its sender's hello.
//!
//! Invariant: bounded; the oldest makes room.

use std::collections::VecDeque;

use libp2p::PeerId;

use crate::event::MessageToken;

/// Messages held over all peers: at 16 KiB, one MiB. A hello takes two round trips, so few come.
const HELD: usize = 64;

#[derive(Default)]
pub(super) struct Held {
    messages: VecDeque<(MessageToken, Vec<u8>)>,
}

impl Held {
    /// Keeps a message; returns the one that had to go.
    pub(super) fn push(
        &mut self,
        token: MessageToken,
        bytes: Vec<u8>,
    ) -> Option<(MessageToken, Vec<u8>)> {
        self.messages.push_back((token, bytes));
        if self.messages.len() > HELD {
            self.messages.pop_front()
        } else {
            None
        }
    }

    /// Takes out all messages of one peer, in order.
    pub(super) fn take(&mut self, peer: &PeerId) -> Vec<(MessageToken, Vec<u8>)> {
        let messages = std::mem::take(&mut self.messages).into_iter();
        let (taken, kept): (VecDeque<_>, VecDeque<_>) =
            messages.partition(|(token, _)| token.source == *peer);
        self.messages = kept;
        taken.into()
    }
}
