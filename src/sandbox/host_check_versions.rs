//! Escapes that were found in what holds a sandbox from beneath, and the versions that end them.
//!
//! As of 2026-11. A version number says what upstream fixed. Distributors fix beneath an older number, which cannot be
//! seen from here, except where a package's revision is known to hold the fix.

use std::cmp::Ordering;

use crate::sandbox::host_check::Severity;

/// Three numbers, and that of a release candidate. What follows (`+ds1-1`, `-fc-v669`) is no part of the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    numbers: [u32; 3],
    candidate: Option<u32>,
}

impl Version {
    /// `None` for what does not begin with two numbers.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches('v');
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (head, tail) = text.split_at(end);
        let mut parts = head.trim_end_matches('.').split('.').map(str::parse);
        let (major, minor) = (parts.next()?.ok()?, parts.next()?.ok()?);
        let patch = parts.next().and_then(Result::ok).unwrap_or(0);
        let candidate = tail.trim_start_matches(['-', '~']).strip_prefix("rc").map(|rest| {
            let digits = rest.trim_start_matches('.');
            let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            digits[..end].parse().unwrap_or(0)
        });
        Some(Self { numbers: [major, minor, patch], candidate })
    }

    fn branch(self) -> [u32; 2] {
        [self.numbers[0], self.numbers[1]]
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let candidate = |version: &Self| version.candidate.unwrap_or(u32::MAX);
        self.numbers.cmp(&other.numbers).then(candidate(self).cmp(&candidate(other)))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    Engine,
    Containerd,
    Runc,
    Kernel,
}

/// One known way out, or several that one release ended.
#[derive(Debug)]
pub struct Escape {
    /// Of the finding: what an operator writes into `KAGE_RUNNER_ACCEPT_HOST`.
    pub id: &'static str,
    pub component: Component,
    pub cves: &'static str,
    /// Day of publication.
    pub published: &'static str,
    /// First version that has the fault; empty: all of old.
    pub since: &'static str,
    /// First good version of each branch, in order. What is above the last is good.
    pub fixed: &'static [&'static str],
    /// Beginnings of package revisions that hold the fix beneath an older number.
    pub packaged: &'static [&'static str],
    /// Of an upstream build. A distributor's is at most a warning: its number does not decide.
    pub severity: Severity,
    pub means: &'static str,
}

impl Escape {
    /// Whether a version has the fault, by its number alone.
    pub fn is_in(&self, version: Version) -> bool {
        let Some(fixed) =
            self.fixed.iter().map(|text| Version::parse(text)).collect::<Option<Vec<Version>>>()
        else {
            return true;
        };
        let began = Version::parse(self.since).is_none_or(|since| version >= since);
        let of_branch = fixed.iter().find(|good| good.branch() == version.branch());
        let good = of_branch.or(fixed.last()).is_some_and(|good| version >= *good);
        began && !good
    }
}

