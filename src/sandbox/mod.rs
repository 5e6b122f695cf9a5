//! The sandbox: one locked-down container around one run.
//!
//! [`profile`] is the whole lock-down on one page, as a pure function; [`container`] drives one
//! container as a value that is hard to leak; [`shim_listener`] and
//! [`shim_link`] speak with the shim, PID 1 inside, and [`proof`] judges what it found there.
//! The engine is reached through [`engine`] alone, where every call has a deadline, because a
//! hostile container can wedge the engine's own calls; [`host_kill`] is the second way to end one.
//! [`host_check`] judges the host beneath all of it, with the tables [`host_check_engine_escapes`]
//! and [`host_check_kernel_escapes`].

pub mod container;
pub mod engine;
pub mod error;
mod host_cgroup;
pub mod host_check;
pub mod host_check_engine_escapes;
#[cfg(test)]
mod host_check_escapes_tests;
pub mod host_check_facts;
pub mod host_check_good;
pub mod host_check_kernel_escapes;
#[cfg(test)]
mod host_check_tests;
mod host_check_users;
pub mod host_check_versions;
pub mod host_kill;
pub mod image_check;
pub mod profile;
pub mod proof;
pub mod refusals;
pub mod remap;
pub mod reporting;
pub mod seccomp;
pub mod shim_link;
pub mod shim_listener;
pub mod spec;
