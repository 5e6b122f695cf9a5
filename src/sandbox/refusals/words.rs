//! Which form of a call it was, in words: from its name and the numbers among its arguments alone.

/// Empty where the name says it all.
pub fn form(call: &str, arguments: &[u64; 6]) -> String {
    let argument = |index: usize| arguments[index] as u32;
    match call {
        "socket" => {
            format!("{}, {}, protocol {}", family(argument(0)), kind(argument(1) & 15), argument(2))
        }
        "clone" | "unshare" => namespaces(argument(0)),
        "setns" => namespaces(argument(1)),
        "prctl" => format!("option {:#x}", argument(0)),
        "ioctl" => format!("request {:#x}", argument(1)),
        "chmod" | "fchmod" | "creat" => mode(argument(1)),
        "fchmodat" | "fchmodat2" | "open" => mode(argument(2)),
        "openat" => mode(argument(3)),
        "mknod" => mode(argument(1)),
        "mknodat" => mode(argument(2)),
        "personality" => format!("persona {:#x}", argument(0)),
        "prlimit64" => "of another process".to_owned(),
        "setpriority" if argument(0) == 0 => "of another process".to_owned(),
        "setpriority" => "of several processes".to_owned(),
        "sched_setaffinity" => "of the first process".to_owned(),
        _ => String::new(),
    }
}

fn mode(mode: u32) -> String {
    format!("mode {:07o}", mode & 0o177_7777)
}

fn family(number: u32) -> String {
    const NAMES: [(u32, &str); 14] = [
        (1, "AF_UNIX"),
        (2, "AF_INET"),
        (5, "AF_APPLETALK"),
        (10, "AF_INET6"),
        (15, "AF_KEY"),
        (16, "AF_NETLINK"),
        (17, "AF_PACKET"),
        (21, "AF_RDS"),
        (29, "AF_CAN"),
        (30, "AF_TIPC"),
        (31, "AF_BLUETOOTH"),
        (38, "AF_ALG"),
        (40, "AF_VSOCK"),
        (44, "AF_XDP"),
    ];
    let known = NAMES.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("family {number}"), |(_, name)| (*name).to_owned())
}

fn kind(number: u32) -> String {
    const NAMES: [&str; 7] =
        ["type 0", "SOCK_STREAM", "SOCK_DGRAM", "SOCK_RAW", "SOCK_RDM", "SOCK_SEQPACKET", "SOCK_DCCP"];
    NAMES.get(number as usize).map_or_else(|| format!("type {number}"), |name| (*name).to_owned())
}

fn namespaces(flags: u32) -> String {
    const NAMES: [(u32, &str); 8] = [
        (0x80, "CLONE_NEWTIME"),
        (0x2_0000, "CLONE_NEWNS"),
        (0x200_0000, "CLONE_NEWCGROUP"),
        (0x400_0000, "CLONE_NEWUTS"),
        (0x800_0000, "CLONE_NEWIPC"),
        (0x1000_0000, "CLONE_NEWUSER"),
        (0x2000_0000, "CLONE_NEWPID"),
        (0x4000_0000, "CLONE_NEWNET"),
    ];
    let set: Vec<&str> = NAMES.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| *name).collect();
    set.join(" | ")
}

#[cfg(test)]
mod tests {
    use super::form;

    #[test]
    fn the_form_is_said_where_it_matters() {
        assert_eq!(form("socket", &[17, 3 | 0x80000, 768, 0, 0, 0]), "AF_PACKET, SOCK_RAW, protocol 768");
        assert_eq!(form("socket", &[99, 99, 0, 0, 0, 0]), "family 99, SOCK_RAW, protocol 0");
        assert_eq!(
            form("clone", &[0x1000_0000 | 0x2_0000 | 17, 0, 0, 0, 0, 0]),
            "CLONE_NEWNS | CLONE_NEWUSER"
        );
        assert_eq!(form("chmod", &[0x7fff_0000_0000, 0o4755, 0, 0, 0, 0]), "mode 0004755");
        assert_eq!(form("bpf", &[1, 2, 3, 4, 5, 6]), "");
    }
}
