//! The AppArmor profiles, as far as this machine's parser reads them.
//!
//! Invariant: a profile for the parser's own rules that does not compile is an error with its line.
//! Absent by design: loading one. Few machines that build have AppArmor in their kernel, and none needs it to build.

use anyhow::{Context, Result, bail};

use xtask::sh;

/// Where they are.
const FOLDER: &str = "policy/apparmor";

/// The rules that Debian 12's parser knows; a profile for later ones says so in its own `abi` line.
const RULES: &str = "abi <abi/3.0>,";

/// Compiles every profile for the rules of AppArmor 3.0, for no kernel.
///
/// # Errors
/// One does not compile, or there is none.
pub fn check() -> Result<()> {
    let mut checked = 0;
    for entry in std::fs::read_dir(sh::root().join(FOLDER)).context(FOLDER)? {
        let path = entry?.path();
        let profile = std::fs::read_to_string(&path)?;
        if !profile.contains(RULES) {
            eprintln!("{}: for other rules, not compiled here", path.display());
            continue;
        }
        // Only compiled, and neither loaded nor kept.
        sh::run(
            sh::command("/sbin/apparmor_parser")
                .args(["--skip-kernel-load", "--skip-cache"])
                .arg(&path),
        )?;
        checked += 1;
    }
    if checked == 0 {
        bail!("no profile under {FOLDER} says `{RULES}`");
    }
    Ok(())
}
