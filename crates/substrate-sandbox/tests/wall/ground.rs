//! What the tests stand on: the static attacker, a model, and a folder others may read.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::Duration,
};

use substrate_sandbox::launch::{ExitKind, LaunchError, Wall, WallSpec, Worker};

/// Nobody.
pub const NOBODY: u32 = 65534;

/// No answer takes longer on a loaded machine; a hang must not hang the tests.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What the folder is called, before the process id.
const FOLDER: &str = "substrate-wall-";

/// The ground is laid once a process.
static GROUND: LazyLock<Ground> = LazyLock::new(Ground::lay);

pub struct Ground {
    pub worker: PathBuf,
    pub model: PathBuf,
}

pub fn ground() -> &'static Ground {
    &GROUND
}

impl Ground {
    /// Root's home and target folders are closed to nobody, so all is copied to an open place.
    fn lay() -> Self {
        sweep();
        let folder = std::env::temp_dir().join(format!("{FOLDER}{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let ground = Self {
            worker: folder.join("attacker"),
            model: folder.join("model.bin"),
        };
        fs::copy(built_attacker(), &ground.worker).unwrap();
        fs::set_permissions(&ground.worker, fs::Permissions::from_mode(0o755)).unwrap();
        let mut model = b"GGUF".to_vec();
        model.resize(1 << 20, 7);
        fs::write(&ground.model, model).unwrap();
        // Writable to all, so that only the mount can be what refuses.
        fs::set_permissions(&ground.model, fs::Permissions::from_mode(0o666)).unwrap();
        ground
    }
}

/// Removes what processes left behind that are no more: a static is never dropped.
fn sweep() {
    for entry in fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(process) = name.strip_prefix(FOLDER)
            && !Path::new("/proc").join(process).exists()
        {
            // Another user's folder stays; another test may be faster.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The staged attacker; without a stage, built by cargo with the C library inside.
fn built_attacker() -> PathBuf {
    if let Some(stage) = std::env::var_os("SUBSTRATE_TEST_BIN") {
        return Path::new(&stage).join("substrate-wall-attacker");
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("static");
    let status = Command::new(env!("CARGO"))
        .args(["rustc", "--quiet", "--offline", "-p", "substrate-sandbox"])
        .args([
            "--bin",
            "substrate-wall-attacker",
            "--features",
            "attacker",
            "--target-dir",
        ])
        .arg(&target)
        .args(["--", "-C", "target-feature=+crt-static"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(status.success(), "the attacker did not build");
    target.join("debug/substrate-wall-attacker")
}

pub fn is_root() -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

pub fn become_uid() -> Option<u32> {
    is_root().then_some(NOBODY)
}

pub fn spec() -> WallSpec {
    WallSpec {
        become_uid: become_uid(),
        ..WallSpec::new(&ground().worker, &ground().model)
    }
}

pub fn spawn(spec: WallSpec) -> Worker {
    Wall::spawn(spec).unwrap_or_else(|error| panic!("{}", story(&error)))
}

/// An error with its cause and hint, as a user would be told.
pub fn story(error: &LaunchError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    let hint = error.hint().map(|hint| format!("; {hint}"));
    format!(
        "{error}{}{}",
        cause.unwrap_or_default(),
        hint.unwrap_or_default()
    )
}

/// Gives a worker its order and reads one line of answer; empty if it died without one.
pub fn order(worker: &mut Worker, stage: u8, command: &str) -> (String, UnixStream) {
    let mut pipe = worker.take_pipe().unwrap();
    pipe.set_read_timeout(Some(PATIENCE)).unwrap();
    writeln!(pipe, "{stage} {command}").unwrap();
    let mut answer = String::new();
    // A killed worker may reset the pipe, which is an end like any other.
    let _ = BufReader::new(&pipe).read_line(&mut answer);
    (answer.trim_end().to_owned(), pipe)
}

/// One command at one stage in a worker of its own: the answer and the end.
pub fn run(stage: u8, command: &str) -> (String, ExitKind) {
    let mut worker = spawn(spec());
    let (answer, pipe) = order(&mut worker, stage, command);
    drop(pipe);
    let exit = worker.wait_at_most(PATIENCE).unwrap();
    (answer, exit.expect("the worker ends"))
}
