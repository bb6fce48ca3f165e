//! Each call of the contract, handed to the door or the desk.
//!
//! Invariant: dropping the stream of `Run` drops the job's events, which cancels the job.
//! Absent by design: decisions. A call is translated, made, and its answer translated back.

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use substrate_api::v1::{self, owner_server::Owner};
use substrate_record::Scope;
use tokio::sync::{oneshot, watch};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    batches::Batches,
    door::{AskError, Call, Door, JobEvent, JobStream, ModelView},
    models::names::ModelName,
};

use super::{
    Desk, batches,
    convert::{
        ask_in, event_out, fit_out, job_in, job_out, model_out, node_in, peer_out, scope_in,
        scope_out, status_out, worker_out,
    },
    create, import, refusal, shelf,
};

/// What a call answers.
type Answer<T> = Result<Response<T>, Status>;

/// What a streaming call answers.
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The owner's service.
pub struct OwnerService {
    door: Door,
    desk: watch::Receiver<Arc<Desk>>,
    batches: Option<Batches>,
}

impl OwnerService {
    /// A service over a door, the desk of the current network and, in a daemon, its batches.
    pub fn new(door: Door, desk: watch::Receiver<Arc<Desk>>, batches: Option<Batches>) -> Self {
        Self {
            door,
            desk,
            batches,
        }
    }

    fn desk(&self) -> Arc<Desk> {
        self.desk.borrow().clone()
    }

    async fn ask<T>(&self, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> Result<T, Status> {
        self.door
            .call(call)
            .await
            .map_err(|closed| Status::unavailable(closed.to_string()))
    }

    /// Runs one piece of disk work off the event loop.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Desk) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let desk = self.desk();
        off_loop(move || work(&desk)).await
    }

    /// Tells the node that the models on disk changed; a closed door means there is no node to tell.
    async fn models_changed(&self) {
        let _ = self.ask(|reply| Call::ModelsChanged { reply }).await;
    }

    /// The memory of a model held here; none where there is no daemon that could load it.
    async fn fit(&self, model: String, context: Option<u32>) -> Result<Option<v1::Fit>, Status> {
        let reckoned = self.ask(|reply| Call::Fit {
            model,
            context,
            reply,
        });
        match reckoned.await {
            Err(_) => Ok(None),
            // The list on disk may know a model that the node does not yet, or not any more.
            Ok(Err(AskError::UnknownModel { .. })) => Ok(None),
            Ok(fit) => fit
                .map(|fit| Some(fit_out(fit)))
                .map_err(|error| refusal::status_of(&error)),
        }
    }

    /// The batches, which only a daemon has.
    fn batches(&self) -> Result<Batches, Status> {
        let none = || Status::failed_precondition("batches need a daemon, and none runs");
        self.batches.clone().ok_or_else(none)
    }

    async fn settings_changed(&self) -> Result<(), Status> {
        match self.ask(|reply| Call::SettingsChanged { reply }).await? {
            Ok(()) => Ok(()),
            Err(why) => Err(Status::failed_precondition(why)),
        }
    }
}

/// Runs blocking work on a thread that may block.
pub async fn off_loop<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Status::internal(format!("a task ended early: {error}"))),
    }
}

/// Whether a person may mean this model by what was typed: its name in any case and with or without the usual tag,
/// or its entry.
fn is_called(seen: &ModelView, typed: &str) -> bool {
    let same_name = || {
        let (name, typed) = (seen.name.parse::<ModelName>(), typed.parse::<ModelName>());
        matches!((name, typed), (Ok(name), Ok(typed)) if name == typed)
    };
    seen.name == typed || seen.entry.to_string().eq_ignore_ascii_case(typed) || same_name()
}

