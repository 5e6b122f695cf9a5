//! What is charged for what: which of a provider's prices is a model's own, and what a tool costs that the provider runs.

use std::collections::BTreeSet;

use crate::config::policy::CliPolicy;
use crate::config::providers::Provider;
use crate::dialect::answer::{Refusal, RefusalKind};
use crate::gateway::pattern::matches;
use crate::gateway::price::Price;

/// The price under the model's own name; else the dearest of the provider, and a note that says so.
///
/// A `*` in a price's name stands for snapshots of that model, and for no other model: a vendor names a dearer one by
/// putting a word or a number after the name of a cheap one (`gpt-5` and `gpt-5-pro`), and the cheap one's price would
/// then be charged for it.
pub(super) fn price_of(provider: &Provider, model: &str) -> (Price, Option<String>) {
    if provider.free {
        return (Price::FREE, None);
    }
    let dearest = dearest_of(provider);
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

/// The dearest of a provider, kind of token by kind.
pub(super) fn dearest_of(provider: &Provider) -> Price {
    provider.models.iter().map(Price::of).fold(Price::FREE, Price::dearer)
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

/// The price of a call that offers the model these kinds of tools which the provider runs.
///
/// # Errors
/// A refusal, where nobody said what they cost.
pub(super) fn with_server_tools(
    provider: &Provider,
    model: &str,
    price: Price,
    offered: &BTreeSet<&'static str>,
) -> Result<Price, Refusal> {
    let searches = searches_by_itself(model).then_some("web_search");
    let kinds: BTreeSet<&str> = offered.iter().copied().chain(searches).collect();
    let fee = |price: Price, kind: &str| match fee_of(provider, kind) {
        Some(usd) => Ok(price.with_fee(usd)),
        None => Err(Refusal::new(RefusalKind::ToolNotAllowed, unpriced_tool(provider, kind))),
    };
    kinds.into_iter().try_fold(price, fee)
}

fn fee_of(provider: &Provider, kind: &str) -> Option<f64> {
    provider.server_tool_usd_per_call.get(kind).copied().or(provider.free.then_some(0.0))
}

fn unpriced_tool(provider: &Provider, kind: &str) -> String {
    let name = &provider.name;
    format!("provider {name}: {kind} is let through, but server_tool_usd_per_call does not say what it costs")
}

/// Why a policy cannot hold at a provider: it lets through what nobody knows the cost of.
pub(super) fn contradiction(provider: &Provider, policy: &CliPolicy) -> Option<String> {
    let unpriced = policy.server_tools.iter().find(|kind| fee_of(provider, kind).is_none());
    unpriced.map(|kind| unpriced_tool(provider, kind))
}

/// Models, and resellers' suffixes, that search the web without a tool being named in the request: only where the
/// operator lets `web_search` through. <https://platform.openai.com/docs/guides/tools-web-search>
pub(super) fn searches_by_itself(model: &str) -> bool {
    let model = model.to_ascii_lowercase();
    ["-search-preview", "-search-api", "deep-research", ":online"].iter().any(|part| model.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::providers::Providers;

    fn table() -> Providers {
        let table = toml::from_str(
            r#"
            [[provider]]
            name = "vendor"
            dialect = "anthropic"
            base_url = "https://models.example"
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
            "#,
        );
        table.unwrap()
    }

    #[test]
    fn a_server_tool_costs_its_fee_or_is_refused() {
        let catalog = table();
        let mut vendor = catalog.providers[0].clone();
        let open = CliPolicy { server_tools: vec!["web_search".to_owned()], ..CliPolicy::default() };
        let price = Price::of(&vendor.models[0]);
        let search = BTreeSet::from(["web_search"]);
        assert!(contradiction(&vendor, &open).unwrap().contains("web_search"));
        let refusal = with_server_tools(&vendor, "claude-x", price, &search).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::ToolNotAllowed);
        vendor.server_tool_usd_per_call.insert("web_search".to_owned(), 0.1);
        assert_eq!(contradiction(&vendor, &open), None);
        assert_eq!(with_server_tools(&vendor, "claude-x", price, &search), Ok(price.with_fee(0.1)));
        assert_eq!(with_server_tools(&vendor, "claude-x", price, &BTreeSet::new()), Ok(price));
        let near = &catalog.providers[1];
        assert_eq!(contradiction(near, &open), None);
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
            let (price, note) = price_of(&table.providers[0], model);
            (price, note.is_some())
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
}
