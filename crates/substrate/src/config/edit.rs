//! Changing the settings file in place: comments, order and spacing stay as their owner left them.
//!
//! Invariant: what is written was read back first, so an edit can never produce a file that the
//! next start refuses.

use std::fmt;
use std::path::Path;

use sha2::{Digest, Sha256};
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, TableLike, Value, value};

use super::{ByteSize, Config, ConfigError, Hours, IdleSpan, JobType, ScopeName, When, read};
use crate::files::write_atomically;
use crate::home::Home;

/// Random bytes of an API key: as hard to guess as an Ed25519 key.
const SECRET_BYTES: usize = 32;

/// How long an API key's name may be.
const MAX_KEY_NAME: usize = 64;

/// What `node lend` changes; `None` leaves a setting as it is.
#[derive(Debug, Clone, Default)]
pub struct LendingChange {
    /// Whether at all.
    pub when: Option<When>,
    /// Cores; `Some(None)` = back to the default.
    pub cores: Option<Option<u32>>,
    /// Memory; `Some(None)` = back to the default.
    pub memory: Option<Option<ByteSize>>,
    /// Models; empty = all.
    pub models: Option<Vec<String>>,
    /// Kinds of job; empty = all.
    pub job_types: Option<Vec<JobType>>,
    /// Hours; `Some(None)` = all day.
    pub hours: Option<Option<Hours>>,
    /// How long the owner must be away.
    pub idle_after: Option<IdleSpan>,
    /// Programs that pause it; empty = none.
    pub pause_for: Option<Vec<String>>,
}

/// Applies a change to the settings file and returns what holds now.
pub fn set_lending(home: &Home, change: &LendingChange) -> Result<Config, ConfigError> {
    edit(home, |document| {
        let lending = table(document, "lending");
        if let Some(when) = change.when {
            set(lending, "when", when_name(when));
        }
        if let Some(cores) = change.cores {
            set_or_clear(lending, "cores", cores.map(i64::from));
        }
        if let Some(memory) = change.memory {
            set_or_clear(lending, "memory", memory.map(|memory| memory.to_string()));
        }
        if let Some(models) = &change.models {
            set(lending, "models", models.iter().collect::<Array>());
        }
        if let Some(kinds) = &change.job_types {
            set(
                lending,
                "job_types",
                kinds
                    .iter()
                    .map(|kind| job_type_name(*kind))
                    .collect::<Array>(),
            );
        }
        if let Some(hours) = change.hours {
            set_or_clear(lending, "hours", hours.map(|hours| hours.to_string()));
        }
        if let Some(span) = change.idle_after {
            set(lending, "idle_after", span.to_string());
        }
        if let Some(programs) = &change.pause_for {
            set(lending, "pause_for", programs.iter().collect::<Array>());
        }
    })
}

/// A new API key in the clear. It is shown once: only its hash is kept.
pub struct ApiSecret(String);

impl fmt::Display for ApiSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the holder of a new API key may do.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyGrant {
    /// The widest scope its jobs may use.
    pub scope: ScopeName,
    /// Whether it may also copy, delete and pull.
    pub admin: bool,
    /// Requests in a minute; `None` = no limit.
    pub per_minute: Option<u32>,
    /// Jobs at once; `None` = no limit.
    pub concurrent: Option<u32>,
}

/// Makes an API key and keeps its hash in the settings file.
pub fn add_api_key(home: &Home, name: &str, grant: &KeyGrant) -> Result<ApiSecret, ConfigError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > MAX_KEY_NAME || !name.chars().all(plain) {
        return Err(ConfigError::KeyName {
            name: name.to_owned(),
        });
    }
    if Config::load(home)?
        .api
        .keys
        .iter()
        .any(|key| key.name == name)
    {
        return Err(ConfigError::KeyExists {
            name: name.to_owned(),
        });
    }
    let secret = format!(
        "sk-substrate-{}",
        hex::encode(rand::random::<[u8; SECRET_BYTES]>())
    );
    edit(home, |document| {
        let key = key_table(name, &secret, grant);
        let api = table(document, "api");
        let keys = api
            .entry("keys")
            .or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        if let Some(keys) = keys.as_array_of_tables_mut() {
            keys.push(key);
        } else if let Some(keys) = keys.as_array_mut() {
            keys.push(key.into_inline_table());
        }
    })?;
    Ok(ApiSecret(secret))
}