/// The events of an accepted job, after the news that it was taken.
fn events_of(stream: JobStream) -> Events<v1::JobEvent> {
    let JobStream {
        job,
        scope,
        model,
        mut events,
    } = stream;
    Box::pin(async_stream::stream! {
        let taken = v1::Taken { job: job.as_bytes().to_vec(), scope: scope_out(scope).into(), model };
        yield Ok(v1::JobEvent { event: Some(v1::job_event::Event::Taken(taken)) });
        while let Some(event) = events.recv().await {
            let last = matches!(event, JobEvent::Finished(_) | JobEvent::Failed(_));
            yield Ok(event_out(event));
            if last {
                return;
            }
        }
        yield Err(Status::unavailable("the daemon stopped before the answer was complete"));
    })
}

#[tonic::async_trait]
impl Owner for OwnerService {
    type RunStream = Events<v1::JobEvent>;
    type ImportStream = Events<v1::ImportEvent>;
    type CreateStream = Events<v1::ImportEvent>;
    type BatchOutputStream = batches::Pieces;

    async fn run(&self, request: Request<v1::RunRequest>) -> Answer<Self::RunStream> {
        let ask = Box::new(ask_in(request.into_inner())?);
        let taken = self.ask(|reply| Call::Submit { ask, reply }).await?;
        let stream = taken.map_err(|error| refusal::status_of(&error))?;
        Ok(Response::new(events_of(stream)))
    }

