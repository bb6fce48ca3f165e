//! `cargo xtask image`: the guest image of the microVM wall, from Debian's kernel and the programs of this checkout.
//!
//! Four files: a kernel as an ELF file, an initrd with the guest's first process and its drivers, an erofs root with the worker, and
//! a manifest that names them by digest. `crates/substrate-sandbox/src/microvm/image.rs` says what they are and checks them.
//!
//! Invariant: the same kernel package and the same programs give the same bytes: nothing here looks at a clock, at the order of
//! a folder, or at who runs it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use sha2::{Digest, Sha256};

use xtask::{packages, sh, stage};

/// Debian's kernel for virtual machines: no drivers of real hardware, so that it is small and starts soon.
const KERNEL: &str = "linux-image-cloud-amd64";

/// Drivers, each after those it depends on: the bus, disks, ports, vsock, and the two file systems.
const MODULES: [&str; 11] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_mmio.ko",
    "drivers/block/virtio_blk.ko",
    "drivers/char/virtio_console.ko",
    "net/vmw_vsock/vsock.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport.ko",
    "lib/libcrc32c.ko",
    "fs/erofs/erofs.ko",
    "fs/overlayfs/overlay.ko",
];

/// The file system's identity, which would be drawn otherwise.
const FIXED_UUID: &str = "73756273-7472-4174-8567-756573740001";

/// What a signature is over, before the image's name.
const DOMAIN: &[u8] = b"substrate guest image v1\0";

/// What to build.
#[derive(Args)]
pub struct Options {
    /// The folder that `stage` printed; without it, the programs are built first
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Sign it with the Ed25519 key in this file (32 bytes in hex), which is made if it is not there
    #[arg(long)]
    key: Option<PathBuf>,
}

/// Builds the images of the staged worker and of the wall's attacker beside them, and prints their names and where they are.
///
/// # Errors
/// A package is missing, or a program does not build.
pub fn run(options: &Options) -> Result<()> {
    packages::ensure_for_image()?;
    let bin = match &options.bin {
        Some(bin) => bin.clone(),
        None => stage::build()?,
    };
    for (folder, name) in beside(&bin)? {
        if let Some(key) = &options.key {
            let public = sign(&folder, &name, key)?;
            println!("signed with the key {}", hex::encode(public));
        }
        println!("{}  {}", hex::encode(name), folder.display());
    }
    Ok(())
}

/// Builds both images beside the programs that they hold.
///
/// # Errors
/// As [`run`].
pub fn beside(bin: &Path) -> Result<Vec<(PathBuf, [u8; 32])>> {
    let mut built = Vec::new();
    for content in [WORKER, ATTACKER] {
        let folder = bin.join(content.folder);
        let name = build(bin, &content, &folder)?;
        built.push((folder, name));
    }
    // An image is trusted by its name there.
    stage::write_manifest(bin)?;
    Ok(built)
}

/// A program to make an image of.
pub struct Content {
    /// Its name among the staged ones.
    pub program: &'static str,
    /// The image's folder beside them.
    pub folder: &'static str,
    /// What the guest's first process is built with.
    pub guest: &'static str,
}

/// What answers.
pub const WORKER: Content = Content {
    program: "substrate-worker",
    folder: "microvm",
    guest: "guest",
};

/// What tries to get out.
pub const ATTACKER: Content = Content {
    program: "substrate-wall-attacker",
    folder: "microvm-attacker",
    guest: "breached",
};

/// Builds the image of a program into a folder and returns its name.
fn build(bin: &Path, content: &Content, out: &Path) -> Result<[u8; 32]> {
    build_with(&stage::guest(content.guest)?, bin, content, out)
}

