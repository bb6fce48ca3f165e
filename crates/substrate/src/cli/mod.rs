//! The command line: one definition, which makes the parser, the help, the man pages and the completions.
//!
//! Invariants: data goes to stdout, everything else to stderr; every command understands `--json`;
//! a failure says what happened, why, and what to do next; 0 is success, 1 a failure, 2 wrong
//! usage, 130 an interruption. Messages follow docs/messages.md.
//! Absent by design: the node's state. Commands ask the daemon, or the desk when none runs.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};

mod session;
mod story;

mod batch;
mod circle;
mod completions;
mod copy;
mod create;
mod doctor;
mod embed;
mod import;
mod jobs;
mod key;
mod list;
mod man;
mod network;
mod node;
mod pause;
mod peers;
mod ps;
mod pull;
mod receipts;
mod remove;
mod run;
mod serve;
mod show;
mod status;
mod stop;
mod wall;

mod absent;
mod bring;
mod connect;
mod consent;
mod logging;
mod plain;
mod sampling;
mod sign;
mod start;
mod table;
mod words;

use session::Session;
use story::Story;

/// How long work on the disk may go on after the command is done: one write to a slow disk.
const LAST_WORK: Duration = Duration::from_secs(2);

/// A peer-to-peer compute commons: run open models on your own machines, your circles' and the commons'.
#[derive(Debug, Parser)]
#[command(
    name = "substrate",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
#[command(after_help = "Start with `substrate import FILE --as NAME`, then `substrate run NAME`.")]
pub struct Cli {
    /// Keep everything below this folder [default: $SUBSTRATE_HOME, else the XDG folders]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Everywhere")]
    home: Option<PathBuf>,

    /// Answer in JSON on stdout
    #[arg(long, global = true, help_heading = "Everywhere")]
    json: bool,

    /// Log more to stderr; twice for still more
    #[arg(short = 'v', global = true, action = clap::ArgAction::Count, help_heading = "Everywhere")]
    log: u8,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
#[expect(
    clippy::large_enum_variant,
    reason = "parsed once; a box would only move it"
)]
enum Command {
    /// Ask a model, once or in a conversation
    Run(run::Run),
    /// Turn texts into vectors
    Embed(embed::Embed),
    /// Ask many requests in one file, when there is time
    Batch(batch::Batch),
    /// Run the daemon
    #[command(visible_alias = "start")]
    Serve(serve::Serve),
    /// Fetch a model from where it is published
    Pull(pull::Pull),
    /// Bring a model file under a name
    Import(import::Import),
    /// Make a model of your own from a Modelfile
    Create(create::Create),
    /// List the models that can be used now
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Show everything known of a model
    Show(show::Show),
    /// Give a model a second name
    Cp(copy::Cp),
    /// Take a model away from this machine
    Rm(remove::Rm),
    /// List the models in memory
    Ps(ps::Ps),
    /// Unload a model, or end the daemon
    Stop(stop::Stop),
    /// Show what the daemon does
    Status(status::Status),
    /// List the nodes in sight
    Peers(peers::Peers),
    /// List jobs, or cancel one
    Jobs(jobs::Jobs),
    /// Prove who did what for whom
    Receipts(receipts::Receipts),
    /// Found a network, invite to it, join one
    Network(network::Network),
    /// Share with a few: invite, join, list, remove
    Circle(circle::Circle),
    /// Keys of callers of the HTTP listener: make one, list them, forget one
    Key(key::Key),
    /// This machine: its key, its parts, its speed, what it lends
    Node(node::Node),
    /// Keep this machine to yourself for a while: others' jobs move on, memory is freed
    Pause(pause::Pause),
    /// End a pause
    Resume(pause::Resume),
    /// Try the walls around workers
    Wall(wall::Wall),
    /// Say what is wrong here and how to mend it
    Doctor(doctor::Doctor),
    /// Print completions for a shell
    Completions(completions::Completions),
    /// Write the man pages into a folder
    #[command(hide = true)]
    Man(man::Man),
    /// Not here: there is no registry
    #[command(hide = true)]
    Push(absent::Absent),
    /// Not here: there are no accounts
    #[command(hide = true)]
    Signin(absent::Absent),
    /// Not here: there are no accounts
    #[command(hide = true)]
    Signout(absent::Absent),
}

