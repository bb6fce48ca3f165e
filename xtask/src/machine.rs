//! What a figure was measured on: a figure without its machine and its revision says nothing.

use std::fmt;

use serde::Serialize;

use xtask::sh;

/// A machine, and what ran on it.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// As the processor calls itself.
    pub cpu: String,
    /// Cores this process may use.
    pub cores: usize,
    /// Memory in bytes.
    pub memory: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// Commit of the checkout, with `+` if files differ from it.
    pub revision: String,
}

impl Machine {
    /// This machine, now. What it does not tell is `unknown` or 0: no figure is lost for that.
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let unknown = || "unknown".to_owned();
        Self {
            // ARM kernels name no model; the architecture is better than nothing.
            cpu: field(&read("/proc/cpuinfo"), "model name")
                .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory: field(&read("/proc/meminfo"), "MemTotal")
                .and_then(|size| size.strip_suffix(" kB")?.parse::<u64>().ok())
                .map_or(0, |kib| kib * 1024),
            kernel: Some(read("/proc/sys/kernel/osrelease").trim().to_owned())
                .filter(|release| !release.is_empty())
                .unwrap_or_else(unknown),
            revision: revision().unwrap_or_else(unknown),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cores of {}, {} GiB, Linux {}; revision {}",
            self.cores,
            self.cpu,
            self.memory >> 30,
            self.kernel,
            self.revision
        )
    }
}

/// The value of the first `key : value` line.
fn field(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn revision() -> Option<String> {
    let git = |args: &[&str]| sh::output(sh::command("git").args(args)).ok();
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let differs = git(&["status", "--porcelain"])?;
    let mark = if differs.trim().is_empty() { "" } else { "+" };
    Some(format!("{}{mark}", commit.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_key() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2.50GHz\nmodel name\t: other\n";
        assert_eq!(
            field(text, "model name").as_deref(),
            Some("Some CPU @ 2.50GHz")
        );
        assert_eq!(field(text, "MemTotal"), None);
    }

    #[test]
    fn a_machine_is_told_in_one_line() {
        let machine = Machine {
            cpu: "Some CPU".to_owned(),
            cores: 2,
            memory: 25 << 30,
            kernel: "6.1.0".to_owned(),
            revision: "0123456789ab+".to_owned(),
        };
        assert_eq!(
            machine.to_string(),
            "2 cores of Some CPU, 25 GiB, Linux 6.1.0; revision 0123456789ab+"
        );
    }
}
