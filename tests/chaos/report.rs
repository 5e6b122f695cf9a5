//! What came of storms, as a table.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

#[derive(Debug, Default)]
pub struct Report {
    pub seed: u64,
    /// Faults that met somebody, by kind.
    pub faults: BTreeMap<String, usize>,
    /// Faults that met nobody.
    pub missed: usize,
    /// Runs by what they are and how they ended.
    pub ends: BTreeMap<String, usize>,
    /// Connections of all clients.
    pub connections: usize,
    /// Roles that ended by themselves and were started again.
    pub deaths: BTreeMap<String, usize>,
    /// From the storm's beginning to the end of all checks.
    pub took: Duration,
    pub wrong: Vec<String>,
}

impl Report {
    pub fn of(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    pub fn is_good(&self) -> bool {
        self.wrong.is_empty()
    }
}

pub struct Summary<'a>(pub &'a [Report]);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut faults, mut ends) = (BTreeMap::<&str, usize>::new(), BTreeMap::<&str, usize>::new());
        let mut deaths = BTreeMap::<&str, usize>::new();
        let seconds = "seconds";
        writeln!(
            f,
            "\n{:>12} {seconds:>8} {:>7} {:>7} {:>6} {:>12}  wrong",
            "seed", "faults", "missed", "tasks", "connections"
        )?;
        for report in self.0 {
            let (struck, tasks): (usize, usize) = (report.faults.values().sum(), report.ends.values().sum());
            let Report { seed, missed, connections, wrong, took, .. } = report;
            let seconds = took.as_secs();
            writeln!(
                f,
                "{seed:>12} {seconds:>8} {struck:>7} {missed:>7} {tasks:>6} {connections:>12}  {}",
                wrong.len()
            )?;
            report.faults.iter().for_each(|(kind, count)| *faults.entry(kind).or_default() += count);
            report.ends.iter().for_each(|(end, count)| *ends.entry(end).or_default() += count);
            report.deaths.iter().for_each(|(role, count)| *deaths.entry(role).or_default() += count);
        }
        for (title, counts) in
            [("faults", &faults), ("runs", &ends), ("roles that ended by themselves", &deaths)]
        {
            writeln!(f, "\n{title}: {}", counts.values().sum::<usize>())?;
            for (what, count) in counts {
                writeln!(f, "{count:>8}  {what}")?;
            }
        }
        let took: Duration = self.0.iter().map(|report| report.took).sum();
        let bad: Vec<_> = self.0.iter().filter(|report| !report.is_good()).collect();
        let (all, minutes) = (self.0.len(), took.as_secs().div_ceil(60));
        writeln!(f, "\nseeds: {all} in {minutes} min, {} good, {} bad", all - bad.len(), bad.len())?;
        for report in bad {
            let more = report.wrong.len() - 1;
            let more = if more == 0 { String::new() } else { format!(" (and {more} more, above)") };
            writeln!(f, "  seed {}: {}{more}", report.seed, report.wrong[0])?;
        }
        Ok(())
    }
}

#[test]
fn a_seed_that_failed_is_named_with_the_first_wrong_thing() {
    let strike = |count| BTreeMap::from([("kill -9 api".to_owned(), count)]);
    let good = Report { faults: strike(2), took: Duration::from_secs(50), ..Report::of(7) };
    let wrong = vec!["one".to_owned(), "two".to_owned()];
    let bad = Report { faults: strike(3), took: Duration::from_secs(60), wrong, ..Report::of(8) };
    let said = Summary(&[good, bad]).to_string();
    assert!(said.contains("       5  kill -9 api\n"), "{said}");
    assert!(
        said.ends_with("seeds: 2 in 2 min, 1 good, 1 bad\n  seed 8: one (and 1 more, above)\n"),
        "{said}"
    );
}
