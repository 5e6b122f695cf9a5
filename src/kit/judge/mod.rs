//! From what was seen to items of the report. Pure: nothing here runs anything.

pub mod faults;
pub mod gateway;
pub mod prompts;
pub mod secrecy;
pub mod task;
