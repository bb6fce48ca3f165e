//! `circle`: the few with whom prompts are shared.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use substrate_api::v1;
use substrate_record::NodeId;

use super::{
    connect, network, plain,
    session::{Session, note},
    story::{Story, refused},
    table::Table,
    words,
};

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
            Command::Join { code } => network::join(session, code).await,
            Command::List => list(session).await,
            Command::Remove { circle, node } => remove(session, circle, node).await,
        }
    }
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
