//! `serve`: the daemon, in the foreground or in the background.

use std::net::SocketAddr;

use clap::Args;

use crate::{
    daemon::{self, DaemonOptions, root},
    home::{DaemonLock, Home},
};

use super::{
    connect,
    session::{Session, note},
    start,
    story::Story,
};

/// Run the daemon.
#[derive(Debug, Args)]
#[command(
    after_help = "Settings are read from config.toml in the home folder; these flags win over it.\n\
    SUBSTRATE_LOG filters the log, as in `SUBSTRATE_LOG=info,substrate=debug`."
)]
pub struct Serve {
    /// Address of the HTTP listener (OpenAI and Ollama APIs); may be repeated, as for Ollama's own
    /// 127.0.0.1:11434 [default: 127.0.0.1:11535]
    #[arg(long, value_name = "ADDR")]
    api: Vec<SocketAddr>,

    /// Multiaddress to listen on for other nodes, such as /ip4/0.0.0.0/udp/11536/quic-v1; may be repeated
    #[arg(long, value_name = "MULTIADDR")]
    listen: Vec<String>,

    /// Multiaddress of a node to stay connected to; may be repeated
    #[arg(long, value_name = "MULTIADDR")]
    peer: Vec<String>,

    /// As root only: become this user at once, for good, before anything is opened; needs --home or SUBSTRATE_HOME
    #[arg(long, value_name = "NAME", conflicts_with = "detach")]
    user: Option<String>,

    /// Start in the background and return once it answers
    #[arg(long)]
    detach: bool,

    /// Already in the background: leave the terminal's session
    #[arg(long, hide = true, conflicts_with = "detach")]
    in_own_session: bool,
}

impl Serve {
    /// Gives root up for the user that was named. The program has one thread yet, and has opened nothing.
    pub fn give_up_root(&self, session: &Session) -> anyhow::Result<()> {
        let Some(name) = &self.user else {
            return Ok(());
        };
        let named = std::env::var_os("SUBSTRATE_HOME").is_some_and(|home| !home.is_empty());
        if session.named_home().is_none() && !named {
            return Err(
                Story::usage("--user needs a home folder that is that user's own")
                    .hint("name it: `substrate --home DIR serve --user NAME`")
                    .into(),
            );
        }
        let became = root::become_user(name);
        became.map_err(|error| Story::new("the daemon did not start").because(error).into())
    }

    /// Runs the daemon until it is told to stop.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        if self.detach {
            daemon::refuse_root()?;
            let home = session.prepared_home()?;
            if connect::running(&home).await?.is_some() {
                note("the daemon runs already");
                return Ok(());
            }
            start::start(session, &home, &self.flags()).await?;
            return Ok(());
        }
        if self.in_own_session {
            // It fails only for the leader of a process group, which already is on its own.
            let _ = rustix::process::setsid();
        }
        // Until root is refused nothing is made, only looked at.
        let home = session.home()?;
        start::check_config(&home)?;
        refuse_second(&home)?;
        daemon::refuse_root()?;
        let home = session.prepared_home()?;
        let options = DaemonOptions {
            home,
            listen: self.listen,
            peers: self.peer,
            api: self.api,
        };
        daemon::run(options).await
    }

    /// The flags again, for the daemon in the background.
    fn flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        let mut add = |flag: &str, value: String| flags.extend([flag.to_owned(), value]);
        for api in &self.api {
            add("--api", api.to_string());
        }
        for listen in &self.listen {
            add("--listen", listen.clone());
        }
        for peer in &self.peer {
            add("--peer", peer.clone());
        }
        flags
    }
}

/// Says who serves this home already. The daemon takes the lock itself; this is the friendly way to be told.
fn refuse_second(home: &Home) -> anyhow::Result<()> {
    let holder = DaemonLock::holder(home).map_err(|error| {
        Story::new("cannot read the daemon's lock")
            .because(error)
            .hint("run `substrate doctor`")
    })?;
    let Some(pid) = holder else { return Ok(()) };
    Err(Story::new(format!("a daemon (pid {pid}) already runs on this home"))
        .hint("`substrate status` asks it; `substrate stop --daemon` ends it; --home names another home")
        .into())
}
