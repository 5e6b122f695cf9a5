//! The tables of known escapes against what advisories say of single versions.

use std::collections::BTreeSet;

use crate::sandbox::host_check::escapes;
use crate::sandbox::host_check_versions::Version;

fn version(text: &str) -> Version {
    Version::parse(text).unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn the_table_is_whole() {
    let mut ids = BTreeSet::new();
    for row in escapes() {
        assert!(ids.insert(row.id), "{} twice", row.id);
        assert!(row.cves.starts_with("CVE-") && row.published.len() == 10, "{}", row.id);
        let fixed: Vec<Version> = row.fixed.iter().map(|text| version(text)).collect();
        assert!(!fixed.is_empty() && fixed.is_sorted(), "{}", row.id);
        assert!(fixed.iter().all(|good| !row.is_in(*good)), "{}", row.id);
    }
}

/// What the advisories say of single versions.
#[test]
fn known_bad_versions_are_found_and_good_ones_are_not() {
    for (id, bad, good) in [
        ("runc-2019-5736", "1.0.0-rc6", "1.0.0-rc7"),
        ("runc-2021-30465", "1.0.0-rc94", "1.0.0"),
        ("runc-2024-21626", "1.1.11", "1.1.12"),
        ("runc-2024-21626", "1.0.0-rc93", "1.0.0-rc92"),
        ("runc-2025-31133", "1.1.15", "1.2.8"),
        ("runc-2025-31133", "1.3.2", "1.3.3"),
        ("runc-2025-31133", "1.4.0-rc.2", "1.4.0"),
        ("runc-2019-19921", "1.0.0-rc9", "1.0.0-rc10"),
        ("runc-2023-27561", "1.1.4", "1.1.5"),
        ("runc-2024-45310", "1.1.13", "1.1.14"),
        ("runc-2024-45310", "1.2.0-rc.2", "1.2.0"),
        ("runc-2026-41579", "1.2.9", "1.3.6"),
        ("runc-2026-41579", "1.4.2", "1.5.0"),
        ("kernel-2022-0847", "5.15.24", "5.15.25"),
        ("kernel-2022-0847", "5.8.0", "5.7.19"),
        ("kernel-2022-0847", "5.14.1", "6.18.44"),
        ("kernel-2016-5195", "4.4.25", "4.9.0"),
        ("kernel-2023-3269", "6.4.0", "6.4.1"),
        ("kernel-2023-0461", "6.1.4", "6.1.5"),
        ("kernel-2025-38236", "6.12.35", "6.12.36"),
        ("kernel-2025-38236", "6.9.3", "5.14.21"),
        ("kernel-2026-31431", "6.18.21", "6.18.22"),
        ("kernel-2026-31431", "5.4.300", "7.0"),
        ("kernel-2026-43284", "6.18.27", "6.18.44"),
        ("containerd-2025-47290", "2.1.0", "2.0.5"),
        ("containerd-2026-53488", "1.6.20", "1.7.33"),
        ("engine-2024-23651", "20.10.24", "26.1.5"),
        ("engine-2024-23651", "24.0.9", "25.0.2"),
        ("engine-2024-41110", "26.1.4", "26.1.5"),
        ("engine-2025-54388", "28.3.2", "28.1.1"),
        ("engine-2026-42306", "28.5.2", "29.5.1"),
    ] {
        let row = escapes().find(|row| row.id == id).unwrap_or_else(|| panic!("{id}"));
        assert!(row.is_in(version(bad)), "{id}: {bad}");
        assert!(!row.is_in(version(good)), "{id}: {good}");
    }
}
