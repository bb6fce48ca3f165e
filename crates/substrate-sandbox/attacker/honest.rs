//! What a worker may do, and what it can see: the other half of the test.
//!
//! A wall that refuses everything would pass every attack; these show that work still gets done.
//! Each command prepares after the first seal, as loading does, and finishes after the last.

use std::{
    fs::{self, File},
    io::{Read, Write},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use substrate_sandbox::seal::MODEL_PATH;

type Finish = Box<dyn FnOnce(&mut File) -> String>;

/// The part of a command before the last seal, and how it ends after it.
pub fn prepare(command: &str) -> Option<Finish> {
    Some(match command {
        "hello" => Box::new(|_| "hello".to_owned()),
        "look around" => {
            let seen = look_around();
            Box::new(move |_| seen)
        }
        "read the model" => Box::new(|_| read_model()),
        "compute" => {
            let (work, results) = pool();
            Box::new(move |_| compute(&work, &results))
        }
        "start a thread late" => {
            let late = thread::spawn(|| (0..1000_u64).sum::<u64>());
            Box::new(move |_| format!("{:?}", late.join().ok()))
        }
        "echo" => Box::new(echo),
        "chatter" => Box::new(|_| chatter()),
        "grow" => {
            let first = grow();
            Box::new(move |_| {
                if grow() == first {
                    first
                } else {
                    "grown otherwise".to_owned()
                }
            })
        }
        "fault" => Box::new(|_| fault()),
        "abort" => Box::new(|_| std::process::abort()),
        "allocate too much" => Box::new(|_| allocate()),
        "fill memory" => Box::new(|_| fill()),
        "wait" => Box::new(|pipe| {
            let _ = pipe.write_all(b"waiting\n");
            echo(pipe)
        }),
        _ => return None,
    })
}

/// Everything a worker can find out about where it is; for one that is not sealed.
fn look_around() -> String {
    let root: Vec<String> = fs::read_dir("/")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let descriptors: Vec<i32> = (0..1024)
        // SAFETY: fcntl with F_GETFD only looks at a number.
        .filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0)
        .collect();
    let environment: Vec<String> = std::env::vars().map(|(k, v)| format!("{k}={v}")).collect();
    let write = File::options().write(true).open(MODEL_PATH).err();
    let create = File::create("/new").err();
    let code = |error: Option<std::io::Error>| error.and_then(|error| error.raw_os_error());
    // SAFETY: the calls have no arguments and cannot fail.
    let (pid, uid, gid) = unsafe { (libc::getpid(), libc::getuid(), libc::getgid()) };
    format!(
        "root={root:?} descriptors={descriptors:?} environment={environment:?} pid={pid} uid={uid} \
         gid={gid} write={:?} create={:?} host={:?} limits={:?} interfaces={:?}",
        code(write),
        code(create),
        host(),
        limits(),
        interfaces(),
    )
}

fn host() -> String {
    let mut name = [0_u8; 65];
    // SAFETY: the pointer and the length are those of a live array.
    unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len()) };
    let end = name
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
}

fn limits() -> [u64; 3] {
    [libc::RLIMIT_NOFILE, libc::RLIMIT_CORE, libc::RLIMIT_FSIZE].map(|resource| {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the kernel writes one rlimit on this stack.
        unsafe { libc::getrlimit(resource, &raw mut limit) };
        limit.rlim_max
    })
}

/// Network interfaces that are up: none, in a network namespace of one's own.
fn interfaces() -> usize {
    let mut list = std::ptr::null_mut::<libc::ifaddrs>();
    // SAFETY: getifaddrs fills the list or fails; it is walked by its own links and not freed.
    unsafe {
        if libc::getifaddrs(&raw mut list) != 0 {
            return usize::MAX;
        }
        let mut up = 0;
        while let Some(interface) = list.as_ref() {
            up += usize::from(interface.ifa_flags & libc::IFF_UP as u32 != 0);
            list = interface.ifa_next;
        }
        up
    }
}

fn read_model() -> String {
    let mut magic = [0; 4];
    match File::open(MODEL_PATH).and_then(|mut file| file.read_exact(&mut magic)) {
        Ok(()) => String::from_utf8_lossy(&magic).into_owned(),
        Err(error) => format!("failed {error}"),
    }
}

/// Two threads, started between the seals as a worker's pool is.
fn pool() -> (Vec<Sender<u64>>, Receiver<u64>) {
    let (result, results) = channel();
    let work = (0..2)
        .map(|_| {
            let (work, orders) = channel::<u64>();
            let result = result.clone();
            thread::spawn(move || {
                for n in orders {
                    let block = vec![1_u8; 8 << 20];
                    let sum = block.iter().map(|byte| u64::from(*byte)).sum::<u64>();
                    let _ = result.send(n + sum);
                }
            });
            work
        })
        .collect();
    (work, results)
}

fn compute(work: &[Sender<u64>], results: &Receiver<u64>) -> String {
    let mut total = 0;
    for round in 0..4 {
        for sender in work {
            let _ = sender.send(round);
        }
        total += results.iter().take(work.len()).sum::<u64>();
    }
    format!("computed {total}")
}

/// Says back what comes, until the other end closes.
fn echo(pipe: &mut File) -> String {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = pipe.read(&mut buffer) {
        let _ = pipe.write_all(&buffer[..n]);
    }
    String::new()
}

/// More on standard error than any buffer holds.
fn chatter() -> String {
    let line = [b'x'; 1023];
    for _ in 0..1024 {
        let _ = std::io::stderr().write_all(&line);
    }
    "still here".to_owned()
}

/// A block that is made larger until it has a mapping of its own, and then that mapping.
fn grow() -> String {
    let mut block = Vec::<u8>::new();
    while block.len() < 64 << 20 {
        let more = block.len().max(1 << 10);
        block.resize(block.len() + more, 1);
    }
    format!("grown to {}", block.len())
}

/// Writes where nothing is.
fn fault() -> String {
    // SAFETY: not sound and not meant to be: the address is never mapped, so the kernel ends this process here.
    unsafe { std::ptr::null_mut::<u8>().wrapping_add(8).write_volatile(1) };
    "no fault".to_owned()
}

/// Writes to all it gets: address space alone costs a group nothing.
fn fill() -> String {
    let mut blocks = Vec::new();
    for _ in 0..1_000_000 {
        let mut block = Vec::<u8>::new();
        if block.try_reserve_exact(4 << 20).is_err() {
            return format!("refused after {}", blocks.len());
        }
        block.resize(4 << 20, 1);
        blocks.push(block);
    }
    "never refused".to_owned()
}

fn allocate() -> String {
    let mut blocks = Vec::new();
    for _ in 0..1_000_000 {
        let mut block = Vec::<u8>::new();
        if block.try_reserve_exact(256 << 20).is_err() {
            return format!("refused after {}", blocks.len());
        }
        blocks.push(block);
    }
    "never refused".to_owned()
}
