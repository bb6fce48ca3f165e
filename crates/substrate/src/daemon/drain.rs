//! The end of a life: nothing new, what runs finishes or is handed over, then the mesh closes.
//!
//! Invariant: bounded in time; a requester whose answer did not finish here goes on elsewhere by failover; who asks
//! for something new meanwhile is told at once that the daemon is stopping.

use std::time::Duration;

use substrate_node::{Event, Lending};
use tokio::time::{Instant, sleep_until};

use super::life::{Ending, Inboxes, Life};
use crate::door::{AskError, Call};

/// How long running answers may take to finish by themselves.
const FINISH: Duration = Duration::from_secs(10);
/// How long handing over, and storing the last receipts, may take after that.
const HAND_OVER: Duration = Duration::from_secs(5);

impl Life {
    pub(super) async fn drain(&mut self, inboxes: &mut Inboxes) {
        self.stopping = matches!(self.ending, Ending::Stopped);
        self.handle(Event::Draining);
        self.run_until(inboxes, Instant::now() + FINISH).await;
        self.handle(Event::LendingChanged(Lending::Off));
        for job in self
            .node
            .jobs()
            .into_iter()
            .map(|status| status.job)
            .collect::<Vec<_>>()
        {
            self.handle(Event::JobCancelled { job });
        }
        self.run_until(inboxes, Instant::now() + HAND_OVER).await;
        self.context.pool.clear().await;
        self.context.mesh.shutdown().await;
    }

    /// Goes on with what runs until nothing does, or until then. Calls wait for the next life, if there will be one.
    async fn run_until(&mut self, inboxes: &mut Inboxes, until: Instant) {
        while self.is_busy() {
            tokio::select! {
                biased;
                Some(report) = inboxes.reports.recv() => self.on_report(report),
                Some(event) = inboxes.mesh.recv() => self.on_mesh(event).await,
                Some(call) = inboxes.calls.recv(), if self.stopping => self.on_late_call(call).await,
                () = super::life::due(self.wake) => self.handle(Event::Tick),
                () = sleep_until(until) => return,
            }
        }
    }

    /// A call while the daemon stops: what would begin something is refused, lists and cancellations go on.
    async fn on_late_call(&mut self, call: Call) {
        let why = || AskError::Stopping.to_string();
        match call {
            Call::Submit { reply, .. } => drop(reply.send(Err(AskError::Stopping))),
            Call::Load { reply, .. } => drop(reply.send(Err(AskError::Stopping))),
            Call::Fit { reply, .. } => drop(reply.send(Err(AskError::Stopping))),
            Call::Bench { reply, .. } => drop(reply.send(Err(AskError::Stopping))),
            Call::Join { reply, .. } => drop(reply.send(Err(why()))),
            Call::Invite { reply, .. } => drop(reply.send(Err(why()))),
            call => self.on_call(call).await,
        }
    }

    fn is_busy(&self) -> bool {
        !self.requesters.is_empty() || !self.providers.is_empty()
    }
}
