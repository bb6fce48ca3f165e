//! Files of the machine, and the weights.

use libc::c_long;

use super::Kind::{Files, Weights};
use super::Outside::{Depends, Works, WorksForRoot};
use super::{Attack, at, attack, call, into, open, to};

pub(super) const ATTACKS: &[Attack] = &[
    attack("open a file of the host", Files, Works, || {
        open(c"/etc/passwd", libc::O_RDONLY)
    }),
    attack("climb out by ..", Files, Works, || {
        open(c"../../../../../../etc/passwd", libc::O_RDONLY)
    }),
    attack("open its own status", Files, Works, || {
        open(c"/proc/self/status", libc::O_RDONLY)
    }),
    attack("open the host's root through /proc", Files, Works, || {
        open(c"/proc/self/root/etc/passwd", libc::O_RDONLY)
    }),
    attack("open a file of /sys", Files, Works, || {
        open(c"/sys/devices/system/cpu/online", libc::O_RDONLY)
    }),
    attack("open a device", Files, Works, || {
        open(c"/dev/zero", libc::O_RDONLY)
    }),
    attack("open the machine's memory", Files, Depends, || {
        open(c"/dev/mem", libc::O_RDONLY)
    }),
    attack("open the root to list it", Files, Works, || {
        open(c"/", libc::O_RDONLY | libc::O_DIRECTORY)
    }),
    attack("take a handle on the root", Files, Works, || {
        open(c"/", libc::O_PATH)
    }),
    attack("create a file", Files, Works, || {
        open(c"new", libc::O_CREAT | libc::O_WRONLY)
    }),
    attack("create a file without a name", Files, Works, || {
        open(c".", libc::O_TMPFILE | libc::O_RDWR)
    }),
    attack("open by the newer call", Files, Works, openat2),
    attack("stat a path", Files, Works, stat),
    attack("ask whether a path is there", Files, Works, || {
        call(libc::SYS_faccessat, [CWD, at(c"/etc"), 0])
    }),
    attack("read a link", Files, Works, readlink),
    attack("change the folder", Files, Works, || {
        call(libc::SYS_chdir, [at(c"/")])
    }),
    attack("make a folder", Files, Works, || {
        call(libc::SYS_mkdirat, [CWD, at(c"folder"), 0o700])
    }),
    attack("make a symbolic link", Files, Works, || {
        call(
            libc::SYS_symlinkat,
            [at(c"/etc/passwd"), CWD, at(c"symbolic")],
        )
    }),
    attack("make a hard link", Files, Works, || {
        call(libc::SYS_linkat, [CWD, at(c"file"), CWD, at(c"hard"), 0])
    }),
    attack("make a named pipe", Files, Works, || {
        let mode = c_long::from(libc::S_IFIFO | 0o600);
        call(libc::SYS_mknodat, [CWD, at(c"fifo"), mode, 0])
    }),
    attack("make a device", Files, Depends, || {
        let mode = c_long::from(libc::S_IFCHR | 0o600);
        call(libc::SYS_mknodat, [CWD, at(c"null"), mode, 0x103])
    }),
    attack("rename a file", Files, Works, || {
        call(libc::SYS_renameat, [CWD, at(c"file"), CWD, at(c"renamed")])
    }),
    attack("remove a file", Files, Works, || {
        call(libc::SYS_unlinkat, [CWD, at(c"file"), 0])
    }),
    attack("set an attribute", Files, Depends, || {
        let value = *b"x";
        call(
            libc::SYS_setxattr,
            [at(c"file"), at(c"user.x"), to(&value), 1, 0],
        )
    }),
    attack("set a file's times", Files, Works, || {
        call(libc::SYS_utimensat, [CWD, at(c"file"), 0, 0])
    }),
    attack("ask about a file system", Files, Works, || {
        let mut found = [0_u64; 32];
        call(libc::SYS_statfs, [at(c"/"), into(&mut found)])
    }),
    attack("watch files", Files, Works, || {
        call(libc::SYS_inotify_init1, [0])
    }),
    attack("watch a file system", Files, Depends, || {
        const REPORT_FID: c_long = 0x200;
        call(libc::SYS_fanotify_init, [REPORT_FID, 0])
    }),
    attack("keep a file by its handle", Files, Depends, file_handle),
    attack("make a file in memory", Files, Works, || {
        call(libc::SYS_memfd_create, [at(c"x"), 0])
    }),
    attack("make a secret file in memory", Files, Depends, || {
        call(libc::SYS_memfd_secret, [0])
    }),
    attack("mount", Files, WorksForRoot, || {
        call(
            libc::SYS_mount,
            [at(c"none"), at(c"/tmp"), at(c"tmpfs"), 0, 0],
        )
    }),
    attack("mount by the newer calls", Files, WorksForRoot, || {
        call(libc::SYS_fsopen, [at(c"tmpfs"), 0])
    }),
    attack("take a copy of the mounts", Files, WorksForRoot, || {
        // With all below, as one mount alone could show what the others cover.
        const CLONE_RECURSIVE: c_long = 0x8001;
        call(libc::SYS_open_tree, [CWD, at(c"/"), CLONE_RECURSIVE])
    }),
    attack("take a mount away", Files, Depends, || {
        call(libc::SYS_umount2, [at(c"/proc"), 2])
    }),
    attack("change the root", Files, WorksForRoot, || {
        call(libc::SYS_chroot, [at(c"/")])
    }),
    attack("swap the root", Files, Depends, || {
        call(libc::SYS_pivot_root, [at(c"."), at(c".")])
    }),
    attack("open the model to write", Weights, Works, || {
        open(c"model.gguf", libc::O_RDWR)
    }),
    attack("open the model to truncate", Weights, Works, || {
        open(c"model.gguf", libc::O_WRONLY | libc::O_TRUNC)
    }),
    attack("truncate the model", Weights, Works, || {
        call(libc::SYS_truncate, [at(c"model.gguf"), 0])
    }),
    attack("remove the model", Weights, Works, || {
        call(libc::SYS_unlink, [at(c"model.gguf")])
    }),
    attack("swap the model", Weights, Works, || {
        call(libc::SYS_rename, [at(c"file"), at(c"model.gguf")])
    }),
    attack("change the model's mode", Weights, Works, || {
        call(libc::SYS_chmod, [at(c"model.gguf"), 0o777])
    }),
    attack("give the model away", Weights, Works, || {
        // To its owner: −1 leaves user and group as they are, and still asks for the right.
        call(libc::SYS_chown, [at(c"model.gguf"), -1, -1])
    }),
    attack("mount over the model", Weights, WorksForRoot, || {
        let bind = libc::MS_BIND as c_long;
        call(
            libc::SYS_mount,
            [at(c"file"), at(c"model.gguf"), 0, bind, 0],
        )
    }),
];

const CWD: c_long = libc::AT_FDCWD as c_long;

fn openat2() -> c_long {
    // struct open_how: flags, mode, resolve.
    let how = [0_u64; 3];
    let size = size_of_val(&how) as c_long;
    call(libc::SYS_openat2, [CWD, at(c"/etc/passwd"), to(&how), size])
}

fn stat() -> c_long {
    // Larger than struct stat.
    let mut found = [0_u64; 32];
    call(
        libc::SYS_newfstatat,
        [CWD, at(c"/etc"), into(&mut found), 0],
    )
}

fn readlink() -> c_long {
    let mut found = [0_u8; 4096];
    call(
        libc::SYS_readlinkat,
        [CWD, at(c"/proc/self/exe"), into(&mut found), 4096],
    )
}

fn file_handle() -> c_long {
    // struct file_handle with room for the largest, MAX_HANDLE_SZ of 128 bytes.
    let mut handle = [0_u32; 34];
    handle[0] = 128;
    let mut mount = 0_i32;
    call(
        libc::SYS_name_to_handle_at,
        [CWD, at(c"/tmp"), into(&mut handle), into(&mut mount), 0],
    )
}
