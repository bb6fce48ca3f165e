//! `key`: who else may call the HTTP listener, and how far. The settings file keeps only a key's digest.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::{
    config::{self, ApiKey, ConfigError, KeyGrant, ScopeName},
    home::Home,
};

use super::{
    connect,
    plain::Scope,
    session::{Session, note},
    start,
    story::Story,
    table::Table,
};

/// Keys of callers of the HTTP listener: make one, list them, forget one.
#[derive(Debug, Args)]
pub struct Key {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key and print it, once
    Add(Add),
    /// List the keys by name and what they may do
    #[command(visible_alias = "ls")]
    List,
    /// Forget a key: whoever holds it is a stranger again
    #[command(visible_alias = "remove")]
    Rm {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Args)]
struct Add {
    /// What it is called here: letters, digits, '-' and '_'
    name: String,

    /// The widest scope its jobs may have
    #[arg(long, default_value = "mine")]
    scope: Scope,

    /// It may also pull, make, copy and delete models
    #[arg(long)]
    admin: bool,

    /// Requests in a minute at most [default: no limit]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    per_minute: Option<u32>,

    /// Requests at once at most [default: no limit]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    concurrent: Option<u32>,
}

impl Key {
    /// Does what was asked.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        match self.command {
            Command::Add(add) => add.run(session).await,
            Command::List => list(session),
            Command::Rm { name } => remove(session, &name).await,
        }
    }
}

impl Add {
    async fn run(self, session: &Session) -> anyhow::Result<()> {
        let home = session.prepared_home()?;
        let grant = KeyGrant {
            scope: match self.scope {
                Scope::Mine => ScopeName::Mine,
                Scope::Circle => ScopeName::Circle,
                Scope::Commons => ScopeName::Commons,
            },
            admin: self.admin,
            per_minute: self.per_minute,
            concurrent: self.concurrent,
        };
        let secret = config::add_api_key(&home, &self.name, &grant)
            .map_err(|error| cannot(&home, error))?
            .to_string();
        // Shown before the daemon is told: a daemon that cannot be reached must not cost the key.
        if session.json {
            session.json(&json!({
                "name": self.name,
                "key": secret,
                "scope": grant.scope.to_string(),
                "admin": grant.admin,
                "per_minute": grant.per_minute,
                "concurrent": grant.concurrent,
            }))?;
        } else {
            session.line(&secret)?;
            note(format_args!(
                "this is the only time the key of '{}' is shown: only its digest is kept",
                self.name
            ));
        }
        connect::tell_settings(&home).await?;
        Ok(())
    }
}

fn list(session: &Session) -> anyhow::Result<()> {
    let home = session.prepared_home()?;
    let keys = start::check_config(&home)?.api.keys;
    if session.json {
        return Ok(session.json(&json!({ "keys": keys.iter().map(as_json).collect::<Vec<_>>() }))?);
    }
    let mut table = Table::new(["NAME", "SCOPE", "ADMIN", "PER MINUTE", "AT ONCE"]);
    let limit = |limit: Option<u32>| limit.map_or_else(|| "-".to_owned(), |most| most.to_string());
    for key in keys {
        table.row([
            key.name,
            key.scope.to_string(),
            if key.admin { "yes" } else { "no" }.to_owned(),
            limit(key.per_minute),
            limit(key.concurrent),
        ]);
    }
    Ok(session.line(table)?)
}

fn as_json(key: &ApiKey) -> Value {
    json!({
        "name": key.name,
        "scope": key.scope.to_string(),
        "admin": key.admin,
        "per_minute": key.per_minute,
        "concurrent": key.concurrent,
    })
}

async fn remove(session: &Session, name: &str) -> anyhow::Result<()> {
    let home = session.prepared_home()?;
    if !config::remove_api_key(&home, name).map_err(|error| cannot(&home, error))? {
        return Err(Story::new(format!("there is no API key '{name}'"))
            .hint("`substrate key list` shows which there are")
            .into());
    }
    connect::tell_settings(&home).await?;
    if session.json {
        return Ok(session.json(&json!({ "removed": name }))?);
    }
    note(format_args!("forgot the key of '{name}'"));
    Ok(())
}

fn cannot(home: &Home, error: ConfigError) -> Story {
    let story = Story::new("the API keys cannot be changed");
    let hint = match &error {
        ConfigError::KeyExists { name } => {
            format!("`substrate key rm {name}` forgets the old one")
        }
        ConfigError::KeyName { .. } => return story.because(error),
        _ => format!("mend {}", home.config_file().display()),
    };
    story.because(error).hint(hint)
}
