//! Real processes on loopback: discovery, gossip, streams, and peers that do wrong.

mod net;

use std::time::Duration;

use net::{Probe, QUIC, TCP, node, rest};

/// Far less than a dead connection stays, far more than a stream on loopback takes.
const AT_ONCE: Duration = Duration::from_secs(4);

async fn three_nodes(transport: &str) {
    let mut a = Probe::start(1, &["--listen", transport, "--kad"]);
    let address = a.address().await;
    let known = ["--listen", transport, "--kad", "--known", &address];
    let mut b = Probe::start(2, &known);
    let mut c = Probe::start(3, &known);
    // B and C were told of A only.
    b.expect(&format!("up {}", node(3))).await;
    c.expect(&format!("up {}", node(2))).await;

    // A publishes as soon as both have subscribed: until then nobody hears it.
    let published = loop {
        let answer = a.ask("publish 1 1", "published ").await;
        if answer.ends_with("Ok(())") {
            break rest(&answer, 1);
        }
        a.drain().await;
    };
    let id = published.split(' ').next().unwrap().to_owned();
    b.expect(&format!("record {id}")).await;
    c.expect(&format!("record {id}")).await;

    assert!(
        b.ask(&format!("echo {} 50", node(3)), "echo")
            .await
            .starts_with("echoed 50")
    );
    c.expect(&format!("inbound {} Job", node(2))).await;
    a.send("quit").await;
    a.expect("bye").await;
    b.expect(&format!("down {}", node(1))).await;
    c.expect(&format!("down {}", node(1))).await;
}

#[tokio::test]
async fn three_nodes_find_each_other_gossip_and_stream_over_quic() {
    three_nodes(QUIC).await;
}

#[tokio::test]
async fn three_nodes_find_each_other_gossip_and_stream_over_tcp() {
    three_nodes(TCP).await;
}

#[tokio::test]
async fn another_network_is_refused_and_both_sides_are_told_why() {
    for transport in [QUIC, TCP] {
        let mut a = Probe::start(1, &["--listen", transport]);
        let address = a.address().await;
        let mut b = Probe::start(2, &["--network", "2"]);
        let answer = b.ask(&format!("dial {address}"), "dial").await;
        assert!(
            answer.starts_with("dial failed: the peer belongs to network 0101"),
            "{answer}"
        );
        let refusal = a.expect(&format!("refused {}", node(2))).await;
        assert!(refusal.contains("belongs to network 0202"), "{refusal}");
        assert!(a.drain().await.starts_with("peers 0"));
        assert!(
            b.ask(&format!("echo {} 1", node(1)), "echo")
                .await
                .starts_with("echo failed")
        );

        let mut c = Probe::start(3, &["--rules", "9"]);
        let answer = c.ask(&format!("dial {address}"), "dial").await;
        assert_eq!(
            answer,
            "dial failed: the peer follows other rules of the same network"
        );
    }
}

#[tokio::test]
async fn a_joiner_reaches_the_join_stream_and_nothing_else() {
    let mut a = Probe::start(1, &["--listen", QUIC, "--allow-join"]);
    let address = a.address().await;
    let mut b = Probe::start(2, &["--joiner"]);
    assert_eq!(
        b.ask(&format!("dial {address}"), "dial").await,
        format!("dialed {}", node(1))
    );
    assert_eq!(
        b.ask(&format!("join {}", node(1)), "join").await,
        "joined 3 of 3"
    );
    assert!(
        b.ask(&format!("echo {} 1", node(1)), "echo")
            .await
            .starts_with("echo failed")
    );
    a.expect(&format!("inbound {} Join", node(2))).await;
    assert!(a.drain().await.starts_with("peers 0"));
    assert!(!a.has_seen("up ") && !a.has_seen("inbound"));

    let mut closed = Probe::start(4, &["--listen", QUIC]);
    let address = closed.address().await;
    assert_eq!(
        b.ask(&format!("dial {address}"), "dial").await,
        "dial failed: joining is not open here"
    );
}

