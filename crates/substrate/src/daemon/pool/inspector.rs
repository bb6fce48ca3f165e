//! The first look at a model's file: its header is read by a worker of its own, behind the wall.

use std::path::Path;

use substrate_sandbox::launch::Wall;

use super::Pool;
use crate::daemon::engine::{self, WorkError};
use crate::models::import::{Inspect, InspectError, ModelFacts};

/// Reads a header behind the wall, for import and pull.
pub struct WalledInspector {
    pool: Pool,
}

impl WalledInspector {
    /// Uses the pool's worker binary.
    pub fn new(pool: Pool) -> Self {
        Self { pool }
    }
}

impl Inspect for WalledInspector {
    fn inspect(&self, model: &Path) -> Result<ModelFacts, InspectError> {
        let spec = (self.pool.spec(model.to_path_buf()))
            .map_err(|error| InspectError::Unavailable(error.to_string()))?;
        let worker =
            Wall::spawn(spec).map_err(|error| InspectError::Unavailable(error.to_string()))?;
        match engine::inspect(worker, self.pool.settings.load_timeout) {
            Ok(facts) => Ok(ModelFacts {
                arch: facts.arch,
                quant: facts.quant,
                name: facts.name,
                n_params: facts.n_params,
                n_ctx_train: facts.n_ctx_train,
                n_vocab: facts.n_vocab,
                template: facts.template,
                licence: facts.licence,
                size: facts.size,
                is_adapter: facts.is_adapter,
            }),
            Err(WorkError::Failed { detail, .. }) => Err(InspectError::BadModel(detail)),
            Err(error @ WorkError::Crashed { .. }) => {
                Err(InspectError::BadModel(error.to_string()))
            }
            Err(error) => Err(InspectError::Unavailable(error.to_string())),
        }
    }
}
