//! What a CLI may ask for, as the providers' file says it: a section for each CLI, and one for all others.

use serde::Deserialize;

use crate::domain::model::SERVER_TOOL_KINDS;

/// What holds for more than one CLI.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policies {
    /// Where a CLI has no section, and for what its section does not say: an image under a new name has it too.
    #[serde(default)]
    pub default: CliSection,
}

impl Policies {
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        self.default.check().map_err(|problem| format!("policy.default: {problem}"))?;
        if self.default.provider.is_some() || self.default.default_model.is_some() {
            return Err(
                "policy.default: provider and default_model are for one CLI, in a [cli.NAME]".to_owned()
            );
        }
        Ok(())
    }
}

/// What a file says of one CLI, or of all that it says nothing of.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CliSection {
    /// Else the first of the CLI's dialect.
    pub provider: Option<String>,
    /// Models, with `*` for any run of characters, of those that the provider allows; none: all of them.
    pub models: Option<Vec<String>>,
    /// Where the task names none; else the manifest's.
    pub default_model: Option<String>,
    /// Of [`SERVER_TOOL_KINDS`], those that are let through. They reach out from the vendor's machines.
    pub server_tools: Option<Vec<String>>,
    /// Refuses a call with a tool that is not let through, instead of taking the tool out.
    pub refuse_server_tools: Option<bool>,
    /// Lets URLs and ids of stored files stand in requests.
    pub remote_references: Option<bool>,
    pub requests_per_minute: Option<u32>,
    pub max_output_tokens: Option<u64>,
    /// For each run.
    pub budget_usd: Option<f64>,
    /// For each run; input and output together.
    pub budget_tokens: Option<u64>,
}

/// What a CLI may ask for. Everything that is not said is the gateway's default; see [`CliSection`].
#[derive(Debug, Clone, Default)]
pub struct CliPolicy {
    pub provider: Option<String>,
    pub models: Vec<String>,
    pub default_model: Option<String>,
    pub server_tools: Vec<String>,
    pub refuse_server_tools: bool,
    pub remote_references: bool,
    pub requests_per_minute: Option<u32>,
    pub max_output_tokens: Option<u64>,
    pub budget_usd: Option<f64>,
    pub budget_tokens: Option<u64>,
}

impl CliSection {
    /// This section, with the default's word where it has none of its own.
    pub fn over(&self, default: &Self) -> CliPolicy {
        CliPolicy {
            provider: self.provider.clone(),
            models: self.models.clone().or_else(|| default.models.clone()).unwrap_or_default(),
            default_model: self.default_model.clone(),
            server_tools: self
                .server_tools
                .clone()
                .or_else(|| default.server_tools.clone())
                .unwrap_or_default(),
            refuse_server_tools: self.refuse_server_tools.or(default.refuse_server_tools).unwrap_or_default(),
            remote_references: self.remote_references.or(default.remote_references).unwrap_or_default(),
            requests_per_minute: self.requests_per_minute.or(default.requests_per_minute),
            max_output_tokens: self.max_output_tokens.or(default.max_output_tokens),
            budget_usd: self.budget_usd.or(default.budget_usd),
            budget_tokens: self.budget_tokens.or(default.budget_tokens),
        }
    }

    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        if self.budget_usd.is_some_and(|usd| !usd.is_finite() || !(0.0..=1e9).contains(&usd)) {
            return Err("budget_usd is a number from 0 to a billion".to_owned());
        }
        for tool in self.server_tools.iter().flatten() {
            if !SERVER_TOOL_KINDS.contains(&tool.as_str()) {
                let kinds = SERVER_TOOL_KINDS.join(", ");
                return Err(format!("server_tools: {tool:?} is none of {kinds}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (CliSection, CliSection) {
        let mut table: toml::Table = toml::from_str(text).unwrap();
        let mut take = |name| table.remove(name).map(|value| value.try_into().unwrap()).unwrap_or_default();
        (take("default"), take("own"))
    }

    #[test]
    fn a_cli_without_a_section_has_the_operators_default() {
        let (default, own) = read(
            r#"
            [default]
            requests_per_minute = 5
            refuse_server_tools = true
            budget_usd = 1.0
            server_tools = ["web_search"]
            models = ["m-*"]
            [own]
            budget_usd = 9.0
            refuse_server_tools = false
            server_tools = []
            provider = "near"
            "#,
        );
        let new = CliSection::default().over(&default);
        assert_eq!(
            (new.requests_per_minute, new.budget_usd, new.refuse_server_tools),
            (Some(5), Some(1.0), true)
        );
        assert_eq!((new.server_tools, new.models), (vec!["web_search".to_owned()], vec!["m-*".to_owned()]));
        let own = own.over(&default);
        assert_eq!(
            (own.requests_per_minute, own.budget_usd, own.refuse_server_tools),
            (Some(5), Some(9.0), false)
        );
        assert_eq!((own.server_tools.len(), own.provider.as_deref()), (0, Some("near")));
    }

    #[test]
    fn a_server_tool_that_there_is_not_is_a_mistake() {
        let check = |tool: &str| {
            let server_tools = Some(vec!["web_fetch".to_owned(), tool.to_owned()]);
            CliSection { server_tools, ..CliSection::default() }.check()
        };
        assert_eq!(check("web_search"), Ok(()));
        for wrong in ["websearch", "web_search_20250305", "Web_Search", "", "*"] {
            let said = check(wrong).expect_err(wrong);
            assert!(said.contains("none of web_search, web_fetch"), "{said}");
        }
    }

    #[test]
    fn what_is_for_one_cli_is_no_default() {
        for wrong in ["provider = \"near\"", "default_model = \"m\"", "budget_usd = -1.0"] {
            let (default, _) = read(&format!("[default]\n{wrong}"));
            assert!(Policies { default }.check().is_err(), "{wrong}");
        }
    }
}
