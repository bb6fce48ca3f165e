//! Gossip of signed records: anonymous messages, named by the record they carry.
//!
//! Invariant: two messages have one id only if both carry the same, verified record. A copy with a
//! broken signature gets an id of its own, so that it cannot take the good one's place in the
//! caches of seen messages.
//! Absent by design: the first sender (records sign themselves, the transport must not name who
//! spoke first), topics other than this network's, peer exchange.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libp2p::gossipsub::{
    self, IdentityTransform, MaxCountSubscriptionFilter, MessageAuthenticity, MessageId,
    PeerScoreParams, PeerScoreThresholds, TopicScoreParams, ValidationMode,
    WhitelistSubscriptionFilter,
};
use substrate_record::{
    AnyRecord, ContentHash, DecodeError, MAX_RECORD_BYTES, NetworkId, RecordError, RecordId,
};

use crate::name::Names;

/// Largest gossip message: a record and what gossipsub wraps around it.
const MAX_MESSAGE: usize = MAX_RECORD_BYTES + 1024;

/// Messages queued for one slow neighbour. At 16 KiB each, 2 MiB; the default of 5,000 would be 80.
const QUEUE_PER_PEER: usize = 128;

/// Most records in one message, and most ids in one control message: a heartbeat's worth.
const MAX_PER_RPC: usize = 512;

/// How long a message id is remembered. A Capability is re-sent every minute with a new
/// sequence number, so a copy older than two minutes is news to nobody.
const REMEMBER: Duration = Duration::from_secs(120);

/// Peers behind one address before gossipsub's scoring counts it against them: a class or an
/// office behind one router is not an attack.
const PEERS_PER_ADDRESS: f64 = 32.0;

/// Verdicts remembered: two minutes of a busy topic. A record arrives once from each neighbour
/// and is checked (about 50 µs) once.
const VERDICTS: usize = 4_096;

pub(crate) type Behaviour = gossipsub::Behaviour<
    IdentityTransform,
    MaxCountSubscriptionFilter<WhitelistSubscriptionFilter>,
>;

/// What bytes from the topic are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A record of this network, signed.
    Record(RecordId),
    /// Well formed, of a type or version this build does not know: not its sender's fault.
    Unknown,
    /// Nothing an honest neighbour passes on.
    Bad,
}

/// Checks records, each once.
pub(crate) struct Checker {
    network: NetworkId,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    verdicts: HashMap<ContentHash, Verdict>,
    order: VecDeque<ContentHash>,
}

impl Checker {
    pub(crate) fn new(network: NetworkId) -> Arc<Self> {
        Arc::new(Self {
            network,
            seen: Mutex::default(),
        })
    }

    pub(crate) fn check(&self, bytes: &[u8]) -> Verdict {
        let hash = ContentHash::of(bytes);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(verdict) = seen.verdicts.get(&hash) {
            return *verdict;
        }
        let verdict = self.open(bytes);
        if seen.order.len() == VERDICTS
            && let Some(oldest) = seen.order.pop_front()
        {
            seen.verdicts.remove(&oldest);
        }
        seen.order.push_back(hash);
        seen.verdicts.insert(hash, verdict);
        verdict
    }

    fn open(&self, bytes: &[u8]) -> Verdict {
        match AnyRecord::open(bytes, &self.network) {
            Ok(record) => Verdict::Record(record.id()),
            Err(RecordError::Decode(DecodeError::UnknownType(_) | DecodeError::Version(_))) => {
                Verdict::Unknown
            }
            Err(_) => Verdict::Bad,
        }
    }

    fn message_id(&self, bytes: &[u8]) -> MessageId {
        match self.check(bytes) {
            Verdict::Record(id) => MessageId::new(id.as_bytes()),
            // One byte longer than a record id, so the two never meet.
            Verdict::Unknown | Verdict::Bad => {
                let mut id = vec![0xff];
                id.extend_from_slice(ContentHash::of(bytes).as_bytes());
                MessageId::from(id)
            }
        }
    }
}

