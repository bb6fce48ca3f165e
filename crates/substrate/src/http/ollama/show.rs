//! `POST /api/show`: what is known of one model, wherever it is.

use std::collections::BTreeMap;

use axum::extract::{Request, State};
use axum::{Extension, Json};
use serde::Serialize;
use serde_json::{Value, json};

use super::tags::ModelDetails;
use super::types::{ShowRequest, asked_model};
use crate::door::{Call, FitView, ModelView};
use crate::http::actions::{ActionError, Details};
use crate::http::error::{OllamaError, Refusal};
use crate::http::guard::Caller;
use crate::http::names::rfc3339_ms;
use crate::http::{Shared, body, lists};
use crate::models::parameters::Parameters;
use crate::models::recipe::{Recipe, Turn};
use crate::thoughts;

#[derive(Serialize)]
pub(super) struct Shown {
    license: String,
    modelfile: String,
    parameters: String,
    template: String,
    system: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    messages: Vec<Turn>,
    details: ModelDetails,
    model_info: BTreeMap<String, Value>,
    capabilities: Vec<String>,
    modified_at: String,
    /// The memory it takes here, if it is here.
    #[serde(skip_serializing_if = "Option::is_none")]
    substrate: Option<FitView>,
}

pub(super) async fn show(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<Shown>, OllamaError> {
    let ShowRequest { model, name } = body::json(request).await?;
    let view = lists::model(&app, &caller, &asked_model(model, name)?).await?;
    let shown_name = view.name.clone();
    let details = match app.models.show(shown_name.clone()).await {
        Ok(details) => details,
        // Another node's: only the list knows it.
        Err(ActionError::Unknown { .. }) => Details::default(),
        Err(error) => return Err(Refusal::from(error).into()),
    };
    let mut shown = told(view, details);
    shown.substrate = fit(&app, &shown_name).await;
    Ok(Json(shown))
}

/// What is shown besides is worth showing even if the header cannot be read now.
async fn fit(app: &Shared, model: &str) -> Option<FitView> {
    let model = model.to_owned();
    let fit = app.door.call(|reply| Call::Fit {
        model,
        context: None,
        reply,
    });
    fit.await.ok()?.ok()
}

fn told(view: ModelView, details: Details) -> Shown {
    let first = |known: String, listed: &str| {
        if known.is_empty() {
            listed.to_owned()
        } else {
            known
        }
    };
    let Recipe {
        from,
        parameters,
        system,
        messages,
        licences,
        ..
    } = details.recipe.unwrap_or_default();
    let license = first(details.license, &view.licence);
    let licences = Some(license)
        .filter(|text| !text.is_empty())
        .into_iter()
        .chain(licences);
    let mut model_info = details.model_info;
    for (key, value) in listed(&view) {
        model_info.entry(key).or_insert(value);
    }
    let mut capabilities = details.capabilities;
    if capabilities.is_empty() {
        capabilities = thoughts::capabilities(&view.arch, "", view.sees);
    }
    Shown {
        license: licences.collect::<Vec<_>>().join("\n\n"),
        modelfile: first(details.modelfile, &format!("FROM {}\n", view.name)),
        parameters: listing(&parameters, view.served_context),
        template: first(
            details.template,
            view.template.as_deref().unwrap_or_default(),
        ),
        system: system.unwrap_or_default(),
        messages,
        details: ModelDetails::of(&view).made_from(from),
        model_info,
        capabilities,
        modified_at: rfc3339_ms(view.modified_ms),
        substrate: None,
    }
}

/// The defaults of a model that was made here, and, unless it wishes one, the context served where Ollama's clients look
/// for it. `model_info` tells what the model was trained for.
fn listing(parameters: &Parameters, served: Option<u32>) -> String {
    let served = served.filter(|_| parameters.context().is_none());
    let served = served.map(|context| format!("{:30} {context}", "num_ctx"));
    let own = Some(parameters.listing()).filter(|own| !own.is_empty());
    let lines: Vec<String> = own.into_iter().chain(served).collect();
    lines.join("\n")
}

/// What a GGUF's header would say, as far as the list knows it.
fn listed(view: &ModelView) -> [(String, Value); 3] {
    [
        ("general.architecture".to_owned(), json!(view.arch)),
        ("general.parameter_count".to_owned(), json!(view.n_params)),
        (format!("{}.context_length", view.arch), json!(view.context)),
    ]
}
