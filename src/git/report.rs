//! What a harvest has to say beside its tree.

use bstr::{BString, ByteSlice};

use crate::git::harvest::{MAX_WARNINGS, Warning, WarningKind};

/// Ignored paths that the warning names.
const NAMED: usize = 5;

#[derive(Default)]
pub(crate) struct Report {
    pub files: u64,
    pub bytes: u64,
    pub ignored: u64,
    pub warnings: Vec<Warning>,
    pub warnings_dropped: u64,
    first_ignored: Vec<BString>,
}

impl Report {
    pub fn warn(&mut self, kind: WarningKind, path: BString, detail: String) {
        if self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(Warning { kind, path, detail });
        } else {
            self.warnings_dropped += 1;
        }
    }

    pub fn ignored(&mut self, path: BString) {
        self.ignored += 1;
        if self.first_ignored.len() < NAMED {
            self.first_ignored.push(path);
        }
    }

    /// Named before all else: these are the warnings that must not drown.
    pub fn held(&mut self, paths: Vec<BString>) {
        let detail =
            "this path was hidden from the run, so what the run has put there is not taken; the base's stays";
        let mut warnings: Vec<Warning> = paths
            .into_iter()
            .map(|path| Warning { kind: WarningKind::Held, path, detail: detail.to_owned() })
            .collect();
        warnings.append(&mut self.warnings);
        self.warnings_dropped += warnings.len().saturating_sub(MAX_WARNINGS) as u64;
        warnings.truncate(MAX_WARNINGS);
        self.warnings = warnings;
    }

    pub fn finish(mut self, files: u64, bytes: u64) -> Report {
        (self.files, self.bytes) = (files, bytes);
        if let Some(first) = self.first_ignored.first().cloned() {
            let names: Vec<String> =
                self.first_ignored.iter().map(|path| format!("{:?}", path.as_bstr())).collect();
            let detail = format!("{} ignored: {}", self.ignored, names.join(", "));
            self.warnings.push(Warning { kind: WarningKind::Ignored, path: first, detail });
        }
        self
    }
}
