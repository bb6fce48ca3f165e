//! The way to a provider: a mesh stream, or, if the provider is this machine, a stream in memory.

use std::sync::Arc;

use substrate_mesh::Protocol;
use substrate_record::NodeId;
use tokio::sync::mpsc;

use super::context::Context;
use super::session::Report;
use super::session::io::JobIo;
use super::session::provider;
use super::session::requester::Dial;

/// Opens job streams.
pub struct Roads {
    context: Arc<Context>,
    reports: mpsc::Sender<Report>,
}

impl Roads {
    /// `reports` is where a session of this machine's own provider end reports.
    pub fn new(context: Arc<Context>, reports: mpsc::Sender<Report>) -> Self {
        Self { context, reports }
    }
}

impl Dial for Roads {
    async fn dial(&self, to: NodeId) -> Option<JobIo> {
        if to == self.context.me {
            let (ours, theirs) = JobIo::pair();
            tokio::spawn(provider::accept(
                self.context.clone(),
                to,
                theirs,
                self.reports.clone(),
            ));
            return Some(ours);
        }
        match self.context.mesh.open(to, Protocol::Job).await {
            Ok(stream) => Some(JobIo::new(stream)),
            Err(error) => {
                tracing::debug!(%to, %error, "no job stream");
                None
            }
        }
    }
}
