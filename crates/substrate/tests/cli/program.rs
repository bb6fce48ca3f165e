//! Runs the program in a home of its own.

use std::{
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use expect_test::Expect;

/// A home that is removed afterwards.
pub struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Self {
        // Short, because a socket's path is.
        Self {
            folder: tempfile::Builder::new()
                .prefix("sub")
                .tempdir_in("/tmp")
                .unwrap(),
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn join(&self, file: &str) -> PathBuf {
        self.path().join(file)
    }

    /// The program with these arguments, not started yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_substrate"));
        for (name, _) in std::env::vars_os() {
            let ours = name.to_string_lossy().starts_with("SUBSTRATE_")
                || name.to_string_lossy().starts_with("OLLAMA_");
            if ours || name == "COLUMNS" {
                command.env_remove(name);
            }
        }
        command
            .env("SUBSTRATE_HOME", self.path())
            .args(args)
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it with something piped in.
    pub fn run_piped(&self, args: &[&str], input: &str) -> Output {
        let mut command = self.command(args);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    }

    /// Runs it and compares all three: exit code, stdout, stderr. The home's path is written as `$HOME`.
    pub fn check(&self, args: &[&str], expect: &Expect) {
        expect.assert_eq(&self.told(&self.run(args)));
    }

    pub fn told(&self, output: &Output) -> String {
        let home = self.path().to_string_lossy().into_owned();
        let words = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec())
                .unwrap()
                .replace(&home, "$HOME")
        };
        let mut told = format!(
            "exit {}\n",
            output
                .status
                .code()
                .map_or("by signal".into(), |code| code.to_string())
        );
        for (name, text) in [
            ("stdout", words(&output.stdout)),
            ("stderr", words(&output.stderr)),
        ] {
            if !text.is_empty() {
                let _ = write!(told, "--- {name}\n{text}");
            }
        }
        told
    }

    /// Runs it with `--json` and gives what it wrote, which must be one JSON value.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.run(&[args, &["--json"]].concat());
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{args:?}: {error}\n{}", self.told(&output)))
    }

    /// The last of the JSON lines that a command with progress writes.
    pub fn last_json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.run(&[args, &["--json"]].concat());
        let lines = String::from_utf8(output.stdout.clone()).unwrap();
        let last = lines
            .lines()
            .last()
            .unwrap_or_else(|| panic!("{args:?} wrote nothing\n{}", self.told(&output)));
        serde_json::from_str(last).unwrap()
    }
}
