//! Listens for names that a CLI looks up: in the sandbox's own network namespace, where no resolver is.
//!
//! Every question gets "no such name", so a CLI fares as in production, where nobody answers at all.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const MOST_NAMES: usize = 200;

#[derive(Debug)]
pub struct Resolver {
    names: Arc<Mutex<BTreeSet<String>>>,
    stop: Arc<AtomicBool>,
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Resolver {
    /// In the network namespace of the process `pid`.
    ///
    /// # Errors
    /// That of the kernel: it takes a host that shows its processes, and the right to enter.
    pub fn listen(pid: u32) -> io::Result<Self> {
        let resolver = Self { names: Arc::default(), stop: Arc::default() };
        let (names, stop) = (Arc::clone(&resolver.names), Arc::clone(&resolver.stop));
        let (tell, told) = mpsc::channel();
        // A thread of its own, which ends with its work: it can never be used for anything of the host again.
        thread::Builder::new().name("kit-resolver".to_owned()).spawn(move || match enter(pid) {
            Ok(socket) => {
                let _ = tell.send(Ok(()));
                answer(&socket, &names, &stop);
            }
            Err(error) => {
                let _ = tell.send(Err(error));
            }
        })?;
        told.recv().unwrap_or_else(|_| Err(io::Error::other("its thread is gone")))?;
        Ok(resolver)
    }

    pub fn names(&self) -> BTreeSet<String> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn enter(pid: u32) -> io::Result<UdpSocket> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let socket = UdpSocket::bind("127.0.0.1:53")?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    Ok(socket)
}

fn answer(socket: &UdpSocket, names: &Mutex<BTreeSet<String>>, stop: &AtomicBool) {
    let mut packet = [0; 1500];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut packet) else { continue };
        let Some((name, end)) = question(&packet[..length]) else { continue };
        let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() < MOST_NAMES {
            names.insert(name);
        }
        drop(names);
        let mut reply = packet[..end].to_vec();
        // An answer, recursion available, no such name; no records.
        reply[2] |= 0x80;
        reply[3] = 0x83;
        reply[6..12].fill(0);
        let _ = socket.send_to(&reply, from);
    }
}

/// The name that is asked for, and where the question ends.
fn question(packet: &[u8]) -> Option<(String, usize)> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        // A pointer has no place in a question.
        if length > 63 {
            return None;
        }
        labels.push(String::from_utf8_lossy(packet.get(at..at + length)?).into_owned());
        at += length;
    }
    let end = at + 4;
    (packet.len() >= end && !labels.is_empty()).then(|| (labels.join("."), end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_name_of_a_question() {
        let mut packet = vec![0; 12];
        packet.extend(b"\x03api\x07example\x00\x00\x01\x00\x01rest");
        assert_eq!(question(&packet), Some(("api.example".to_owned(), 29)));
        assert_eq!(question(&packet[..20]), None);
        assert_eq!(question(&packet[..5]), None);
        packet[12] = 0xc0;
        assert_eq!(question(&packet), None);
    }
}
