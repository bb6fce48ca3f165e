//! The system call filters, compiled by `build.rs` from `policy/seccomp/`, and their installation.
//!
//! Invariant: a filter is on for all threads of the process or the worker gets an error.
//! Absent by design: memory allocation, so that the launcher's probe may use this between clone
//! and exit.

use std::io;

use super::SealError;

/// One step of a program; the kernel's `sock_filter`.
pub(crate) type Instruction = libc::sock_filter;

/// The two programs of one stage.
#[derive(Clone, Copy)]
pub(crate) struct Programs {
    /// Answers some calls with an error number. May be empty.
    pub refuse: &'static [Instruction],
    /// Kills on what is not listed.
    pub allow: &'static [Instruction],
}

const fn step(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}

include!(concat!(env!("OUT_DIR"), "/filters.rs"));

/// Installs both programs of a stage on all threads.
pub(super) fn install(stage: u8, programs: Option<Programs>) -> Result<(), SealError> {
    let programs = programs.ok_or(SealError::NoPolicy)?;
    for program in [programs.refuse, programs.allow] {
        match load(program) {
            Ok(0) => {}
            Ok(thread) => return Err(SealError::Thread { stage, thread }),
            Err(source) => return Err(SealError::Seccomp { stage, source }),
        }
    }
    Ok(())
}

/// Installs one program; gives the thread that could not follow, or 0.
pub(crate) fn load(program: &'static [Instruction]) -> io::Result<i64> {
    if program.is_empty() {
        return Ok(0);
    }
    let header = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `header` points to `len` instructions that live as long as the program; the kernel
    // copies them and writes nothing back.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const header,
        )
    };
    match answer {
        -1 => Err(io::Error::last_os_error()),
        thread => Ok(thread),
    }
}