    async fn jobs(&self, _: Request<v1::JobsRequest>) -> Answer<v1::JobsReply> {
        let jobs = self.ask(|reply| Call::Jobs { reply }).await?;
        Ok(Response::new(v1::JobsReply {
            jobs: jobs.into_iter().map(job_out).collect(),
        }))
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Answer<v1::CancelReply> {
        let job = job_in(&request.get_ref().job)?;
        let found = self.ask(|reply| Call::Cancel { job, reply }).await?;
        Ok(Response::new(v1::CancelReply { found }))
    }

    async fn submit_batch(
        &self,
        request: Request<Streaming<v1::SubmitBatchStep>>,
    ) -> Answer<v1::Batch> {
        let batches = OwnerService::batches(self)?;
        let status = self.ask(|reply| Call::Status { reply }).await?;
        let network = status.network.1.to_string();
        let usual = self.on_disk(shelf::usual_scope).await?;
        batches::submit(batches, network, usual, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn batches(&self, _: Request<v1::BatchesRequest>) -> Answer<v1::BatchesReply> {
        batches::list(OwnerService::batches(self)?)
            .await
            .map(Response::new)
    }

    async fn show_batch(&self, request: Request<v1::BatchRequest>) -> Answer<v1::Batch> {
        batches::one(OwnerService::batches(self)?, request.into_inner().id)
            .await
            .map(Response::new)
    }

    async fn cancel_batch(&self, request: Request<v1::BatchRequest>) -> Answer<v1::Batch> {
        batches::cancel(OwnerService::batches(self)?, request.into_inner().id)
            .await
            .map(Response::new)
    }

    async fn batch_output(
        &self,
        request: Request<v1::BatchOutputRequest>,
    ) -> Answer<Self::BatchOutputStream> {
        batches::output(OwnerService::batches(self)?, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn models(&self, request: Request<v1::ModelsRequest>) -> Answer<v1::ModelsReply> {
        let scope = scope_in(request.get_ref().scope)?.unwrap_or(Scope::Circle);
        let models = match self.ask(|reply| Call::Models { scope, reply }).await {
            Ok(models) => models.into_iter().map(model_out).collect(),
            // Without a node there is still the shelf.
            Err(_) => self.on_disk(shelf::models).await?,
        };
        Ok(Response::new(v1::ModelsReply { models }))
    }

    async fn workers(&self, _: Request<v1::WorkersRequest>) -> Answer<v1::WorkersReply> {
        let workers = self.ask(|reply| Call::Workers { reply }).await?;
        Ok(Response::new(v1::WorkersReply {
            workers: workers.into_iter().map(worker_out).collect(),
        }))
    }

    async fn load(&self, request: Request<v1::LoadRequest>) -> Answer<v1::LoadReply> {
        let model = request.into_inner().model;
        let loaded = self.ask(|reply| Call::Load { model, reply }).await?;
        loaded.map_err(|error| refusal::status_of(&error))?;
        Ok(Response::new(v1::LoadReply {}))
    }

    async fn keep_alive(
        &self,
        request: Request<v1::KeepAliveRequest>,
    ) -> Answer<v1::KeepAliveReply> {
        let v1::KeepAliveRequest { model, seconds } = request.into_inner();
        let loaded = self
            .ask(|reply| Call::KeepAlive {
                model,
                seconds,
                reply,
            })
            .await?;
        Ok(Response::new(v1::KeepAliveReply { loaded }))
    }

    async fn bench(&self, request: Request<v1::BenchRequest>) -> Answer<v1::BenchReply> {
        let model = request.into_inner().model;
        let measured = self.ask(|reply| Call::Bench { model, reply }).await?;
        let (prefill, decode) = measured.map_err(|error| refusal::status_of(&error))?;
        Ok(Response::new(v1::BenchReply { prefill, decode }))
    }

    async fn models_changed(
        &self,
        _: Request<v1::ModelsChangedRequest>,
    ) -> Answer<v1::ModelsChangedReply> {
        self.ask(|reply| Call::ModelsChanged { reply }).await?;
        Ok(Response::new(v1::ModelsChangedReply {}))
    }

    async fn import(
        &self,
        request: Request<Streaming<v1::ImportStep>>,
    ) -> Answer<Self::ImportStream> {
        let events = import::events(self.desk(), self.door.clone(), request.into_inner());
        Ok(Response::new(Box::pin(events)))
    }

    async fn create(&self, request: Request<v1::CreateRequest>) -> Answer<Self::CreateStream> {
        let events = create::events(self.desk(), self.door.clone(), request.into_inner())?;
        Ok(Response::new(Box::pin(events)))
    }

    async fn show(&self, request: Request<v1::ShowRequest>) -> Answer<v1::ShowReply> {
        let v1::ShowRequest { model, context } = request.into_inner();
        let wanted = model.clone();
        let here = self.on_disk(move |desk| shelf::show(desk, &wanted)).await;
        let unknown = match here {
            Ok(mut shown) => {
                shown.fit = self.fit(model, context).await?;
                return Ok(Response::new(shown));
            }
            Err(unknown) => unknown,
        };
        // Not on this machine: perhaps in sight.
        let scope = Scope::Commons;
        let Ok(models) = self.ask(|reply| Call::Models { scope, reply }).await else {
            return Err(unknown);
        };
        let seen = models.into_iter().find(|seen| is_called(seen, &model));
        let Some(seen) = seen else {
            return Err(unknown);
        };
        Ok(Response::new(v1::ShowReply {
            modelfile: format!("FROM {}\n", seen.name),
            model: Some(model_out(seen)),
            ..Default::default()
        }))
    }

    async fn remove(&self, request: Request<v1::RemoveRequest>) -> Answer<v1::RemoveReply> {
        let model = request.into_inner().model;
        let reply = self
            .on_disk(move |desk| shelf::remove(desk, &model))
            .await?;
        self.models_changed().await;
        Ok(Response::new(reply))
    }

    async fn copy(&self, request: Request<v1::CopyRequest>) -> Answer<v1::CopyReply> {
        let v1::CopyRequest { from, to } = request.into_inner();
        self.on_disk(move |desk| shelf::copy(desk, &from, &to))
            .await?;
        self.models_changed().await;
        Ok(Response::new(v1::CopyReply {}))
    }

    async fn receipts(&self, request: Request<v1::ReceiptsRequest>) -> Answer<v1::ReceiptsReply> {
        let request = request.into_inner();
        self.on_disk(move |desk| shelf::receipts(desk, &request))
            .await
            .map(Response::new)
    }

    async fn receipt(&self, request: Request<v1::ReceiptRequest>) -> Answer<v1::ReceiptReply> {
        let job = job_in(&request.get_ref().job)?;
        self.on_disk(move |desk| shelf::receipt(desk, &job))
            .await
            .map(Response::new)
    }

    async fn export_receipt(
        &self,
        request: Request<v1::ExportReceiptRequest>,
    ) -> Answer<v1::ExportReceiptReply> {
        let job = job_in(&request.get_ref().job)?;
        self.on_disk(move |desk| shelf::export_receipt(desk, &job))
            .await
            .map(Response::new)
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::StatusReply> {
        let status = self.ask(|reply| Call::Status { reply }).await?;
        Ok(Response::new(status_out(status)))
    }

    async fn peers(&self, _: Request<v1::PeersRequest>) -> Answer<v1::PeersReply> {
        let peers = self.ask(|reply| Call::Peers { reply }).await?;
        Ok(Response::new(v1::PeersReply {
            peers: peers.into_iter().map(peer_out).collect(),
        }))
    }

    async fn network(&self, _: Request<v1::NetworkRequest>) -> Answer<v1::NetworkReply> {
        self.on_disk(shelf::network).await.map(Response::new)
    }

    async fn found(&self, request: Request<v1::FoundRequest>) -> Answer<v1::FoundReply> {
        let genesis = request.into_inner().genesis;
        let network = self
            .on_disk(move |desk| shelf::found(desk, &genesis))
            .await?;
        let restart_needed = self.ask(|reply| Call::Status { reply }).await.is_ok();
        Ok(Response::new(v1::FoundReply {
            network: network.as_bytes().to_vec(),
            restart_needed,
        }))
    }

    async fn invite(&self, request: Request<v1::InviteRequest>) -> Answer<v1::InviteReply> {
        let v1::InviteRequest { circle, valid_ms } = request.into_inner();
        let made = self
            .ask(|reply| Call::Invite {
                circle,
                valid_ms,
                reply,
            })
            .await?;
        let code = made.map_err(Status::failed_precondition)?;
        Ok(Response::new(v1::InviteReply { code }))
    }

    async fn invites(&self, _: Request<v1::InvitesRequest>) -> Answer<v1::InvitesReply> {
        self.on_disk(shelf::invites).await.map(Response::new)
    }

    async fn revoke_invite(
        &self,
        request: Request<v1::RevokeInviteRequest>,
    ) -> Answer<v1::RevokeInviteReply> {
        let id = request.into_inner().id;
        let found = self
            .on_disk(move |desk| shelf::revoke_invite(desk, &id))
            .await?;
        Ok(Response::new(v1::RevokeInviteReply { found }))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Answer<v1::JoinReply> {
        let code = request.into_inner().code;
        let joined = self.ask(|reply| Call::Join { code, reply }).await?;
        let joined = joined.map_err(Status::failed_precondition)?;
        Ok(Response::new(v1::JoinReply {
            network_name: joined.network,
            left: joined.left,
        }))
    }

    async fn circles(&self, _: Request<v1::CirclesRequest>) -> Answer<v1::CirclesReply> {
        self.on_disk(shelf::circles).await.map(Response::new)
    }

    async fn circle_remove(
        &self,
        request: Request<v1::CircleRemoveRequest>,
    ) -> Answer<v1::CircleRemoveReply> {
        let v1::CircleRemoveRequest { circle, node } = request.into_inner();
        let node = node_in("node", &node)?;
        let found = self
            .on_disk(move |desk| shelf::circle_remove(desk, &circle, &node))
            .await?;
        // Without a node nobody holds the old list.
        let _ = self.settings_changed().await;
        Ok(Response::new(v1::CircleRemoveReply { found }))
    }

    async fn settings_changed(
        &self,
        _: Request<v1::SettingsChangedRequest>,
    ) -> Answer<v1::SettingsChangedReply> {
        OwnerService::settings_changed(self).await?;
        Ok(Response::new(v1::SettingsChangedReply {}))
    }

    async fn stop(&self, _: Request<v1::StopRequest>) -> Answer<v1::StopReply> {
        self.ask(|reply| Call::Stop { reply }).await?;
        Ok(Response::new(v1::StopReply {}))
    }
}
