//! One import: stage the bytes, have the entry signed, give it a name.
//!
//! Invariants: an entry is kept only if it says exactly what was found in the file, and was signed
//! by the key the caller announced; an entry of the commons is adopted, not signed again.
//! Absent by design: keys other than the device's. The caller signs on its own side.

use std::{path::PathBuf, sync::Arc};

use futures::Stream;
use substrate_api::v1;
use substrate_record::{FileRole, ModelEntry, NodeId, Signed, Stream as RecordStream, Verified};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::{
    door::{Call, Door},
    models::{
        catalogue::Held,
        import::{ImportError, ImportReport, Importer, More, Signer, Staged},
        names::ModelName,
        pull::{PullError, Source},
    },
};

use super::{
    Desk,
    convert::node_in,
    desk::now_ms,
    service::off_loop,
    shelf::{failed, name_in},
};

/// Progress that may wait for the caller; a slow terminal slows nothing but its own bar.
const PROGRESS_DEPTH: usize = 16;

/// The events of one import.
pub fn events(
    desk: Arc<Desk>,
    door: Door,
    mut steps: Streaming<v1::ImportStep>,
) -> impl Stream<Item = Result<v1::ImportEvent, Status>> + Send {
    async_stream::try_stream! {
        let begin = begin(&mut steps).await?;
        let signer = match begin.signer.as_slice() {
            [] => None,
            key => Some(node_in("signer", key)?),
        };
        let (report, mut progress) = match begin.source {
            Some(v1::import_begin::Source::File(path)) => stage_file(&desk, path, begin.projector, &begin.name, signer)?,
            Some(v1::import_begin::Source::Pull(source)) => stage_pull(&desk, &source, &begin.name, signer)?,
            None => Err(Status::invalid_argument("source: missing"))?,
        };
        while let Some(step) = progress.recv().await {
            yield told(step);
        }
        let outcome = report.await.map_err(|error| Status::internal(format!("the import ended early: {error}")))??;
        let imported = match outcome {
            Outcome::Done(imported) => *imported,
            Outcome::ToSign { staged, name, signer } => {
                yield drafted(&desk, &staged, &signer)?;
                let entry = signed(&desk, &mut steps, &staged, &signer).await?;
                let importer = desk.importer.clone();
                let held = off_loop(move || importer.finish(*staged, &name, entry, None, now_ms()).map_err(import_failed)).await?;
                imported_of(&held, false)
            }
        };
        // Without a node there is nobody to tell.
        let _ = door.call(|reply| Call::ModelsChanged { reply }).await;
        yield v1::ImportEvent { event: Some(v1::import_event::Event::Imported(imported)) };
    }
}

/// What staging came to.
enum Outcome {
    /// Adopted, or signed by the device.
    Done(Box<v1::Imported>),
    /// The caller must sign.
    ToSign {
        staged: Box<Staged>,
        name: ModelName,
        signer: NodeId,
    },
}

/// Work under way, and its progress.
type Work = (
    tokio::task::JoinHandle<Result<Outcome, Status>>,
    mpsc::Receiver<v1::ImportProgress>,
);

async fn begin(steps: &mut Streaming<v1::ImportStep>) -> Result<v1::ImportBegin, Status> {
    match steps.message().await?.and_then(|step| step.step) {
        Some(v1::import_step::Step::Begin(begin)) => Ok(begin),
        _ => Err(Status::invalid_argument("an import starts with `begin`")),
    }
}

