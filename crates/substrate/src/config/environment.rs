//! Ollama's variables, read where the settings file says nothing.
//!
//! Invariant: the file wins. An empty variable is an absent one, as in Ollama.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;

use super::place::Said;
use super::{Config, ConfigError, KeepAlive, LoadTimeout, MAX_QUEUE};

/// The port a host without one gets: Ollama's, since the variable speaks of Ollama's address.
const OLLAMA_PORT: u16 = 11434;

pub(super) fn fall_back(
    config: &mut Config,
    said: &Said,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(), ConfigError> {
    let get = |key: &str, variable: &'static str| {
        let value = if said.says(key) { None } else { env(variable) };
        value
            .map(|text| text.trim().trim_matches(['"', '\'']).to_owned())
            .filter(|text| !text.is_empty())
    };
    if let Some(text) = get("api.listen", "OLLAMA_HOST") {
        config.api.listen = vec![host(&text).map_err(wrong("OLLAMA_HOST"))?];
    }
    if let Some(text) = get("api.origins", "OLLAMA_ORIGINS") {
        config.api.origins = text
            .split(',')
            .map(|origin| origin.trim().to_owned())
            .filter(|origin| !origin.is_empty())
            .collect();
    }
    if let Some(text) = get("api.max_queue", "OLLAMA_MAX_QUEUE") {
        let jobs = number(&text).map_err(wrong("OLLAMA_MAX_QUEUE"))?;
        // Ollama's list may be longer than ours, and its variable is no reason not to start.
        config.api.max_queue = jobs.clamp(1, MAX_QUEUE);
    }
    if let Some(text) = get("models.keep_alive", "OLLAMA_KEEP_ALIVE") {
        config.models.keep_alive = KeepAlive::parse(&text).map_err(wrong("OLLAMA_KEEP_ALIVE"))?;
    }
    if let Some(text) = get("models.load_timeout", "OLLAMA_LOAD_TIMEOUT") {
        config.models.load_timeout =
            LoadTimeout::parse(&text).map_err(wrong("OLLAMA_LOAD_TIMEOUT"))?;
    }
    if let Some(text) = get("models.context", "OLLAMA_CONTEXT_LENGTH") {
        let tokens = number(&text).map_err(wrong("OLLAMA_CONTEXT_LENGTH"))?;
        // Zero is Ollama's word for "by the machine".
        config.models.context = (tokens > 0).then_some(tokens);
    }
    if let Some(text) = get("models.parallel", "OLLAMA_NUM_PARALLEL") {
        // Zero is Ollama's word for "by the machine".
        let parallel = number(&text).map_err(wrong("OLLAMA_NUM_PARALLEL"))?;
        config.models.parallel = NonZeroU32::new(parallel);
    }
    if let Some(text) = get("models.max_loaded", "OLLAMA_MAX_LOADED_MODELS") {
        // Zero is Ollama's word for "by the machine".
        let most = number(&text).map_err(wrong("OLLAMA_MAX_LOADED_MODELS"))?;
        config.models.max_loaded = NonZeroU32::new(most);
    }
    if let Some(text) = get("models.kv_cache_type", "OLLAMA_KV_CACHE_TYPE") {
        config.models.kv_cache_type = text.parse().map_err(wrong("OLLAMA_KV_CACHE_TYPE"))?;
    }
    if let Some(text) = get("models.flash_attention", "OLLAMA_FLASH_ATTENTION") {
        let on = yes_or_no(&text).map_err(wrong("OLLAMA_FLASH_ATTENTION"))?;
        config.models.flash_attention = Some(on);
    }
    Ok(())
}

fn wrong(variable: &'static str) -> impl FnOnce(String) -> ConfigError {
    move |why| ConfigError::Environment { variable, why }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| format!("'{text}' is not a whole number"))
}

/// The spellings of Ollama's.
fn yes_or_no(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" => Ok(true),
        "0" | "f" | "false" => Ok(false),
        _ => Err(format!("'{text}' is neither true nor false")),
    }
}

/// `[scheme://]host[:port]`, as Ollama reads it: a host may be left out, a port too.
fn host(text: &str) -> Result<SocketAddr, String> {
    let bare = text
        .split_once("://")
        .map_or(text, |(_, rest)| rest)
        .trim_end_matches('/');
    if let Ok(address) = bare.parse() {
        return Ok(address);
    }
    let unbracketed = bare.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = unbracketed.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, OLLAMA_PORT));
    }
    let (name, port) = bare.rsplit_once(':').unwrap_or((bare, ""));
    let port = if port.is_empty() {
        Some(OLLAMA_PORT)
    } else {
        port.parse().ok()
    };
    match (name, port) {
        ("" | "localhost", Some(port)) => Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)),
        _ => Err(format!(
            "'{text}' is not an address such as 127.0.0.1:{OLLAMA_PORT}"
        )),
    }
}
