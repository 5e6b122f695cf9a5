//! What a runtime passes while it starts a sandbox: the container's state as JSON, and with its first byte the kernel's
//! descriptor (OCI runtime specification, "The Container Process State").

use std::io;
use std::mem::MaybeUninit;

use kage_notify::Listener;
use rustix::fd::OwnedFd;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg, sockopt::socket_peercred,
};
use serde::Deserialize;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Most bytes of a state that are read; a runtime's has a few thousand.
const MAX_STATE: usize = 256 << 10;

/// What was handed over.
#[derive(Debug)]
pub struct Handover {
    pub listener: Listener,
    /// As the profile gave it.
    pub metadata: String,
}

/// Why a connection is none from our runtime.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    #[error("the peer is user {0}, not root and not our own")]
    Peer(u32),
    #[error("{0}")]
    Broken(&'static str),
    #[error("the state is not what a runtime sends: {0}")]
    State(#[from] serde_json::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

#[derive(Deserialize)]
struct State {
    fds: Vec<String>,
    metadata: String,
}

/// Reads one handover to its end. The caller sets the deadline.
///
/// # Errors
/// [`HandoverError`]; whatever was passed is closed.
pub async fn receive(stream: &UnixStream) -> Result<Handover, HandoverError> {
    let peer = socket_peercred(stream).map_err(io::Error::from)?.uid;
    if !peer.is_root() && peer != rustix::process::geteuid() {
        return Err(HandoverError::Peer(peer.as_raw()));
    }
    let (mut text, mut descriptors) = (Vec::new(), Vec::new());
    loop {
        stream.readable().await?;
        let read = stream.try_io(Interest::READABLE, || read(stream, &mut text, &mut descriptors));
        match read {
            Ok(0) => break,
            Ok(_) if text.len() > MAX_STATE => return Err(HandoverError::Broken("the state does not end")),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    let state: State = serde_json::from_slice(&text)?;
    let named = state.fds.iter().position(|name| name == "seccompFd");
    match (named, descriptors.len() == state.fds.len()) {
        (Some(place), true) => {
            let listener = Listener::new(descriptors.swap_remove(place))?;
            Ok(Handover { listener, metadata: state.metadata })
        }
        _ => Err(HandoverError::Broken("it does not pass one descriptor of a filter")),
    }
}

fn read(stream: &UnixStream, text: &mut Vec<u8>, descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut bytes = [0; 16 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(stream, &mut [io::IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > 4 {
        return Err(io::Error::other("more descriptors than a runtime passes"));
    }
    text.extend_from_slice(&bytes[..received.bytes]);
    Ok(received.bytes)
}
