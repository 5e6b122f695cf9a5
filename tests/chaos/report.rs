//! What came of storms, as a table.

use std::collections::BTreeMap;
use std::fmt;

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
    pub deaths: BTreeMap<&'static str, usize>,
    pub wrong: Vec<String>,
}

impl Report {
    pub fn of(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }
}

pub struct Summary<'a>(pub &'a [Report]);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut faults, mut ends) = (BTreeMap::<&str, usize>::new(), BTreeMap::<&str, usize>::new());
        let mut deaths = BTreeMap::<&str, usize>::new();
        writeln!(
            f,
            "\n{:>12} {:>7} {:>7} {:>6} {:>12}  wrong",
            "seed", "faults", "missed", "tasks", "connections"
        )?;
        for report in self.0 {
            let (struck, tasks): (usize, usize) = (report.faults.values().sum(), report.ends.values().sum());
            let Report { seed, missed, connections, wrong, .. } = report;
            writeln!(f, "{seed:>12} {struck:>7} {missed:>7} {tasks:>6} {connections:>12}  {}", wrong.len())?;
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
        let wrong: Vec<_> =
            self.0.iter().flat_map(|report| report.wrong.iter().map(|why| (report.seed, why))).collect();
        writeln!(f, "\nwrong: {}", wrong.len())?;
        for (seed, why) in wrong {
            writeln!(f, "  seed {seed}: {why}")?;
        }
        Ok(())
    }
}
