//! Logs to stderr: warnings for commands, what happens for the daemon.
//!
//! `SUBSTRATE_LOG` takes tracing's filter syntax and wins over `-v`.

use tracing_subscriber::EnvFilter;

/// Starts logging; `-v` raises it, once to debug and twice to trace.
pub fn start(verbosity: u8, daemon: bool) {
    let level = match (verbosity, daemon) {
        (0, false) => "warn",
        (0, true) => "info",
        (1, _) => "info,substrate=debug,substrate_mesh=debug,substrate_node=debug",
        (_, _) => "debug,substrate=trace,substrate_mesh=trace,substrate_node=trace",
    };
    let filter = EnvFilter::try_from_env("SUBSTRATE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    // Somebody else logging already is as good.
    let _ = logs.try_init();
}
