//! A link that can be cut: a user-space TCP proxy in front of one listener.
//!
//! A frozen link carries nothing and closes nothing, as a cut cable does; a dropped one closes every connection and takes
//! new ones, as a router that starts again does.
//!
//! Invariant: bytes are passed on unread, in order, and nothing is passed on while the link is frozen.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

/// How often a frozen pump looks whether the link is whole again.
const THAW_POLL: Duration = Duration::from_millis(10);

/// A proxy on one port of loopback, gone with its handle.
pub struct Proxy {
    state: Arc<State>,
    port: u16,
}

#[derive(Default)]
struct State {
    frozen: AtomicBool,
    ended: AtomicBool,
    /// Both ends of every connection, for dropping.
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Leads what comes to its port on to the port `to`.
    ///
    /// # Errors
    /// No port is free.
    pub fn start(to: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback")?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(State::default());
        let shared = state.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if shared.ended.load(Ordering::SeqCst) {
                    return;
                }
                // Nobody behind the link: the connection closes at once, as a refused one.
                if let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)) {
                    shared.join(near, far);
                }
            }
        });
        Ok(Self { state, port })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts the cable, or mends it.
    pub fn freeze(&self, frozen: bool) {
        self.state.frozen.store(frozen, Ordering::SeqCst);
    }

    /// Closes every connection; new ones are taken. Returns how many ends were open.
    pub fn drop_connections(&self) -> usize {
        let ends = std::mem::take(&mut *lock(&self.state));
        ends.iter()
            .filter(|end| end.shutdown(Shutdown::Both).is_ok())
            .count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        self.state.frozen.store(false, Ordering::SeqCst);
        self.drop_connections();
        // Wakes the listening thread, which then sees that it is over.
        let _ = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)));
    }
}

impl State {
    fn join(self: &Arc<Self>, near: TcpStream, far: TcpStream) {
        let copies = (
            near.try_clone(),
            near.try_clone(),
            far.try_clone(),
            far.try_clone(),
        );
        let (Ok(near_in), Ok(near_kept), Ok(far_in), Ok(far_kept)) = copies else {
            return;
        };
        lock(self).extend([near_kept, far_kept]);
        for (from, to) in [(near_in, far), (far_in, near)] {
            let state = self.clone();
            std::thread::spawn(move || state.pump(from, to));
        }
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            while self.frozen.load(Ordering::SeqCst) {
                std::thread::sleep(THAW_POLL);
            }
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        // The other pump ends by it.
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}

fn lock(state: &State) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
    state.open.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_link_closes_its_connections_and_takes_new_ones() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap().port()).unwrap();
        let call = || {
            let mut near = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            near.write_all(b"hello").unwrap();
            let mut heard = [0; 5];
            far.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"hello");
            (near, far)
        };
        let (mut near, _far) = call();
        proxy.drop_connections();
        assert_eq!(near.read(&mut [0]).unwrap_or(0), 0);
        call();
    }
}
