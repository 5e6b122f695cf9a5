//! Which turn answers a conversation, and as what.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::conversation::{Conversation, call_id};
use crate::fault::{Fault, Kind};
use crate::reply::{Call, FILLER, Reply};
use crate::script::{DEFAULT_USAGE, Script, ScriptError, Turn};
use crate::tools::{self, Chosen};

/// How many prompts are told apart for counted faults; beyond, all are forgotten.
const COUNTED: usize = 10_000;

#[derive(Debug)]
pub struct Player {
    script: Script,
    faults: Vec<Fault>,
    /// Requests that had a counted fault, by prompt, turn and fault.
    counts: Mutex<HashMap<u64, u32>>,
}

/// What is to be answered.
#[derive(Debug)]
pub struct Played {
    pub reply: Reply,
    pub fault: Option<Kind>,
}

impl Player {
    /// `faults` hold for every script, the prompt's own ones too; a turn's own fault goes first.
    #[must_use]
    pub fn new(script: Script, faults: Vec<Fault>) -> Self {
        Self { script, faults, counts: Mutex::default() }
    }

    /// # Errors
    /// The prompt holds a script that cannot be read.
    pub fn play(&self, conversation: &Conversation) -> Result<Played, ScriptError> {
        let prompt = conversation.prompt().unwrap_or_default();
        let own = Script::from_prompt(prompt).transpose()?;
        let index = conversation.turns_played();
        let turn = own.as_ref().unwrap_or(&self.script).turn(index);
        let fault = self.fault(&turn, index, prompt);
        let mut reply = reply(&turn, index, conversation);
        match fault {
            Some(Kind::NoUsage) => reply.usage = None,
            Some(Kind::Huge { .. } | Kind::Endless) => {
                // Text is what can be drawn out.
                reply.text.get_or_insert_with(|| FILLER.to_owned());
            }
            _ => {}
        }
        Ok(Played { reply, fault })
    }

    fn fault(&self, turn: &Turn, index: usize, prompt: &str) -> Option<Kind> {
        let of_turn = |fault: &&Fault| fault.turn.is_none_or(|turn| turn == index + 1);
        let all = turn.fault.iter().chain(self.faults.iter().filter(of_turn));
        all.filter(|fault| self.still_has(fault, index, prompt)).map(|fault| fault.kind).next()
    }

    fn still_has(&self, fault: &Fault, index: usize, prompt: &str) -> bool {
        let Some(times) = fault.times else { return true };
        let mut hasher = DefaultHasher::new();
        (prompt, index, fault.to_string()).hash(&mut hasher);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= COUNTED {
            counts.clear();
        }
        let count = counts.entry(hasher.finish()).or_default();
        *count = count.saturating_add(1);
        *count <= times
    }
}

fn reply(turn: &Turn, index: usize, conversation: &Conversation) -> Reply {
    let mut text = turn.text.clone();
    let mut calls = Vec::new();
    for action in &turn.call {
        match tools::choose(action, conversation) {
            Chosen::Call { name, namespace, input } => {
                calls.push(Call { id: call_id(index, calls.len()), name, namespace, input });
            }
            Chosen::Text(more) => {
                let before = text.take().map(|text| text + "\n\n").unwrap_or_default();
                text = Some(before + &more);
            }
        }
    }
    if text.is_none() && calls.is_empty() && turn.thinking.is_none() {
        text = Some(String::new());
    }
    Reply {
        model: conversation.model.clone(),
        turn: index,
        thinking: turn.thinking.clone(),
        text,
        calls,
        usage: Some(turn.usage.unwrap_or(DEFAULT_USAGE)),
        stream_usage: conversation.stream_usage,
    }
}
