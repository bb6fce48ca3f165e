//! Compiles `policy/seccomp/*.json` into the BPF programs that the worker installs, and `policy/gpu/*.json` into tables.
//!
//! Invariant: a policy that is wrong in any way stops the build and names its file and line.
//! Absent by design: a policy read at run time. What a worker may do is fixed with its binary.

#[cfg(target_os = "linux")]
#[path = "build/policy.rs"]
mod policy;

#[cfg(target_os = "linux")]
#[path = "build/gpu.rs"]
mod gpu;

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() {
    if let Err(message) = run() {
        println!("cargo::error={message}");
    }
}

#[cfg(target_os = "linux")]
fn run() -> Result<(), String> {
    use std::{env, fs, path::PathBuf};

    let variable = |name: &str| env::var(name).map_err(|error| format!("{name}: {error}"));
    let arch = variable("CARGO_CFG_TARGET_ARCH")?;
    let out = PathBuf::from(variable("OUT_DIR")?);
    let policies = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("../../policy");
    let read = |path: PathBuf| {
        println!("cargo::rerun-if-changed={}", path.display());
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let write = |name: &str, rust: String| {
        let path = out.join(name);
        fs::write(&path, rust).map_err(|error| format!("{}: {error}", path.display()))
    };

    let mut rust = String::new();
    for (stage, file) in [("STAGE_A", "stage-a.json"), ("STAGE_B", "stage-b.json")] {
        let text = read(policies.join("seccomp").join(file))?;
        let compiled = policy::compile(&format!("policy/seccomp/{file}"), &text, &arch)?;
        rust.push_str(&policy::to_rust(stage, compiled.as_ref()));
    }
    write("filters.rs", rust)?;

    let mut vendors = Vec::new();
    for file in ["amd.json", "intel.json", "nvidia.json"] {
        let text = read(policies.join("gpu").join(file))?;
        vendors.push(gpu::compile(&format!("policy/gpu/{file}"), &text)?);
    }
    write("gpus.rs", gpu::to_rust(&vendors))
}
