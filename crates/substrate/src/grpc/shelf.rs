//! The desk's calls: models on disk, receipts, the network and the circles.
//!
//! Invariant: bytes are deleted only after the last name that held them is gone.
//! Everything here blocks and runs off the event loop.

use substrate_api::v1;
use substrate_record::{Genesis, JobId, NetworkId, NodeId, Signed};
use tonic::Status;

use crate::{
    door::AskError,
    invite,
    models::{
        catalogue::{Catalogue, FindError, Held},
        names::ModelName,
    },
    receipts,
};

use super::{Desk, refusal};

/// Receipt rows per page when the caller does not say, and at most.
const RECEIPTS_PER_PAGE: u32 = 200;

/// A failure of the disk, with its causes in one line.
pub fn failed(error: impl Into<anyhow::Error>) -> Status {
    Status::internal(format!("{:#}", error.into()))
}

/// A model that was not found, in the same shape as the door's.
pub fn not_found(error: FindError) -> Status {
    match error {
        FindError::Unknown { model, similar } => {
            refusal::status_of(&AskError::UnknownModel { model, similar })
        }
        FindError::Name(error) => Status::invalid_argument(format!("model name: {error}")),
        other => failed(other),
    }
}

/// A model's name, checked.
pub fn name_in(name: &str) -> Result<ModelName, Status> {
    name.parse()
        .map_err(|error| Status::invalid_argument(format!("model name '{name}': {error}")))
}

/// The models held here.
pub fn models(desk: &Desk) -> Result<Vec<v1::Model>, Status> {
    let held = desk.catalogue.list().map_err(failed)?;
    Ok(held.iter().map(model_of).collect())
}

fn model_of(held: &Held) -> v1::Model {
    let entry = held.entry.body();
    v1::Model {
        name: held.name.to_string(),
        entry: held.entry.id().as_bytes().to_vec(),
        digest: held.weights().as_bytes().to_vec(),
        size: held.size(),
        arch: entry.arch.clone(),
        quant: entry.quant.clone(),
        n_params: held.facts.n_params,
        context: entry.context,
        licence: entry.licence.clone(),
        modified_ms: held.modified_ms,
        own: true,
        nodes: Vec::new(),
        loaded: false,
        template: held.facts.template.clone(),
    }
}

/// Everything known of a model held here.
pub fn show(desk: &Desk, model: &str) -> Result<v1::ShowReply, Status> {
    let held = desk.catalogue.find(model).map_err(not_found)?;
    let entry = held.entry.body();
    Ok(v1::ShowReply {
        model: Some(model_of(&held)),
        files: super::import::files_out(entry),
        sources: entry.sources.clone(),
        signer: Some(held.entry.author().as_bytes().to_vec()),
        reference_rates: super::import::rates_out(entry),
        n_vocab: held.facts.n_vocab,
        fit: None,
    })
}

/// Takes a name away, and the bytes nobody else names.
pub fn remove(desk: &Desk, model: &str) -> Result<v1::RemoveReply, Status> {
    let name = desk.catalogue.find(model).map_err(not_found)?.name;
    let removed = desk.catalogue.remove(&name).map_err(not_found)?;
    let mut freed = 0;
    for blob in removed.unreferenced {
        let size = desk.blobs.size(&blob).unwrap_or(0);
        if desk.blobs.remove(&blob).map_err(failed)? {
            freed += size;
        }
    }
    Ok(v1::RemoveReply {
        name: name.to_string(),
        freed,
    })
}

/// Gives a model a second name; the bytes of an older model of that name go with it.
pub fn copy(desk: &Desk, from: &str, to: &str) -> Result<(), Status> {
    let freed = desk
        .catalogue
        .copy(from, &name_in(to)?, super::desk::now_ms());
    for blob in freed.map_err(not_found)? {
        desk.blobs.remove(&blob).map_err(failed)?;
    }
    Ok(())
}

/// A page of receipts.
pub fn receipts(desk: &Desk, request: &v1::ReceiptsRequest) -> Result<v1::ReceiptsReply, Status> {
    let limit = match request.limit {
        0 => RECEIPTS_PER_PAGE,
        limit => limit.min(RECEIPTS_PER_PAGE),
    };
    let page = receipts::list(&desk.records, &desk.node(), request.before, limit as usize)
        .map_err(failed)?;
    let rows = page.rows.into_iter().map(receipt_out).collect();
    Ok(v1::ReceiptsReply {
        rows,
        next: page.next,
    })
}

fn receipt_out(row: receipts::ReceiptRow) -> v1::ReceiptRow {
    let role = match row.role {
        receipts::Role::Requested => v1::ReceiptRole::Requested,
        receipts::Role::Served => v1::ReceiptRole::Served,
        receipts::Role::Both => v1::ReceiptRole::Both,
    };
    v1::ReceiptRow {
        job: row.job.as_bytes().to_vec(),
        attempt: row.attempt,
        role: role.into(),
        other: row.other.as_bytes().to_vec(),
        model: row.model,
        tokens: row.tokens,
        verdict: row.verdict,
        claimed_ms: row.claimed_ms,
    }
}

/// One job's receipts in words.
pub fn receipt(desk: &Desk, job: &JobId) -> Result<v1::ReceiptReply, Status> {
    let story = receipts::show(&desk.records, job).map_err(no_receipt)?;
    Ok(v1::ReceiptReply {
        text: story.lines.join("\n"),
    })
}

/// One job's receipts for others to verify.
pub fn export_receipt(desk: &Desk, job: &JobId) -> Result<v1::ExportReceiptReply, Status> {
    let export = receipts::export(&desk.records, &desk.genesis, job).map_err(no_receipt)?;
    Ok(v1::ExportReceiptReply { export })
}

