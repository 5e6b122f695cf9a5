//! Lets earlier backups go, and the files that only they needed.
//!
//! What stays is read first, and nothing goes if any of it is damaged: an old backup may be the last whole one. Manifests go before
//! files, so that one which is there always has its files; whatever a prune that was killed left goes with the next.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};

use crate::backup::error::BackupError;
use crate::backup::manifest::Object;
use crate::backup::store::{Backup, Store};

/// Which stay: those that either says, and the newest at all events.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// So many of the newest.
    pub last: Option<usize>,
    /// Those that were made at this time or later.
    pub since: Option<DateTime<Utc>>,
}

/// What goes, and what stays and is whole.
#[derive(Debug)]
pub struct Plan {
    /// Newest last.
    pub kept: Vec<String>,
    pub dropped: Vec<String>,
    /// Files that no backup needs which stays.
    pub files: u64,
    pub bytes: u64,
    objects: BTreeMap<String, Object>,
}

/// Reads every file that a backup needs which stays. Blocks.
///
/// # Errors
/// [`BackupError::Damaged`] if one of them is damaged, or any manifest: who knows which files it needs.
pub fn plan(store: &Store, keep: Keep) -> Result<Plan, BackupError> {
    if store.latest()?.is_none() {
        return Err(BackupError::Refused("there is no backup in this folder".to_owned()));
    }
    let all: Vec<Backup> = store.names()?.iter().map(|name| store.backup(name)).collect::<Result<_, _>>()?;
    let count = all.len();
    let stays = |place: usize, backup: &Backup| {
        place.saturating_add(keep.last.unwrap_or(1).max(1)) >= count
            || keep.since.is_some_and(|since| backup.manifest.made_at >= since)
    };
    let mut plan =
        Plan { kept: Vec::new(), dropped: Vec::new(), files: 0, bytes: 0, objects: BTreeMap::new() };
    for (place, backup) in all.into_iter().enumerate() {
        if !stays(place, &backup) {
            plan.dropped.push(backup.name);
            continue;
        }
        for object in backup.manifest.objects {
            match plan.objects.get(&object.name) {
                Some(known) if *known == object => {}
                // Of another content: then one of the two is not what its manifest says.
                _ => {
                    store.object(&object)?;
                    plan.objects.insert(object.name.clone(), object);
                }
            }
        }
        plan.kept.push(backup.name);
    }
    for (_, bytes) in unneeded(store, &plan)? {
        plan.files += 1;
        plan.bytes += bytes;
    }
    Ok(plan)
}

/// Names of files that nothing of the plan needs, with their bytes.
fn unneeded(store: &Store, plan: &Plan) -> Result<Vec<(String, u64)>, BackupError> {
    let mut files = store.files()?;
    files.retain(|(name, _)| !plan.objects.contains_key(name));
    Ok(files)
}

/// Removes what the plan says. Blocks.
///
/// # Errors
/// [`BackupError`]; what stays is whole all the same, and the next prune removes the rest.
pub fn carry_out(store: &Store, plan: &Plan) -> Result<(), BackupError> {
    if let Some(newest) = plan.kept.last() {
        // A backup that was cut after its manifest was there is the newest, and `latest` may name one that goes.
        store.point_at(newest)?;
    }
    for name in &plan.dropped {
        store.remove_manifest(name)?;
    }
    store.flush_manifests()?;
    for (name, _) in unneeded(store, plan)? {
        store.remove_file(&name)?;
    }
    verify(store, plan)
}

