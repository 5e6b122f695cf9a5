//! Paired figures: each round measures both sides, one after the other, and the ratios are taken within the
//! round. So a machine that is slow for a minute is slow for both.

/// Resamplings for the confidence interval.
const RESAMPLINGS: usize = 2000;

pub struct Pairs {
    what: String,
    unit: &'static str,
    /// How many times less than the peer is wanted.
    goal: f64,
    ours: Vec<f64>,
    peer: Vec<f64>,
}

impl Pairs {
    pub fn new(what: &str, unit: &'static str, goal: f64) -> Self {
        Self { what: what.to_owned(), unit, goal, ours: Vec::new(), peer: Vec::new() }
    }

    pub fn push(&mut self, ours: f64, peer: f64) {
        eprintln!("  {}: {ours:.2} {} ours, {peer:.2} {} peer", self.what, self.unit, self.unit);
        self.ours.push(ours);
        self.peer.push(peer);
    }

    pub fn header() {
        println!(
            "{:<44}{:>12}{:>12}{:>6}{:>10}{:>18}{:>8}",
            "medians", "ours", "peer", "pairs", "peer/ours", "95 % interval", "goal"
        );
    }

    /// One line: medians, the median of the ratios with its interval, and whether the goal is met.
    pub fn print(&self) {
        let ratios: Vec<f64> = self.ours.iter().zip(&self.peer).map(|(ours, peer)| peer / ours).collect();
        let ratio = median(&ratios);
        let (low, high) = interval(&ratios);
        let verdict = if ratio >= self.goal { "met" } else { "MISSED" };
        println!(
            "{:<44}{:>9.2} {:<2}{:>9.2} {:<2}{:>6}{:>10.2}{:>18}{:>8} {verdict}",
            self.what,
            median(&self.ours),
            self.unit,
            median(&self.peer),
            self.unit,
            ratios.len(),
            ratio,
            format!("{low:.2} to {high:.2}"),
            format!(">= {}", self.goal),
        );
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

/// The median's 95 % interval by resampling, with a fixed seed: the same ratios give the same interval.
fn interval(values: &[f64]) -> (f64, f64) {
    let mut state: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut below = |length: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % length as u64) as usize
    };
    let mut medians: Vec<f64> = (0..RESAMPLINGS)
        .map(|_| median(&values.iter().map(|_| values[below(values.len())]).collect::<Vec<_>>()))
        .collect();
    medians.sort_by(f64::total_cmp);
    (medians[RESAMPLINGS / 40], medians[RESAMPLINGS - 1 - RESAMPLINGS / 40])
}

/// How many rounds: `BENCH_ROUNDS`, else `default`.
pub fn rounds(default: usize) -> usize {
    std::env::var("BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default).max(1)
}