fn key_table(name: &str, secret: &str, grant: &KeyGrant) -> Table {
    let mut key = Table::new();
    key["name"] = value(name);
    key["sha256"] = value(hex::encode(Sha256::digest(secret.as_bytes())));
    key["scope"] = value(grant.scope.to_string());
    if grant.admin {
        key["admin"] = value(true);
    }
    let limits = [
        ("per_minute", grant.per_minute),
        ("concurrent", grant.concurrent),
    ];
    for (limit, most) in limits {
        if let Some(most) = most {
            key[limit] = value(i64::from(most));
        }
    }
    key
}

/// Forgets an API key; `false` if there is none of that name.
pub fn remove_api_key(home: &Home, name: &str) -> Result<bool, ConfigError> {
    if !Config::load(home)?
        .api
        .keys
        .iter()
        .any(|key| key.name == name)
    {
        return Ok(false);
    }
    edit(home, |document| {
        match table(document, "api").get_mut("keys") {
            Some(Item::ArrayOfTables(keys)) => {
                keys.retain(|key| key.get("name").and_then(Item::as_str) != Some(name))
            }
            Some(Item::Value(Value::Array(keys))) => {
                keys.retain(|key| {
                    key.as_inline_table()
                        .and_then(|key| key.get("name")?.as_str())
                        != Some(name)
                });
            }
            _ => {}
        }
    })?;
    Ok(true)
}

/// Reads, changes, reads back, writes.
fn edit(home: &Home, change: impl FnOnce(&mut DocumentMut)) -> Result<Config, ConfigError> {
    let path = home.config_file();
    let text = read(&path)?;
    // A file that is wrong already is not touched; its owner hears which line.
    Config::parse(&text, &path)?;
    let mut document: DocumentMut = text.parse().map_err(|error| not_toml(&path, &error))?;
    change(&mut document);
    let changed = document.to_string();
    let config = Config::parse_with(&changed, &path, &|name| std::env::var(name).ok())?;
    write_atomically(&path, 0o600, changed.as_bytes())?;
    Ok(config)
}

fn not_toml(path: &Path, error: &toml_edit::TomlError) -> ConfigError {
    let why = error.message().to_owned();
    ConfigError::Bad {
        path: path.to_path_buf(),
        line: 1,
        column: 1,
        key: "(file)".to_owned(),
        why,
    }
}

/// A table of the document, made if absent.
fn table<'a>(document: &'a mut DocumentMut, name: &str) -> &'a mut dyn TableLike {
    let item = document
        .entry(name)
        .or_insert_with(|| Item::Table(Table::new()));
    item.as_table_like_mut()
        .expect("the text parsed as settings, where this name is a table")
}

/// Sets a key, keeping the comments before and behind it.
fn set(table: &mut dyn TableLike, key: &str, new: impl Into<Value>) {
    let mut new = new.into();
    match table.get_mut(key) {
        Some(item) => {
            if let Some(old) = item.as_value() {
                *new.decor_mut() = old.decor().clone();
            }
            *item = Item::Value(new);
        }
        None => drop(table.insert(key, Item::Value(new))),
    }
}

fn set_or_clear(table: &mut dyn TableLike, key: &str, new: Option<impl Into<Value>>) {
    match new {
        Some(new) => set(table, key, new),
        None => drop(table.remove(key)),
    }
}

fn when_name(when: When) -> &'static str {
    match when {
        When::Off => "off",
        When::Idle => "idle",
        When::Always => "always",
    }
}

fn job_type_name(kind: JobType) -> &'static str {
    match kind {
        JobType::Generate => "generate",
        JobType::Embed => "embed",
    }
}
