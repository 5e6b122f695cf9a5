//! Which provider serves a CLI, and which of its models the CLI may use, at what price.

use std::sync::Arc;

use crate::config::policy::CliPolicy;
use crate::config::providers::{Provider, Providers};
use crate::domain::model::Dialect;
use crate::gateway::pattern::matches;
use crate::gateway::price::Price;
use crate::gateway::tariff;

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
    let searches =
        tariff::searches_by_itself(model) && !policy.server_tools.iter().any(|tool| tool == "web_search");
    // An Ollama that is signed in passes these on to its maker's servers.
    let leaves = provider.dialect == Dialect::Ollama
        && model.to_ascii_lowercase().ends_with("cloud")
        && !provider.allow.iter().any(|name| name == model);
    (offered && allowed && !searches && !leaves).then(|| {
        let (price, price_note) = tariff::price_of(provider, model);
        Resolved { model: model.to_owned(), price, price_note }
    })
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

/// What an operator should know of a provider's prices: that some models are charged as the dearest, and which of
/// those that are named somewhere.
pub(super) fn price_warning(provider: &Provider, configured: &Providers) -> Option<String> {
    let dearest = tariff::dearest_of(provider);
    if provider.free || provider.models.iter().all(|model| Price::of(model) == dearest) {
        return None;
    }
    let exact = |name: &&str| !name.contains('*');
    let defaults = configured.clis.values().filter_map(|cli| cli.default_model.as_deref());
    let named = provider.allow.iter().chain(provider.aliases.values()).map(String::as_str).filter(exact);
    let mut unpriced: Vec<&str> = named
        .chain(defaults)
        .filter(|name| {
            resolve(provider, &CliPolicy::default(), name).is_some_and(|it| it.price_note.is_some())
        })
        .collect();
    unpriced.sort_unstable();
    unpriced.dedup();
    let open = provider.allow.iter().any(|pattern| pattern.contains('*'));
    if unpriced.is_empty() && !open {
        return None;
    }
    let which = if unpriced.is_empty() { String::new() } else { format!(" ({})", unpriced.join(", ")) };
    Some(format!("a model without a price of its own{which} is charged as its dearest: {dearest}"))
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

    #[test]
    fn the_operator_is_told_what_is_charged_as_the_dearest() {
        let catalog = catalog();
        let vendor = Arc::clone(&catalog.providers[0]);
        let warning = price_warning(&vendor, &catalog.configured).unwrap();
        assert!(warning.contains("9 USD for a million tokens in, 15 out"), "{warning}");
        let mut named = (*vendor).clone();
        named.allow = vec!["claude-new".to_owned(), "claude-sonnet-4-5".to_owned()];
        let warning = price_warning(&named, &catalog.configured).unwrap();
        assert!(warning.contains("(claude-new)"), "{warning}");
        named.allow.remove(0);
        assert_eq!(price_warning(&named, &catalog.configured), None);
        assert_eq!(price_warning(&catalog.providers[1], &catalog.configured), None);
    }

    #[test]
    fn a_cli_is_served_in_its_own_dialect_alone() {
        let catalog = catalog();
        assert!(catalog.provider("wrong", Dialect::Anthropic).unwrap_err().contains("near"));
        assert!(catalog.provider("any", Dialect::Gemini).unwrap_err().contains("gemini"));
        assert_eq!(catalog.provider("wrong", Dialect::Chat).unwrap().name, "near");
    }
}
