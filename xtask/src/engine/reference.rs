//! The reference: `llama-server` built from the llama.cpp tree inside the PyPI sdist `llama-cpp-python`.
//!
//! Invariant: the tree is pinned by version and digest, and built with the processor flags of our own engine
//! (`GGML_NATIVE=OFF`, so AVX2, FMA, F16C, BMI2); everything else is as its users get it.
//! Absent by design: patches.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xtask::sh;

/// The package, and the digest of its source archive.
const VERSION: &str = "0.3.36";
const SHA256: &str = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e";

/// The wheel with a prebuilt server, as the golden files of the worker's tests were made with.
const PREBUILT: &str = "xllamacpp==2026.10.11549";

/// How often a starting server is looked at.
const POLL: Duration = Duration::from_millis(50);

/// How long a server may take to load a small model.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Builds the reference once and returns its program; kept in the cache, as it takes ten minutes.
///
/// # Errors
/// It cannot be fetched, is not the pinned one, or does not build.
pub fn build() -> Result<PathBuf> {
    let folder = sh::cache()?.join(format!("reference-{VERSION}"));
    let program = folder.join("build/bin/llama-server");
    if program.is_file() {
        return Ok(program);
    }
    std::fs::create_dir_all(&folder)?;
    let archive = folder.join(format!("llama_cpp_python-{VERSION}.tar.gz"));
    eprintln!(
        "building the reference once: llama.cpp as llama-cpp-python {VERSION} carries it, about ten minutes"
    );
    sh::run(
        sh::command("python3")
            .args(["-m", "pip", "download", "--quiet", "--no-deps"])
            .arg("--disable-pip-version-check")
            .args(["--no-binary", "llama-cpp-python", "--dest"])
            .arg(&folder)
            .arg(format!("llama-cpp-python=={VERSION}")),
    )?;
    check(&archive)?;
    sh::run(
        sh::command("tar")
            .args(["-xzf"])
            .arg(&archive)
            .args(["--strip-components=1", "-C"])
            .arg(&folder),
    )?;
    let source = folder.join("vendor/llama.cpp");
    let built = folder.join("build.new");
    sh::run(
        sh::command("cmake")
            .arg("-S")
            .arg(&source)
            .arg("-B")
            .arg(&built)
            .args(["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"])
            .args(["-DGGML_NATIVE=OFF", "-DBUILD_SHARED_LIBS=OFF"])
            .args([
                "-DLLAMA_CURL=OFF",
                "-DLLAMA_OPENSSL=OFF",
                "-DLLAMA_BUILD_TESTS=OFF",
            ])
            .args(["-DLLAMA_BUILD_WEBUI=OFF", "-DLLAMA_BUILD_UI=OFF"])
            .stdout(Stdio::null()),
    )?;
    sh::run(
        sh::command("cmake")
            .arg("--build")
            .arg(&built)
            .args(["--target", "llama-server"])
            .stdout(Stdio::null()),
    )?;
    std::fs::rename(built, folder.join("build"))?;
    Ok(program)
}

fn check(archive: &Path) -> Result<()> {
    use sha2::{Digest, Sha256};
    let bytes = std::fs::read(archive).with_context(|| format!("read {}", archive.display()))?;
    let digest = hex::encode(&Sha256::digest(bytes)[..]);
    if digest != SHA256 {
        bail!(
            "{} has the digest {digest}, not the pinned {SHA256}",
            archive.display()
        );
    }
    Ok(())
}

/// The revision, as the program tells it.
///
/// # Errors
/// It does not run.
pub fn revision(program: &Path) -> Result<String> {
    let output = sh::command(program).arg("--version").output()?;
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    let line = told.lines().find(|line| line.starts_with("version:"));
    Ok(line.unwrap_or("version: unknown").to_owned())
}

/// A running reference; ended when dropped.
pub struct Server {
    /// Where it listens.
    pub api: SocketAddr,
    child: Child,
}

/// How a server is set up.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// The model's file.
    pub model: &'a Path,
    /// Sequences at once.
    pub slots: u32,
    /// Context of each.
    pub context: u32,
    /// Threads.
    pub threads: u32,
}

impl Server {
    /// Starts `llama-server` and waits until it is ready.
    ///
    /// # Errors
    /// It ended, or did not get ready.
    pub fn start(program: &Path, setup: Setup<'_>) -> Result<Self> {
        let api = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let total = (setup.slots * setup.context).to_string();
        let threads = setup.threads.to_string();
        let child = sh::command(program)
            .arg("-m")
            .arg(setup.model)
            .args(["--host", "127.0.0.1", "--port", &api.port().to_string()])
            .args(["-c", &total, "--parallel", &setup.slots.to_string()])
            .args(["-t", &threads, "-tb", &threads])
            .args(["--no-webui", "--log-disable"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start llama-server")?;
        Self { api, child }.ready()
    }

    /// Starts the server that the `xllamacpp` wheel carries: prebuilt by others, with flags of their own.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_prebuilt(setup: Setup<'_>) -> Result<Self> {
        let python = xtask::python::with_packages("reference", &[PREBUILT])?;
        let mut child = sh::command(python)
            .arg(sh::root().join("tests/reference/serve.py"))
            .arg(setup.model)
            .args([setup.slots, setup.context, setup.threads].map(|number| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start the prebuilt server")?;
        let mut line = String::new();
        let told = child.stdout.as_mut().context("no stdout")?;
        BufReader::new(told).read_line(&mut line)?;
        let api = line.trim().trim_start_matches("http://").parse();
        let api = api.with_context(|| format!("the prebuilt server said {line:?}"))?;
        Self { api, child }.ready()
    }

    fn ready(mut self) -> Result<Self> {
        let deadline = Instant::now() + START_DEADLINE;
        let health = format!("http://{}/health", self.api);
        while Instant::now() < deadline {
            if ureq::get(&health).call().is_ok() {
                return Ok(self);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the reference ended with {status}");
            }
            std::thread::sleep(POLL);
        }
        bail!("the reference was not ready within {START_DEADLINE:?}")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
