//! The client against a server that misbehaves on purpose, in this process, over loopback.

mod binary;
mod requests;
mod samples;
mod server;
mod streams;
