//! Against the real kernel: a thread with a filter of its own asks, and we answer.

#![expect(unsafe_code, reason = "a filter is installed by hand")]
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};

use kage_notify::ready::AsyncListener;
use kage_notify::{Listener, Waiting};

const fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// A listener for one call of a thread that makes it as soon as it has the filter; gives what it returned, and its errno.
fn asking(number: libc::c_long, argument: u64) -> (Listener, JoinHandle<(i64, i32)>) {
    let (send, receive) = channel();
    let thread = thread::spawn(move || {
        let mut program = [
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
            libc::sock_filter {
                code: (libc::BPF_JMP | libc::BPF_JEQ) as u16,
                jt: 0,
                jf: 1,
                k: number as u32,
            },
            statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF),
            statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
        ];
        let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
        // SAFETY: takes rights from this thread alone.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
        let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
        // SAFETY: the program is whole and lives until the call returns.
        let descriptor = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const filter) };
        assert!(descriptor >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the kernel has just made it for us.
        send.send(unsafe { OwnedFd::from_raw_fd(descriptor as i32) }).unwrap();
        // SAFETY: a call without pointers.
        let answer = unsafe { libc::syscall(number, argument) };
        (answer, std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    });
    (Listener::new(receive.recv().unwrap()).unwrap(), thread)
}

#[test]
fn a_call_is_seen_as_it_was_made_and_fails_as_we_say() {
    let (listener, thread) = asking(libc::SYS_setfsuid, 0xdead_beef_0000_0007);
    let call = listener.next().unwrap().unwrap();
    assert_eq!((i64::from(call.number), call.arguments[0]), (libc::SYS_setfsuid, 0xdead_beef_0000_0007));
    let name = format!("/proc/self/task/{}", call.thread);
    assert!(std::path::Path::new(&name).exists(), "{name} is the thread");
    assert!(listener.still_waits(call.id) && !listener.still_waits(call.id + 1));
    assert!(listener.refuse(call.id, 0).is_err() && listener.refuse(call.id, 4096).is_err());
    assert!(listener.refuse(call.id, 95).unwrap());
    assert_eq!(thread.join().unwrap(), (-1, 95));
    assert!(!listener.refuse(call.id, 1).unwrap(), "it has its answer");
    assert!(!listener.still_waits(call.id));
}

#[test]
fn a_call_that_may_pass_is_carried_out() {
    let (listener, thread) = asking(libc::SYS_getppid, 0);
    let call = listener.next().unwrap().unwrap();
    assert!(listener.let_pass(call.id).unwrap());
    assert_eq!(thread.join().unwrap().0, i64::from(std::os::unix::process::parent_id()));
}

#[test]
fn a_listener_that_is_closed_refuses_by_itself() {
    let (listener, thread) = asking(libc::SYS_getppid, 0);
    drop(listener);
    assert_eq!(thread.join().unwrap(), (-1, libc::ENOSYS));
}

#[tokio::test(flavor = "current_thread")]
async fn a_task_waits_without_blocking_its_thread_until_all_is_over() {
    let (listener, thread) = asking(libc::SYS_getppid, 0);
    let listener = AsyncListener::new(listener).unwrap();
    let call = listener.next().await.unwrap().unwrap();
    assert_eq!(listener.get().waiting().unwrap(), Waiting::Nothing);
    // The only thread of this runtime is free while it waits.
    let next = listener.next();
    let waiting = tokio::time::timeout(std::time::Duration::from_millis(20), next).await;
    assert!(waiting.is_err(), "nobody asks");
    assert!(listener.get().refuse(call.id, 1).unwrap());
    assert_eq!(thread.join().unwrap(), (-1, 1));
    assert_eq!(listener.next().await.unwrap(), None);
    assert_eq!(listener.get().waiting().unwrap(), Waiting::Over);
}

#[test]
fn another_descriptor_is_not_taken() {
    let file = File::open("/dev/null").unwrap();
    assert_eq!(Listener::new(file.into()).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(Listener::new(socket.into()).is_err());
}
