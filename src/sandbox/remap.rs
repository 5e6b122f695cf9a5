//! Who a sandbox's users are on the host. An engine with `userns-remap` shifts them all by a fixed number.
//!
//! The number is the engine's word. The proof asks the kernel of every sandbox ([`crate::sandbox::proof`]), so that a
//! wrong one refuses runs and gives no sandbox another's files.

/// What an engine does with the users of its containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// The same inside as outside.
    Same,
    /// `userns-remap`: who root of a container is on the host. The others follow.
    Shifted { uid: u32, gid: u32 },
    /// They are others outside, and it cannot be told from here which.
    Unknown,
}

impl Users {
    /// `root_dir`: the engine's data folder, to which it adds the shift as `UID.GID`. `whole`: this process sees the
    /// host's own users ([`sees_all`]), so that these numbers mean the same to it.
    pub fn of(security_options: &[String], root_dir: &str, whole: bool) -> Self {
        let has = |name: &str| security_options.iter().any(|option| option.split(',').any(|one| one == name));
        if has("name=rootless") {
            return Self::Unknown;
        }
        if !has("name=userns") {
            return Self::Same;
        }
        let last = root_dir.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let ids = last.split_once('.').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
        match ids {
            Some((uid, gid)) if whole && uid != 0 && gid != 0 => Self::Shifted { uid, gid },
            _ => Self::Unknown,
        }
    }

    /// Who these are on the host; `None`: it is not known, or there are no such.
    pub fn on_host(self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        match self {
            Self::Same => Some((uid, gid)),
            Self::Shifted { uid: first_uid, gid: first_gid } => {
                Some((first_uid.checked_add(uid)?, first_gid.checked_add(gid)?))
            }
            Self::Unknown => None,
        }
    }
}

/// Whether this process is in the user namespace in which every number is itself.
pub fn sees_all() -> bool {
    let whole = |map: &str| {
        let text = std::fs::read_to_string(map).unwrap_or_default();
        text.split_whitespace().eq(["0", "0", "4294967295"])
    };
    whole("/proc/self/uid_map") && whole("/proc/self/gid_map")
}

/// What an id is outside, by the words of a map (user_namespaces(7)): first inside, first outside, how many.
pub fn outside(map: &str, id: u32) -> Option<u32> {
    let numbers: Vec<u32> = map.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    numbers.chunks_exact(3).find_map(|range| match *range {
        [inside, outside, count] => outside.checked_add(id.checked_sub(inside).filter(|nth| *nth < count)?),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(options: &[&str], root_dir: &str) -> Users {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        Users::of(&options, root_dir, true)
    }

    #[test]
    fn the_shift_is_in_the_engines_folder() {
        let remapped = ["name=seccomp,profile=builtin", "name=userns"];
        assert_eq!(users(&remapped[..1], "/var/lib/docker"), Users::Same);
        let shifted = users(&remapped, "/var/lib/docker/100000.200000");
        assert_eq!(shifted, Users::Shifted { uid: 100_000, gid: 200_000 });
        assert_eq!(shifted.on_host(10001, 10002), Some((110_001, 210_002)));
        assert_eq!(shifted.on_host(u32::MAX, 1), None, "nobody has that number");
        for odd in ["/var/lib/docker", "", "/", "/x/100000", "/x/0.0", "/x/-1.5", "/x/1.2.3", "/x/a.b"] {
            assert_eq!(users(&remapped, odd), Users::Unknown, "{odd}");
        }
        assert_eq!(users(&["name=rootless"], "/home/u/.local/share/docker"), Users::Unknown);
        assert_eq!(users(&["name=rootless", "name=userns"], "/x/100000.100000"), Users::Unknown);
        let options = ["name=userns".to_owned()];
        assert_eq!(Users::of(&options, "/x/1.1", false), Users::Unknown, "other numbers here");
    }

    #[test]
    fn a_map_is_read_range_by_range() {
        assert_eq!(outside("0 0 4294967295", 10001), Some(10001));
        assert_eq!(outside("0 100000 65536", 10001), Some(110_001));
        assert_eq!(outside("0 1000 1 1 100000 65536", 10001), Some(110_000));
        assert_eq!(outside("5 100 5 0 200 5", 2), Some(202), "in any order");
        for none in ["", "0 100000 10001", "0 100000", "unreadable", "0 4294967295 65536"] {
            assert_eq!(outside(none, 10001), None, "{none:?}");
        }
    }
}
