//! Whatever can die or go away does so here, in the middle of things: nothing may be lost, doubled or left.

mod alarms;
mod api_killed;
mod backpressure;
mod backup;
mod backup_folder;
mod clocks;
mod cluster;
mod crowd;
mod database;
mod database_gone;
mod database_gone_at_start;
mod disk_full;
mod engine_frozen;
mod engine_gone;
mod engine_lies;
mod faketime;
mod fence;
mod filling;
mod flood;
mod flood_model;
mod flood_rows;
mod grants;
mod keeper;
mod leftovers;
mod meddling;
mod misbehaviour;
mod no_end;
#[path = "../road/own_engine.rs"]
#[expect(dead_code, reason = "shared with the test program of the road, which needs other parts of it")]
mod own_engine;
mod proxy;
mod queue;
mod reboot;
mod restore;
mod runner_killed;
mod runner_lost;
mod sequence;
mod serve_killed;
mod signals;
mod silence;
#[path = "../road/support/mod.rs"]
#[expect(dead_code, reason = "shared with other test programs, which need other parts of it")]
mod support;
mod watcher;
mod world;
