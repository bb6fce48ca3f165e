//! Other machines, and services of this one.

use libc::c_long;

use super::Kind::Network;
use super::Outside::{Depends, Works, WorksForRoot};
use super::{Attack, PIPE, attack, call, into, to};

pub(super) const ATTACKS: &[Attack] = &[
    attack("speak TCP", Network, Works, || {
        socket(libc::AF_INET, libc::SOCK_STREAM)
    }),
    attack("speak UDP", Network, Works, || {
        socket(libc::AF_INET, libc::SOCK_DGRAM)
    }),
    attack("speak TCP over IPv6", Network, Depends, || {
        socket(libc::AF_INET6, libc::SOCK_STREAM)
    }),
    attack("speak to local services", Network, Works, || {
        socket(libc::AF_UNIX, libc::SOCK_STREAM)
    }),
    attack("speak to the kernel by netlink", Network, Works, || {
        socket(libc::AF_NETLINK, libc::SOCK_RAW)
    }),
    attack("speak raw IP", Network, WorksForRoot, || {
        call(
            libc::SYS_socket,
            [
                c_long::from(libc::AF_INET),
                c_long::from(libc::SOCK_RAW),
                c_long::from(libc::IPPROTO_ICMP),
            ],
        )
    }),
    attack("listen on the wire", Network, Depends, || {
        socket(libc::AF_PACKET, libc::SOCK_RAW)
    }),
    attack("speak to a hypervisor", Network, Depends, || {
        socket(libc::AF_VSOCK, libc::SOCK_STREAM)
    }),
    attack("use the kernel's ciphers", Network, Depends, || {
        socket(libc::AF_ALG, libc::SOCK_SEQPACKET)
    }),
    attack("speak Bluetooth", Network, Depends, || {
        socket(libc::AF_BLUETOOTH, libc::SOCK_RAW)
    }),
    attack("make a pair of sockets", Network, Works, || {
        let mut pair = [0_i32; 2];
        call(
            libc::SYS_socketpair,
            [
                c_long::from(libc::AF_UNIX),
                c_long::from(libc::SOCK_STREAM),
                0,
                into(&mut pair),
            ],
        )
    }),
    attack("send a descriptor", Network, Works, send_descriptor),
    attack("take a descriptor", Network, Works, take_descriptor),
    attack("learn who the daemon is", Network, Works, || {
        let mut peer = [0_u32; 3];
        let mut size = size_of_val(&peer) as u32;
        call(
            libc::SYS_getsockopt,
            [
                PIPE,
                c_long::from(libc::SOL_SOCKET),
                c_long::from(libc::SO_PEERCRED),
                into(&mut peer),
                into(&mut size),
            ],
        )
    }),
    attack("let the pipe hold more", Network, Works, || {
        let size = 1_i32 << 16;
        call(
            libc::SYS_setsockopt,
            [
                PIPE,
                c_long::from(libc::SOL_SOCKET),
                c_long::from(libc::SO_SNDBUF),
                to(&size),
                4,
            ],
        )
    }),
    attack("connect the pipe elsewhere", Network, Depends, || {
        // AF_UNSPEC dissolves a connection where the family lets it.
        let unspecified = [0_u8; 16];
        call(libc::SYS_connect, [PIPE, to(&unspecified), 16])
    }),
    attack("close half of the pipe", Network, Works, || {
        call(libc::SYS_shutdown, [PIPE, c_long::from(libc::SHUT_RD)])
    }),
];

fn socket(family: i32, kind: i32) -> c_long {
    call(
        libc::SYS_socket,
        [c_long::from(family), c_long::from(kind), 0],
    )
}

/// A message of one byte with room for one descriptor beside it.
struct Message {
    byte: u8,
    part: libc::iovec,
    /// Header and descriptor of one control message, aligned as the kernel wants it.
    control: [u64; 3],
    header: libc::msghdr,
}

impl Message {
    fn new() -> Box<Self> {
        // SAFETY: all fields are plain memory for which zero is valid.
        let mut message: Box<Self> = Box::new(unsafe { std::mem::zeroed() });
        message.part.iov_base = (&raw mut message.byte).cast();
        message.part.iov_len = 1;
        message.header.msg_iov = &raw mut message.part;
        message.header.msg_iovlen = 1;
        message.header.msg_control = message.control.as_mut_ptr().cast();
        message.header.msg_controllen = size_of_val(&message.control);
        message
    }
}

fn send_descriptor() -> c_long {
    let mut message = Message::new();
    // struct cmsghdr: length 20, SOL_SOCKET and SCM_RIGHTS; then descriptor 0.
    message.control = [20, 1 | (1 << 32), 0];
    call(libc::SYS_sendmsg, [PIPE, to(&message.header), 0])
}

fn take_descriptor() -> c_long {
    let mut message = Message::new();
    let wait_not = c_long::from(libc::MSG_DONTWAIT);
    let taken = call(
        libc::SYS_recvmsg,
        [PIPE, into(&mut message.header), wait_not],
    );
    // Asked and answered: there is only nothing to take.
    let nothing = std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock;
    if taken < 0 && nothing { 0 } else { taken }
}
