//! A conversation at a terminal: a real pseudo-terminal, the real program, a scripted daemon.

use std::{
    fs::File,
    io::{Read, Write},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};

use crate::daemon::Daemon;

/// How long an expected text may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A program at a terminal.
struct Terminal {
    keyboard: File,
    screen: std::sync::mpsc::Receiver<Vec<u8>>,
    seen: String,
    child: Child,
}

impl Terminal {
    fn run(daemon: &Daemon, args: &[&str]) -> Self {
        let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&near).unwrap();
        unlockpt(&near).unwrap();
        let name = ptsname(&near, Vec::new()).unwrap();
        let far = File::from(
            rustix::fs::open(
                name.as_c_str(),
                OFlags::RDWR | OFlags::NOCTTY,
                Mode::empty(),
            )
            .unwrap(),
        );
        let end = || Stdio::from(far.try_clone().unwrap());
        let mut command = daemon.home.command(args);
        let child = command
            .env("TERM", "dumb")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let keyboard = File::from(near);
        let mut screen = keyboard.try_clone().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                if tell.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            keyboard,
            screen: told,
            seen: String::new(),
            child,
        }
    }

    /// Waits for a text, and forgets what came before and with it.
    fn see(&mut self, text: &str) {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "waited for {text:?}, saw {:?}",
                self.seen
            );
            if let Ok(bytes) = self.screen.recv_timeout(Duration::from_millis(100)) {
                self.seen.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
    }

    fn type_line(&mut self, line: &str) {
        self.keyboard.write_all(line.as_bytes()).unwrap();
        self.keyboard.write_all(b"\r").unwrap();
    }
}

#[test]
fn ctrl_c_cancels_the_answer_and_not_the_conversation() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::run(&daemon, &["run", "smollm2:135m"]);
    terminal.see(">>> ");
    terminal.type_line("hello");
    terminal.see("wörld.");
    terminal.see(">>> ");
    terminal.type_line("go on and on");
    terminal.see("word word");
    kill_process(Pid::from_child(&terminal.child), Signal::INT).unwrap();
    terminal.see("cancelled");
    daemon
        .cancelled
        .recv_timeout(PATIENCE)
        .expect("the job is cancelled");
    terminal.see(">>> ");
    terminal.type_line("/set parameter top_k 3");
    terminal.see("top_k is 3");
    terminal.type_line("/wat");
    terminal.see("no command '/wat'");
    terminal.type_line("/show");
    terminal.see("parameters        134.5M");
    terminal.type_line("/bye");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_request_to_end_ends_a_conversation() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::run(&daemon, &["run", "smollm2:135m"]);
    terminal.see(">>> ");
    kill_process(Pid::from_child(&terminal.child), Signal::TERM).unwrap();
    assert_eq!(terminal.child.wait().unwrap().code(), Some(130));
}

#[test]
fn another_model_needs_a_consent_of_its_own_before_strangers_read() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::run(
        &daemon,
        &["run", "smollm2:135m", "--scope", "commons", "--consent"],
    );
    terminal.see(">>> ");
    terminal.type_line("/load qwen3:4b");
    terminal.see("Is that fine for this model, now and later? [y/N] ");
    terminal.type_line("n");
    terminal.see("scope 'commons' needs your consent");
    terminal.see(">>> ");
    terminal.type_line("/show");
    terminal.see("name              smollm2:135m");
    terminal.see(">>> ");
    // A name in sight is found in any case.
    terminal.type_line("/load QWEN3:4b");
    terminal.see("[y/N] ");
    terminal.type_line("y");
    terminal.see("going on with 'QWEN3:4b'");
    terminal.see(">>> ");
    // What was consented to is not asked again.
    terminal.type_line("/load qwen3:4B");
    terminal.see("going on with 'qwen3:4B'");
    terminal.see(">>> ");
    terminal.type_line("/bye");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_model_that_cannot_be_shown_ends_no_conversation() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::run(&daemon, &["run", "echo", "--keepalive", "10m"]);
    terminal.see("error: model 'echo' not found");
    terminal.see(">>> ");
    terminal.type_line("/set system \"\"\"Be brief.");
    terminal.see("... ");
    terminal.type_line("Say \"hi\".\"\"\"");
    terminal.see(">>> ");
    terminal.type_line("hello");
    terminal.see("system: Be brief.\r\nSay \"hi\".\r\nuser: hello");
    terminal.see("--keepalive changes nothing");
    terminal.see(">>> ");
    terminal.type_line("/save mine");
    terminal.see("/save is not there yet");
    terminal.type_line("/bye");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
}
