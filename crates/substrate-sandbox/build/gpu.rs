//! The compiler of the lists of graphics drivers: commented JSON in, Rust tables out.
//!
//! Invariant: an unknown field, a path that could reach more than one file's name says, or an entry without a reason is an
//! error with its file and line. Absent by design: opening any of these paths. The machine that builds has none of them.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::policy::line;

/// Entries of one list: a driver is a handful of files. More would be a wall with a gate in it.
const MAX_ENTRIES: usize = 32;

/// The longest path.
const MAX_PATH: usize = 128;

/// One maker's list.
#[derive(Debug, PartialEq, Eq)]
pub struct Vendor {
    pub name: String,
    pub pci: String,
    pub nodes: Vec<Node>,
    pub files: Vec<String>,
}

/// A device node.
#[derive(Debug, PartialEq, Eq)]
pub struct Node {
    pub path: String,
    pub of_vendor: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List<'a> {
    #[serde(rename = "about")]
    _about: Vec<String>,
    vendor: String,
    pci: String,
    #[serde(borrow)]
    nodes: Vec<&'a RawValue>,
    #[serde(borrow)]
    files: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeEntry {
    path: String,
    /// Nodes of this name are of every maker: only those of this one are meant.
    #[serde(default)]
    of_vendor: bool,
    why: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEntry {
    path: String,
    why: String,
}

/// Compiles one list.
pub fn compile(file: &str, text: &str) -> Result<Vendor, String> {
    let list: List =
        serde_json::from_str(text).map_err(|error| format!("{file}:{}: {error}", error.line()))?;
    let hexadecimal = list
        .pci
        .strip_prefix("0x")
        .filter(|digits| digits.len() == 4);
    if hexadecimal.is_none_or(|digits| u16::from_str_radix(digits, 16).is_err()) {
        return Err(format!(
            "{file}: \"pci\" is a vendor's number such as 0x10de, not {}",
            list.pci
        ));
    }
    if list.nodes.is_empty() || list.nodes.len() + list.files.len() > MAX_ENTRIES {
        return Err(format!(
            "{file}: a list has a node, and at most {MAX_ENTRIES} entries"
        ));
    }
    let located = |raw: &RawValue, why: String| format!("{file}:{}: {why}", line(text, raw));
    let mut seen = Vec::new();
    let mut nodes = Vec::new();
    for raw in &list.nodes {
        let node = node(raw.get()).and_then(|node| new(&mut seen, &node.path).map(|()| node));
        nodes.push(node.map_err(|why| located(raw, why))?);
    }
    let mut files = Vec::new();
    for raw in &list.files {
        let path = driver_file(raw.get()).and_then(|path| new(&mut seen, &path).map(|()| path));
        files.push(path.map_err(|why| located(raw, why))?);
    }
    Ok(Vendor {
        name: list.vendor,
        pci: list.pci,
        nodes,
        files,
    })
}

/// The tables as Rust source.
pub fn to_rust(vendors: &[Vendor]) -> String {
    let mut rust = String::from("pub(crate) const VENDORS: &[Vendor] = &[\n");
    for vendor in vendors {
        let nodes = vendor.nodes.iter().map(|node| {
            let Node { path, of_vendor } = node;
            format!("Node {{ path: {path:?}, of_vendor: {of_vendor} }}, ")
        });
        let (name, pci, files) = (&vendor.name, &vendor.pci, &vendor.files);
        rust.push_str(&format!(
            "Vendor {{ name: {name:?}, pci: {pci:?}, nodes: &[{}], files: &{files:?} }},\n",
            nodes.collect::<String>()
        ));
    }
    rust + "];\n"
}

fn node(text: &str) -> Result<Node, String> {
    let entry: NodeEntry = serde_json::from_str(text).map_err(|error| error.to_string())?;
    check(&entry.path, &entry.why)?;
    if !entry.path.starts_with("/dev/") {
        return Err(format!(
            "\"{}\" is no device node: it is not in /dev",
            entry.path
        ));
    }
    Ok(Node {
        path: entry.path,
        of_vendor: entry.of_vendor,
    })
}

fn driver_file(text: &str) -> Result<String, String> {
    let entry: FileEntry = serde_json::from_str(text).map_err(|error| error.to_string())?;
    check(&entry.path, &entry.why)?;
    if entry.path.contains('*') {
        return Err(format!("\"{}\": a file is named whole", entry.path));
    }
    let known = ["/usr/", "/opt/rocm/", "/proc/driver/", "/sys/class/"];
    match known.iter().any(|folder| entry.path.starts_with(folder)) {
        true => Ok(entry.path),
        false => Err(format!(
            "\"{}\" is in none of {}",
            entry.path,
            known.join(", ")
        )),
    }
}

/// An absolute path without a way up, whose one `*` may only end it: it stands for a number.
fn check(path: &str, why: &str) -> Result<(), String> {
    if why.trim().is_empty() {
        return Err("an entry needs a reason in \"why\"".to_owned());
    }
    let plain = |part: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+".contains(&byte);
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(known)
    };
    let parts = path.strip_suffix('*').unwrap_or(path).strip_prefix('/');
    match parts.is_some_and(|parts| path.len() <= MAX_PATH && parts.split('/').all(plain)) {
        true => Ok(()),
        false => Err(format!(
            "\"{path}\" is no plain absolute path of at most {MAX_PATH} bytes (a final * stands for a number)"
        )),
    }
}

fn new(seen: &mut Vec<String>, path: &str) -> Result<(), String> {
    if seen.iter().any(|earlier| earlier == path) {
        return Err(format!("\"{path}\" is listed twice"));
    }
    seen.push(path.to_owned());
    Ok(())
}
