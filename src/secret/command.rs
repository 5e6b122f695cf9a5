//! The program of `exec:`: started without a shell, with an environment of a few variables, a deadline and a bound
//! on what it may print. What it says on standard error is thrown away: it may hold what it prints otherwise.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use secrecy::SecretString;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

use crate::secret::error::SecretError;
use crate::secret::local::{self, MOST};
use crate::secret::source::Source;

/// What a program gets of our environment, beside what the operator names. `PATH` is our own choice.
const PASSED: [&str; 5] = ["HOME", "USER", "LOGNAME", "LANG", "TZ"];
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How programs are run.
#[derive(Debug, Clone)]
pub struct Commands {
    pub within: Duration,
    /// Names of variables of ours that they get too.
    pub environment: Vec<String>,
}

impl Default for Commands {
    fn default() -> Self {
        Self { within: Duration::from_secs(10), environment: Vec::new() }
    }
}

impl Commands {
    /// What the program prints, without the newline at its end.
    ///
    /// # Errors
    /// [`SecretError::Command`] says how it ended, never what it printed.
    pub async fn read(&self, source: &Source, words: &[String]) -> Result<SecretString, SecretError> {
        let failed = |problem: String| SecretError::Command { place: source.to_string(), problem };
        let Some((program, arguments)) = words.split_first() else {
            return Err(failed("no program".to_owned()));
        };
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("PATH", PATH).envs(self.passed()).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        // A group of its own, so that what it starts ends with it.
        let child = command.process_group(0).kill_on_drop(true).spawn();
        let mut running = Group(child.map_err(|error| failed(error.to_string()))?);
        let mut text = Zeroizing::new(Vec::with_capacity(MOST + 1));
        let ended = tokio::time::timeout(self.within, async {
            if let Some(output) = running.0.stdout.take() {
                output.take(MOST as u64 + 1).read_to_end(&mut text).await?;
            }
            if text.len() > MOST { Ok(None) } else { running.0.wait().await.map(Some) }
        });
        match ended.await {
            Err(_) => Err(failed(format!("took longer than {} s", self.within.as_secs()))),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Ok(Ok(None)) => Err(SecretError::Unusable(source.to_string())),
            Ok(Ok(Some(status))) if !status.success() => Err(failed(format!("ended with {status}"))),
            Ok(Ok(Some(_))) => local::usable(source, &text),
        }
    }

    fn passed(&self) -> impl Iterator<Item = (&str, OsString)> {
        let names = PASSED.into_iter().chain(self.environment.iter().map(String::as_str));
        names.filter_map(|name| Some((name, std::env::var_os(name)?)))
    }
}

/// A program and what it started, ended when this is dropped.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // Not reaped yet, so its number is certainly its own still.
        let Some(pid) = self.0.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) else {
            return;
        };
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    async fn run(script: &str, commands: &Commands) -> Result<String, String> {
        let words = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let source = Source::Command(words.clone());
        let read = commands.read(&source, &words).await;
        read.map(|secret| secret.expose_secret().to_owned()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn what_it_prints_is_the_secret_and_its_failures_tell_nothing() {
        let commands = Commands::default();
        assert_eq!(run("printf 'hu sh\\n\\n'", &commands).await.unwrap(), "hu sh");
        for script in
            ["echo hush; echo hush >&2; exit 3", "", "echo hush; kill -9 $$", "yes hush", "printf 'hush\\0'"]
        {
            let error = run(script, &commands).await.unwrap_err();
            assert!(
                !error.contains("hush") && error.contains("exec:/bin/sh") || error.contains("64 KiB"),
                "{error}"
            );
        }
        let missing = commands.read(&Source::Command(vec!["/no".into()]), &["/no".to_owned()]).await;
        assert!(missing.unwrap_err().to_string().contains("/no"));
    }

    #[tokio::test]
    async fn it_gets_a_few_variables_and_no_input() {
        let commands = Commands { environment: vec!["CARGO_MANIFEST_DIR".to_owned()], ..Commands::default() };
        let seen = run("env; cat; pwd", &commands).await.unwrap();
        let names: Vec<&str> = seen.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        assert!(names.contains(&"CARGO_MANIFEST_DIR") && names.contains(&"PATH"), "{seen}");
        let ours = ["PWD", "OLDPWD", "SHLVL", "_", "PATH", "CARGO_MANIFEST_DIR"];
        assert!(names.iter().all(|name| ours.contains(name) || PASSED.contains(name)), "{seen}");
    }

    #[tokio::test]
    async fn one_that_does_not_end_is_ended_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let marker = folder.path().join("pid");
        let commands = Commands { within: Duration::from_millis(300), ..Commands::default() };
        let script = format!("sleep 600 & echo $! > {}; wait", marker.display());
        assert!(run(&script, &commands).await.unwrap_err().contains("longer than"));
        let pid = std::fs::read_to_string(&marker).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        for _ in 0..500 {
            // Gone, or waiting to be reaped by whoever inherited it.
            if std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z ")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it still sleeps");
    }
}