#[tokio::test]
async fn malformed_oversize_and_slow_frames_end_in_a_block_and_hurt_nobody_else() {
    let mut a = Probe::start(1, &["--listen", QUIC]);
    let address = a.address().await;
    let (mut good, mut bad) = (Probe::start(2, &["--peer", &address]), Probe::start(3, &[]));
    good.expect("up ").await;
    assert!(
        bad.ask(&format!("dial {address}"), "dial")
            .await
            .starts_with("dialed")
    );
    // The slow one first: it begins a frame and leaves it, while the others go on.
    bad.send(&format!("raw {} 000000ff01", node(1))).await;
    bad.send(&format!("raw {} ffffffff", node(1))).await;
    bad.send(&format!("raw {} 00000003ffffff", node(1))).await;
    a.expect(&format!("offence {} OversizeFrame", node(3)))
        .await;
    a.expect(&format!("offence {} MalformedFrame", node(3)))
        .await;
    a.expect(&format!("offence {} SlowFrame", node(3))).await;
    bad.send(&format!("raw {} 00000003ffffff", node(1))).await;
    a.expect(&format!("offence {} MalformedFrame", node(3)))
        .await;
    a.expect(&format!("down {}", node(3))).await;
    bad.expect(&format!("down {}", node(1))).await;
    assert!(
        bad.ask(&format!("dial {address}"), "dial")
            .await
            .starts_with("dial failed")
    );
    assert!(
        a.ask("counters", "counters")
            .await
            .contains("offences: 4, blocks: 1")
    );
    assert!(
        good.ask(&format!("echo {} 5", node(1)), "echo")
            .await
            .starts_with("echoed 5")
    );
}

#[tokio::test]
async fn a_second_connection_is_no_second_peer() {
    let mut a = Probe::start(1, &["--listen", QUIC, "--listen", TCP]);
    let (quic, tcp) = (
        a.address_with("/ip4/127.0.0.1/udp").await,
        a.address_with("/ip4/127.0.0.1/tcp").await,
    );
    let mut b = Probe::start(2, &[]);
    for address in [&quic, &tcp] {
        // Without the id the dialer cannot know that it is connected already.
        let anonymous = address.split("/p2p/").next().unwrap();
        assert_eq!(
            b.ask(&format!("dial {anonymous}"), "dial").await,
            format!("dialed {}", node(1))
        );
    }
    let peers = b.drain().await;
    assert!(
        peers.starts_with("peers 1") && peers.contains("/udp/") && peers.contains("/tcp/"),
        "{peers}"
    );
    assert!(
        b.ask(&format!("echo {} 5", node(1)), "echo")
            .await
            .starts_with("echoed 5")
    );
    a.expect(&format!("up {}", node(2))).await;
    a.drain().await;
    assert!(!a.has_seen("up "), "one peer, one event");
}

#[tokio::test]
async fn a_static_peer_that_was_killed_is_found_again_with_all_discovery_off() {
    for transport in [QUIC, TCP] {
        let mut a = Probe::start(1, &["--listen", transport]);
        let address = a.address().await;
        let listen = address.split("/p2p/").next().unwrap().to_owned();
        a.kill().await;
        let mut b = Probe::start(2, &["--peer", &address]);
        let mut a = Probe::start(1, &["--listen", &listen]);
        b.expect("up ").await;
        a.kill().await;
        b.expect("down ").await;
        let mut a = a.restart(&[]);
        b.expect("up ").await;
        a.expect("up ").await;
        assert!(
            b.ask(&format!("echo {} 5", node(1)), "echo")
                .await
                .starts_with("echoed 5")
        );
    }
}

#[tokio::test]
async fn a_new_session_reaches_every_peer() {
    let mut a = Probe::start(1, &["--listen", QUIC]);
    let address = a.address().await;
    let mut b = Probe::start(2, &["--peer", &address]);
    let mut c = Probe::start(3, &["--peer", &address]);
    b.expect("up ").await;
    c.expect("up ").await;
    a.send("session 9").await;
    let changed = format!("changed {} {}", node(1), "09".repeat(16));
    b.expect(&changed).await;
    c.expect(&changed).await;
}

/// A process that is killed says no goodbye over QUIC: its connection is there until pings have failed for long.
#[tokio::test]
async fn a_peer_that_was_killed_and_came_back_is_reached_at_once() {
    let mut a = Probe::start(1, &["--listen", QUIC]);
    let address = a.address().await;
    let mut first = Probe::start(2, &["--peer", &address]);
    a.expect(&format!("up {}", node(2))).await;
    let echo = format!("echo {} 50", node(2));
    assert!(a.ask(&echo, "echo").await.starts_with("echoed 50"));
    first.kill().await;
    let _second = first.restart(&["--session", "2"]);
    a.expect(&format!("changed {}", node(2))).await;
    assert!(a.drain().await.starts_with("peers 1"));
    assert!(!a.has_seen(&format!("down {}", node(2))));
    a.send(&echo).await;
    let answer = a.expect_within("echo", AT_ONCE).await;
    assert!(
        answer
            .as_ref()
            .is_some_and(|answer| answer.starts_with("echoed 50")),
        "{answer:?}"
    );
}
