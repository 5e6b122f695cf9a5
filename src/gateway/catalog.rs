//! Which provider serves a CLI, and which of its models the CLI may use, at what price.

use std::sync::Arc;

use crate::config::providers::{CliPolicy, Provider, Providers};
use crate::domain::model::Dialect;
use crate::gateway::price::Price;

/// A model as it is sent on, and what it costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolved {
    pub model: String,
    pub price: Price,
    /// Where the price is not the model's own.
    pub price_note: Option<String>,
}

pub(super) struct Catalog {
    providers: Vec<Arc<Provider>>,
    configured: Providers,
}

impl Catalog {
    pub fn new(configured: &Providers) -> Self {
        Self {
            providers: configured.providers.iter().cloned().map(Arc::new).collect(),
            configured: configured.clone(),
        }
    }

    pub fn policy(&self, cli: &str) -> CliPolicy {
        self.configured.policy(cli)
    }

    /// The provider that serves a CLI, or why there is none.
    pub fn provider(&self, cli: &str, dialect: Dialect) -> Result<Arc<Provider>, String> {
        match self.policy(cli).provider.as_deref() {
            Some(name) => {
                let found = self.providers.iter().find(|provider| provider.name == name);
                let found = found.filter(|provider| provider.dialect == dialect).cloned();
                found.ok_or_else(|| format!("provider {name}, which serves {cli}, does not speak {dialect}"))
            }
            None => {
                let found = self.providers.iter().find(|provider| provider.dialect == dialect).cloned();
                found.ok_or_else(|| format!("no provider that speaks {dialect} is configured"))
            }
        }
    }
}

/// The model that a name stands for, if the CLI may use it. Aliases are resolved first: what they stand for
/// has to be allowed. Names are compared as they are spelled.
pub(super) fn resolve(provider: &Provider, policy: &CliPolicy, asked: &str) -> Option<Resolved> {
    let model = provider.aliases.get(asked).map_or(asked, String::as_str);
    // What stands in paths and rows is short and plain, whatever the patterns are.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/@+".contains(c);
    if model.is_empty() || model.len() > 200 || !model.chars().all(plain) || model.contains("..") {
        return None;
    }
    let offered = if provider.allow.is_empty() {
        provider.models.iter().any(|known| matches(&known.name, model))
    } else {
        provider.allow.iter().any(|pattern| matches(pattern, model))
    };
    let allowed = policy.models.is_empty() || policy.models.iter().any(|pattern| matches(pattern, model));
    let searches = searches_by_itself(model) && !policy.server_tools.iter().any(|tool| tool == "web_search");
    // An Ollama that is signed in passes these on to its maker's servers.
    let leaves = provider.dialect == Dialect::Ollama
        && model.to_ascii_lowercase().ends_with("cloud")
        && !provider.allow.iter().any(|name| name == model);
    (offered && allowed && !searches && !leaves).then(|| {
        let (price, price_note) = price_of(provider, model);
        Resolved { model: model.to_owned(), price, price_note }
    })
}

/// Models, and resellers' suffixes, that search the web without a tool being named in the request: only where the
/// operator lets `web_search` through. <https://platform.openai.com/docs/guides/tools-web-search>
fn searches_by_itself(model: &str) -> bool {
    let model = model.to_ascii_lowercase();
    ["-search-preview", "-search-api", "deep-research", ":online"].iter().any(|part| model.contains(part))
}

