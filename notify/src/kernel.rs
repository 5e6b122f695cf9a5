//! The three ioctls and their structs, as linux/seccomp.h has them. The size of a struct is part of its ioctl's number, so
//! a kernel with larger ones would refuse the number and not write beyond ours.

#![expect(unsafe_code, reason = "ioctls that no safe crate has; each block says why it is sound")]

use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};

use crate::Call;

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`
pub const FLAG_CONTINUE: u32 = 1;

/// `struct seccomp_notif`, with its `struct seccomp_data` unfolded.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    architecture: u32,
    instruction_pointer: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const _: () = assert!(size_of::<Notification>() == 80 && size_of::<Response>() == 24);

const RECEIVE: Opcode = opcode::read_write::<Notification>(b'!', 0);
const SEND: Opcode = opcode::read_write::<Response>(b'!', 1);
const ID_VALID: Opcode = opcode::write::<u64>(b'!', 2);

pub fn receive(listener: BorrowedFd<'_>) -> Result<Call, Errno> {
    // The kernel wants it zeroed.
    let mut notification = Notification::default();
    // SAFETY: RECEIVE is made from this very type, whose layout is the kernel's; any bytes are a valid value of it.
    let call = unsafe { Updater::<RECEIVE, Notification>::new(&mut notification) };
    // SAFETY: the kernel writes at most the struct that the number names; on another kind of descriptor it fails.
    unsafe { ioctl(listener, call) }?;
    Ok(Call {
        id: notification.id,
        thread: notification.pid,
        number: notification.number,
        architecture: notification.architecture,
        arguments: notification.arguments,
    })
}

pub fn send(listener: BorrowedFd<'_>, id: u64, error: i32, flags: u32) -> Result<(), Errno> {
    let mut response = Response { id, value: 0, error, flags };
    // SAFETY: SEND is made from this very type, whose layout is the kernel's.
    let call = unsafe { Updater::<SEND, Response>::new(&mut response) };
    // SAFETY: the kernel only reads the struct; on another kind of descriptor it fails.
    unsafe { ioctl(listener, call) }
}

pub fn is_valid(listener: BorrowedFd<'_>, id: u64) -> Result<(), Errno> {
    // SAFETY: ID_VALID takes a pointer to a 64-bit id, which it only reads.
    let call = unsafe { Setter::<ID_VALID, u64>::new(id) };
    // SAFETY: as above; on another kind of descriptor it fails.
    unsafe { ioctl(listener, call) }
}
