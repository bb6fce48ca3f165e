//! The daemon's lists, as both APIs need them.

use super::App;
use super::error::Refusal;
use super::guard::Caller;
use super::names::{same_model, similar};
use crate::door::{Call, ModelView};

/// Models usable now in the caller's scope, own first.
pub(super) async fn models(app: &App, caller: &Caller) -> Result<Vec<ModelView>, Refusal> {
    let scope = caller.scope;
    Ok(app.door.call(|reply| Call::Models { scope, reply }).await?)
}

/// The one that `name` names.
pub(super) async fn model(app: &App, caller: &Caller, name: &str) -> Result<ModelView, Refusal> {
    let mut models = models(app, caller).await?;
    match models.iter().position(|view| is_named(view, name)) {
        Some(index) => Ok(models.swap_remove(index)),
        None => Err(Refusal::unknown_model(
            name,
            similar(name, models.iter().map(|view| view.name.as_str())),
        )),
    }
}

/// A name, or the entry's id in hex, as the daemon resolves both.
fn is_named(view: &ModelView, name: &str) -> bool {
    same_model(&view.name, name)
        || (name.len() == 64 && view.entry.to_string().eq_ignore_ascii_case(name))
}
