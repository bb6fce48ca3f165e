//! System packages a build needs, installed as root by apt, otherwise named in one exact line.
//!
//! Invariant: a package is missing only if what is wanted of it is not there, wherever it came from: another release of
//! the system, another architecture or another package manager may put the same tool elsewhere.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::sh;

/// A package as Debian calls it, and whether what we want of it is there.
type Package = (&'static str, fn() -> bool);

/// What building and the demo need: llama.cpp takes cmake, ninja, a C++ compiler and libclang (for bindgen); Python
/// fetches the demo model.
const BUILD: [Package; 5] = [
    ("build-essential", || {
        ["g++", "make", "readelf"].into_iter().all(sh::on_path)
    }),
    ("cmake", || sh::on_path("cmake")),
    ("ninja-build", || sh::on_path("ninja")),
    ("libclang-dev", || libclang().is_some()),
    ("python3-pip", || python_has("pip")),
];

/// What a guest image is built with: a file system for its root, and what Debian's kernel is packed with.
const IMAGE: [Package; 2] = [
    ("erofs-utils", || exists("/usr/bin/mkfs.erofs")),
    ("lz4", || sh::on_path("lz4")),
];

/// What the gate needs besides: the parser of AppArmor's profiles, another clock, network namespaces, environments for the
/// client packages, and a machine for guests.
const GATE: [Package; 5] = [
    ("apparmor", || exists("/sbin/apparmor_parser")),
    ("faketime", || libfaketime().is_some()),
    ("iproute2", || sh::on_path("ip") || exists("/usr/sbin/ip")),
    ("python3-venv", || python_has("ensurepip")),
    ("qemu-system-x86", || exists("/usr/bin/qemu-system-x86_64")),
];

/// What counting a worker's system calls needs.
const POLICY: [Package; 1] = [("strace", || sh::on_path("strace"))];

/// What a worker for Vulkan is built with besides: the loader with its headers, the compiler of shaders, their headers.
const VULKAN: [Package; 3] = [
    ("libvulkan-dev", || exists("/usr/include/vulkan/vulkan.hpp")),
    ("glslc", || sh::on_path("glslc")),
    ("spirv-headers", || {
        exists("/usr/include/spirv/unified1/spirv.hpp")
    }),
];

/// Installs what building and the demo need and is missing, or stops with the line that would.
///
/// # Errors
/// Something is missing and cannot be installed from here.
pub fn ensure_for_build() -> Result<()> {
    ensure(&BUILD)
}

/// As [`ensure_for_build`], with what only the gate needs.
///
/// # Errors
/// As [`ensure_for_build`].
pub fn ensure_for_gate() -> Result<()> {
    ensure(&[&BUILD[..], &IMAGE, &GATE].concat())
}

/// As [`ensure_for_build`], with what a guest image is built with.
///
/// # Errors
/// As [`ensure_for_build`].
pub fn ensure_for_image() -> Result<()> {
    ensure(&[&BUILD[..], &IMAGE].concat())
}

/// As [`ensure_for_build`], with what counting a worker's system calls needs.
///
/// # Errors
/// As [`ensure_for_build`].
pub fn ensure_for_policy() -> Result<()> {
    ensure(&[&BUILD[..], &POLICY].concat())
}

/// As [`ensure_for_build`], with what a worker for Vulkan needs.
///
/// # Errors
/// As [`ensure_for_build`].
pub fn ensure_for_vulkan() -> Result<()> {
    ensure(&[&BUILD[..], &VULKAN].concat())
}

fn ensure(needed: &[Package]) -> Result<()> {
    let missing: Vec<&str> = needed
        .iter()
        .filter(|(_, is_there)| !is_there())
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !sh::on_path("apt-get") {
        bail!(
            "these packages are missing and this system has no apt-get: {}",
            missing.join(" ")
        );
    }
    if !is_root() {
        bail!(
            "system packages are missing; as root, run:\n    apt-get install -y --no-install-recommends {}",
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

/// libclang where clang-sys, which bindgen loads it with, would look for it.
fn libclang() -> Option<PathBuf> {
    let told = std::env::var_os("LIBCLANG_PATH").map(PathBuf::from);
    if let Some(told) = told {
        return (told.is_file() && is_libclang(&told))
            .then(|| told.clone())
            .or_else(|| files_in(&told).into_iter().find(|path| is_libclang(path)));
    }
    let versions = files_in(Path::new("/usr/lib"))
        .into_iter()
        .filter(|path| path.to_string_lossy().starts_with("/usr/lib/llvm"))
        .flat_map(|llvm| [llvm.join("lib"), llvm.join("lib64")]);
    let configured = sh::output(sh::command("llvm-config").arg("--libdir"))
        .ok()
        .map(|folder| PathBuf::from(folder.trim()));
    library_folders()
        .into_iter()
        .chain(versions)
        .chain(configured)
        .flat_map(|folder| files_in(&folder))
        .find(|path| is_libclang(path))
}

/// Whether a file is named as clang-sys looks for it. `libclang-cpp`, the C++ interface that other packages bring along,
/// is named alike and does not serve.
fn is_libclang(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    (name == "libclang.so" || name.starts_with("libclang.so.") || name.starts_with("libclang-"))
        && name.contains(".so")
        && !name.contains("-cpp.")
}

/// libfaketime, which moves a program's wall clock and leaves its monotonic clock alone.
pub fn libfaketime() -> Option<PathBuf> {
    library_folders()
        .into_iter()
        .map(|folder| folder.join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists())
}

/// Where libraries are: the usual folders, and those of each architecture in `/usr/lib` (`x86_64-linux-gnu`).
fn library_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = ["/usr/lib", "/usr/lib64", "/usr/local/lib"]
        .map(PathBuf::from)
        .to_vec();
    folders.extend(
        files_in(Path::new("/usr/lib"))
            .into_iter()
            .filter(|path| path.to_string_lossy().contains("-linux-")),
    );
    folders
}

/// What a folder holds, in order; nothing if it cannot be read.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    paths
}

/// Whether Python can import a module; Debian keeps `pip` and `ensurepip` in packages of their own.
fn python_has(module: &str) -> bool {
    sh::command("python3")
        .args(["-c", &format!("import {module}")])
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

/// Whether this process is root. Walled workers never are, so tests and the demo then use [`crate::stage::UNPRIVILEGED`].
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libclang_is_told_from_its_neighbours() {
        let is = |name: &str| is_libclang(Path::new(name));
        for name in [
            "libclang.so",
            "libclang.so.1",
            "libclang-14.so.1",
            "libclang-14.so.14.0.6",
        ] {
            assert!(is(name), "{name}");
        }
        for name in [
            "libclang-cpp.so.14",
            "libclang-cpp.so",
            "libclang-14.a",
            "libclangAST.so",
        ] {
            assert!(!is(name), "{name}");
        }
    }
}