/// Whether everything is there that should be.
fn verify(store: &Store, plan: &Plan) -> Result<(), BackupError> {
    let names = store.names()?;
    let there: HashSet<&String> = names.iter().collect();
    if let Some(missing) = plan.kept.iter().find(|name| !there.contains(name)) {
        return Err(BackupError::damaged(format!("backups/{missing}.json"), "the file is missing"));
    }
    store.latest()?;
    match plan.objects.values().find(|object| !store.has(object)) {
        Some(missing) => {
            Err(BackupError::damaged(format!("objects/{}", missing.name), "the file is missing"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::backup::manifest::{FORMAT, Manifest, Piece};

    fn object(store: &Store, text: &str) -> Object {
        let name = format!("{text:0>64}");
        store.write(&name, text.as_bytes()).expect("writes")
    }

    /// A backup of files with these texts, as old as `days`.
    fn made(store: &Store, number: u64, days: i64, texts: &[&str]) -> String {
        let objects: Vec<Object> = texts.iter().map(|text| object(store, text)).collect();
        let index = Piece { object: objects[0].name.clone(), bytes: 1, sha256: String::new() };
        let manifest = Manifest {
            format: FORMAT,
            kage: "0".to_owned(),
            schema: 1,
            schema_sha256: String::new(),
            instance: "x".to_owned(),
            number,
            made_at: Utc::now() - chrono::TimeDelta::days(days),
            parent: None,
            recipients: Vec::new(),
            audit: None,
            index,
            objects,
        };
        store.publish(&manifest).expect("there").keep().expect("the newest")
    }

    /// Three backups; file `a` is in all of them.
    fn folder(path: &Path) -> (Store, Vec<String>) {
        let store = Store::to_write(path).expect("a folder");
        let texts: [&[&str]; 3] = [&["a", "1"], &["a", "2"], &["a", "2", "3"]];
        let names = (1..)
            .zip(texts)
            .map(|(number, texts)| made(&store, number, 10 - i64::try_from(number).expect("small"), texts))
            .collect();
        (store, names)
    }

    fn files(store: &Store) -> Vec<char> {
        let mut files: Vec<char> =
            store.files().expect("a list").iter().filter_map(|(name, _)| name.chars().last()).collect();
        files.sort_unstable();
        files
    }

    fn last(last: usize) -> Keep {
        Keep { last: Some(last), since: None }
    }

    #[test]
    fn what_a_backup_needs_that_stays_is_kept() {
        let folder_ = tempfile::tempdir().expect("a folder");
        let (store, names) = folder(folder_.path());
        let two = plan(&store, last(2)).expect("a plan");
        assert_eq!((two.kept.as_slice(), two.dropped.as_slice(), two.files), (&names[1..], &names[..1], 1));
        carry_out(&store, &two).expect("done");
        assert_eq!(files(&store), ['2', '3', 'a']);
        // Older than all of them: the newest stays all the same.
        let none = Keep { last: None, since: Some(Utc::now()) };
        carry_out(&store, &plan(&store, none).expect("a plan")).expect("done");
        assert_eq!(
            (store.names().expect("names"), files(&store)),
            (vec![names[2].clone()], vec!['2', '3', 'a'])
        );
        let again = plan(&store, last(1)).expect("a plan");
        assert_eq!((again.dropped.len(), again.files), (0, 0));
    }

    #[test]
    fn either_rule_keeps_a_backup() {
        let folder_ = tempfile::tempdir().expect("a folder");
        let (store, names) = folder(folder_.path());
        let since = Some(Utc::now() - chrono::TimeDelta::hours(8 * 24 + 1));
        assert_eq!(plan(&store, Keep { last: Some(1), since }).expect("a plan").dropped, names[..1]);
        assert_eq!(plan(&store, Keep { last: Some(3), since }).expect("a plan").dropped, [""; 0]);
    }

    /// Killed after the manifests, or between two files.
    #[test]
    fn what_a_killed_one_left_goes_with_the_next() {
        let folder_ = tempfile::tempdir().expect("a folder");
        let (store, names) = folder(folder_.path());
        store.remove_manifest(&names[0]).expect("removed");
        store.remove_manifest(&names[1]).expect("removed");
        assert_eq!(files(&store), ['1', '2', '3', 'a']);
        let rest = plan(&store, last(1)).expect("a plan");
        assert_eq!((rest.dropped.len(), rest.files), (0, 1));
        carry_out(&store, &rest).expect("done");
        assert_eq!(files(&store), ['2', '3', 'a']);
    }

    #[test]
    fn an_older_one_may_be_the_last_whole_one() {
        let folder_ = tempfile::tempdir().expect("a folder");
        let (store, names) = folder(folder_.path());
        let path = |end: &str| folder_.path().join(format!("objects/00/{end:0>64}"));
        fs::write(path("3"), "4").expect("damaged");
        let refused = plan(&store, last(1)).expect_err("the newest is damaged").to_string();
        assert!(refused.contains(&format!("{:0>64}", "3")), "{refused}");
        fs::write(path("3"), "3").expect("mended");
        // What a manifest that cannot be read needs is not known.
        fs::write(folder_.path().join(format!("backups/{}.json", names[0])), "{}").expect("damaged");
        plan(&store, last(1)).expect_err("a manifest is damaged");
        assert_eq!((store.names().expect("names").len(), files(&store).len()), (3, 4));
    }

    /// A backup that was killed after its manifest was there: it is whole, and `latest` names the one before.
    #[test]
    fn the_word_of_the_newest_never_names_one_that_is_gone() {
        let folder_ = tempfile::tempdir().expect("a folder");
        let (store, names) = folder(folder_.path());
        store.point_at(&names[1]).expect("written");
        carry_out(&store, &plan(&store, last(1)).expect("a plan")).expect("done");
        assert_eq!(store.latest().expect("whole").expect("one").name, names[2]);
    }

    #[test]
    fn what_is_no_file_of_a_backup_stays() {
        let folder_ = tempfile::tempdir().expect("a folder");
        let (store, _) = folder(folder_.path());
        let notes = folder_.path().join("objects/notes");
        fs::write(&notes, "mine").expect("written");
        let elsewhere = folder_.path().join("elsewhere");
        fs::create_dir(&elsewhere).expect("made");
        fs::write(elsewhere.join(format!("{:0>64}", "9")), "9").expect("written");
        std::os::unix::fs::symlink(&elsewhere, folder_.path().join("objects/99")).expect("a link");
        carry_out(&store, &plan(&store, last(1)).expect("a plan")).expect("done");
        assert!(notes.exists() && elsewhere.join(format!("{:0>64}", "9")).exists());
    }
}
