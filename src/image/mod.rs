//! CLI images: how a CLI is driven ([`manifest`], [`launch`]), how its output becomes events ([`mapping`]), how its image is
//! made ([`build`]). Adding a CLI is one folder with a `Dockerfile` and a `cli.toml`, and no Rust.

pub mod base;
pub mod build;
pub mod builtins;
pub mod certificates;
pub mod context;
pub mod error;
pub mod launch;
pub mod manifest;
pub mod mapped;
pub mod mapping;
pub mod template;