/// As [`build`], with this for the first process.
///
/// # Errors
/// As [`run`].
pub fn build_with(guest: &Path, bin: &Path, content: &Content, out: &Path) -> Result<[u8; 32]> {
    let kernel = kernel()?;
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    let program = bin.join(content.program);
    let worker = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
    let parts = [
        ("kernel", "vmlinux", elf(&kernel.image)?),
        ("initrd", "initrd.cpio", initrd(guest, &kernel)?),
        ("root", "root.erofs", root(&worker, out)?),
    ];
    let mut manifest = serde_json::json!({
        "version": 1,
        "kernel_release": kernel.release,
        "worker_sha256": hex::encode(Sha256::digest(&worker)),
    });
    for (part, file, bytes) in parts {
        manifest[part] = serde_json::json!({
            "file": file,
            "size": bytes.len(),
            "sha256": hex::encode(Sha256::digest(&bytes)),
        });
        write(&out.join(file), &bytes)?;
    }
    let manifest = serde_json::to_vec_pretty(&manifest)?;
    write(&out.join("image.json"), &manifest)?;
    Ok(Sha256::digest(&manifest).into())
}

/// A kernel package, unpacked.
struct Kernel {
    release: String,
    image: PathBuf,
    modules: PathBuf,
}

/// Debian's kernel of today, fetched once.
fn kernel() -> Result<Kernel> {
    let package = match package() {
        Ok(package) => package,
        // A system that was just installed knows no packages yet.
        Err(_) if packages::is_root() => {
            sh::run(sh::command("apt-get").args(["update", "-qq"]))?;
            package()?
        }
        Err(error) => return Err(error),
    };
    let package = package.as_str();
    let release = package.trim_start_matches("linux-image-").to_owned();
    let shown = sh::output(sh::command("apt-cache").args(["show", "--no-all-versions", package]))?;
    let digest = shown.lines().find_map(|line| line.strip_prefix("SHA256: "));
    let digest = digest.context("apt does not say the kernel's digest")?;
    // By its digest: a release gets new builds.
    let folder = sh::cache()?.join("kernels").join(digest);
    if !folder.exists() {
        unpack(package, digest, &folder)?;
    }
    Ok(Kernel {
        image: folder.join(format!("boot/vmlinuz-{release}")),
        modules: folder.join(format!("lib/modules/{release}/kernel")),
        release,
    })
}

/// The package with the kernel itself, which the one that is always the newest depends on.
fn package() -> Result<String> {
    let depends = sh::output(sh::command("apt-cache").args(["depends", KERNEL]))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.with_context(|| {
        format!("{KERNEL} is not among the packages that apt knows: run apt-get update")
    })?;
    Ok(package.to_owned())
}

fn unpack(package: &str, digest: &str, folder: &Path) -> Result<()> {
    let fetched = folder.with_extension("fetching");
    if fetched.exists() {
        fs::remove_dir_all(&fetched)?;
    }
    fs::create_dir_all(&fetched)?;
    sh::run(
        sh::command("apt-get")
            .args(["download", "--quiet=2", package])
            .current_dir(&fetched)
            .stderr(Stdio::null()),
    )?;
    let file = fs::read_dir(&fetched)?
        .next()
        .context("apt fetched nothing")??
        .path();
    let found = hex::encode(Sha256::digest(fs::read(&file)?));
    ensure!(
        found == digest,
        "{} has SHA-256 {found} and not {digest}",
        file.display()
    );
    let content = fetched.join("content");
    sh::run(
        sh::command("dpkg-deb")
            .arg("--extract")
            .args([&file, &content]),
    )?;
    fs::rename(&content, folder)?;
    fs::remove_dir_all(&fetched)?;
    Ok(())
}

