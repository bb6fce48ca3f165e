//! A worker's life behind the wall: it seals itself, serves one model, and leaves.
//!
//! Invariant: nothing untrusted is read before the first seal, no prompt before the second.
//! Absent by design: a way to leave a seal out.

use std::fs::File;

use substrate_sandbox::seal;
use substrate_sandbox::wire::{self, Failure, FromWorker};

use crate::serve::{Place, serve};

/// Serves over `pipe` until the daemon hangs up, with at most `pool` threads, as many as were counted before the first seal, which
/// is made here. The answer is the code to exit with.
pub fn run(mut pipe: &'static File, pool: u32) -> i32 {
    match seal::stage_one() {
        Ok(sealed) => {
            if wire::write(&mut pipe, &FromWorker::from(sealed)).is_err() {
                return 1;
            }
        }
        Err(error) => {
            let detail = error.to_string();
            let failed = FromWorker::Failed {
                seq: None,
                why: Failure::Internal,
                detail,
            };
            // The daemon sees the exit code if it does not see this.
            let _ = wire::write(&mut pipe, &failed);
            return 2;
        }
    }
    let seal = || {
        seal::stage_two()
            .map(FromWorker::from)
            .map_err(|error| error.to_string())
    };
    let place = Place {
        model: seal::MODEL_PATH.into(),
        projector: seal::PROJECTOR_PATH.into(),
        adapter: seal::ADAPTER_PATH.into(),
        pool,
        seal,
    };
    match serve(pipe, pipe, place) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}
