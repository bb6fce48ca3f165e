//! The empty root: a worker's whole file system is its model, in one to three read-only files.
//!
//! Invariant: as in [`super::child`], raw system calls on memory made before; part of the child.
//! Invariant: each file in the new root is the one the daemon looked at, not one that has since
//! taken its name.
//! Absent by design: `/proc`, `/dev`, `/sys`, `/tmp`. A static worker that knows its number of
//! threads needs none.

use std::{
    ffi::{CStr, c_int, c_long},
    ptr::null,
};

use super::{
    Step,
    child::{Failure, Outcome, check},
    plan::{FILES, ModelFile, Plan},
};

/// A read-only root of 64 KiB that holds the files of the model, also read-only, and nothing else.
pub(super) fn enter(plan: &Plan) -> Outcome {
    let private = libc::MS_REC | libc::MS_PRIVATE;
    mount(Step::PrivateMounts, c"none", c"/", None, private, None)?;
    // Before the new root covers any place the model may lie under.
    let mut trees = [None; FILES.len()];
    for (tree, file) in trees.iter_mut().zip(&plan.files) {
        if let Some(file) = file {
            *tree = Some(clone_model(&file.path, file)?);
        }
    }
    // /proc exists: the user maps were written through it, and nothing needs it any more.
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let size = c"size=64k,nr_inodes=5,mode=755";
    mount(
        Step::Root,
        c"root",
        c"/proc",
        Some(c"tmpfs"),
        flags,
        Some(size),
    )?;
    change_directory(Step::Root, c"/proc")?;
    for (tree, name) in trees.into_iter().zip(FILES) {
        if let Some(tree) = tree {
            place_model(tree, name)?;
        }
    }
    // SAFETY: the calls read static strings.
    unsafe {
        let here = c".".as_ptr();
        check(Step::Pivot, libc::syscall(libc::SYS_pivot_root, here, here))?;
        check(
            Step::Detach,
            c_long::from(libc::umount2(here, libc::MNT_DETACH)),
        )?;
    }
    change_directory(Step::Detach, c"/")?;
    seal_mount(
        Step::SealRoot,
        libc::AT_FDCWD,
        c"/",
        0,
        libc::MOUNT_ATTR_NODEV,
    )
}

/// A mount of the one file, unattached; it must be the file the daemon looked at.
fn clone_model(path: &CStr, file: &ModelFile) -> Result<c_int, Failure> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path is a live C string; fstat fills a stat on this stack.
    let (tree, found) = unsafe {
        let tree = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags);
        let tree = check(Step::CloneModel, tree)? as c_int;
        let mut found: libc::stat = std::mem::zeroed();
        check(
            Step::SameModel,
            c_long::from(libc::fstat(tree, &raw mut found)),
        )?;
        (tree, found)
    };
    if (found.st_dev, found.st_ino) != (file.device, file.inode) {
        return Err(Failure {
            step: Step::SameModel,
            errno: libc::ESTALE,
        });
    }
    // A disk can be opened only where devices can; it is the one device there.
    let devices = if file.is_disk {
        0
    } else {
        libc::MOUNT_ATTR_NODEV
    };
    seal_mount(Step::SealModel, tree, c"", libc::AT_EMPTY_PATH, devices)?;
    Ok(tree)
}

fn place_model(tree: c_int, name: &CStr) -> Outcome {
    let step = Step::PlaceModel;
    // SAFETY: the calls read static strings and use descriptors of this child.
    unsafe {
        let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_CLOEXEC;
        let point = check(step, c_long::from(libc::open(name.as_ptr(), flags, 0o444)))?;
        libc::close(point as c_int);
        let moved = libc::syscall(
            libc::SYS_move_mount,
            tree,
            c"".as_ptr(),
            libc::AT_FDCWD,
            name.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        );
        check(step, moved)?;
        libc::close(tree);
    }
    Ok(())
}

fn seal_mount(step: Step, at: c_int, path: &CStr, flags: c_int, more: u64) -> Outcome {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NOEXEC
            | more,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a live C string and the kernel reads one mount_attr.
    let sealed = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at,
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check(step, sealed).map(drop)
}

fn mount(
    step: Step,
    source: &CStr,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: Option<&CStr>,
) -> Outcome {
    let pointer = |text: Option<&CStr>| text.map_or(null(), CStr::as_ptr);
    // SAFETY: all pointers are null or live C strings.
    let mounted = unsafe {
        let options = pointer(options).cast();
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            pointer(kind),
            flags,
            options,
        )
    };
    check(step, c_long::from(mounted)).map(drop)
}

fn change_directory(step: Step, path: &CStr) -> Outcome {
    // SAFETY: the path is a live C string.
    check(step, c_long::from(unsafe { libc::chdir(path.as_ptr()) })).map(drop)
}
