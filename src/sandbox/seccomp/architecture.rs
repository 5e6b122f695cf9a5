//! The architectures that there is a profile for, and their calls by name and number.

use syscalls::{aarch64, x86_64};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    X86_64,
    Aarch64,
}

impl Architecture {
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Self = Self::X86_64;
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Self = Self::Aarch64;

    /// As `uname -m` says it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// As a profile says it. Calls through another architecture's entry kill the process.
    pub const fn seccomp_name(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
        }
    }

    /// A call's name. `None`: newer than our table, or none.
    pub fn call(self, number: i32) -> Option<&'static str> {
        let number = usize::try_from(number).ok()?;
        match self {
            Self::X86_64 => x86_64::Sysno::new(number).map(|call| call.name()),
            Self::Aarch64 => aarch64::Sysno::new(number).map(|call| call.name()),
        }
    }

    /// All calls that we know, by number.
    pub fn calls(self) -> impl Iterator<Item = &'static str> {
        let last = match self {
            Self::X86_64 => x86_64::Sysno::last().id(),
            Self::Aarch64 => aarch64::Sysno::last().id(),
        };
        (0..=last).filter_map(move |number| self.call(number))
    }
}
