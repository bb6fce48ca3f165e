//! A guest's disks, found by the serial numbers that its host gave them, and by their order where a VMM gives none.
//!
//! Invariant: a disk of a model has as many sectors as the host says its file fills; another one is not used.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use substrate_sandbox::guest::{DISKS, SECTOR};

/// Where the kernel lists disks.
const BLOCK: &str = "/sys/block";

/// The driver, which reads a disk's size when it takes hold of it.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_blk";

/// The device of the disk at this place of [`DISKS`].
pub fn find(place: usize) -> Option<PathBuf> {
    let name = name_of(place)?;
    let device = Path::new("/dev").join(name);
    device.exists().then_some(device)
}

/// The device of a model's file, of at least this size, readable by whoever the worker is.
pub fn for_file(place: usize, size: u64) -> io::Result<PathBuf> {
    let missing = || io::Error::other(format!("no disk called {}", DISKS[place]));
    let sectors = size.div_ceil(SECTOR);
    let mut name = name_of(place).ok_or_else(missing)?;
    if sectors_of(&name)? != sectors {
        // This guest was restored, and the disk is another than when it was saved.
        take_hold_again(&name)?;
        name = name_of(place).ok_or_else(missing)?;
    }
    if sectors_of(&name)? != sectors {
        return Err(io::Error::other(format!(
            "the disk called {} has {} sectors and not {sectors}",
            DISKS[place],
            sectors_of(&name)?
        )));
    }
    let device = Path::new("/dev").join(name);
    fs::set_permissions(&device, fs::Permissions::from_mode(0o444))?;
    Ok(device)
}

fn name_of(place: usize) -> Option<String> {
    let mut names: Vec<String> = fs::read_dir(BLOCK)
        .ok()?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("vd"))
        .collect();
    names.sort();
    let by_serial = names.iter().find(|name| serial(name) == DISKS[place]);
    let any_named = names
        .iter()
        .any(|name| DISKS.contains(&serial(name).as_str()));
    match by_serial {
        Some(name) => Some(name.clone()),
        None if any_named => None,
        None => names.get(place).cloned(),
    }
}

fn serial(name: &str) -> String {
    let text = fs::read_to_string(format!("{BLOCK}/{name}/serial"));
    text.unwrap_or_default().trim().to_owned()
}

fn sectors_of(name: &str) -> io::Result<u64> {
    let mut text = String::new();
    fs::File::open(format!("{BLOCK}/{name}/size"))?.read_to_string(&mut text)?;
    text.trim().parse().map_err(io::Error::other)
}

fn take_hold_again(name: &str) -> io::Result<()> {
    let device = fs::canonicalize(format!("{BLOCK}/{name}/device"))?;
    let device = device
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    fs::write(format!("{DRIVER}/unbind"), &device)?;
    fs::write(format!("{DRIVER}/bind"), &device)
}
