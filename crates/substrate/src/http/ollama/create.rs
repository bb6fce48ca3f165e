//! `POST /api/create`: a model made from one that is here, or from bytes that were uploaded.
//!
//! Invariant: only a key with the admin right makes anything (DESIGN 10). What cannot be made is refused by name, never
//! quietly left out.

use std::collections::BTreeMap;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;

use super::blobs;
use super::pull::{json_body, told};
use super::types::asked_model;
use crate::http::body::at_most;
use crate::http::error::{OllamaError, Refusal, clipped};
use crate::http::guard::Caller;
use crate::http::names::model_name;
use crate::http::{Shared, content};
use crate::models::create::{Adapter, Base, Order};
use crate::models::modelfile::Modelfile;
use crate::models::parameters::Parameters;
use crate::models::recipe::{MAX_TURNS, Recipe, Turn};

/// What is told where the making ended without a word.
const BROKE_OFF: &str = "the making broke off; ask again";

/// What clients write. Files are named, and their names say nothing here.
#[derive(Default, Deserialize)]
pub(super) struct CreateRequest {
    model: Option<String>,
    name: Option<String>,
    from: Option<String>,
    #[serde(default)]
    files: BTreeMap<String, String>,
    #[serde(default)]
    adapters: BTreeMap<String, String>,
    template: Option<String>,
    license: Option<Licences>,
    system: Option<String>,
    parameters: Option<BTreeMap<String, Value>>,
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_TURNS>")]
    messages: Vec<Said>,
    /// A whole Modelfile, as clients of before 2025 send it.
    modelfile: Option<String>,
    quantize: Option<String>,
    quantization: Option<String>,
    stream: Option<bool>,
}

