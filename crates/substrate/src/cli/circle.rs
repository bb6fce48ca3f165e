//! `circle`: the few with whom prompts are shared.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use substrate_api::v1;
use substrate_record::NodeId;

use super::{
    connect::{self, Client},
    network, plain,
    session::{Session, note},
    story::{Story, refused},
    table::Table,
    words,
};

/// Digits of an invite's id that a person must type at least: fewer would name one by accident.
const MIN_ID: usize = 4;

/// Share with a few: invite, join, list, remove.
#[derive(Debug, Args)]
pub struct Circle {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a code that lets one machine into a circle, once
    Invite {
        /// Name of the circle
        #[arg(default_value = network::DEFAULT_CIRCLE)]
        circle: String,
        /// How long the code holds
        #[arg(long, value_parser = plain::span, default_value = "24h", value_name = "SPAN")]
        valid: Duration,
    },
    /// List the codes that may still be used
    Invites,
    /// Take a code back before it is used
    Revoke {
        /// Its id, or the first digits of it, as `substrate circle invites` shows
        #[arg(value_parser = invite_id)]
        invite: String,
    },
    /// Enter the circle of a code
    Join {
        /// The code, as you got it
        code: String,
    },
    /// List the circles and who is in them
    #[command(visible_alias = "ls")]
    List,
    /// Take a machine out of a circle
    #[command(visible_alias = "rm")]
    Remove {
        /// Name of the circle
        circle: String,
        /// The machine's key
        #[arg(value_parser = plain::node)]
        node: NodeId,
    },
}

impl Circle {
    /// Does what was asked.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        match self.command {
            Command::Invite { circle, valid } => network::invite(session, circle, valid).await,
            Command::Invites => invites(session).await,
            Command::Revoke { invite } => revoke(session, &invite).await,
            Command::Join { code } => network::join(session, code).await,
            Command::List => list(session).await,
            Command::Remove { circle, node } => remove(session, circle, node).await,
        }
    }
}

/// The beginning of an invite's id, in lower case.
fn invite_id(text: &str) -> Result<String, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits && (MIN_ID..=64).contains(&text.len()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!(
        "an invite is named by at least {MIN_ID} hex digits of its id, as `substrate circle invites` shows"
    ))
}

async fn open_invites(client: &mut Client) -> anyhow::Result<Vec<v1::OpenInvite>> {
    let reply = client.invites(v1::InvitesRequest {}).await;
    Ok(reply.map_err(refused)?.into_inner().invites)
}

async fn invites(session: &Session) -> anyhow::Result<()> {
    let mut client = connect::or_desk(session).await?;
    let open = open_invites(&mut client).await?;
    if session.json {
        let invites = open.iter().map(|invite| {
            json!({
                "id": words::hex(&invite.id),
                "circle": (!invite.circle.is_empty()).then_some(&invite.circle),
                "expires_ms": invite.expires_ms,
            })
        });
        return Ok(session.json(&json!({ "invites": invites.collect::<Vec<_>>() }))?);
    }
    let now = words::now_ms();
    let mut table = Table::new(["ID", "CIRCLE", "ENDS"]);
    for invite in open {
        table.row([
            words::short_digest(&invite.id),
            invite.circle,
            words::moment(invite.expires_ms, now),
        ]);
    }
    Ok(session.line(table)?)
}

async fn revoke(session: &Session, typed: &str) -> anyhow::Result<()> {
    let mut client = connect::or_desk(session).await?;
    let mut open = open_invites(&mut client).await?;
    open.retain(|invite| words::hex(&invite.id).starts_with(typed));
    let id = match open.as_slice() {
        [one] => one.id.clone(),
        [] => return Err(no_invite(typed)),
        _ => {
            return Err(
                Story::new(format!("{typed} begins more than one invite's id"))
                    .hint("`--json` shows whole ids")
                    .into(),
            );
        }
    };
    let request = v1::RevokeInviteRequest { id: id.clone() };
    let reply = client.revoke_invite(request).await.map_err(refused)?;
    // Somebody may have used it since.
    if !reply.into_inner().found {
        return Err(no_invite(typed));
    }
    if session.json {
        return Ok(session.json(&json!({ "revoked": words::hex(&id) }))?);
    }
    note(format_args!(
        "the code of {} lets nobody in any more",
        words::short_digest(&id)
    ));
    Ok(())
}

fn no_invite(typed: &str) -> anyhow::Error {
    Story::new(format!("no open invite {typed}"))
        .hint("`substrate circle invites` shows which are; who used one is in `substrate circle list`")
        .into()
}

async fn list(session: &Session) -> anyhow::Result<()> {
    let mut client = connect::or_desk(session).await?;
    let circles = client
        .circles(v1::CirclesRequest {})
        .await
        .map_err(refused)?
        .into_inner()
        .circles;
    if session.json {
        return Ok(
            session.json(&json!({ "circles": circles.iter().map(as_json).collect::<Vec<_>>() }))?
        );
    }
    let mut table = Table::new(["CIRCLE", "NODE", "LABEL", "ADDRESS"]);
    for circle in &circles {
        for member in &circle.members {
            let addr = member.addrs.first().cloned().unwrap_or_default();
            table.row([
                circle.name.clone(),
                words::hex(&member.node),
                member.label.clone(),
                addr,
            ]);
        }
    }
    Ok(session.line(table)?)
}

fn as_json(circle: &v1::Circle) -> Value {
    let member = |member: &v1::CircleMember| json!({ "node": words::hex(&member.node), "label": member.label, "addrs": member.addrs });
    json!({ "name": circle.name, "members": circle.members.iter().map(member).collect::<Vec<_>>() })
}

async fn remove(session: &Session, circle: String, node: NodeId) -> anyhow::Result<()> {
    let mut client = connect::or_desk(session).await?;
    let request = v1::CircleRemoveRequest {
        circle: circle.clone(),
        node: node.as_bytes().to_vec(),
    };
    if !client
        .circle_remove(request)
        .await
        .map_err(refused)?
        .into_inner()
        .found
    {
        let what = format!("node {node} is not in the circle '{circle}'");
        return Err(Story::new(what)
            .hint("`substrate circle list` shows who is")
            .into());
    }
    if session.json {
        return Ok(session.json(&json!({ "circle": circle, "removed": node.to_string() }))?);
    }
    note(format_args!(
        "removed {node} from '{circle}'; what it has read already stays read"
    ));
    Ok(())
}
