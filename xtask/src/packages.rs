//! System packages a build needs, installed as root by apt, otherwise named in one exact line.

use anyhow::{Result, bail};

use crate::sh;

/// (package, a file that proves it is there). llama.cpp needs cmake, a C++ compiler and libclang; Python
/// fetches the demo model and runs the client tests; iproute2 makes the network namespaces of the mesh's tests.
const NEEDED: [(&str, &[&str]); 8] = [
    ("build-essential", &["/usr/bin/g++"]),
    ("cmake", &["/usr/bin/cmake"]),
    (
        "libclang-dev",
        &[
            "/usr/lib/llvm-14/lib/libclang.so",
            "/usr/lib/llvm-19/lib/libclang.so",
        ],
    ),
    ("ninja-build", &["/usr/bin/ninja"]),
    (
        "faketime",
        &["/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"],
    ),
    ("iproute2", &["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"]),
    (
        "python3-venv",
        &[
            "/usr/share/doc/python3-venv",
            "/usr/share/doc/python3.11-venv",
        ],
    ),
    (
        "python3-pip",
        &["/usr/bin/pip3", "/usr/share/doc/python3-pip"],
    ),
];

/// Installs what is missing, or stops with the line that would.
pub fn ensure() -> Result<()> {
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(_, proofs)| {
            !proofs
                .iter()
                .any(|proof| std::path::Path::new(proof).exists())
        })
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root() {
        bail!(
            "system packages are missing; as root, run:\n    apt-get install -y --no-install-recommends {}",
            missing.join(" ")
        );
    }
    if !sh::on_path("apt-get") {
        bail!(
            "these packages are missing and this system has no apt-get: {}",
            missing.join(" ")
        );
    }
    sh::run(sh::command("apt-get").args(["update", "-qq"]))?;
    sh::run(
        sh::command("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&missing),
    )
}

/// Whether this process is root. Walled workers never are, so tests and the demo then use [`crate::stage::UNPRIVILEGED`].
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}