/// Builds the behaviour and subscribes to the topic of records.
pub(crate) fn behaviour(names: &Names, checker: &Arc<Checker>) -> Result<Behaviour, String> {
    let checker = Arc::clone(checker);
    let config = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(names.gossip_prefix())
        .validation_mode(ValidationMode::Anonymous)
        .validate_messages()
        .message_id_fn(move |message| checker.message_id(&message.data))
        .max_transmit_size(MAX_MESSAGE)
        .max_publish_messages(MAX_PER_RPC)
        .max_control_messages_sent(MAX_PER_RPC)
        .connection_handler_queue_len(QUEUE_PER_PEER)
        .duplicate_cache_time(REMEMBER)
        .build()
        .map_err(|error| error.to_string())?;
    let topic = names.records_topic();
    let filter = MaxCountSubscriptionFilter {
        filter: WhitelistSubscriptionFilter(HashSet::from([topic.hash()])),
        max_subscribed_topics: 4,
        max_subscriptions_per_request: 8,
    };
    let mut gossip = gossipsub::Behaviour::new_with_subscription_filter_and_transform(
        MessageAuthenticity::Anonymous,
        config,
        filter,
        IdentityTransform,
    )?;
    gossip.with_peer_score(score(&topic), PeerScoreThresholds::default())?;
    gossip
        .subscribe(&topic)
        .map_err(|error| error.to_string())?;
    Ok(gossip)
}

/// Scoring: staying and bringing news first earns a little, invalid messages cost much.
///
/// The weight of invalid ones leaves a neighbour heard (-80 is deaf) until its third, with which
/// the table of offences blocks it: gossipsub alone would ignore it and keep the connection.
///
/// How *many* messages a neighbour delivers is not scored (P3): the topic is quiet in a small
/// network, and silence is no offence.
fn score(topic: &gossipsub::IdentTopic) -> PeerScoreParams {
    let records = TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.01,
        time_in_mesh_quantum: Duration::from_secs(1),
        time_in_mesh_cap: 1_000.0,
        first_message_deliveries_weight: 0.5,
        first_message_deliveries_cap: 40.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: -10.0,
        invalid_message_deliveries_decay: 0.97,
        ..TopicScoreParams::default()
    };
    PeerScoreParams {
        topics: HashMap::from([(topic.hash(), records)]),
        topic_score_cap: 50.0,
        ip_colocation_factor_threshold: PEERS_PER_ADDRESS,
        ip_colocation_factor_whitelist: HashSet::from([
            std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::Ipv6Addr::LOCALHOST.into(),
        ]),
        ..PeerScoreParams::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{network, signed_record};

    #[test]
    fn a_broken_copy_does_not_share_the_id_of_the_record_it_copies() {
        let checker = Checker::new(network(1));
        let good = signed_record(1, network(1), 1);
        let Verdict::Record(id) = checker.check(&good) else {
            panic!("a good record")
        };
        assert_eq!(checker.message_id(&good), MessageId::new(id.as_bytes()));
        let mut broken = good.clone();
        *broken.last_mut().unwrap() ^= 1;
        assert_eq!(checker.check(&broken), Verdict::Bad);
        assert_ne!(checker.message_id(&broken), checker.message_id(&good));
        assert_eq!(
            Checker::new(network(2)).check(&good),
            Verdict::Bad,
            "another network"
        );
    }

    #[test]
    fn the_verdicts_kept_are_bounded() {
        let checker = Checker::new(network(1));
        for i in 0..VERDICTS as u32 + 100 {
            checker.check(&i.to_be_bytes());
        }
        let seen = checker.seen.lock().unwrap();
        assert_eq!(
            (seen.verdicts.len(), seen.order.len()),
            (VERDICTS, VERDICTS)
        );
    }

    #[test]
    fn the_configuration_is_one_that_gossipsub_accepts() {
        behaviour(&Names::new(network(1)), &Checker::new(network(1))).unwrap();
    }
}
