//! The sandbox against a real engine. Each wall is first tried in a container without it, to show that the attack
//! is one; then in ours. A test that cannot run fails.

mod bench;
mod engine;
mod first_process;
mod floods;
mod generated;
mod golden;
mod judges;
mod lifecycle;
mod link;
mod outside;
mod proof;
mod refusals;
mod resources;
mod shim;
mod support;
mod syscalls;
mod table;
mod walls;
mod workloads;
