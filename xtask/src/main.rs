//! `cargo xtask`: builds, checks, demonstrates and measures the project.
//!
//! Invariant: nothing here is needed to *use* The Substrate; everything a developer or the gate
//! runs starts here, so that a newcomer's machine and the gate do the same thing.
//! Absent by design: shell scripts.

mod apparmor;
mod bench;
mod check;
mod clients;
mod demo;
mod dependencies;
mod edges;
mod engine;
mod fuzz;
mod image;
mod machine;
mod near_tie;
mod prove;
mod tidy;

use clap::{Parser, Subcommand};
use xtask::{model, stage};

/// The project's tasks.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// From nothing to a real answer across three nodes, a node killed mid-answer, and receipts verified offline
    Demo(demo::Options),
    /// Everything that must hold before a change lands
    Check(check::Options),
    /// Side-by-side ratios
    Bench(bench::Options),
    /// The figures an issue asks for, hours allowed
    Prove(prove::Options),
    /// Build the binaries into a folder that an unprivileged user can run from, and print its path
    Stage {
        /// Optimise everything, for use and for measuring; the tests' build optimises what tokens pass through
        #[arg(long)]
        release: bool,
    },
    /// The guest image of the microVM wall, from Debian's kernel and the programs of this checkout
    Image(image::Options),
    /// Fetch the models for answers and for vectors, make the projector and the adapter, check their digests, and print where they are
    Model,
    /// Unmodified client packages against real nodes, with the programs staged before
    Clients {
        /// The folder that `stage` printed
        bin: std::path::PathBuf,
        /// The file that `model` printed
        model: std::path::PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Demo(options) => demo::run(&options),
        Task::Check(options) => check::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Prove(options) => prove::run(&options),
        Task::Stage { release } => {
            let build = if release {
                stage::build_release
            } else {
                stage::build
            };
            println!("{}", build()?.display());
            Ok(())
        }
        Task::Image(options) => image::run(&options),
        Task::Clients { bin, model } => clients::run(&bin, &model),
        Task::Model => {
            println!("{}", model::publish(&model::fetch()?)?.display());
            println!("{}", model::publish_vectors()?.display());
            for drawn in model::publish_drawn()? {
                println!("{}", drawn.display());
            }
            Ok(())
        }
    }
}