/// The ELF file inside a compressed kernel (Documentation/arch/x86/boot.rst: `setup_sects`, `payload_offset`,
/// `payload_length`). Debian compresses with LZ4 in its old framing, which the tool of that name reads.
fn elf(image: &Path) -> Result<Vec<u8>> {
    const SECTOR: usize = 512;
    let bytes = fs::read(image).with_context(|| format!("read {}", image.display()))?;
    let word = |at: usize| -> Result<usize> {
        let word = bytes
            .get(at..at + 4)
            .context("the kernel ends in its header")?;
        Ok(u32::from_le_bytes(word.try_into()?) as usize)
    };
    ensure!(
        bytes.get(0x202..0x206) == Some(b"HdrS"),
        "{} is no kernel for x86",
        image.display()
    );
    let start = (usize::from(bytes[0x1f1]) + 1) * SECTOR + word(0x248)?;
    // Four bytes with the length of what is inside follow it.
    let end = start + word(0x24c)? - 4;
    let packed = bytes
        .get(start..end)
        .context("the kernel is shorter than its header says")?;
    let mut lz4 = sh::command("lz4")
        .args(["-d", "-c", "-q"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start lz4")?;
    let mut stdin = lz4.stdin.take().context("lz4 takes no input")?;
    let packed = packed.to_vec();
    let feeding = std::thread::spawn(move || stdin.write_all(&packed));
    let output = lz4.wait_with_output()?;
    if feeding.join().is_err() || !output.status.success() || !output.stdout.starts_with(b"\x7fELF")
    {
        bail!("{} holds no ELF file packed with LZ4", image.display());
    }
    Ok(output.stdout)
}

/// The first process, its drivers in order, and a list of them.
fn initrd(guest: &Path, kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["dev", "modules"] {
        archive.folder(folder);
    }
    let mut order = String::new();
    for path in MODULES {
        let path = kernel.modules.join(path);
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let name = path
            .file_name()
            .context("a driver without a name")?
            .to_string_lossy();
        archive.file(&format!("modules/{name}"), 0o444, &bytes);
        order.push_str(&format!("{name}\n"));
    }
    archive.file("modules/order", 0o444, order.as_bytes());
    archive.file("init", 0o555, &fs::read(guest)?);
    Ok(archive.end())
}

/// A cpio archive in the form that kernels unpack (`newc`; Documentation/driver-api/early-userspace/buffer-format.rst), with
/// times of 0 and numbers in order.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn folder(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, 0o100_000 | mode, content);
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (size, named) = (content.len() as u32, name.len() as u32 + 1);
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, named, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

/// A read-only root with the worker, and the folders that others are moved onto.
fn root(worker: &[u8], out: &Path) -> Result<Vec<u8>> {
    let tree = out.join("root.tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    for folder in ["dev", "proc", "sys"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    stage::write_program(&tree.join("worker"), worker)?;
    let image = out.join("root.erofs.new");
    sh::run(
        sh::command("mkfs.erofs")
            .args(["--quiet", "-T0", "-U", FIXED_UUID, "--all-root"])
            .args([&image, &tree])
            .stdout(Stdio::null()),
    )?;
    let bytes = fs::read(&image)?;
    fs::remove_file(&image)?;
    fs::remove_dir_all(&tree)?;
    Ok(bytes)
}

fn sign(out: &Path, name: &[u8; 32], key: &Path) -> Result<[u8; 32]> {
    use ed25519_dalek::{Signer, SigningKey};
    let key = match fs::read_to_string(key) {
        Ok(text) => {
            let bytes = hex::decode(text.trim()).context("the key is not in hex")?;
            let bytes: [u8; 32] = bytes
                .as_slice()
                .try_into()
                .context("the key has not 32 bytes")?;
            SigningKey::from_bytes(&bytes)
        }
        Err(_) => {
            let mut bytes = [0; 32];
            std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
            stage::write_secret(key, hex::encode(bytes).as_bytes())?;
            SigningKey::from_bytes(&bytes)
        }
    };
    let signature = key.sign(&[DOMAIN, name].concat());
    write(&out.join("image.sig"), &signature.to_bytes())?;
    Ok(key.verifying_key().to_bytes())
}

/// A new file in the place of an old one, which a running machine may hold.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension("new");
    fs::write(&beside, bytes).with_context(|| format!("write {}", beside.display()))?;
    fs::rename(&beside, path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_cpio_reads() {
        let mut archive = Archive::default();
        archive.folder("dev");
        archive.file("init", 0o555, b"hello");
        let bytes = archive.end();
        assert!(bytes.len().is_multiple_of(4));
        assert!(bytes.starts_with(b"07070100000001000041ed"));
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("init\0\0hello\0\0\x00070701"), "{text}");
        assert!(text.ends_with("TRAILER!!!\0\0\0\0"), "{text}");
    }
}
