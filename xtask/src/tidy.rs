//! What the compiler does not check about how the sources read: STYLE's rules that a program can see.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use xtask::sh;

/// Past this many lines without its tests a file is split. Generated code and tables of tests are free.
const MAX_LINES: usize = 800;

/// Words that say nothing about what a module is for.
const EMPTY_NAMES: [&str; 6] = ["manager", "helper", "helpers", "utils", "common", "core"];

/// Files that may hold `unsafe`: the walls, and the one file that calls llama.cpp.
const UNSAFE_HOMES: [&str; 2] = [
    "crates/substrate-sandbox/",
    "crates/substrate-worker/src/ffi",
];

/// What begins `unsafe` code, or tells the compiler that code elsewhere may be called.
const OPENS_UNSAFE: [&str; 6] = [
    "unsafe {",
    "unsafe fn",
    "unsafe impl",
    "unsafe trait",
    "unsafe extern",
    "#[unsafe(",
];

/// Fails with every offence found, each with its file and line.
pub fn check() -> Result<()> {
    let mut offences = Vec::new();
    for file in sources()? {
        let text = std::fs::read_to_string(sh::root().join(&file))?;
        offences.extend(offences_in(&file, &text));
    }
    if !offences.is_empty() {
        bail!(
            "{} tidy offences:\n  {}",
            offences.len(),
            offences.join("\n  ")
        );
    }
    Ok(())
}

fn offences_in(file: &Path, text: &str) -> Vec<String> {
    let name = file.display();
    let mut offences = Vec::new();
    let product = product_lines(text);
    let is_table = is_generated(file) || name.to_string().contains("/tests/");
    if product.len() > MAX_LINES && !is_table {
        offences.push(format!(
            "{name}: {} lines, split it (limit {MAX_LINES})",
            product.len()
        ));
    }
    if !text.trim_start().starts_with("//!") && !is_generated(file) {
        offences.push(format!("{name}:1: does not open with a `//!` sentence"));
    }
    if file
        .file_stem()
        .is_some_and(|stem| EMPTY_NAMES.contains(&stem.to_string_lossy().as_ref()))
    {
        offences.push(format!(
            "{name}: the name says nothing about what it is for"
        ));
    }
    for (index, line) in product.iter().enumerate() {
        let what = offence_in_line(file, line).or_else(|| unexplained(&product[..=index]));
        offences.extend(what.map(|what| format!("{name}:{}: {what}", index + 1)));
    }
    offences
}

/// Whether the last of these lines declares an `unsafe` function or foreign block with no word above it of what makes it
/// safe; clippy asks only for blocks and implementations. What an `unsafe impl` implements says so itself.
fn unexplained(lines: &[&str]) -> Option<&'static str> {
    let (last, above) = lines.split_last()?;
    let words = last.trim_start().trim_start_matches("pub ");
    if !words.starts_with("unsafe fn") && !words.starts_with("unsafe extern") {
        return None;
    }
    let is_in_unsafe_impl = last.starts_with(' ')
        && above
            .iter()
            .rfind(|line| !line.starts_with([' ', '}']) && line.ends_with('{'))
            .is_some_and(|opening| opening.starts_with("unsafe impl"));
    let is_told = above
        .iter()
        .rev()
        .map(|line| line.trim_start())
        .take_while(|line| line.starts_with("//") || line.starts_with("#["))
        .any(|line| line.contains("SAFETY:") || line.contains("# Safety"));
    (!is_told && !is_in_unsafe_impl).then_some("`unsafe` without a word on what makes it safe")
}

/// The lines before the file's own tests.
fn product_lines(text: &str) -> Vec<&str> {
    text.lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .collect()
}

fn offence_in_line(file: &Path, line: &str) -> Option<&'static str> {
    let code = line.split("//").next().unwrap_or_default();
    let path = file.to_string_lossy();
    let in_product = !path.contains("/tests/") && !path.starts_with("xtask/");
    let is_unbounded = code.contains("unbounded_channel") || code.contains("mpsc::unbounded");
    if is_unbounded && !path.starts_with("xtask/") {
        return Some("an unbounded channel");
    }
    if in_product
        && ["todo!(", "unimplemented!("]
            .iter()
            .any(|word| code.contains(word))
    {
        return Some("unfinished code");
    }
    if OPENS_UNSAFE.iter().any(|words| code.contains(words))
        && !path.starts_with("xtask/")
        && !UNSAFE_HOMES.iter().any(|home| path.starts_with(home))
    {
        return Some("`unsafe` outside its homes");
    }
    None
}

fn is_generated(file: &Path) -> bool {
    file.components()
        .any(|part| part.as_os_str() == "generated")
}

/// Every Rust source under version control or about to be.
fn sources() -> Result<Vec<PathBuf>> {
    let listed = sh::output(sh::command("git").args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "--",
        "*.rs",
    ]))?;
    Ok(listed
        .lines()
        .map(PathBuf::from)
        .filter(|path| sh::root().join(path).exists())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(file: &str, text: &str) -> Vec<String> {
        offences_in(Path::new(file), text)
    }

    #[test]
    fn a_clean_file_passes() {
        assert!(check("crates/substrate/src/a.rs", "//! A file.\nfn a() {}\n").is_empty());
    }

    #[test]
    fn each_offence_is_named_with_its_line() {
        let text = "//! A file.\nlet (a, b) = mpsc::unbounded_channel();\nunsafe { b() }\nunsafe extern \"C\" {}\n";
        assert_eq!(
            check("crates/substrate/src/utils.rs", text),
            [
                "crates/substrate/src/utils.rs: the name says nothing about what it is for",
                "crates/substrate/src/utils.rs:2: an unbounded channel",
                "crates/substrate/src/utils.rs:3: `unsafe` outside its homes",
                "crates/substrate/src/utils.rs:4: `unsafe` outside its homes",
            ]
        );
    }

    #[test]
    fn an_unsafe_function_says_what_makes_it_safe() {
        let file = "crates/substrate-worker/src/ffi/a.rs";
        let bare = "//! A file.\nunsafe extern \"C\" fn a() {}\n";
        let offence = format!("{file}:2: `unsafe` without a word on what makes it safe");
        assert_eq!(check(file, bare), [offence]);
        let told = "//! A file.\n/// # Safety\n/// Call it once.\nunsafe extern \"C\" fn a() {}\n";
        assert!(check(file, told).is_empty());
        let implemented =
            "//! A file.\n// SAFETY: so.\nunsafe impl A for B {\n    unsafe fn a() {}\n}\n";
        assert!(check(file, implemented).is_empty());
    }

    #[test]
    fn comments_and_tests_are_free() {
        let text =
            "//! A file.\n// unsafe { in a comment }\n#[cfg(test)]\nmod tests { unsafe { x() } }\n";
        assert!(check("crates/substrate/src/a.rs", text).is_empty());
    }
}