fn no_receipt(error: receipts::ReceiptError) -> Status {
    match error {
        receipts::ReceiptError::UnknownJob { .. } => Status::not_found(error.to_string()),
        other => failed(other),
    }
}

/// The current network.
pub fn network(desk: &Desk) -> Result<v1::NetworkReply, Status> {
    let genesis = desk.genesis.body();
    let open = open_invites(desk)?.len();
    let keys = |keys: &[NodeId]| keys.iter().map(|key| key.as_bytes().to_vec()).collect();
    Ok(v1::NetworkReply {
        name: genesis.name.clone(),
        network: desk.network().as_bytes().to_vec(),
        registry_keys: keys(&genesis.registry_keys),
        registry_k: genesis.registry_k,
        members: keys(&genesis.members),
        open_invites: u32::try_from(open).unwrap_or(u32::MAX),
    })
}

/// Keeps a new network and makes it current from the next start on; the models held here come along.
pub fn found(desk: &Desk, genesis: &[u8]) -> Result<NetworkId, Status> {
    let signed = Signed::<Genesis>::decode(genesis)
        .map_err(|error| Status::invalid_argument(format!("genesis: {error}")))?;
    let genesis = signed
        .verify_genesis()
        .map_err(|error| Status::invalid_argument(format!("genesis: {error}")))?;
    let network = genesis.network();
    desk.store.add_network(&genesis).map_err(failed)?;
    Catalogue::new(desk.store.clone(), network)
        .carry_over(&desk.network(), &desk.device, super::desk::now_ms())
        .map_err(failed)?;
    desk.store.set_current_network(&network).map_err(failed)?;
    Ok(network)
}

/// My circles.
pub fn circles(desk: &Desk) -> Result<v1::CirclesReply, Status> {
    let circles = desk.store.circles(&desk.network()).map_err(failed)?;
    let circles = circles.into_iter().map(|(name, members)| {
        let members = members.into_iter().map(|member| v1::CircleMember {
            node: member.node.as_bytes().to_vec(),
            label: member.label,
            addrs: member.addrs,
        });
        v1::Circle {
            name,
            members: members.collect(),
        }
    });
    Ok(v1::CirclesReply {
        circles: circles.collect(),
    })
}

/// Invites that may still be used.
pub fn invites(desk: &Desk) -> Result<v1::InvitesReply, Status> {
    let invites = open_invites(desk)?.into_iter().map(|open| v1::OpenInvite {
        id: open.id.to_vec(),
        circle: open.circle.unwrap_or_default(),
        expires_ms: open.expires_ms,
    });
    Ok(v1::InvitesReply {
        invites: invites.collect(),
    })
}

fn open_invites(desk: &Desk) -> Result<Vec<invite::PendingInvite>, Status> {
    let now = super::desk::now_ms();
    let mut open = invite::pending(&desk.store, &desk.network()).map_err(failed)?;
    open.retain(|invite| invite.expires_ms >= now);
    open.sort_by_key(|invite| invite.expires_ms);
    Ok(open)
}

/// Takes an invite back. One that was used already is not there to be taken.
pub fn revoke_invite(desk: &Desk, id: &[u8]) -> Result<bool, Status> {
    let id = id
        .try_into()
        .map_err(|_| Status::invalid_argument("an invite's id has 32 bytes"))?;
    if !open_invites(desk)?.iter().any(|open| open.id == id) {
        return Ok(false);
    }
    invite::revoke(&desk.store, &desk.network(), &id).map_err(failed)
}

/// Takes a node out of a circle.
pub fn circle_remove(desk: &Desk, circle: &str, node: &NodeId) -> Result<bool, Status> {
    desk.store
        .circle_remove(&desk.network(), circle, node)
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::blobs::Blobs;
    use crate::home::Home;
    use crate::keys::{DeviceKey, RegistryKey, genesis_of_network};
    use crate::models::import::{Inspect, InspectError, ModelFacts, Signer};
    use crate::store::Store;

    /// Every file is a model.
    struct Willing;

    impl Inspect for Willing {
        fn inspect(&self, _: &Path) -> Result<ModelFacts, InspectError> {
            Ok(ModelFacts {
                arch: "llama".into(),
                n_ctx_train: 2_048,
                ..ModelFacts::default()
            })
        }
    }

    fn desk(folder: &Path) -> Desk {
        let home = Home::at(folder.join("home"));
        home.prepare().unwrap();
        let device = Arc::new(DeviceKey::open_or_create(&home).unwrap());
        let store = Store::open(&home.store()).unwrap();
        let blobs = Blobs::open(&home.blobs()).unwrap();
        Desk::new(home, store, blobs, device, Arc::new(Willing)).unwrap()
    }

    fn bring(desk: &Desk, file: &Path, bytes: &str, name: &str) -> Held {
        std::fs::write(file, bytes).unwrap();
        let signer = Signer::Device(desk.device.clone());
        let name = name_in(name).unwrap();
        let brought = desk
            .importer
            .import(file, &name, Vec::new(), &signer, 1, &mut |_, _| {});
        brought.unwrap().held
    }

    #[test]
    fn a_new_network_keeps_the_models_that_were_imported_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let desk = desk(folder.path());
        let held = bring(&desk, &folder.path().join("m"), "weights", "small:1");
        let genesis = genesis_of_network(&desk.device, &RegistryKey::generate(), "ours");
        let network = found(&desk, genesis.bytes()).unwrap();
        assert_ne!(network, desk.network());
        let there = Catalogue::new(desk.store.clone(), network);
        let carried = there.find("small:1").unwrap();
        assert_eq!(carried.weights(), held.weights());
        let current = desk.store.current_network().unwrap().unwrap();
        assert_eq!(current.network(), network);
    }
}
