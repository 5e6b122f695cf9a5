//! How long to wait before trying again.

use std::time::Duration;

/// The wait before attempt `attempt` (from 0): doubles from `first` up to `most`, and `jitter`
/// (0 to 1) takes up to half of it away, so that many clients do not come back at once.
pub fn delay(first: Duration, most: Duration, attempt: u32, jitter: f64) -> Duration {
    let doubled = first.saturating_mul(2_u32.saturating_pow(attempt)).min(most);
    doubled.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_limit_and_never_overflows() {
        let (first, most) = (Duration::from_millis(250), Duration::from_secs(10));
        let waits: Vec<u128> = (0..8).map(|n| delay(first, most, n, 0.0).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        assert_eq!(delay(first, most, u32::MAX, 0.0), most);
        assert_eq!(delay(first, most, 0, 1.0), first / 2);
    }
}
