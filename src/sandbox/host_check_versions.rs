//! Versions of what holds a sandbox from beneath, and what a known escape says of them. The tables of them are
//! [`crate::sandbox::host_check_engine_escapes`] and [`crate::sandbox::host_check_kernel_escapes`].
//!
//! A version number says what upstream fixed. Distributors fix beneath an older number, which cannot be seen from here,
//! except where a package's revision is known to hold the fix.

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

/// What a row was checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The project's own release notes or change log.
    ReleaseNotes,
    /// The project's advisory, or the CVE's record as the project wrote it.
    Advisory,
    /// The CVE's record, written by the kernel's own team with a version of each branch.
    KernelRecord,
    /// The commits of the kernel's stable branches, as collected in `linux_kernel_cves`; the CVE's record for the rest.
    StableBranches,
    /// The CVE's record alone, written by somebody else.
    Record,
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
    pub source: Source,
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
}