/// Names to show to a CLI that asks which models there are: aliases, and models that stand without a `*`.
pub(super) fn listed(provider: &Provider, policy: &CliPolicy, also: &str) -> Vec<String> {
    let named =
        provider.allow.iter().chain(&policy.models).chain(provider.models.iter().map(|model| &model.name));
    let named = named.filter(|name| !name.contains('*')).chain(provider.aliases.keys());
    let mut names: Vec<String> = std::iter::once(also)
        .chain(named.map(String::as_str))
        .filter(|name| resolve(provider, policy, name).is_some())
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The price under the model's own name; else the dearest of the provider, and a note that says so.
///
/// A `*` in a price's name stands for snapshots of that model, and for no other model: a vendor names a dearer one by
/// putting a word or a number after the name of a cheap one (`gpt-5` and `gpt-5-pro`), and the cheap one's price would
/// then be charged for it.
fn price_of(provider: &Provider, model: &str) -> (Price, Option<String>) {
    if provider.free {
        return (Price::FREE, None);
    }
    let dearest = provider.models.iter().map(Price::of).fold(Price::FREE, Price::dearer);
    let known = provider.models.iter().filter(|known| matches(&known.name, model));
    let nearest = known.max_by_key(|known| {
        let exact = is_named_by(&known.name, model);
        (exact, !known.name.contains('*'), known.name.len())
    });
    if let Some(known) = nearest {
        let price = Price::of(known);
        // Where all cost the same, nothing is guessed.
        if is_named_by(&known.name, model) || price == dearest {
            return (price, None);
        }
    }
    let note = format!(
        "{model} has no price of its own: charged as the dearest of {} ({dearest}); set its price in the providers' file",
        provider.name
    );
    (dearest, Some(note))
}

/// Whether a price's name means this very model: spelled out, or with a `*` for nothing but a snapshot of it.
fn is_named_by(known: &str, model: &str) -> bool {
    match known.split_once('*') {
        None => known == model,
        Some((name, "")) => model.strip_prefix(name).is_some_and(is_snapshot),
        Some(_) => false,
    }
}

/// What vendors put after a model's name for one state of it: a day, a revision of three digits or more, `latest`,
/// `preview`. Not a number of one or two digits by itself: that is another version, with another price.
fn is_snapshot(rest: &str) -> bool {
    const WORDS: [&str; 3] = ["latest", "preview", "exp"];
    let Some(separated) = rest.strip_prefix(['-', '@', ':']) else { return rest.is_empty() };
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let year = |part: &str| part.len() == 4 && part.starts_with("20") && digits(part);
    let parts = || separated.split(['-', '@', ':']);
    let dated = parts().any(|part| year(part) || WORDS.contains(&part));
    parts().all(|part| match part.len() {
        2 => dated && digits(part),
        3.. => WORDS.contains(&part) || digits(part),
        _ => false,
    })
}

/// Whether a name fits a pattern, in which `*` stands for any run of characters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, mut rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    while let Some((middle, after)) = rest.split_once('*') {
        let Some(at) = left.find(middle) else { return false };
        left = &left[at + middle.len()..];
        rest = after;
    }
    left.ends_with(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog() -> Catalog {
        let providers = toml::from_str(
            r#"
            [[provider]]
            name = "vendor"
            dialect = "anthropic"
            base_url = "https://models.example"
            aliases = { sonnet = "claude-sonnet-4-5", out = "gpt-5" }
            allow = ["claude-*"]
            [[provider.model]]
            name = "claude-*"
            input_usd_per_mtok = 9
            output_usd_per_mtok = 9
            as_of = "2026-01-01"
            [[provider.model]]
            name = "claude-sonnet-4-5*"
            input_usd_per_mtok = 3
            output_usd_per_mtok = 15
            as_of = "2026-01-01"
            [[provider]]
            name = "near"
            dialect = "chat"
            base_url = "http://localhost:1"
            free = true
            allow = ["*"]
            [[provider]]
            name = "own"
            dialect = "ollama"
            base_url = "http://localhost:2"
            free = true
            allow = ["*", "kept:cloud"]
            [cli.narrow]
            models = ["claude-haiku-*"]
            [cli.wrong]
            provider = "near"
            "#,
        );
        Catalog::new(&providers.unwrap())
    }

    #[test]
    fn patterns_fit() {
        for (pattern, name, fits) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "a", true),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("ab*ba", "aba", false),
            ("*", "", true),
            ("*b*", "abc", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "acb", false),
            ("A*", "ab", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn aliases_are_resolved_before_the_model_is_judged() {
        let catalog = catalog();
        let vendor = catalog.provider("any", Dialect::Anthropic).unwrap();
        let all = CliPolicy::default();
        let sonnet = resolve(&vendor, &all, "sonnet").unwrap();
        assert_eq!(sonnet.model, "claude-sonnet-4-5");
        assert_eq!(sonnet.price, Price::of(&vendor.models[1]));
        assert_eq!(sonnet.price_note, None);
        for refused in
            ["out", "Claude-x", "gpt-5", "", "claude-/../x", "claude-x?key=1", "claude-x y", " claude-x"]
        {
            assert_eq!(resolve(&vendor, &all, refused), None, "{refused}");
        }
        let narrow = catalog.policy("narrow");
        assert_eq!(resolve(&vendor, &narrow, "sonnet"), None);
        assert!(resolve(&vendor, &narrow, "claude-haiku-4-5").is_some());
        assert_eq!(listed(&vendor, &all, "claude-x"), ["claude-x", "sonnet"]);
    }

    #[test]
    fn a_local_server_passes_nothing_on_unless_that_is_allowed_by_name() {
        let own = catalog().provider("any", Dialect::Ollama).unwrap();
        let resolved = |model| resolve(&own, &CliPolicy::default(), model).is_some();
        for (model, allowed) in
            [("qwen3-coder", true), ("gpt-oss:120b-cloud", false), ("x:Cloud", false), ("kept:cloud", true)]
        {
            assert_eq!(resolved(model), allowed, "{model}");
        }
    }

    #[test]
    fn a_model_that_searches_by_itself_is_a_server_tool() {
        let near = catalog().provider("wrong", Dialect::Chat).unwrap();
        let (shut, mut open) = (CliPolicy::default(), CliPolicy::default());
        open.server_tools.push("web_search".to_owned());
        for model in
            ["gpt-5-search-api", "gpt-4o-search-preview-2025-03-11", "o3-deep-research", "x/gpt-5:Online"]
        {
            assert_eq!(resolve(&near, &shut, model), None, "{model}");
            assert!(resolve(&near, &open, model).is_some(), "{model}");
        }
        assert!(resolve(&near, &shut, "gpt-5.1").is_some());
    }

    #[test]
    fn a_model_without_a_price_costs_as_the_dearest() {
        let catalog = catalog();
        let mut vendor = (*catalog.provider("any", Dialect::Anthropic).unwrap()).clone();
        vendor.models.remove(0);
        let resolved = resolve(&vendor, &CliPolicy::default(), "claude-unheard-of").unwrap();
        assert_eq!(resolved.price, Price::of(&vendor.models[0]));
        assert!(resolved.price_note.unwrap().contains("dearest"));
    }

    /// Else a dearer model is had at the price of the one whose name it begins with.
    #[test]
    fn a_price_is_for_one_model_and_its_snapshots() {
        let models = [("gpt-5", 1.0), ("gpt-5*", 1.0), ("gpt-5-mini*", 0.1), ("gpt-5-pro*", 100.0)];
        let table = models.map(|(name, usd)| {
            format!(
                "[[provider.model]]\nname = {name:?}\ninput_usd_per_mtok = {usd}\noutput_usd_per_mtok = {usd}\nas_of = \"2026-01-01\"\n"
            )
        });
        let text = format!(
            "[[provider]]\nname = \"v\"\ndialect = \"chat\"\nbase_url = \"https://h.example\"\nallow = [\"*\"]\n{}",
            table.concat()
        );
        let table: Providers = toml::from_str(&text).unwrap();
        let price = |model: &str| {
            let resolved = resolve(&table.providers[0], &CliPolicy::default(), model).unwrap();
            (resolved.price, resolved.price_note.is_some())
        };
        let of = |index: usize| Price::of(&table.providers[0].models[index]);
        for own in [
            "gpt-5",
            "gpt-5-2025-08-07",
            "gpt-5-20250807",
            "gpt-5-latest",
            "gpt-5-preview-05-06",
            "gpt-5-001",
        ] {
            assert_eq!(price(own), (of(1), false), "{own}");
        }
        assert_eq!(price("gpt-5-mini-2025-08-07"), (of(2), false));
        assert_eq!(price("gpt-5-pro"), (of(3), false));
        for other in
            ["gpt-5-max", "gpt-5.5", "gpt-5-5", "gpt-5-10", "gpt-50", "gpt-5-mini-image", "gpt-5-", "gpt-6"]
        {
            assert_eq!(price(other), (of(3), true), "{other}");
        }
    }

    #[test]
    fn a_cli_is_served_in_its_own_dialect_alone() {
        let catalog = catalog();
        assert!(catalog.provider("wrong", Dialect::Anthropic).unwrap_err().contains("near"));
        assert!(catalog.provider("any", Dialect::Gemini).unwrap_err().contains("gemini"));
        assert_eq!(catalog.provider("wrong", Dialect::Chat).unwrap().name, "near");
    }
}