fn stage_file(
    desk: &Arc<Desk>,
    path: String,
    projector: Option<String>,
    name: &str,
    signer: Option<NodeId>,
) -> Result<Work, Status> {
    let name = name_in(name)?;
    let path = absolute("file", path)?;
    let projector = projector
        .map(|path| absolute("projector", path))
        .transpose()?;
    let (tell, progress) = mpsc::channel(PROGRESS_DEPTH);
    let desk = desk.clone();
    let work = tokio::task::spawn_blocking(move || {
        // The files' names only: where they lie on this machine is nobody else's business.
        let files = [Some(&path), projector.as_ref()].into_iter().flatten();
        let source = files
            .map(|path| format!("file:{}", path.file_name().unwrap_or_default().display()))
            .collect();
        let mut bar = |done, total| reading(&tell, done, total);
        let staged = desk.importer.stage(&path, source, &mut bar);
        let mut staged = staged.map_err(import_failed)?;
        if let Some(projector) = &projector {
            let added = desk
                .importer
                .add(&mut staged, More::Projector, projector, &mut bar);
            added.map_err(import_failed)?;
        }
        match signer {
            None => {
                let signer = Signer::Device(desk.device.clone());
                let report = desk.importer.vouch(staged, &name, &signer, None, now_ms());
                report.map(done).map_err(import_failed)
            }
            Some(signer) => {
                staged.body.name = name.to_string();
                adopt_or_sign(&desk, staged, name, signer)
            }
        }
    });
    Ok((work, progress))
}

fn absolute(field: &str, path: String) -> Result<PathBuf, Status> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        Ok(path)
    } else {
        let why = format!("{field}: the path must be absolute");
        Err(Status::invalid_argument(why))
    }
}

fn stage_pull(
    desk: &Arc<Desk>,
    source: &str,
    name: &str,
    signer: Option<NodeId>,
) -> Result<Work, Status> {
    let from = Source::parse_owner(source).map_err(pull_failed)?;
    let name = if name.is_empty() {
        from.default_name()
    } else {
        name_in(name)?
    };
    let (tell, progress) = mpsc::channel(PROGRESS_DEPTH);
    let (desk, source) = (desk.clone(), source.to_owned());
    let work = tokio::spawn(async move {
        let mut pull = desk
            .puller
            .pull(from, name.clone(), Signer::Device(desk.device.clone()));
        while let Some(step) = pull.next().await {
            let progress = v1::ImportProgress {
                status: step.status,
                digest: step.digest,
                total: step.total,
                completed: step.completed,
            };
            if tell.send(progress).await.is_err() {
                // The caller went away: dropping the pull pauses it, and a later one resumes.
                return Err(Status::cancelled("the caller went away"));
            }
        }
        let held = pull.finish().await.map_err(pull_failed)?;
        let Some(signer) = signer else {
            return Ok(Outcome::Done(Box::new(imported_of(
                &held,
                held.entry.author() != desk.node(),
            ))));
        };
        off_loop(move || {
            let staged = desk
                .importer
                .stage_blob(&held.weights(), &name.to_string(), vec![source]);
            let mut staged = staged.map_err(import_failed)?;
            if let Some(projector) = held.parts().projector {
                let added = desk
                    .importer
                    .add_blob(&mut staged, More::Projector, &projector);
                added.map_err(import_failed)?;
            }
            adopt_or_sign(&desk, staged, name, signer)
        })
        .await
    });
    Ok((work, progress))
}

/// Adopts an entry that the commons or the signer itself has; else asks the signer for a signature, over the words
/// of the registry's other keys if some of them signed already.
fn adopt_or_sign(
    desk: &Desk,
    mut staged: Staged,
    name: ModelName,
    signer: NodeId,
) -> Result<Outcome, Status> {
    let known = desk
        .importer
        .known(&staged, &signer)
        .map_err(import_failed)?;
    if let Some(begun) = known.countersign {
        staged.body = begun;
    }
    let Some(known) = known.adopt else {
        return Ok(Outcome::ToSign {
            staged: Box::new(staged),
            name,
            signer,
        });
    };
    let importer: &Importer = &desk.importer;
    let held = importer
        .finish(staged, &name, known, None, now_ms())
        .map_err(import_failed)?;
    Ok(Outcome::Done(Box::new(imported_of(&held, true))))
}

fn done(report: ImportReport) -> Outcome {
    Outcome::Done(Box::new(imported_of(&report.held, report.adopted)))
}

