//! Names on the wire. All but hello's carry the Genesis id, so two networks share no stream and no topic.
//!
//! Absent by design: a fallback name without the id.

use libp2p::StreamProtocol;
use libp2p::gossipsub::IdentTopic;
use substrate_record::NetworkId;

/// The one name without a Genesis id: it is where two nodes find out whether they share one.
pub(crate) const HELLO: StreamProtocol = StreamProtocol::new("/substrate/hello/1");

/// A kind of stream the daemon opens and accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// One attempt at one job.
    Job,
    /// A joiner and its invite.
    Join,
    /// Registry entries in full, after hello.
    Sync,
}

/// The names of one network.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    network: NetworkId,
    job: StreamProtocol,
    join: StreamProtocol,
    sync: StreamProtocol,
}

impl Names {
    pub(crate) fn new(network: NetworkId) -> Self {
        let name = |path| owned(format!("/substrate/{network}/{path}"));
        Self {
            network,
            job: name("job/1"),
            join: name("join/1"),
            sync: name("sync/1"),
        }
    }

    pub(crate) fn stream(&self, protocol: Protocol) -> StreamProtocol {
        match protocol {
            Protocol::Job => self.job.clone(),
            Protocol::Join => self.join.clone(),
            Protocol::Sync => self.sync.clone(),
        }
    }

    /// The protocol a name stands for; `None` is hello.
    pub(crate) fn protocol(&self, name: &StreamProtocol) -> Option<Protocol> {
        [Protocol::Job, Protocol::Join, Protocol::Sync]
            .into_iter()
            .find(|protocol| self.stream(*protocol) == *name)
    }

    pub(crate) fn kad(&self) -> StreamProtocol {
        owned(format!("/substrate/{}/kad/1", self.network))
    }

    pub(crate) fn gossip_prefix(&self) -> String {
        format!("/substrate/{}/gossip", self.network)
    }

    pub(crate) fn records_topic(&self) -> IdentTopic {
        IdentTopic::new(format!("/substrate/{}/records/1", self.network))
    }
}

fn owned(name: String) -> StreamProtocol {
    StreamProtocol::try_from_owned(name).expect("the name begins with a slash")
}
