//! The socket address that a waiting call points at.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use kage_notify::memory;

/// Bytes of `struct sockaddr_storage`: the kernel takes no longer address.
const MAX: u64 = 128;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Reads the address from the memory of a thread that waits for us. `None`: it stays inside (loopback, another family),
/// or is none that a kernel would take.
///
/// # Errors
/// The host does not let us read.
pub fn read(thread: u32, pointer: u64, size: u64) -> io::Result<Option<SocketAddr>> {
    // 0: the thread is in no PID namespace that we see.
    if thread == 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut bytes = [0; MAX as usize];
    let wanted = &mut bytes[..size.min(MAX) as usize];
    // `false`: it points nowhere, and the kernel will say so.
    Ok(memory::read(thread, pointer, wanted)?.then(|| outside(wanted)).flatten())
}

/// What leads out of the sandbox, if it does.
fn outside(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*bytes.first_chunk()?);
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    let address = match family {
        AF_INET => IpAddr::V4(Ipv4Addr::from(*bytes.get(4..)?.first_chunk::<4>()?)),
        AF_INET6 => IpAddr::V6(Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?)).to_canonical(),
        _ => return None,
    };
    (!address.is_loopback() && !address.is_unspecified()).then(|| SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inet(address: [u8; 4]) -> Vec<u8> {
        [&AF_INET.to_ne_bytes()[..], &443_u16.to_be_bytes(), &address, &[0; 8]].concat()
    }

    #[test]
    fn only_what_leads_out_is_told() {
        assert_eq!(outside(&inet([1, 1, 1, 1])), Some("1.1.1.1:443".parse().expect("an address")));
        assert_eq!(
            outside(&inet([169, 254, 169, 254])).map(|to| to.to_string()),
            Some("169.254.169.254:443".to_owned())
        );
        assert_eq!((outside(&inet([127, 3, 2, 1])), outside(&inet([0; 4]))), (None, None));
        let six = |address: &str| {
            let address: Ipv6Addr = address.parse().expect("an address");
            let head = [&AF_INET6.to_ne_bytes()[..], &53_u16.to_be_bytes(), &[0; 4]].concat();
            outside(&[&head[..], &address.octets(), &[0; 4]].concat()).map(|to| to.to_string())
        };
        assert_eq!(six("2606:4700::1111").as_deref(), Some("[2606:4700::1111]:53"));
        // An IPv4 address in the other form is the same place.
        assert_eq!(six("::ffff:8.8.8.8").as_deref(), Some("8.8.8.8:53"));
        assert_eq!((six("::1"), six("::"), six("::ffff:127.0.0.1")), (None, None, None));
        assert_eq!((outside(&[]), outside(&[1, 0, 47, 120]), outside(&[2, 0, 1])), (None, None, None));
    }

    #[test]
    fn memory_is_read_within_bounds() {
        let here = inet([9, 9, 9, 9]);
        let thread = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        let pointer = here.as_ptr() as u64;
        let seen = read(thread, pointer, 16).expect("our own memory");
        assert_eq!(seen.map(|to| to.to_string()).as_deref(), Some("9.9.9.9:443"));
        assert_eq!(read(thread, 8, u64::MAX).expect("points nowhere"), None);
        assert!(read(0, pointer, 16).is_err());
    }
}
