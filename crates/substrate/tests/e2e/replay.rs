//! Captured records played again at a real daemon: a manifest it has seen, one for an earlier start of it, one that was
//! signed for another network of the same name, and a node of that other network at its door.
//!
//! The thief is as strong as can be: it holds the asker's own device key and speaks the protocol by the same code.

use std::time::Duration;

use anyhow::{Context, Result};
use substrate::home::Home;
use substrate::keys::{DeviceKey, RegistryKey, genesis_of_network};
use substrate_mesh::frame::framed;
use substrate_mesh::job::{JobFrame, RefusalCode};
use substrate_mesh::{
    DialError, Discovery, HelloMismatch, Limits, Mesh, MeshConfig, MeshStream, Protocol,
};
use substrate_record::{Genesis, JobManifest, Record, SessionNonce, Verified, export::Export};
use tokio::time::timeout;
use xtask::node::{Node, Scratch};
use xtask::stream::complete;
use xtask::trio::{Holders, MODEL, Trio, test_bin, test_model};

/// A dial, a hello and a refusal on loopback take milliseconds.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn captured_offers_and_those_of_another_network_of_the_same_name_are_refused() -> Result<()> {
    let scratch = Scratch::new("replay")?;
    let mut trio = Trio::start(&test_bin(), scratch.path(), &test_model(), Holders::Guests)?;
    let done = complete(trio.a.api, MODEL, "a", 1, "circle")?;
    let captured = exported(&trio.a, &done.job)?;
    let key = DeviceKey::open(&Home::at(&trio.a.home))?;
    // From here on the thief is the asker.
    trio.a.stop()?;
    let served = receipts(trio.guest(&done.node)?)?;

    let runtime = tokio::runtime::Runtime::new()?;
    let thief = Thief { key, captured };
    let provider = trio.guest(&done.node)?;
    runtime.block_on(thief.plays_it_again(provider, RefusalCode::Replayed))?;
    runtime.block_on(thief.signs_it_for_another_network(provider))?;
    runtime.block_on(thief.comes_from_another_network(provider))?;

    let provider = trio.guest_mut(&done.node)?;
    provider.stop()?;
    provider.start()?;
    runtime.block_on(thief.plays_it_again(provider, RefusalCode::WrongSession))?;
    assert_eq!(receipts(provider)?, served, "nothing was answered again");
    Ok(())
}

struct Thief {
    key: DeviceKey,
    captured: Export,
}

impl Thief {
    async fn plays_it_again(&self, provider: &Node, expected: RefusalCode) -> Result<()> {
        let manifest = self.manifest().bytes().to_vec();
        let refused = self.offer(provider, manifest).await?;
        assert_eq!(refused, expected);
        Ok(())
    }

    /// The very manifest, valid where it was signed for.
    async fn signs_it_for_another_network(&self, provider: &Node) -> Result<()> {
        let manifest = self.manifest();
        let record = Record {
            author: manifest.author(),
            place: None,
            epoch: 0,
            claimed_ms: 0,
            deps: Vec::new(),
            body: manifest.body().clone(),
        };
        let signed = record.sign(self.key.signing(), &self.other_network().network())?;
        let refused = self.offer(provider, signed.bytes().to_vec()).await?;
        assert_eq!(refused, RefusalCode::BadManifest);
        Ok(())
    }

    async fn comes_from_another_network(&self, provider: &Node) -> Result<()> {
        let mesh = self.mesh(&self.other_network()).await?;
        let dialled = timeout(SOON, mesh.dial(&address(provider))).await?;
        mesh.shutdown().await;
        let Err(DialError::Refused(HelloMismatch::OtherNetwork { .. })) = dialled else {
            anyhow::bail!("it was not refused at hello: {dialled:?}");
        };
        Ok(())
    }

    /// Offers a manifest and returns the provider's refusal.
    async fn offer(&self, provider: &Node, manifest: Vec<u8>) -> Result<RefusalCode> {
        let mesh = self.mesh(&self.captured.genesis).await?;
        let node = timeout(SOON, mesh.dial(&address(provider))).await??;
        let stream: MeshStream = timeout(SOON, mesh.open(node, Protocol::Job)).await??;
        let (mut reader, mut writer) = framed::<_, JobFrame>(stream);
        writer.send(&JobFrame::Offer { manifest }).await?;
        let answer = loop {
            match reader.next_within(SOON).await? {
                JobFrame::Heartbeat => {}
                answer => break answer,
            }
        };
        mesh.shutdown().await;
        match answer {
            JobFrame::Refused { why, .. } => Ok(why),
            other => anyhow::bail!("the offer was answered with {}", other.name()),
        }
    }

    async fn mesh(&self, genesis: &Verified<Genesis>) -> Result<Mesh> {
        let (mesh, mut events) = substrate_mesh::start(MeshConfig {
            seed: *self.key.seed(),
            network: genesis.network(),
            rules_hash: Some(genesis.body().rules_hash),
            version: "0".to_owned(),
            build: "thief".to_owned(),
            session: SessionNonce::from_bytes([7; 16]),
            listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
            static_peers: Vec::new(),
            known_peers: Vec::new(),
            discovery: Discovery {
                mdns: false,
                kad: false,
            },
            allow_join: false,
            limits: Limits::default(),
        })
        .await?;
        // What the mesh tells is read, so that it does not wait for us.
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        Ok(mesh)
    }

    /// Founded by the same device under the same name.
    fn other_network(&self) -> Verified<Genesis> {
        let name = &self.captured.genesis.body().name;
        genesis_of_network(&self.key, &RegistryKey::generate(), name)
    }

    fn manifest(&self) -> &Verified<JobManifest> {
        &self.captured.attempts[0].manifest
    }
}

fn address(node: &Node) -> String {
    format!("/ip4/127.0.0.1/tcp/{}", node.mesh)
}

fn exported(node: &Node, job: &str) -> Result<Export> {
    let file = node.home.join("captured.receipt");
    let path = file.to_str().context("a path in UTF-8")?;
    node.cli(&["receipts", "export", job, "--output", path])?;
    Ok(Export::decode(&std::fs::read(&file)?)?)
}

fn receipts(node: &Node) -> Result<usize> {
    let listed = node.json(&["receipts", "list"])?;
    Ok(listed["receipts"]
        .as_array()
        .context("no list of receipts")?
        .len())
}