/// A text or a list of them.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a text or a list of texts")]
enum Licences {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Said {
    role: String,
    #[serde(default)]
    content: content::Content,
}

pub(super) async fn create(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, OllamaError> {
    caller.must_be_admin("make models")?;
    let request: CreateRequest = json_body(request).await?;
    let stream = request.stream;
    let (order, warnings) = order(request)?;
    for warning in warnings {
        tracing::warn!(model = %order.name, "{warning}");
    }
    let steps = app.models.create(order).await.map_err(Refusal::from)?;
    Ok(told(app, steps, stream, BROKE_OFF).await?)
}

/// What is to be made, and what in the request changes nothing.
fn order(request: CreateRequest) -> Result<(Order, Vec<String>), Refusal> {
    let name = asked_model(request.model, request.name)?;
    let name = name
        .parse()
        .map_err(|error| Refusal::invalid("model", format!("{error}")))?;
    let quantised = request.quantize.or(request.quantization);
    if quantised.is_some_and(|kind| !kind.is_empty()) {
        return Err(Refusal::not_yet("quantize", "quantising a model"));
    }
    let mut adapter = adapter(&request.adapters)?;
    let mut warnings = Vec::new();
    let mut recipe = Recipe::default();
    let text = request.modelfile.filter(|text| !text.is_empty());
    if let Some(text) = text {
        let read = Modelfile::parse(&text);
        let read = read.map_err(|error| Refusal::invalid("modelfile", error.to_string()))?;
        if let Some(named) = read.adapter.filter(|_| adapter.is_none()) {
            adapter = Some(Adapter::Blob(blobs::parse(&named)?));
        }
        (recipe, warnings) = (read.recipe, read.warnings);
    }
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    recipe.from = given(request.from).unwrap_or(recipe.from);
    recipe.system = given(request.system).or(recipe.system);
    recipe.template = given(request.template).or(recipe.template);
    let licences = match request.license {
        None => Vec::new(),
        Some(Licences::One(text)) => vec![text],
        Some(Licences::Many(texts)) => texts,
    };
    let licences = licences.into_iter().filter(|text| !text.is_empty());
    recipe.licences.extend(licences);
    recipe.messages.extend(turns(request.messages)?);
    let mut parameters = Parameters::default();
    for (name, value) in request.parameters.unwrap_or_default() {
        let set = parameters.set_json(&name, &value);
        warnings.extend(set.map_err(|error| Refusal::invalid("parameters", error.to_string()))?);
    }
    parameters.lay_over(&recipe.parameters);
    recipe.parameters = parameters;
    recipe
        .check()
        .map_err(|error| Refusal::invalid("model", error.to_string()))?;
    let base = base(&recipe.from, &request.files)?;
    let order = Order {
        name,
        base,
        adapter,
        recipe,
    };
    Ok((order, warnings))
}

fn turns(said: Vec<Said>) -> Result<Vec<Turn>, Refusal> {
    let turn = |(at, said): (usize, Said)| match said.content.other {
        Some(kind) => {
            let what = format!("a content part of type '{}'", clipped(&kind));
            Err(Refusal::not_yet(format!("messages[{at}].content"), &what))
        }
        None => Ok(Turn {
            role: said.role.to_ascii_lowercase(),
            content: said.content.text,
        }),
    };
    said.into_iter().enumerate().map(turn).collect()
}

/// A model that is here, or the one file that was uploaded. Paths mean nothing here: the caller may be anywhere.
fn base(from: &str, files: &BTreeMap<String, String>) -> Result<Base, Refusal> {
    match (from, files.len()) {
        ("", 0) => Err(Refusal::invalid(
            "from",
            "neither 'from' nor 'files' was specified",
        )),
        (from, 0) => Ok(Base::Model(model_name("from", from)?)),
        ("", 1) => {
            let digest = files.values().next().map_or("", String::as_str);
            Ok(Base::Blob(blobs::parse(digest)?))
        }
        ("", _) => Err(Refusal::not_yet("files", "a model of several files")),
        _ => Err(Refusal::invalid(
            "files",
            "from and files exclude each other: the one names a model that is here, the other brings one",
        )),
    }
}

/// The one adapter that was uploaded, if any.
fn adapter(adapters: &BTreeMap<String, String>) -> Result<Option<Adapter>, Refusal> {
    match adapters.len() {
        0 => Ok(None),
        1 => {
            let digest = adapters.values().next().map_or("", String::as_str);
            Ok(Some(Adapter::Blob(blobs::parse(digest)?)))
        }
        _ => Err(Refusal::not_yet("adapters", "several adapters at once")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::parse;

    fn read(json: &str) -> Result<(Order, Vec<String>), String> {
        let shown = |refusal: Refusal| {
            let body = refusal.body(crate::http::error::Shape::Ollama);
            body["error"].as_str().unwrap_or_default().to_owned()
        };
        order(parse(json.as_bytes()).map_err(shown)?).map_err(shown)
    }

    #[test]
    fn a_request_is_read_as_ollamas_clients_write_it() {
        let (order, warnings) = read(
            r#"{"model":"pirate","from":"smollm2:135m","system":"Be a pirate.","license":["MIT",""],
                "parameters":{"temperature":0.5,"stop":["a","b"],"num_gpu":99,"use_mmap":true,"seed":7},
                "messages":[{"role":"User","content":"hi"},{"role":"assistant","content":"Ahoy"}],"stream":false}"#,
        )
        .unwrap();
        assert_eq!(order.name.to_string(), "pirate:latest");
        assert_eq!(order.base, Base::Model("smollm2:135m".into()));
        assert_eq!(
            crate::models::modelfile::write(&order.recipe, "x", None),
            "FROM x\nSYSTEM Be a pirate.\nPARAMETER temperature 0.5\nPARAMETER seed 7\nPARAMETER stop a\nPARAMETER stop b\n\
             MESSAGE user hi\nMESSAGE assistant Ahoy\nLICENSE MIT\n"
        );
        assert_eq!(warnings.len(), 2);
    }

    #[test]
    fn a_modelfile_is_read_too_and_fields_win_over_it() {
        let (order, _) = read(
            r#"{"name":"a","modelfile":"FROM b\nSYSTEM one\nPARAMETER top_k 3","system":"two","parameters":{"top_p":0.5}}"#,
        )
        .unwrap();
        assert_eq!(order.base, Base::Model("b".into()));
        assert_eq!(order.recipe.system.as_deref(), Some("two"));
        assert_eq!(order.recipe.parameters.lines().count(), 2);
    }

    #[test]
    fn an_upload_is_named_by_its_digest() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let (order, _) = read(&format!(
            r#"{{"model":"a","files":{{"m.gguf":"{digest}"}}}}"#
        ))
        .unwrap();
        assert!(matches!(order.base, Base::Blob(_)));
    }

    #[test]
    fn an_adapter_is_named_by_its_digest() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for request in [
            format!(r#"{{"model":"a","from":"b","adapters":{{"lora.gguf":"{digest}"}}}}"#),
            format!(r#"{{"model":"a","modelfile":"FROM b\nADAPTER {digest}"}}"#),
        ] {
            let (order, _) = read(&request).unwrap();
            assert!(matches!(order.adapter, Some(Adapter::Blob(_))), "{request}");
        }
    }

    #[test]
    fn what_cannot_be_made_is_refused_by_name() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (json, why) in [
            (r#"{"model":"a"}"#.to_owned(), "neither 'from' nor 'files'"),
            (r#"{"from":"b"}"#.to_owned(), "model"),
            (
                r#"{"model":"a b","from":"b"}"#.to_owned(),
                "invalid model name 'a b'",
            ),
            (
                r#"{"model":"a","from":"b","quantize":"q4_0"}"#.to_owned(),
                "quantising a model is not there yet",
            ),
            (
                r#"{"model":"a","from":"b","adapters":{"x":"sha256:ab"}}"#.to_owned(),
                "invalid digest",
            ),
            (
                format!(
                    r#"{{"model":"a","from":"b","adapters":{{"x":"{digest}","y":"{digest}"}}}}"#
                ),
                "several adapters at once is not there yet",
            ),
            (
                r#"{"model":"a","modelfile":"FROM b\nADAPTER ./lora.gguf"}"#.to_owned(),
                "invalid digest",
            ),
            (
                r#"{"model":"a","from":"b","parameters":{"warmth":1}}"#.to_owned(),
                "no parameter 'warmth'",
            ),
            (
                r#"{"model":"a","from":"b","parameters":{"top_p":2}}"#.to_owned(),
                "top_p must be between 0 and 1, not 2",
            ),
            (
                r#"{"model":"a","from":"b","parameters":{"stop":{}}}"#.to_owned(),
                "stop must be a number, a text or a list",
            ),
            (
                r#"{"model":"a","from":"b","template":"{{ .Prompt }}"}"#.to_owned(),
                "write it in Jinja",
            ),
            (
                r#"{"model":"a","from":"b","messages":[{"role":"tool","content":"x"}]}"#.to_owned(),
                "role must be",
            ),
            (
                r#"{"model":"a","files":{"m":"x"}}"#.to_owned(),
                "invalid digest",
            ),
            (
                format!(r#"{{"model":"a","from":"b","files":{{"m":"{digest}"}}}}"#),
                "exclude each other",
            ),
            (
                format!(r#"{{"model":"a","files":{{"m":"{digest}","n":"{digest}"}}}}"#),
                "several files",
            ),
        ] {
            let told = read(&json).unwrap_err();
            assert!(told.contains(why), "{json}: {told}");
        }
    }
}
