//! The input on its way in: announced, chunk by chunk, and opened only when all of it is here.

use substrate_mesh::Offence;
use substrate_mesh::input::{InputAssembler, InputHeader};
use substrate_node::Event;

use super::{Input, Session, Stage, Step};

impl Session {
    pub(super) async fn on_header(&mut self, header: InputHeader) -> Step {
        if !matches!(self.stage, Stage::Reading(None)) {
            return self
                .offend(Offence::OutOfOrder, "an input nobody asked for".to_owned())
                .await;
        }
        match InputAssembler::new(header) {
            Ok(assembler) => self.stage = Stage::Reading(Some(assembler)),
            Err(error) => return self.offend(Offence::OutOfOrder, error.to_string()).await,
        }
        Step::On
    }

    pub(super) async fn on_chunk(&mut self, chunk: &[u8]) -> Step {
        let Stage::Reading(Some(assembler)) = &mut self.stage else {
            return self
                .offend(Offence::OutOfOrder, "an input nobody asked for".to_owned())
                .await;
        };
        if let Err(error) = assembler.push(chunk) {
            return self.offend(Offence::OutOfOrder, error.to_string()).await;
        }
        if assembler.is_complete() {
            self.check_input().await
        } else {
            Step::On
        }
    }

    /// Once all announced bytes are here, they must open what the manifest committed to.
    pub(super) async fn check_input(&mut self) -> Step {
        let Stage::Reading(Some(assembler)) = std::mem::replace(&mut self.stage, Stage::Offered)
        else {
            return Step::On;
        };
        let Some(whole) = assembler.finish() else {
            return Step::On;
        };
        match Input::open(self.manifest.body(), whole) {
            Ok(input) => {
                self.stage = Stage::Held(input);
                self.tell(Event::InputArrived {
                    attempt: self.attempt,
                })
                .await;
                Step::On
            }
            Err(why) => self.offend(Offence::BadRecord, why.to_owned()).await,
        }
    }
}
