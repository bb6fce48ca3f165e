//! Making a model from a Modelfile, step by step.
//!
//! Absent by design: keys other than the device's. A file that no known entry covers is signed by this device.

use std::{path::Path, sync::Arc};

use futures::Stream;
use substrate_api::v1;
use tokio::sync::mpsc;
use tonic::Status;

use crate::{
    door::{Call, Door},
    models::{
        create::{Adapter, Base, CreateError, Order},
        import::Signer,
        modelfile::Modelfile,
    },
};

use super::{
    Desk,
    desk::now_ms,
    import::imported_of,
    shelf::{failed, name_in, not_found},
};

/// Steps that may wait for the caller.
const PROGRESS_DEPTH: usize = 16;

/// The events of one making.
///
/// # Errors
/// The request's own faults.
pub fn events(
    desk: Arc<Desk>,
    door: Door,
    request: v1::CreateRequest,
) -> Result<impl Stream<Item = Result<v1::ImportEvent, Status>> + Send, Status> {
    let order = order(&request)?;
    let (tell, mut steps) = mpsc::channel(PROGRESS_DEPTH);
    let work = tokio::task::spawn_blocking(move || {
        let signer = Signer::Device(desk.device.clone());
        // A caller that is behind misses a step and nothing else.
        let mut step = |status: &str| drop(tell.try_send(status.to_owned()));
        desk.importer.create(order, &signer, now_ms(), &mut step)
    });
    Ok(async_stream::try_stream! {
        while let Some(status) = steps.recv().await {
            let progress = v1::ImportProgress { status, ..Default::default() };
            yield v1::ImportEvent { event: Some(v1::import_event::Event::Progress(progress)) };
        }
        let made = work.await.map_err(|error| Status::internal(format!("the work ended early: {error}")))?;
        let made = made.map_err(refused)?;
        // Without a node there is nobody to tell.
        let _ = door.call(|reply| Call::ModelsChanged { reply }).await;
        yield v1::ImportEvent { event: Some(v1::import_event::Event::Imported(imported_of(&made, true))) };
    })
}

fn order(request: &v1::CreateRequest) -> Result<Order, Status> {
    let wrong = |why: String| Status::invalid_argument(format!("Modelfile: {why}"));
    let name = name_in(&request.name)?;
    let modelfile =
        Modelfile::parse(&request.modelfile).map_err(|error| wrong(error.to_string()))?;
    let folder = Path::new(&request.folder);
    if !folder.is_absolute() {
        return Err(Status::invalid_argument(
            "folder: the path must be absolute",
        ));
    }
    Ok(Order {
        name,
        base: Base::of(&modelfile.recipe.from, folder),
        adapter: modelfile
            .adapter
            .map(|adapter| Adapter::of(&adapter, folder)),
        recipe: modelfile.recipe,
    })
}

fn refused(error: CreateError) -> Status {
    match error {
        CreateError::Base(error) => not_found(error),
        CreateError::Recipe(error) => Status::invalid_argument(error.to_string()),
        CreateError::Import(error) => {
            Status::failed_precondition(format!("{:#}", anyhow::Error::from(error)))
        }
        CreateError::Blob(error) => failed(error),
        CreateError::Store(error) => failed(error),
    }
}