/// The whole program, from the arguments to the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let json = cli.json;
    let Some(command) = cli.command else {
        return help();
    };
    logging::start(cli.log, matches!(command, Command::Serve(_)));
    let session = Session::new(cli.home, cli.json);
    if let Command::Serve(serve) = &command
        && let Err(error) = serve.give_up_root(&session)
    {
        return story::exit(Err(error), json);
    }
    let outcome = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => {
            let outcome = runtime.block_on(interruptible(command, &session));
            // Lets the store close, but no thread that still waits for the terminal keep the program alive.
            runtime.shutdown_timeout(LAST_WORK);
            outcome
        }
        Err(error) => Err(Story::new("cannot start the runtime").because(error).into()),
    };
    story::exit(outcome, json)
}

fn usage(error: &clap::Error) -> ExitCode {
    let asked = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    if !asked && std::env::args_os().any(|arg| arg == "--json") {
        return story::exit(Err(misused(error).into()), true);
    }
    // The pipe may be closed already; there is nobody left to tell.
    let _ = error.print();
    if asked {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(story::USAGE)
    }
}

/// What the parser says, for programs: its first paragraph in one line.
fn misused(error: &clap::Error) -> Story {
    let missing = [
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
        ErrorKind::MissingSubcommand,
    ];
    if missing.contains(&error.kind()) {
        return Story::usage("a command is missing").hint("`--help` shows what there is");
    }
    let told = error.to_string();
    let first = told.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    let what = words.join(" ");
    Story::usage(what.trim_start_matches("error: ")).hint("`--help` shows what there is")
}

fn help() -> ExitCode {
    let _ = Cli::command().print_help();
    ExitCode::SUCCESS
}

/// Runs a command; Ctrl-C ends it with 130, except where the command has its own use for it.
async fn interruptible(command: Command, session: &Session) -> anyhow::Result<()> {
    match command {
        Command::Serve(serve) => serve.run(session).await,
        Command::Run(run) => run.run(session).await,
        other => tokio::select! {
            outcome = dispatch(other, session) => outcome,
            () = session::interrupted() => Err(Story::interrupted().into()),
        },
    }
}

async fn dispatch(command: Command, session: &Session) -> anyhow::Result<()> {
    match command {
        Command::Run(command) => command.run(session).await,
        Command::Serve(command) => command.run(session).await,
        Command::Embed(command) => command.run(session).await,
        Command::Batch(command) => command.run(session).await,
        Command::Pull(command) => command.run(session).await,
        Command::Import(command) => command.run(session).await,
        Command::Create(command) => command.run(session).await,
        Command::List(command) => command.run(session).await,
        Command::Show(command) => command.run(session).await,
        Command::Cp(command) => command.run(session).await,
        Command::Rm(command) => command.run(session).await,
        Command::Ps(command) => command.run(session).await,
        Command::Stop(command) => command.run(session).await,
        Command::Status(command) => command.run(session).await,
        Command::Peers(command) => command.run(session).await,
        Command::Jobs(command) => command.run(session).await,
        Command::Receipts(command) => command.run(session).await,
        Command::Network(command) => command.run(session).await,
        Command::Circle(command) => command.run(session).await,
        Command::Node(command) => command.run(session).await,
        Command::Pause(command) => command.run(session).await,
        Command::Resume(command) => command.run(session).await,
        Command::Wall(command) => command.run(session).await,
        Command::Doctor(command) => command.run(session).await,
        Command::Completions(command) => command.run(session),
        Command::Man(command) => command.run(session),
        Command::Key(command) => command.run(session).await,
        Command::Push(_) => Err(absent::push()),
        Command::Signin(_) | Command::Signout(_) => Err(absent::account()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds() {
        Cli::command().debug_assert();
    }
}
