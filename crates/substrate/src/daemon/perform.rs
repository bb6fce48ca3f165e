//! The node's actions, performed: one arm each, none of which waits.

use std::sync::Arc;

use substrate_node::{Action, AttemptId, DropReason, Event, JobFailure, Refusal};
use substrate_record::{JobId, NodeId, RecordId};
use tokio::sync::mpsc;

use super::context::draw;
use super::life::{Life, Requested};
use super::pool::Whose;
use super::road::Roads;
use super::session::io::JobIo;
use super::session::requester::{self, Offer};
use super::session::{ORDER_DEPTH, ProviderOrder, RequesterOrder, provider};
use super::stock::LOST_WEIGHTS;
use crate::door::{AskError, JobEvent, QueueNews, Route};
use crate::models::parts::Parts;

impl Life {
    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::Offer {
                attempt,
                entry,
                scope,
                ..
            } => self.offer(attempt, entry, scope),
            Action::Resume { attempt } => self.order_requester(attempt, RequesterOrder::Resume),
            Action::CloseAttempt { attempt, why, .. } => {
                self.order_requester(attempt, RequesterOrder::Close(why))
            }
            Action::Settle { attempt, .. } => self.order_requester(attempt, RequesterOrder::Settle),
            Action::TellQueued { job, news } => self.tell_queued(job, &news),
            // The session tells its client itself, in order with the text.
            Action::TellStarted { .. } => {}
            Action::TellMoved { job, from, why, .. } => {
                if let Some(job) = self.jobs.get_mut(&job) {
                    job.moved = Some((from, why));
                }
            }
            Action::FailJob { job, why } => self.fail_job(job, why),
            Action::FinishJob { job } => self.finish_job(job),
            Action::ReplyQueued { attempt, news } => {
                self.order_provider(attempt, ProviderOrder::Queued(news))
            }
            Action::ReplyReady { attempt } => self.order_provider(attempt, ProviderOrder::Ready),
            Action::ReplyRefused {
                attempt,
                why,
                retry_after_ms,
            } => {
                self.order_provider(
                    attempt,
                    ProviderOrder::Refuse {
                        why,
                        retry_after_ms,
                    },
                );
            }
            Action::Run { attempt, entry, .. } => self.run_attempt(attempt, entry),
            Action::PauseWork { attempt } => self.order_provider(attempt, ProviderOrder::Pause),
            Action::ResumeWork { attempt } => self.order_provider(attempt, ProviderOrder::Resume),
            Action::StopWork { attempt, why } => {
                self.order_provider(attempt, ProviderOrder::Stop(why))
            }
            Action::Load { entry } => self.load_ahead(entry),
            Action::Publish {
                audience,
                models,
                slots,
                queue,
            } => self.publisher.publish(audience, models, slots, queue),
            Action::Forward { record } => self.judge(record, None),
            Action::Drop { record, why } => self.judge(record, Some(why)),
            Action::RenewSession => self.renew_session(),
            Action::WakeAt(at) => self.wake_at(at),
        }
    }

    fn offer(&mut self, attempt: AttemptId, entry: RecordId, scope: substrate_record::Scope) {
        let session = self.session_of(attempt.peer);
        let known = self.shelf.entry(&entry).cloned();
        let class = self.engine_class(attempt.peer, &entry);
        let (Some(job), Some(entry), Some(session)) =
            (self.jobs.get_mut(&attempt.job), known, session)
        else {
            self.report_later(Event::DialFailed { attempt });
            return;
        };
        let own = attempt.peer == self.context.me;
        let offer = Offer {
            attempt,
            engine_class: class,
            entry,
            session,
            scope,
            route: if own { Route::Local } else { Route::Direct },
            moved: job.moved.take(),
        };
        let (orders, inbox) = mpsc::channel(ORDER_DEPTH);
        self.requesters.insert(attempt, orders);
        let roads = Arc::new(Roads::new(self.context.clone(), self.reports.clone()));
        let (context, answer, reports) = (
            self.context.clone(),
            job.answer.clone(),
            self.reports.clone(),
        );
        self.tasks.spawn(requester::run(
            context, offer, answer, roads, reports, inbox,
        ));
    }

    /// The engine the provider says it would answer with; this machine's own is known.
    fn engine_class(&self, node: NodeId, entry: &RecordId) -> String {
        let said = self.node.capacity().get(&node).and_then(|capability| {
            capability
                .body()
                .models
                .iter()
                .find(|model| model.entry == *entry)
                .map(|model| model.engine_class.clone())
        });
        let own = node == self.context.me;
        said.unwrap_or_else(|| match own {
            true => self.context.pool.settings().engine_class.clone(),
            false => String::new(),
        })
    }

    fn session_of(&self, node: NodeId) -> Option<substrate_record::SessionNonce> {
        if node == self.context.me {
            return Some(self.node.session());
        }
        self.peers.get(&node).map(|peer| peer.session)
    }

    fn order_requester(&self, attempt: AttemptId, order: RequesterOrder) {
        if let Some(orders) = self.requesters.get(&attempt) {
            deliver(orders, order);
        }
    }

    pub(super) fn order_provider(&self, attempt: AttemptId, order: ProviderOrder) {
        if let Some(provider) = self.providers.get(&attempt) {
            deliver(&provider.orders, order);
        }
    }

    fn run_attempt(&mut self, attempt: AttemptId, entry: RecordId) {
        match self.shelf.entry(&entry).cloned() {
            Some(entry) => self.order_provider(
                attempt,
                ProviderOrder::Run {
                    entry: Box::new(entry),
                },
            ),
            None => self.order_provider(
                attempt,
                ProviderOrder::Refuse {
                    why: Refusal::UnknownEntry,
                    retry_after_ms: 0,
                },
            ),
        }
    }

    fn load_ahead(&self, entry: RecordId) {
        let entry = self.shelf.entry(&entry);
        let Some(parts) = entry.and_then(|entry| Parts::of(entry.body())) else {
            return;
        };
        let pool = self.context.pool.clone();
        self.tasks.spawn(async move {
            if let Err(error) = pool.lease(&parts, Whose::Others).await {
                tracing::debug!(%error, "loading ahead failed");
            }
        });
    }

    fn tell_queued(&self, job: JobId, news: &substrate_node::QueueNews) {
        let Some(job) = self.jobs.get(&job) else {
            return;
        };
        let news = QueueNews {
            position: news.position,
            expected_wait_ms: news.expected_wait_ms,
            why: news.why.to_string(),
        };
        // A client that does not read its last news does not need this one.
        let _ = job.events.try_send(JobEvent::Queued(news));
    }

    /// The session tells its client the end with the receipt. One that was closed, because its provider vanished after the last
    /// token, leaves that to be told here.
    fn finish_job(&mut self, job: JobId) {
        let Some(job) = self.jobs.remove(&job) else {
            return;
        };
        self.tasks.spawn(async move {
            let unsettled = job.answer.lock().await.unsettled.take();
            if let Some(summary) = unsettled {
                // A client that went away does not need the end either.
                let _ = job.events.send(JobEvent::Finished(summary)).await;
            }
        });
    }

    fn fail_job(&mut self, job: JobId, why: JobFailure) {
        let Some(job) = self.jobs.remove(&job) else {
            return;
        };
        let stopping = self.stopping;
        self.tasks.spawn(async move {
            let refusal = job.answer.lock().await.last_refusal.take();
            let error = match why {
                JobFailure::Cancelled if stopping => AskError::Stopping,
                why => ask_error(&job, why, refusal),
            };
            // A client that went away does not need the end either.
            let _ = job.events.send(JobEvent::Failed(error)).await;
        });
    }

    fn judge(&mut self, record: RecordId, why: Option<DropReason>) {
        use substrate_mesh::Judgement;
        let Some(token) = self.gossip.remove(&record) else {
            return;
        };
        let judgement = match why {
            None => Judgement::Accept,
            Some(why) if why.is_offence() => Judgement::Reject,
            Some(_) => Judgement::Ignore,
        };
        let mesh = self.context.mesh.clone();
        self.tasks
            .spawn(async move { mesh.judge(token, judgement).await });
    }

    fn renew_session(&mut self) {
        let session = substrate_record::SessionNonce::from_bytes(draw());
        let mesh = self.context.mesh.clone();
        self.tasks
            .spawn(async move { mesh.set_session(session).await });
        self.report_later(Event::SessionRenewed(session));
    }

    /// An event that an action itself causes is handled after the actions of the current one.
    fn report_later(&self, event: Event) {
        let reports = self.reports.clone();
        self.tasks
            .spawn(async move { reports.send(super::session::Report::Event(event)).await });
    }

    pub(super) fn reattach(
        &mut self,
        from: NodeId,
        manifest: RecordId,
        tokens: u32,
        mut io: JobIo,
    ) {
        let attempt = self
            .resumable
            .get(&manifest)
            .copied()
            .filter(|attempt| attempt.peer == from);
        match attempt {
            Some(attempt) => self.order_provider(attempt, ProviderOrder::Attach { io, tokens }),
            None => drop(self.tasks.spawn(async move {
                let why = substrate_mesh::job::RefusalCode::NothingToResume;
                provider::refuse(&mut io, why, "this attempt is not kept here".to_owned()).await;
            })),
        }
    }
}