/// Checked against their sources: CVE-2026-41579 (runc's release notes) and Debian 12's fix of CVE-2024-21626 (the package's changelog).
/// All other rows were written from memory of the advisories: check one before you rely on it.
pub const ESCAPES: &[Escape] = &[
    Escape {
        id: "runc-2019-5736",
        component: Component::Runc,
        cves: "CVE-2019-5736",
        published: "2019-02-11",
        since: "",
        fixed: &["1.0.0-rc7"],
        packaged: &[],
        severity: Severity::Danger,
        means: "a process inside can overwrite the host's runc, and with it become root on the host",
    },
    Escape {
        id: "runc-2021-30465",
        component: Component::Runc,
        cves: "CVE-2021-30465",
        published: "2021-05-19",
        since: "",
        fixed: &["1.0.0-rc95"],
        packaged: &[],
        severity: Severity::Danger,
        means: "links exchanged while a container is made can mount the host's files into it",
    },
    Escape {
        id: "runc-2024-21626",
        component: Component::Runc,
        cves: "CVE-2024-21626",
        published: "2024-01-31",
        since: "1.0.0-rc93",
        fixed: &["1.1.12"],
        packaged: &["1.1.5+ds1-1+deb12u1", "1.0.0~rc93+ds1-5+deb11u"],
        severity: Severity::Danger,
        means: "a descriptor of the host's file system leaks into the container: an image that names it as its folder, \
                or a process begun there, is out. Sandboxes always begin in /, in images of ours",
    },
    Escape {
        id: "runc-2025-31133",
        component: Component::Runc,
        cves: "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881",
        published: "2025-11-05",
        since: "",
        fixed: &["1.2.8", "1.3.3", "1.4.0-rc.3"],
        packaged: &[],
        severity: Severity::Danger,
        means: "who can exchange links while a container is made (by an image, or by a mount that another container \
                shares) gets masked paths left open, or the runtime's own writes to /proc sent elsewhere. Sandboxes \
                share no mount, their images are pinned, and the shim looks at every masked path before a CLI begins",
    },
    Escape {
        id: "runc-2026-41579",
        component: Component::Runc,
        cves: "CVE-2026-41579",
        published: "2026-07-01",
        since: "",
        fixed: &["1.3.6", "1.4.3", "1.5.0-rc.3"],
        packaged: &[],
        severity: Severity::Info,
        means: "an image whose /dev is a link can make empty files on the host. The images are ours",
    },
    Escape {
        id: "containerd-2024-25621",
        component: Component::Containerd,
        cves: "CVE-2024-25621",
        published: "2025-11-05",
        since: "",
        fixed: &["1.7.29", "2.0.7", "2.1.5", "2.2.0"],
        packaged: &[],
        severity: Severity::Info,
        means: "containerd's folders can be entered by users of the host; it opens nothing to a sandbox",
    },
    Escape {
        id: "engine-2021-41091",
        component: Component::Engine,
        cves: "CVE-2021-41089, CVE-2021-41091",
        published: "2021-10-04",
        since: "",
        fixed: &["20.10.9"],
        packaged: &[],
        severity: Severity::Warning,
        means: "users of the host can run programs from the engine's data folder, also set-user-id ones",
    },
    Escape {
        id: "engine-2024-23651",
        component: Component::Engine,
        cves: "CVE-2024-23651, CVE-2024-23652, CVE-2024-23653",
        published: "2024-01-31",
        since: "",
        fixed: &["24.0.9", "25.0.2"],
        packaged: &[],
        severity: Severity::Warning,
        means: "building a hostile Dockerfile here can reach the host's files. Sandboxes build nothing with the engine",
    },
    Escape {
        id: "kernel-2016-5195",
        component: Component::Kernel,
        cves: "CVE-2016-5195",
        published: "2016-10-19",
        since: "2.6.22",
        fixed: &["4.4.26", "4.7.9", "4.8.3"],
        packaged: &[],
        severity: Severity::Danger,
        means: "any process can write to files that it may only read, with calls that every program needs",
    },
    Escape {
        id: "kernel-2022-0492",
        component: Component::Kernel,
        cves: "CVE-2022-0492",
        published: "2022-02-04",
        since: "",
        fixed: &["4.9.301", "4.14.266", "4.19.229", "5.4.177", "5.10.97", "5.15.20", "5.16.6"],
        packaged: &[],
        severity: Severity::Warning,
        means: "with cgroup v1, who may mount can have the host run a program. Sandboxes can neither mount nor make a \
                namespace",
    },
    Escape {
        id: "kernel-2022-0847",
        component: Component::Kernel,
        cves: "CVE-2022-0847",
        published: "2022-03-07",
        since: "5.8",
        fixed: &["5.10.102", "5.15.25", "5.16.11"],
        packaged: &[],
        severity: Severity::Warning,
        means: "any process that may call splice can write to files that it may only read, also to those of an image \
                that others share. Sandboxes may not call it",
    },
    Escape {
        id: "kernel-2023-3269",
        component: Component::Kernel,
        cves: "CVE-2023-3269",
        published: "2023-07-05",
        since: "6.1",
        fixed: &["6.1.37", "6.3.11", "6.4.1"],
        packaged: &[],
        severity: Severity::Danger,
        means: "any process can become root of the host with memory mappings alone, which no filter can refuse",
    },
    Escape {
        id: "kernel-2024-1086",
        component: Component::Kernel,
        cves: "CVE-2024-1086",
        published: "2024-01-31",
        since: "3.15",
        fixed: &["5.4.269", "5.10.210", "5.15.149", "6.1.76", "6.6.15", "6.7.3", "6.8"],
        packaged: &[],
        severity: Severity::Warning,
        means: "who may speak with nf_tables becomes root of the host. Sandboxes can neither open such a socket nor \
                make a namespace",
    },
];

