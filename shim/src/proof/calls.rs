//! A handful of calls that must be refused. They are made in a sandbox alone: nothing is tried by a process that is not
//! the first of its namespace, or that is root. Most do no harm where they are not refused, since what they ask for
//! cannot be. The others would change this very process, and are tried only behind a filter: who has none (a runtime
//! with a kernel of its own) is found out by that.

use std::collections::BTreeMap;
use std::ffi::CString;

use kage_shim::containment::Answer;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, MountFlags};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getpid};
use rustix::thread::Uid;

use crate::proof::{NOT_TRIED, answer};

/// Where nothing is: what would be done there cannot be done.
const NOWHERE: &str = "/nowhere/of-kage";
/// Longer than a kernel takes.
const NO_NAME: &[u8] = &[b'x'; 65];

pub fn calls(filtered: bool) -> BTreeMap<String, Answer> {
    if !getpid().is_init() || rustix::process::geteuid().is_root() {
        return BTreeMap::from([("all".to_owned(), NOT_TRIED.to_owned())]);
    }
    let answers = [
        ("mount", answer(rustix::mount::mount("none", NOWHERE, "tmpfs", MountFlags::empty(), None))),
        ("fsopen", answer(rustix::mount::fsopen("tmpfs", FsOpenFlags::empty()))),
        ("chroot", answer(rustix::process::chroot(NOWHERE))),
        ("pivot_root", answer(rustix::process::pivot_root(NOWHERE, NOWHERE))),
        ("sethostname", answer(rustix::system::sethostname(NO_NAME))),
        ("setns", answer(own_namespace())),
        ("unshare user", behind(filtered, || namespace(nix::sched::CloneFlags::CLONE_NEWUSER))),
        ("unshare net", behind(filtered, || namespace(nix::sched::CloneFlags::CLONE_NEWNET))),
        ("ptrace", nix_answer(nix::sys::ptrace::cont(nix::unistd::Pid::from_raw(i32::MAX), None))),
        ("pidfd_getfd", answer(own_descriptor())),
        ("splice", answer(splice())),
        ("become root", behind(filtered, || answer(rustix::thread::set_thread_uid(Uid::ROOT)))),
        ("device node", answer(node(FileType::CharacterDevice))),
        ("set-user-id file", answer(set_user_id_file())),
        ("raw socket", socket(AddressFamily::INET, SocketType::RAW, Some(rustix::net::ipproto::ICMP))),
        ("packet socket", socket(AddressFamily::PACKET, SocketType::RAW, None)),
        ("netfilter socket", socket(AddressFamily::NETLINK, SocketType::RAW, protocol(12))),
        ("vsock", socket(AddressFamily::VSOCK, SocketType::STREAM, None)),
        ("kernel crypto socket", socket(AddressFamily::from_raw(ALG), SocketType::SEQPACKET, None)),
    ];
    answers.into_iter().map(|(name, answer)| (name.to_owned(), answer)).collect()
}

/// AF_ALG (linux/socket.h).
const ALG: u16 = 38;

fn socket(family: AddressFamily, kind: SocketType, protocol: Option<Protocol>) -> Answer {
    answer(rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol))
}

fn protocol(number: u32) -> Option<Protocol> {
    std::num::NonZeroU32::new(number).map(Protocol::from_raw)
}

fn behind(filtered: bool, call: impl FnOnce() -> Answer) -> Answer {
    if filtered { call() } else { NOT_TRIED.to_owned() }
}

fn nix_answer<T>(result: nix::Result<T>) -> Answer {
    answer(result.map_err(|error| Errno::from_raw_os_error(error as i32)))
}

fn namespace(kind: nix::sched::CloneFlags) -> Answer {
    nix_answer(nix::sched::unshare(kind))
}

fn own_namespace() -> Result<(), Errno> {
    let own = rustix::fs::open("/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&own), None)
}

fn own_descriptor() -> Result<(), Errno> {
    let own = rustix::process::pidfd_open(getpid(), PidfdFlags::empty())?;
    rustix::process::pidfd_getfd(&own, 0, PidfdGetfdFlags::empty()).map(drop)
}

fn splice() -> Result<usize, Errno> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::pipe::splice(&null, None, &null, None, 0, rustix::pipe::SpliceFlags::empty())
}

fn node(kind: FileType) -> Result<(), Errno> {
    let path = path();
    let made = rustix::fs::mknodat(CWD, &*path, kind, Mode::RUSR, 0);
    if made.is_ok() {
        let _ = rustix::fs::unlink(&*path);
    }
    made
}

fn set_user_id_file() -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let path = path();
    let made = rustix::fs::open(&*path, flags, Mode::RUSR | Mode::SUID).map(drop);
    if made.is_ok() {
        let _ = rustix::fs::unlink(&*path);
    }
    made
}

fn path() -> CString {
    CString::new(format!("/tmp/.kage-{}", Pid::as_raw(Some(getpid())))).unwrap_or_default()
}
