//! Whatever can die or go away does so here, in the middle of things: nothing may be lost, doubled or left.

mod database;
mod fence;
mod queue;
mod sequence;