/// Whether a version or revision is of a build that a distributor patches.
pub fn is_packaged(text: &str) -> bool {
    text.contains(['+', '~'])
        || ["ubuntu", ".el", ".fc", "deb", "amzn"].iter().any(|mark| text.contains(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn versions_have_an_order() {
        let rising = [
            "1.0.0-rc9",
            "1.0.0-rc93",
            "1.0.0~rc95+ds1",
            "1.0.0",
            "1.1.5+ds1-1+deb12u1",
            "v1.1.12",
            "1.2",
            "1.2.8",
            "1.4.0-rc.2",
            "1.4.0-rc.3",
            "1.4.0",
            "6.1.119-1",
            "6.18.44-fc-v669",
            "26.1.5+dfsg1",
        ];
        for pair in rising.windows(2) {
            assert!(version(pair[0]) < version(pair[1]), "{pair:?}");
        }
        for none in ["", "unknown", "6", "v", "..", "rc1"] {
            assert_eq!(Version::parse(none), None, "{none:?}");
        }
    }

    #[test]
    fn the_table_is_whole() {
        for (index, row) in ESCAPES.iter().enumerate() {
            assert!(ESCAPES[..index].iter().all(|earlier| earlier.id != row.id), "{} twice", row.id);
            assert!(row.cves.starts_with("CVE-") && row.published.len() == 10, "{}", row.id);
            let fixed: Vec<Version> = row.fixed.iter().map(|text| version(text)).collect();
            assert!(!fixed.is_empty() && fixed.is_sorted(), "{}", row.id);
            assert!(fixed.iter().all(|good| !row.is_in(*good)), "{}", row.id);
        }
    }

    /// What the advisories say of single versions.
    #[test]
    fn known_bad_versions_are_found_and_good_ones_are_not() {
        for (id, bad, good) in [
            ("runc-2019-5736", "1.0.0-rc6", "1.0.0-rc7"),
            ("runc-2021-30465", "1.0.0-rc94", "1.0.0"),
            ("runc-2024-21626", "1.1.11", "1.1.12"),
            ("runc-2024-21626", "1.0.0-rc93", "1.0.0-rc92"),
            ("runc-2025-31133", "1.1.15", "1.2.8"),
            ("runc-2025-31133", "1.3.2", "1.3.3"),
            ("runc-2025-31133", "1.4.0-rc.2", "1.4.0"),
            ("runc-2026-41579", "1.2.9", "1.3.6"),
            ("runc-2026-41579", "1.4.2", "1.5.0"),
            ("kernel-2022-0847", "5.15.24", "5.15.25"),
            ("kernel-2022-0847", "5.8.0", "5.7.19"),
            ("kernel-2022-0847", "5.14.1", "6.18.44"),
            ("kernel-2016-5195", "4.4.25", "4.9.0"),
            ("kernel-2023-3269", "6.4.0", "6.4.1"),
            ("engine-2024-23651", "20.10.24", "26.1.5"),
        ] {
            let row = ESCAPES.iter().find(|row| row.id == id).unwrap_or_else(|| panic!("{id}"));
            assert!(row.is_in(version(bad)), "{id}: {bad}");
            assert!(!row.is_in(version(good)), "{id}: {good}");
        }
    }
}
