//! Python environments with pinned packages, kept between runs.

use std::path::PathBuf;

use anyhow::Result;

use crate::sh;

/// An environment with these packages; made anew when the list changes.
///
/// # Errors
/// Python has no `venv`, or PyPI cannot be reached.
pub fn with_packages(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = sh::cache()?.join(format!("venv-{name}"));
    let stamp = folder.join("packages");
    let wanted = packages.join("\n");
    let python = folder.join("bin/python");
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) && python.exists() {
        return Ok(python);
    }
    let _ = std::fs::remove_dir_all(&folder);
    sh::run(sh::command("python3").args(["-m", "venv"]).arg(&folder))?;
    sh::run(
        sh::command(&python)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(packages),
    )?;
    std::fs::write(stamp, wanted)?;
    Ok(python)
}
