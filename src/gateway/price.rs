//! What tokens cost. Whole nano-USD for a token, whole micro-USD for a call, rounded up.

use crate::config::providers::PricedModel;
use crate::domain::model::ModelUsage;

/// Nano-USD for one token of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Price {
    input: u64,
    output: u64,
    cached_input: u64,
    cache_write: u64,
    /// Nano-USD for a call, whatever its tokens.
    call: u64,
}

impl Price {
    pub const FREE: Self = Self { input: 0, output: 0, cached_input: 0, cache_write: 0, call: 0 };

    pub fn of(model: &PricedModel) -> Self {
        // A dollar for a million tokens is a thousand nano-USD for one. The configuration bounds it to 10^9.
        let nano = |usd_per_mtok: f64| (usd_per_mtok * 1000.0).ceil() as u64;
        let input = nano(model.input_usd_per_mtok);
        Self {
            input,
            output: nano(model.output_usd_per_mtok),
            cached_input: model.cached_input_usd_per_mtok.map_or(input, nano),
            cache_write: model.cache_write_usd_per_mtok.map_or(input + input / 4, nano),
            call: 0,
        }
    }

    /// With a fee for the call, in USD.
    pub fn with_fee(self, usd: f64) -> Self {
        Self { call: self.call.saturating_add((usd * 1e9).ceil() as u64), ..self }
    }

    /// The dearer of two, kind by kind.
    pub fn dearer(self, other: Self) -> Self {
        Self {
            input: self.input.max(other.input),
            output: self.output.max(other.output),
            cached_input: self.cached_input.max(other.cached_input),
            cache_write: self.cache_write.max(other.cache_write),
            call: self.call.max(other.call),
        }
    }

    /// Micro-USD that a call can cost at most.
    pub fn at_most(self, input: u64, output: u64) -> i64 {
        micros(u128::from(self.call) + product(input, self.dearest_input()) + product(output, self.output))
    }

    /// Micro-USD of a call. The parts of the input cannot be more than the whole, whatever the provider says.
    pub fn cost(self, usage: ModelUsage) -> i64 {
        let cached = usage.cached_input.min(usage.input);
        let written = usage.cache_write.min(usage.input - cached);
        let plain = usage.input - cached - written;
        micros(
            u128::from(self.call)
                + product(plain, self.input)
                + product(cached, self.cached_input)
                + product(written, self.cache_write)
                + product(usage.output, self.output),
        )
    }

    /// Output tokens that `micros` pay for, once `input` tokens are paid; `None`: any number.
    pub fn output_for(self, micros: i64, input: u64) -> Option<u64> {
        let input = u128::from(self.call) + product(input, self.dearest_input());
        let left = (u128::from(micros.unsigned_abs()) * 1000).saturating_sub(input);
        let output = left.checked_div(u128::from(self.output))?;
        Some(u64::try_from(output).unwrap_or(u64::MAX))
    }

    fn dearest_input(self) -> u64 {
        self.input.max(self.cache_write).max(self.cached_input)
    }
}

impl std::fmt::Display for Price {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let usd = |nano: u64| nano as f64 / 1000.0;
        write!(f, "{} USD for a million tokens in, {} out", usd(self.input), usd(self.output))
    }
}

fn product(tokens: u64, nano: u64) -> u128 {
    u128::from(tokens) * u128::from(nano)
}

fn micros(nano: u128) -> i64 {
    // Far below what the table's sums can hold, whatever a provider says it has counted.
    const MOST: i64 = 1 << 50;
    i64::try_from(nano.div_ceil(1000)).unwrap_or(MOST).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price() -> Price {
        Price::of(&PricedModel {
            name: "m".to_owned(),
            input_usd_per_mtok: 3.0,
            output_usd_per_mtok: 15.0,
            cached_input_usd_per_mtok: Some(0.3),
            cache_write_usd_per_mtok: None,
            as_of: "2026-01-01".to_owned(),
        })
    }

    #[test]
    fn a_call_costs_what_its_tokens_cost() {
        let usage = ModelUsage { input: 1000, output: 100, cached_input: 400, cache_write: 200 };
        // 400 x 3 + 400 x 0.3 + 200 x 3.75 + 100 x 15
        assert_eq!(price().cost(usage), 1200 + 120 + 750 + 1500);
        assert_eq!(Price::FREE.cost(usage), 0);
        // A fraction is a whole one.
        let one = ModelUsage { input: 1, cached_input: 1, ..ModelUsage::default() };
        assert_eq!(price().cost(one), 1);
    }

    #[test]
    fn a_fee_is_held_and_charged() {
        let (price, plain) = (price().with_fee(0.01), price());
        let usage = ModelUsage { input: 1000, output: 100, ..ModelUsage::default() };
        assert_eq!(price.cost(usage), plain.cost(usage) + 10_000);
        assert_eq!(price.at_most(1000, 100), plain.at_most(1000, 100) + 10_000);
        assert_eq!(price.output_for(10_000, 0), Some(0));
        assert_eq!(price.output_for(11_500, 0), Some(100));
    }

    #[test]
    fn parts_never_exceed_the_whole() {
        let usage = ModelUsage { input: 10, output: 0, cached_input: u64::MAX, cache_write: u64::MAX };
        assert_eq!(price().cost(usage), 3);
        let huge = ModelUsage { input: u64::MAX, output: u64::MAX, ..ModelUsage::default() };
        assert_eq!(price().cost(huge), 1 << 50);
    }

    #[test]
    fn what_was_held_covers_what_comes() {
        let (input, output) = (12_345, 678);
        let most = price().at_most(input, output);
        for (cached_input, cache_write) in [(0, 0), (input, 0), (0, input), (5000, 5000)] {
            assert!(price().cost(ModelUsage { input, output, cached_input, cache_write }) <= most);
        }
        let fits = price().output_for(most, input).unwrap();
        assert!(fits >= output && price().at_most(input, fits) <= most);
        assert_eq!(price().output_for(10, 1_000_000), Some(0));
        assert_eq!(Price::FREE.output_for(0, 5), None);
    }
}
