//! Which OCI runtime a run is given: the task's wish, at least what its image demands, and nothing that the operator
//! does not allow.

use std::collections::BTreeSet;

/// How much stands between a sandbox and the host's kernel. `None`: a runtime that we do not know.
fn strength(runtime: &str) -> Option<u8> {
    match runtime {
        // The host's own kernel, with namespaces and filters.
        "runc" | "crun" | "youki" | "io.containerd.runc.v2" => Some(0),
        // A kernel in user space (gVisor).
        "runsc" => Some(1),
        // A virtual machine.
        "kata" | "kata-runtime" | "io.containerd.kata.v2" => Some(2),
        _ => None,
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeRefused {
    #[error("the CLI's image demands the runtime {demanded:?} or a stronger one; {asked:?} is asked for")]
    TooWeak { asked: String, demanded: String },
    #[error("the runtime {runtime:?} is not allowed here; these are: {}", allowed.join(", "))]
    NotAllowed { runtime: String, allowed: Vec<String> },
}

/// `asked`: by the task. `demanded`: by the image, as a least one. `default`: where neither says anything, or the
/// default is as strong as what is demanded.
///
/// # Errors
/// [`RuntimeRefused`] in words for a client.
pub fn choose(
    asked: Option<&str>,
    demanded: Option<&str>,
    default: &str,
    allowed: &BTreeSet<String>,
) -> Result<String, RuntimeRefused> {
    let meets = |runtime: &str| demanded.is_none_or(|demanded| is_at_least(runtime, demanded));
    let chosen = match (asked, demanded) {
        (Some(asked), Some(demanded)) if !meets(asked) => {
            return Err(RuntimeRefused::TooWeak { asked: asked.to_owned(), demanded: demanded.to_owned() });
        }
        (Some(asked), _) => asked,
        (None, Some(demanded)) if !meets(default) => demanded,
        (None, _) => default,
    };
    if chosen == default || allowed.contains(chosen) {
        return Ok(chosen.to_owned());
    }
    let mut all: Vec<String> = allowed.iter().cloned().collect();
    if !allowed.contains(default) {
        all.insert(0, default.to_owned());
    }
    Err(RuntimeRefused::NotAllowed { runtime: chosen.to_owned(), allowed: all })
}

/// A runtime that we do not know is as strong as itself alone.
fn is_at_least(runtime: &str, demanded: &str) -> bool {
    runtime == demanded
        || matches!((strength(runtime), strength(demanded)), (Some(has), Some(least)) if has >= least)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_task_chooses_among_what_is_allowed() {
        let both = allowed(&["runsc"]);
        assert_eq!(choose(None, None, "runc", &both).as_deref(), Ok("runc"));
        assert_eq!(choose(Some("runsc"), None, "runc", &both).as_deref(), Ok("runsc"));
        assert_eq!(choose(Some("runc"), None, "runc", &both).as_deref(), Ok("runc"));
        let refused = choose(Some("kata"), None, "runc", &both).expect_err("not allowed");
        assert_eq!(refused.to_string(), "the runtime \"kata\" is not allowed here; these are: runc, runsc");
        choose(Some("runc"), None, "runsc", &both)
            .expect_err("weaker than the operator's own is not implied");
    }

    #[test]
    fn an_image_demands_a_least_one() {
        let all = allowed(&["runsc", "kata"]);
        assert_eq!(choose(None, Some("runsc"), "runc", &all).as_deref(), Ok("runsc"));
        assert_eq!(choose(Some("kata"), Some("runsc"), "runc", &all).as_deref(), Ok("kata"));
        assert_eq!(
            choose(None, Some("runsc"), "kata", &all).as_deref(),
            Ok("kata"),
            "the default is stronger"
        );
        for asked in ["runc", "unheard-of"] {
            let refused = choose(Some(asked), Some("runsc"), "runc", &all).expect_err("too weak");
            assert!(matches!(refused, RuntimeRefused::TooWeak { .. }), "{refused}");
        }
        choose(None, Some("runsc"), "runc", &allowed(&[])).expect_err("demanded, but not allowed");
        choose(None, Some("unheard-of"), "kata", &all).expect_err("nothing is known to be as strong");
    }
}
