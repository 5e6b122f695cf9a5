//! `docs/security-checklists.md` answers every point of two lists once, and every test that it names exists.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const ANSWERS: [&str; 4] = ["**Met.**", "**In part.**", "**Not met.**", "**Does not apply.**"];

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

struct Row {
    ids: Vec<String>,
    answer: String,
    shown_by: String,
}

/// The rows of the page's tables, by the list that they are of.
fn rows() -> (Vec<Row>, Vec<Row>) {
    let page = read(&root().join("docs/security-checklists.md"));
    let (owasp, rest) = page.split_once("<!-- end of OWASP -->").expect("the end of the first list");
    let (asvs, _) = rest.split_once("<!-- end of ASVS -->").expect("the end of the second list");
    (table(owasp), table(asvs))
}

fn table(text: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [ids, answer, shown_by] = cells[..] else { panic!("not three columns: {line}") };
        if ["point", "requirement", "---"].contains(&ids) {
            continue;
        }
        let ids = ids.split(", ").map(str::to_owned).collect();
        rows.push(Row { ids, answer: answer.to_owned(), shown_by: shown_by.to_owned() });
    }
    rows
}

fn each_once(rows: &[Row], wanted: impl Iterator<Item = String>) {
    let mut found: BTreeMap<&str, u32> = BTreeMap::new();
    for id in rows.iter().flat_map(|row| &row.ids) {
        *found.entry(id).or_default() += 1;
    }
    let mut missing = Vec::new();
    for id in wanted {
        match found.remove(id.as_str()) {
            Some(1) => {}
            Some(times) => panic!("{id} stands there {times} times"),
            None => missing.push(id),
        }
    }
    assert!(missing.is_empty(), "without an answer: {missing:?}");
    assert!(found.is_empty(), "in no list: {:?}", found.keys());
}

#[test]
fn every_point_is_answered_once() {
    let (owasp, asvs) = rows();
    each_once(&owasp, (1..=10).map(|number| format!("API{number}")));
    let list = read(&root().join("tests/checklists/asvs-5.0.txt"));
    let requirements: Vec<&str> = list
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(requirements.len(), 253, "levels 1 and 2 of ASVS 5.0.0");
    each_once(&asvs, requirements.into_iter().map(str::to_owned));
}

/// The file that a name of the page stands for: of `tests/` where it does not say which folder.
fn file(name: &str) -> PathBuf {
    let folder = name.split('/').next().unwrap_or_default();
    let of_ours = ["src", "shim", "notify", "heap", "model-server"].contains(&folder);
    if of_ours { root().join(name) } else { root().join("tests").join(name) }
}

/// `file.rs`: `test`, `test`; `file.rs`: `test`.
fn tests_of(cell: &str) -> Vec<(String, String)> {
    let (mut named, mut file) = (Vec::new(), None);
    for word in cell.split('`').skip(1).step_by(2) {
        if word.ends_with(".rs") {
            file = Some(word);
        } else {
            let file = file.unwrap_or_else(|| panic!("{word} of which file? {cell}"));
            named.push((file.to_owned(), word.to_owned()));
        }
    }
    named
}

fn pages_of(cell: &str) -> Vec<String> {
    cell.split("](").skip(1).filter_map(|rest| rest.split(')').next()).map(str::to_owned).collect()
}

/// Whether the file has a function of that name right below a test's attribute.
fn has_test(source: &str, name: &str) -> bool {
    let function = format!("fn {name}(");
    let mut lines = source.lines();
    let mut is_test = false;
    lines.any(|line| {
        let line = line.trim();
        if line.contains(&function) {
            return is_test;
        }
        is_test = line.starts_with("#[test")
            || line.starts_with("#[tokio::test")
            || is_test && line.starts_with("#[");
        false
    })
}

#[test]
fn every_test_that_is_named_exists() {
    let (owasp, asvs) = rows();
    let mut named = 0;
    for Row { ids, answer, shown_by } in owasp.into_iter().chain(asvs) {
        let kind = ANSWERS.iter().find(|kind| answer.starts_with(**kind));
        let kind = kind.unwrap_or_else(|| panic!("{ids:?} is answered by none of {ANSWERS:?}: {answer}"));
        let (tests, pages) = (tests_of(&shown_by), pages_of(&shown_by));
        let must_show = ["**Met.**", "**In part.**"].contains(kind);
        assert!(!must_show || !tests.is_empty() || !pages.is_empty(), "{ids:?}: what shows it?");
        for (path, name) in &tests {
            named += 1;
            assert!(has_test(&read(&file(path)), name), "{ids:?}: {path} has no test {name}");
        }
        for page in pages {
            assert!(root().join("docs").join(&page).exists(), "{ids:?}: there is no page {page}");
        }
    }
    assert!(named > 100, "only {named}");
}

#[test]
fn what_is_no_test_is_not_taken_for_one() {
    let source =
        "#[test]\nfn one() {}\n#[tokio::test]\n#[ignore = \"x\"]\nasync fn two() {}\nfn three() {}\n";
    assert!(has_test(source, "one") && has_test(source, "two"));
    assert!(!has_test(source, "three") && !has_test(source, "on") && !has_test(source, "four"));
}