/// Orders are few; one that finds the inbox full waits for it outside the loop.
fn deliver<T: Send + 'static>(orders: &mpsc::Sender<T>, order: T) {
    if let Err(mpsc::error::TrySendError::Full(order)) = orders.try_send(order) {
        let orders = orders.clone();
        tokio::spawn(async move { orders.send(order).await });
    }
}

fn ask_error(job: &Requested, why: JobFailure, refusal: Option<String>) -> AskError {
    match why {
        JobFailure::ListFull {
            waiting,
            retry_after_ms,
        } => AskError::Busy {
            waiting,
            retry_after_ms,
        },
        JobFailure::Cancelled if job.hopeless => AskError::NoNode {
            model: job.model.clone(),
            scope: job.scope,
            why: LOST_WEIGHTS.to_owned(),
        },
        JobFailure::Cancelled if job.no_room.is_some() => AskError::NoNode {
            model: job.model.clone(),
            scope: job.scope,
            why: job.no_room.clone().unwrap_or_default(),
        },
        JobFailure::Cancelled => AskError::Cancelled {
            why: "it was cancelled".to_owned(),
        },
        JobFailure::Deadline { .. } => AskError::Deadline {
            deadline_ms: job.deadline_ms,
            why: why.to_string(),
        },
        JobFailure::Refused(Refusal::ContextOverflow) => AskError::ContextOverflow {
            tokens: job.overflow,
        },
        JobFailure::Refused(refused) => AskError::BadRequest {
            param: None,
            why: refusal.unwrap_or_else(|| refused.to_string()),
        },
        other => AskError::NoNode {
            model: job.model.clone(),
            scope: job.scope,
            why: other.to_string(),
        },
    }
}
