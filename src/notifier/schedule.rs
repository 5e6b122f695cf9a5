//! When to try again.

use std::time::Duration;

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(8 * 3600);
/// The most that a receiver's own wish for a pause is heeded.
const WISHED: Duration = Duration::from_secs(3600);

/// After the `attempts`-th try: four times as long each time, and by up to a fifth more or less, so that what failed together
/// does not come back together. `chance` is from 0 to 1. With the defaults, 16 tries take some three days.
pub fn pause(first: Duration, attempts: u32, wished: Option<Duration>, chance: f64) -> Duration {
    let factor = 4u32.saturating_pow(attempts.saturating_sub(1).min(15));
    let usual = first.saturating_mul(factor).min(LONGEST);
    let spread = usual.mul_f64(0.8 + 0.4 * chance.clamp(0.0, 1.0));
    spread.max(wished.unwrap_or_default().min(WISHED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_days_to_give_up() {
        let first = Duration::from_secs(5);
        let of = |attempts| pause(first, attempts, None, 0.5).as_secs();
        assert_eq!([1, 2, 3, 8, 9].map(of), [5, 20, 80, 28_800, 28_800]);
        let all: u64 = (1..16).map(of).sum();
        assert!((2 * 86_400..4 * 86_400).contains(&all), "{all}");
        assert_eq!(of(u32::MAX), 28_800);
        assert_eq!(pause(first, 1, None, 0.0).as_secs(), 4);
        assert_eq!(pause(first, 1, None, 1.0).as_secs(), 6);
        // A receiver may ask for a longer one, not for ever, and for no shorter one.
        let wish = |secs| pause(first, 3, Some(Duration::from_secs(secs)), 0.5).as_secs();
        assert_eq!([1, 600, 1_000_000].map(wish), [80, 600, 3600]);
    }
}
