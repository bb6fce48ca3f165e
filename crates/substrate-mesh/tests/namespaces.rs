//! Two network namespaces and a cable between them that is pulled out mid-stream.
//!
//! Runs as root or as a user who may make user namespaces; where neither is possible it fails and says so.

mod net;

use std::process::Stdio;
use std::time::Duration;

use net::{Probe, node};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// A process that holds a namespace open until it is dropped.
struct Holder {
    _child: Child,
    pid: u32,
}

impl Holder {
    async fn start(command: &[&str]) -> Self {
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .args(["sh", "-c", "echo $$; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("util-linux is installed");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let pid = lines
            .next_line()
            .await
            .expect("text")
            .expect("this test needs root or user namespaces");
        Self {
            _child: child,
            pid: pid.parse().expect("a pid"),
        }
    }

    fn enter(&self, user: &Self) -> Vec<String> {
        vec![
            "nsenter".into(),
            "--preserve-credentials".into(),
            format!("--user=/proc/{}/ns/user", user.pid),
            format!("--net=/proc/{}/ns/net", self.pid),
        ]
    }
}

/// Two namespaces joined by a virtual cable, addresses 10.77.0.1 and 10.77.0.2.
struct Cable {
    here: Holder,
    there: Holder,
}

impl Cable {
    async fn lay() -> Self {
        let here = Holder::start(&["unshare", "-rn"]).await;
        let pid = here.pid.to_string();
        let there = Holder::start(&[
            "nsenter",
            "--preserve-credentials",
            "-U",
            "-n",
            "-t",
            &pid,
            "unshare",
            "-n",
        ])
        .await;
        let cable = Self { here, there };
        let there_pid = cable.there.pid.to_string();
        cable
            .ip(
                false,
                &[
                    "link", "add", "mesh0", "type", "veth", "peer", "name", "mesh0", "netns",
                    &there_pid,
                ],
            )
            .await;
        for (far, address) in [(false, "10.77.0.1/24"), (true, "10.77.0.2/24")] {
            cable
                .ip(far, &["address", "add", address, "dev", "mesh0"])
                .await;
            cable.ip(far, &["link", "set", "lo", "up"]).await;
            cable.ip(far, &["link", "set", "mesh0", "up"]).await;
        }
        cable
    }

    fn enter(&self, far: bool) -> Vec<String> {
        if far {
            self.there.enter(&self.here)
        } else {
            self.here.enter(&self.here)
        }
    }

    async fn ip(&self, far: bool, args: &[&str]) {
        let enter = self.enter(far);
        let status = Command::new(&enter[0])
            .args(&enter[1..])
            .arg("ip")
            .args(args)
            .status()
            .await;
        assert!(
            status.expect("iproute2 is installed").success(),
            "ip {args:?}"
        );
    }

    async fn pull(&self) {
        self.ip(false, &["link", "set", "mesh0", "down"]).await;
    }

    async fn mend(&self) {
        self.ip(false, &["link", "set", "mesh0", "up"]).await;
    }
}

async fn cut_cable(listen: &str) {
    let cable = Cable::lay().await;
    let mut a = Probe::start_in(&cable.enter(false), 1, &["--listen", listen]);
    let address = a.address().await;
    let mut b = Probe::start_in(&cable.enter(true), 2, &["--peer", &address]);
    b.expect("up ").await;
    a.expect("up ").await;
    b.ask(&format!("beat {}", node(1)), "beating").await;

    cable.pull().await;
    let cut = Instant::now();
    b.expect("beat ended").await;
    let silent = cut.elapsed();
    assert!(silent < Duration::from_secs(4), "{silent:?}");
    b.expect("down ").await;
    a.expect("down ").await;
    let down = cut.elapsed();
    assert!(down < Duration::from_secs(20), "{down:?}");

    cable.mend().await;
    let mended = Instant::now();
    b.expect("up ").await;
    a.expect("up ").await;
    let back = mended.elapsed();
    assert!(
        b.ask(&format!("echo {} 5", node(1)), "echo")
            .await
            .starts_with("echoed 5")
    );
    eprintln!(
        "{listen}: stream silent after {silent:?}, peer down after {down:?}, back {back:?} after mending"
    );
}

#[tokio::test]
async fn a_cut_cable_is_noticed_and_a_mended_one_used_again_over_quic() {
    cut_cable("/ip4/10.77.0.1/udp/11536/quic-v1").await;
}

#[tokio::test]
async fn a_cut_cable_is_noticed_and_a_mended_one_used_again_over_tcp() {
    cut_cable("/ip4/10.77.0.1/tcp/11536").await;
}

#[tokio::test]
async fn neighbours_on_one_cable_find_each_other_by_multicast() {
    let cable = Cable::lay().await;
    for far in [false, true] {
        cable
            .ip(far, &["route", "add", "224.0.0.0/4", "dev", "mesh0"])
            .await;
    }
    let mut a = Probe::start_in(
        &cable.enter(false),
        1,
        &["--listen", "/ip4/10.77.0.1/udp/0/quic-v1", "--mdns"],
    );
    a.address().await;
    let mut b = Probe::start_in(
        &cable.enter(true),
        2,
        &["--listen", "/ip4/10.77.0.2/udp/0/quic-v1", "--mdns"],
    );
    b.expect(&format!("up {}", node(1))).await;
    a.expect(&format!("up {}", node(2))).await;
}
