//! How much memory the C library keeps of what it was given back.
//!
//! Left to itself, glibc has up to eight heaps for each core, and with each large block that is given back it raises the size
//! from which blocks are no part of a heap, up to 32 MiB. Where bodies, patches and blocks of megabytes come and go in many
//! threads, each heap is left with holes of their size, which the kernel never gets back: a process grows for hours though it
//! holds nothing. So heaps are few, and what is large is the kernel's again at once.

/// Heaps: with four a runner's peak still crept under flood, with two it did not. Small blocks are had without their locks.
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 2;
/// Bytes from which a block is mapped by itself: where glibc begins.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 << 10;
/// Bytes that are kept at the top of a heap.
#[cfg(target_env = "gnu")]
const TOP: libc::c_int = 1 << 20;

/// Bounds it, from here on: before there are threads. False: this C library does not know how.
#[cfg(target_env = "gnu")]
pub fn bound() -> bool {
    set(libc::M_ARENA_MAX, HEAPS) && set(libc::M_MMAP_THRESHOLD, LARGE) && set(libc::M_TRIM_THRESHOLD, TOP)
}

/// As above: another C library has other habits.
#[cfg(not(target_env = "gnu"))]
pub fn bound() -> bool {
    false
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "a call of the C library")]
fn set(what: libc::c_int, value: libc::c_int) -> bool {
    // SAFETY: mallopt(3) takes two numbers, and may be called at any time.
    unsafe { libc::mallopt(what, value) == 1 }
}
