//! The first frame of a job stream: an offer that is one for this node and asks for what it serves, or a resume.
//!
//! Invariant: what is refused here was refused before anything but the manifest was read.
//! Absent by design: what the owner, the queue and the registry say to an offer. That is the node's.

use std::sync::Arc;
use std::time::Duration;

use substrate_mesh::Offence;
use substrate_mesh::job::{JobFrame, RefusalCode};
use substrate_record::{JobKind, JobManifest, NodeId, Signed, Verified, WallTier};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Session;
use crate::daemon::context::Context;
use crate::daemon::session::Report;
use crate::daemon::session::io::{IoEnd, JobIo};

/// How long a stream may take to show its first frame.
const OFFER_DEADLINE: Duration = Duration::from_secs(10);
/// Takes an inbound job stream: an offer begins a session, a resume is handed to the one it names.
pub async fn accept(
    context: Arc<Context>,
    from: NodeId,
    mut io: JobIo,
    reports: mpsc::Sender<Report>,
) {
    let Ok(Ok(first)) = timeout(OFFER_DEADLINE, first_frame(&mut io)).await else {
        return;
    };
    match first {
        JobFrame::Offer { manifest } => match open_offer(&context, from, &manifest) {
            Ok(manifest) => match unserved(&context, manifest.body(), from == context.me) {
                None => Session::run(context, from, manifest, io, reports).await,
                Some((why, detail)) => refuse(&mut io, why, detail.to_owned()).await,
            },
            Err(what) => {
                refuse(&mut io, RefusalCode::BadManifest, what.clone()).await;
                let kind = Offence::BadRecord;
                let offence = Report::Offence {
                    node: from,
                    kind,
                    what,
                };
                let _ = reports.send(offence).await;
            }
        },
        JobFrame::Resume { manifest, n } => {
            let _ = reports
                .send(Report::Reattach {
                    from,
                    manifest,
                    tokens: n,
                    io,
                })
                .await;
        }
        other => {
            let what = format!("a stream that begins with {}", other.name());
            let kind = Offence::OutOfOrder;
            let offence = Report::Offence {
                node: from,
                kind,
                what,
            };
            let _ = reports.send(offence).await;
        }
    }
}

async fn first_frame(io: &mut JobIo) -> Result<JobFrame, IoEnd> {
    loop {
        match io.next().await? {
            JobFrame::Heartbeat => {}
            frame => return Ok(frame),
        }
    }
}

fn open_offer(
    context: &Context,
    from: NodeId,
    bytes: &[u8],
) -> Result<Verified<JobManifest>, String> {
    let signed =
        Signed::<JobManifest>::decode(bytes).map_err(|error| format!("its manifest: {error}"))?;
    let manifest = signed
        .verify(&context.network)
        .map_err(|error| format!("its manifest: {error}"))?;
    if manifest.author() != from {
        return Err("a manifest of another author than the connection's".to_owned());
    }
    if manifest.body().provider != context.me {
        return Err("a manifest for another provider".to_owned());
    }
    Ok(manifest)
}

/// What no node of this build can do, whatever its owner and its queue say: told before any input is read.
fn unserved(
    context: &Context,
    manifest: &JobManifest,
    is_own: bool,
) -> Option<(RefusalCode, &'static str)> {
    let engine = &context.pool.settings().engine_class;
    if manifest.policy.rules_hash != context.desk.genesis.body().rules_hash {
        return Some((
            RefusalCode::BadManifest,
            "the manifest is under other rules",
        ));
    }
    if manifest.wall == WallTier::MicrovmEmulated && !is_own {
        return Some((
            RefusalCode::WallUnmet,
            "an emulated machine serves its owner alone",
        ));
    }
    let why = if manifest.kind == JobKind::Embed && manifest.resume_tokens > 0 {
        "vectors are not gone on from: the texts that are left are asked for"
    } else if manifest.adapter.is_some() {
        "no adapters are served here"
    } else if manifest.sampler.n > 1 {
        "only one choice of text per job is answered here"
    } else if !manifest.engine_class.is_empty() && manifest.engine_class != *engine {
        "another engine answers here than the one asked for"
    } else {
        return None;
    };
    Some((RefusalCode::Unsupported, why))
}

/// Refuses a stream that has no session.
pub async fn refuse(io: &mut JobIo, why: RefusalCode, detail: String) {
    let _ = io
        .send(&JobFrame::Refused {
            why,
            retry_after_ms: 0,
            detail,
        })
        .await;
}
