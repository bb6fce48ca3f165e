//! `network`: found one, invite to it, join one, show which it is.
//!
//! Invariant: a network's registry key exists only encrypted on disk, and in the memory of the
//! command that made or used it.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use serde_json::json;
use substrate_api::v1;

use crate::keys::{DeviceKey, MAX_NETWORK_NAME, RegistryKey, genesis_of_network};

use super::{
    connect, plain,
    session::{Session, note},
    sign, stop,
    story::{Story, refused},
    words,
};

/// Circle that an invite to a network enters if none is named.
pub const DEFAULT_CIRCLE: &str = "friends";

/// Found a network, invite to it, join one.
#[derive(Debug, Args)]
pub struct Network {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Found a network, with a registry key of its own
    Create {
        /// Its name
        name: String,
        /// File whose first line encrypts the registry key; asked for if left out
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Make a code that lets one machine in, once
    Invite {
        /// Circle the guest enters
        #[arg(long, default_value = DEFAULT_CIRCLE)]
        circle: String,
        /// How long the code holds
        #[arg(long, value_parser = plain::span, default_value = "24h", value_name = "SPAN")]
        valid: Duration,
    },
    /// Join the network of a code
    Join {
        /// The code, as you got it
        code: String,
    },
    /// Show the network this machine is in
    Show,
}

impl Network {
    /// Does what was asked.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        match self.command {
            Command::Create {
                name,
                passphrase_file,
            } => create(session, &name, passphrase_file).await,
            Command::Invite { circle, valid } => invite(session, circle, valid).await,
            Command::Join { code } => join(session, code).await,
            Command::Show => show(session).await,
        }
    }
}

async fn create(
    session: &Session,
    name: &str,
    passphrase_file: Option<PathBuf>,
) -> anyhow::Result<()> {
    if name.is_empty() || name.len() > MAX_NETWORK_NAME {
        let what = format!(
            "a network's name has 1 to {MAX_NETWORK_NAME} bytes, this one {}",
            name.len()
        );
        return Err(Story::usage(what).into());
    }
    let home = session.prepared_home()?;
    let Some(passphrase) =
        sign::passphrase(passphrase_file, "Passphrase for the new registry key", true)?
    else {
        return Err(
            Story::usage("a network needs a passphrase for its registry key")
                .hint("pass --passphrase-file FILE")
                .into(),
        );
    };
    let device = DeviceKey::open_or_create(&home).map_err(|error| {
        Story::new("cannot open this device's key")
            .because(error)
            .hint("run `substrate doctor`")
    })?;
    let registry = RegistryKey::generate();
    let genesis = genesis_of_network(&device, &registry, name);
    let network = genesis.network();
    registry
        .seal(&home, &network, &passphrase)
        .map_err(|error| Story::new("cannot write the registry key").because(error))?;
    let mut client = connect::or_desk(session).await?;
    let request = v1::FoundRequest {
        genesis: genesis.bytes().to_vec(),
    };
    let founded = client.found(request).await.map_err(refused)?.into_inner();
    if session.json {
        session.json(&json!({ "name": name, "network": network.to_string(), "registry_key": registry.node().to_string() }))?;
    } else {
        session.line(network)?;
        note(format_args!(
            "founded '{name}'; its registry key is {}",
            home.registry_key(&network).display()
        ));
        note("keep a copy of that file and of the passphrase: nobody can replace them");
    }
    if founded.restart_needed {
        note("the daemon stops now, so that it starts in the new network");
        stop::end(session).await?;
    }
    Ok(())
}

/// Makes an invite and prints its code.
pub async fn invite(session: &Session, circle: String, valid: Duration) -> anyhow::Result<()> {
    let mut client = connect::or_started(session).await?;
    let valid_ms = u64::try_from(valid.as_millis()).unwrap_or(u64::MAX);
    let request = v1::InviteRequest {
        circle: circle.clone(),
        valid_ms,
    };
    let code = client
        .invite(request)
        .await
        .map_err(refused)?
        .into_inner()
        .code;
    if session.json {
        return Ok(session.json(&json!({ "code": code, "circle": circle, "valid_ms": valid_ms }))?);
    }
    session.line(code)?;
    note(format_args!(
        "valid once, for {}; on the other machine: substrate circle join CODE",
        words::span(valid_ms)
    ));
    note(format_args!(
        "whoever enters '{circle}' may read prompts you send with --scope circle, and you theirs"
    ));
    Ok(())
}

/// Joins by a code.
pub async fn join(session: &Session, code: String) -> anyhow::Result<()> {
    let mut client = connect::or_started(session).await?;
    let joined = client
        .join(v1::JoinRequest { code })
        .await
        .map_err(refused)?
        .into_inner();
    if session.json {
        return Ok(session.json(&json!({ "network": joined.network_name, "left": joined.left }))?);
    }
    note(format_args!(
        "joined '{}'; `substrate peers` shows who is there",
        joined.network_name
    ));
    if let Some(left) = joined.left {
        note(format_args!(
            "left '{left}' for it: your models came along, receipts and circles stay there"
        ));
    }
    Ok(())
}

async fn show(session: &Session) -> anyhow::Result<()> {
    let mut client = connect::or_desk(session).await?;
    let network = client
        .network(v1::NetworkRequest {})
        .await
        .map_err(refused)?
        .into_inner();
    if session.json {
        let keys = |keys: &[Vec<u8>]| keys.iter().map(|key| words::hex(key)).collect::<Vec<_>>();
        return Ok(session.json(&json!({
            "name": network.name,
            "id": words::hex(&network.network),
            "registry_keys": keys(&network.registry_keys),
            "registry_k": network.registry_k,
            "members": keys(&network.members),
            "open_invites": network.open_invites,
        }))?);
    }
    session.line(format_args!("name        {}", network.name))?;
    session.line(format_args!("id          {}", words::hex(&network.network)))?;
    for key in &network.registry_keys {
        session.line(format_args!("registry    {}", words::hex(key)))?;
    }
    session.line(format_args!(
        "signatures  {} of {} make a model valid for everyone",
        network.registry_k,
        network.registry_keys.len()
    ))?;
    session.line(format_args!("invites     {} open", network.open_invites))?;
    Ok(())
}
