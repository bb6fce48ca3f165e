//! A neighbour that speaks the protocol and means harm.

use std::time::Duration;

use futures::StreamExt;
use libp2p::Multiaddr;
use libp2p::gossipsub;
use libp2p::swarm::SwarmEvent;
use substrate_record::SessionNonce;
use tokio::time::timeout;

use crate::config::{Discovery, Limits, MeshConfig};
use crate::event::MeshEvent;
use crate::gossip::Checker;
use crate::mesh::start;
use crate::name::Names;
use crate::swarm::{self, BehaviourEvent};
use crate::testing::network;

fn config(seed: u8, listen: &[&str]) -> MeshConfig {
    MeshConfig {
        seed: [seed; 32],
        network: network(1),
        rules_hash: Some([1; 32]),
        version: "0.1.0".into(),
        build: "test".into(),
        session: SessionNonce::from_bytes([seed; 16]),
        listen: listen.iter().map(ToString::to_string).collect(),
        static_peers: vec![],
        known_peers: vec![],
        discovery: Discovery {
            mdns: false,
            kad: false,
        },
        allow_join: false,
        limits: Limits::default(),
    }
}

async fn garbage_until_hung_up() {
    let (mesh, mut events) = start(config(1, &["/ip4/127.0.0.1/tcp/0"])).await.unwrap();
    let Some(MeshEvent::Listening { address }) = events.recv().await else {
        panic!("listening comes first");
    };
    let mut hostile = swarm::build(&config(2, &[]), &Checker::new(network(1))).unwrap();
    hostile.dial(address.parse::<Multiaddr>().unwrap()).unwrap();
    loop {
        match hostile.select_next_some().await {
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Subscribed {
                ..
            })) => {
                let topic = Names::new(network(1)).records_topic();
                for i in 0..3 {
                    let gossip = &mut hostile.behaviour_mut().gossip;
                    gossip.publish(topic.clone(), vec![i; 40]).unwrap();
                }
            }
            SwarmEvent::ConnectionClosed { .. } => break,
            _ => {}
        }
    }
    let counters = mesh.counters().await;
    assert_eq!(
        (counters.gossip_refused, counters.offences, counters.blocks),
        (3, 3, 1)
    );
    while let Ok(event) = events.try_recv() {
        assert!(!matches!(event, MeshEvent::Record { .. }), "{event:?}");
    }
}

#[tokio::test]
async fn a_neighbour_that_gossips_garbage_is_blocked_and_the_daemon_never_sees_it() {
    timeout(Duration::from_secs(60), garbage_until_hung_up())
        .await
        .expect("it is hung up on");
}
