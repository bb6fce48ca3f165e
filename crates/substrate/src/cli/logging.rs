//! Logs to stderr: warnings for commands, what happens for the daemon.
//!
//! `SUBSTRATE_LOG` takes tracing's filter syntax and wins over `-v`, and that over Ollama's `OLLAMA_DEBUG`, which is heard
//! by the daemon only.

use tracing_subscriber::EnvFilter;

/// Starts logging; `-v` raises it, once to debug and twice to trace.
pub fn start(verbosity: u8, daemon: bool) {
    let verbosity = match verbosity {
        0 if daemon => ollamas(std::env::var("OLLAMA_DEBUG").ok().as_deref()),
        verbosity => verbosity,
    };
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

/// Ollama's word for how much is logged: a truth value, or a level of which 2 is the most.
fn ollamas(debug: Option<&str>) -> u8 {
    match debug.map(str::trim) {
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => 1,
        Some("2") => 2,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ollamas_word_is_a_truth_value_or_a_level() {
        for (word, verbosity) in [
            (None, 0),
            (Some(""), 0),
            (Some("false"), 0),
            (Some("1"), 1),
            (Some("true"), 1),
            (Some("2"), 2),
        ] {
            assert_eq!(ollamas(word), verbosity, "{word:?}");
        }
    }
}