/// A model that is here now.
pub fn imported_of(held: &Held, adopted: bool) -> v1::Imported {
    v1::Imported {
        name: held.name.to_string(),
        entry: held.entry.id().as_bytes().to_vec(),
        digest: held.weights().as_bytes().to_vec(),
        size: held.size(),
        adopted,
        signer: held.entry.author().as_bytes().to_vec(),
    }
}

/// Tells how far the reading is, unless the caller is behind.
fn reading(tell: &mpsc::Sender<v1::ImportProgress>, done: u64, total: u64) {
    let status = "reading and checking the file".to_owned();
    let _ = tell.try_send(v1::ImportProgress {
        status,
        digest: None,
        total: Some(total),
        completed: Some(done),
    });
}

fn told(progress: v1::ImportProgress) -> v1::ImportEvent {
    v1::ImportEvent {
        event: Some(v1::import_event::Event::Progress(progress)),
    }
}

fn drafted(desk: &Desk, staged: &Staged, signer: &NodeId) -> Result<v1::ImportEvent, Status> {
    let head = desk
        .records
        .head(signer, RecordStream::Registry)
        .map_err(failed)?;
    let body = &staged.body;
    let draft = v1::Draft {
        name: body.name.clone(),
        files: files_out(body),
        arch: body.arch.clone(),
        quant: body.quant.clone(),
        context: body.context,
        licence: body.licence.clone(),
        template_sha256: body.template_sha256.map(|hash| hash.as_bytes().to_vec()),
        sources: body.sources.clone(),
        reference_rates: rates_out(body),
        base: body.base.map(|base| base.as_bytes().to_vec()),
        seq: head.map_or(1, |(seq, _)| seq + 1),
        prev: head.map(|(_, id)| id.as_bytes().to_vec()),
    };
    Ok(v1::ImportEvent {
        event: Some(v1::import_event::Event::Draft(draft)),
    })
}

/// The entry the caller signed, if it is the one that was drafted.
async fn signed(
    desk: &Desk,
    steps: &mut Streaming<v1::ImportStep>,
    staged: &Staged,
    signer: &NodeId,
) -> Result<Verified<ModelEntry>, Status> {
    let Some(v1::import_step::Step::Signed(v1::SignedEntry { record })) =
        steps.message().await?.and_then(|step| step.step)
    else {
        return Err(Status::cancelled("the entry was not signed"));
    };
    let wrong = |why: String| Status::invalid_argument(format!("signed entry: {why}"));
    let entry = Signed::<ModelEntry>::decode(&record).map_err(|error| wrong(error.to_string()))?;
    let entry = entry
        .verify(&desk.network())
        .map_err(|error| wrong(error.to_string()))?;
    if entry.author() != *signer {
        return Err(wrong(format!(
            "signed by {}, announced was {signer}",
            entry.author()
        )));
    }
    if *entry.body() != staged.body {
        return Err(wrong(
            "it does not say what was found in the file".to_owned(),
        ));
    }
    Ok(entry)
}

/// The files of an entry.
pub fn files_out(entry: &ModelEntry) -> Vec<v1::ModelFile> {
    let role = |role| match role {
        FileRole::Weights => 1,
        FileRole::Projector => 2,
        FileRole::Adapter => 3,
        FileRole::Tokenizer => 4,
    };
    let file = |file: &substrate_record::ModelFile| v1::ModelFile {
        role: role(file.role),
        sha256: file.sha256.as_bytes().to_vec(),
        size: file.size,
    };
    entry.files.iter().map(file).collect()
}

/// The reference rates of an entry.
pub fn rates_out(entry: &ModelEntry) -> Option<v1::ReferenceRates> {
    entry
        .reference_rates
        .as_ref()
        .map(|rates| v1::ReferenceRates {
            prefill: rates.prefill,
            decode: rates.decode,
        })
}

fn import_failed(error: ImportError) -> Status {
    Status::failed_precondition(format!("{:#}", anyhow::Error::from(error)))
}

fn pull_failed(error: PullError) -> Status {
    Status::failed_precondition(format!("{:#}", anyhow::Error::from(error)))
}
