//! The memory of a thread that waits for its answer (process_vm_readv(2)).
//!
//! Not through `/proc/PID/mem`: that file is its owner's alone, and to open it takes the right to read every file
//! (CAP_DAC_OVERRIDE) on top of the one to trace (CAP_SYS_PTRACE). This call wants the latter only.

#![expect(unsafe_code, reason = "a call that no safe crate has; the block says why it is sound")]

use std::io;

/// Fills `bytes` from an address of that thread's memory. False: not all of it is there.
///
/// # Errors
/// The kernel does not let us read, or there is no such thread.
pub fn read(thread: u32, address: u64, bytes: &mut [u8]) -> io::Result<bool> {
    let (Ok(thread), Ok(address)) = (libc::pid_t::try_from(thread), usize::try_from(address)) else {
        return Ok(false);
    };
    // Nothing to read, and nothing would be checked.
    if bytes.is_empty() {
        return Ok(true);
    }
    let here = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let there = libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: bytes.len() };
    // SAFETY: `here` is a buffer of ours, of that length, which nobody else has; any bytes are valid in it. `there` is
    // an address of another process (or one of ours), which the kernel checks and only reads.
    let read = unsafe { libc::process_vm_readv(thread, &raw const here, 1, &raw const there, 1, 0) };
    match read {
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EFAULT) => Ok(false),
            error => Err(error),
        },
        read => Ok(usize::try_from(read).is_ok_and(|read| read == bytes.len())),
    }
}
