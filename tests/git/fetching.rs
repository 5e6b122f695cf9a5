//! A fetch faces a hostile source: git has a user of its own, no privileges, and a repository that nobody believes.

use std::{
    fs::{self, OpenOptions},
    os::unix::{
        fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kage::git::{
    error::GitError,
    mirror::{FetchLimits, Mirror},
    source::Source,
};

use crate::support::{World, fetch_limits};

/// Of fetches in these tests; nobody else's.
const FETCHER: u32 = 10_777;

/// A world that the fetching user can pass through.
fn world() -> Result<World> {
    let world = World::with_files(&[("file", "first\n")])?;
    for folder in ["", "fetching"] {
        let path = world.path(folder);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711))?;
    }
    for above in world.path("").ancestors() {
        ensure!(fs::metadata(above)?.mode() & 1 == 1, "others cannot pass through {}", above.display());
    }
    Ok(world)
}

fn fetch(world: &World, mirror: &Mirror, user: Option<u32>, limits: &FetchLimits) -> Result<(), GitError> {
    let (upstream, staging) = (world.upstream.to_string_lossy(), world.path("fetching"));
    let user = user.map(|uid| (uid, uid));
    mirror.fetch(Source { user, staging: Some(&staging), ..Source::from(&upstream) }, limits)
}

fn mirror(world: &World) -> Result<Mirror> {
    Ok(Mirror::create(&world.path("mirror.git"))?)
}

/// Whoever reads `packed-refs` waits, until `release` is set.
fn hold_readers(world: &World) -> Result<PathBuf> {
    let held = world.upstream.join(".git/packed-refs");
    let made = Command::new("mkfifo").arg("-m").arg("0644").arg(&held).status()?;
    ensure!(made.success(), "mkfifo");
    Ok(held)
}

fn release_readers(held: &Path, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        // `O_NONBLOCK`: there may be no reader.
        drop(OpenOptions::new().write(true).custom_flags(0o4000).open(held));
        thread::sleep(Duration::from_millis(1));
    }
}

/// Processes whose command line names the source.
fn at_work(world: &World) -> Vec<(i32, String)> {
    let upstream = world.upstream.to_string_lossy().into_owned();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            (line.contains(&upstream) && line.contains("git")).then_some((pid, line))
        })
        .collect()
}

#[test]
fn a_fetch_brings_the_same_as_ever_and_leaves_nothing_of_its_own() -> Result<()> {
    let world = world()?;
    let mirror = mirror(&world)?;
    for round in 0..3 {
        fs::write(world.upstream.join("file"), format!("round {round}\n"))?;
        world.commit_all()?;
        world.git(&world.upstream, ["tag", "-f", "-a", "-m", "t", "v1"])?;
        world.git(&world.upstream, ["branch", "-f", "topic"])?;
        if round == 2 {
            // Where there was a branch there is a folder of branches now.
            world.git(&world.upstream, ["branch", "-D", "topic"])?;
            world.git(&world.upstream, ["branch", "topic/deep"])?;
        }
        fetch(&world, &mirror, Some(FETCHER), &fetch_limits())?;
        let theirs =
            world.git(&world.upstream, ["for-each-ref", "--format=%(objectname) %(refname:short)"])?;
        let ours = world.git(
            mirror.path(),
            [
                "for-each-ref",
                "--format=%(objectname) %(refname)",
                "refs/upstream/heads",
                "refs/upstream/tags",
            ],
        )?;
        let ours = ours.replace("refs/upstream/heads/", "").replace("refs/upstream/tags/", "");
        assert_eq!(ours, theirs, "round {round}");
        world.git(mirror.path(), ["fsck", "--full", "--strict"])?;
        assert_eq!(fs::read_dir(world.path("fetching"))?.count(), 0);
    }
    // What came is ours, whoever brought it.
    for entry in fs::read_dir(mirror.path().join("objects/pack"))? {
        assert_eq!(entry?.metadata()?.uid(), 0);
    }
    let packs = fs::read_dir(mirror.path().join("objects/pack"))?.flatten();
    let packs: Vec<_> = packs.filter(|it| it.path().extension().is_some_and(|it| it == "pack")).collect();
    assert_eq!(packs.len(), 3, "each brings what is new");
    assert_eq!(mirror.default_branch()?.as_deref(), Some("main"));
    Ok(())
}

#[test]
fn what_only_root_may_read_is_not_fetched() -> Result<()> {
    let world = world()?;
    // The owner of an allowed folder points to somebody else's objects.
    let secret = world.path("secret");
    fs::create_dir(&secret)?;
    world.git(&secret, ["init", "-q", "-b", "main"])?;
    fs::write(secret.join("key"), "secret\n")?;
    world.git(&secret, ["add", "-A"])?;
    world.git(&secret, ["commit", "-q", "-m", "secret"])?;
    let id = world.git(&secret, ["rev-parse", "HEAD"])?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700))?;
    fs::write(
        world.upstream.join(".git/objects/info/alternates"),
        format!("{}\n", secret.join(".git/objects").display()),
    )?;
    fs::write(world.upstream.join(".git/refs/heads/stolen"), format!("{id}\n"))?;
    let open = Mirror::create(&world.path("open.git"))?;
    fetch(&world, &open, None, &fetch_limits())?;
    assert_eq!(
        world.git(open.path(), ["show", "refs/upstream/heads/stolen:key"])?,
        "secret",
        "as root it is"
    );
    let closed = mirror(&world)?;
    let failed = fetch(&world, &closed, Some(FETCHER), &fetch_limits());
    let has = world.git(closed.path(), ["cat-file", "-t", &id]);
    assert!(has.is_err(), "{failed:?}");
    Ok(())
}

#[test]
fn git_works_without_privileges_and_within_limits() -> Result<()> {
    let world = world()?;
    let mirror = mirror(&world)?;
    hold_readers(&world)?;
    let limits = FetchLimits { time: Duration::from_secs(20), ..fetch_limits() };
    let seen = thread::scope(|scope| {
        let fetching = scope.spawn(|| fetch(&world, &mirror, Some(FETCHER), &limits));
        let mut found = Vec::new();
        while found.len() < 2 && !fetching.is_finished() {
            thread::sleep(Duration::from_millis(20));
            found = at_work(&world)
                .into_iter()
                .filter(|(_, line)| !line.starts_with("prlimit") && !line.starts_with("setpriv"))
                .filter_map(|(pid, line)| {
                    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
                    Some((pid, line, status, fs::read_to_string(format!("/proc/{pid}/limits")).ok()?))
                })
                .collect();
        }
        // It waits for ever; nothing of it outlives its time.
        let ended = fetching.join().expect("no panic");
        assert!(matches!(ended, Err(GitError::TimedOut { .. })), "{ended:?}");
        found
    });
    assert!(seen.len() >= 2, "git, and the program that reads the source: {seen:?}");
    for (_, line, status, limits) in &seen {
        let field = |name: &str| {
            let found = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            found.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let fetcher = vec![FETCHER.to_string(); 4];
        assert_eq!((field("Uid:"), field("Gid:")), (fetcher.clone(), fetcher), "{line}");
        assert_eq!(field("Groups:"), [""; 0], "{line}");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(set), ["0000000000000000"], "{line}: {set}");
        }
        assert_eq!(field("NoNewPrivs:"), ["1"], "{line}");
        let core =
            limits.lines().find(|line| line.starts_with("Max core file size")).context("it is there")?;
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    }
    // Killed at once; the kernel takes a moment where the machine is busy.
    let ended_by = Instant::now() + Duration::from_secs(10);
    while !at_work(&world).is_empty() && Instant::now() < ended_by {
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(at_work(&world), []);
    Ok(())
}

#[test]
fn what_git_leaves_is_not_believed() -> Result<()> {
    type Attack = fn(&Path) -> Result<()>;
    let attacks: [(&str, Attack); 4] = [
        ("a pack that is a link", |staging| {
            Ok(symlink("/etc/shadow", staging.join("objects/pack/pack-1.pack"))?)
        }),
        ("a pack that never ends", |staging| {
            let status =
                Command::new("mkfifo").arg(staging.join("objects/pack/pack-1.pack")).uid(FETCHER).status()?;
            ensure!(status.success(), "mkfifo");
            Ok(())
        }),
        ("a pack that is none", |staging| {
            let path = staging.join("objects/pack/pack-1.pack");
            fs::write(&path, "PACK\0\0\0\x02\0\0\0\x01 and more")?;
            Ok(std::os::unix::fs::chown(path, Some(FETCHER), Some(FETCHER))?)
        }),
        ("somebody else's file as the list of shallow commits", |staging| {
            Ok(symlink("/etc/passwd", staging.join("shallow"))?)
        }),
    ];
    for (name, attack) in attacks {
        let world = world()?;
        let mirror = mirror(&world)?;
        let held = hold_readers(&world)?;
        let done = AtomicBool::new(false);
        let fetched = thread::scope(|scope| {
            let fetching = scope.spawn(|| fetch(&world, &mirror, Some(FETCHER), &fetch_limits()));
            while at_work(&world).len() < 2 && !fetching.is_finished() {
                thread::sleep(Duration::from_millis(5));
            }
            let attacked = attack(&world.path("fetching/.fetching-mirror.git"));
            let releasing = scope.spawn(|| release_readers(&held, &done));
            let fetched = fetching.join().expect("no panic");
            done.store(true, Ordering::Relaxed);
            releasing.join().expect("no panic");
            attacked.map(|()| fetched)
        })?;
        assert!(fetched.is_err(), "{name}");
        assert!(mirror.is_empty()?, "{name}: nothing was taken over");
        assert_eq!(fs::read_dir(world.path("fetching"))?.count(), 0, "{name}");
        // And the next one is as if nothing had been.
        fs::remove_file(&held)?;
        fetch(&world, &mirror, Some(FETCHER), &fetch_limits())?;
        assert!(mirror.resolve("main")?.is_some(), "{name}");
    }
    Ok(())
}

/// Every git that reads it runs the command.
fn evil_configuration(run: &str, folder: &Path) -> String {
    format!(
        "[core]\n\tfsmonitor = {run}\n\thooksPath = {}\n\tsshCommand = {run}\n[uploadpack]\n\tpackObjectsHook = {run}\n\
         [alias]\n\tfor-each-ref = !{run}\n\tls-remote = !{run}\n[core]\n\tpager = {run}\n",
        folder.join("hooks").display()
    )
}

#[test]
fn what_git_writes_beside_its_objects_is_never_read() -> Result<()> {
    let world = world()?;
    let mirror = mirror(&world)?;
    let held = hold_readers(&world)?;
    // Where everybody could leave one.
    let open = world.path("open");
    fs::create_dir(&open)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777))?;
    let (done, proof) = (AtomicBool::new(false), open.join("proof"));
    // What a git that read it would do, as whoever runs it.
    let victim = world.path("victim");
    fs::create_dir(&victim)?;
    world.git(&victim, ["init", "-q"])?;
    let config = fs::read_to_string(victim.join(".git/config"))?;
    let run = format!("touch {}", proof.display());
    fs::write(victim.join(".git/config"), config + &evil_configuration(&run, &victim))?;
    let status = world.git(&victim, ["status"]);
    assert!(fs::metadata(&proof).is_ok_and(|proof| proof.uid() == 0), "the attack works: {status:?}");
    fs::remove_file(&proof)?;
    thread::scope(|scope| -> Result<()> {
        let fetching = scope.spawn(|| fetch(&world, &mirror, Some(FETCHER), &fetch_limits()));
        while at_work(&world).len() < 2 && !fetching.is_finished() {
            thread::sleep(Duration::from_millis(5));
        }
        // As git's own user would, if it had been taken over.
        let staging = world.path("fetching/.fetching-mirror.git");
        let run = format!("touch {}", proof.display());
        let text = evil_configuration(&run, &staging);
        fs::write(staging.join("config"), text)?;
        fs::create_dir(staging.join("hooks"))?;
        for hook in ["reference-transaction", "post-index-change", "update"] {
            let path = staging.join("hooks").join(hook);
            fs::write(&path, format!("#!/bin/sh\n{run}\n"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        let releasing = scope.spawn(|| release_readers(&held, &done));
        let fetched = fetching.join().expect("no panic");
        done.store(true, Ordering::Relaxed);
        releasing.join().expect("no panic");
        drop(fetched);
        Ok(())
    })?;
    // What its own git reads of this it obeys as the user that wrote it; ours reads none of it.
    assert!(!fs::metadata(&proof).is_ok_and(|proof| proof.uid() != FETCHER));
    assert!(world.git(mirror.path(), ["config", "--list", "--local"])?.contains("kage.mirror=1"));
    Ok(())
}

/// Nobody knows this host; git goes where it is told that it is.
fn first_bytes_of(scheme: &str, user: Option<u32>) -> Result<Vec<u8>> {
    let world = world()?;
    let mirror = mirror(&world)?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let first = thread::spawn(move || -> Result<Vec<u8>> {
        let (mut stream, _) = listener.accept()?;
        let mut bytes = vec![0; 512];
        let length = std::io::Read::read(&mut stream, &mut bytes)?;
        Ok(bytes[..length].to_vec())
    });
    let (url, addresses) = (format!("{scheme}judged.invalid:{port}/x"), ["127.0.0.1".parse()?]);
    let staging = world.path("fetching");
    let user = user.map(|uid| (uid, uid));
    let source = Source { url: &url, addresses: &addresses, user, staging: Some(&staging) };
    let failed = mirror.fetch(source, &fetch_limits());
    ensure!(matches!(failed, Err(GitError::Command { .. })), "{failed:?}");
    first.join().expect("no panic")
}

#[test]
fn git_goes_to_the_address_that_was_judged() -> Result<()> {
    let hello = first_bytes_of("https://", Some(FETCHER))?;
    // TLS, and the name that it asks for is the URL's.
    assert_eq!(hello.first(), Some(&0x16), "{hello:?}");
    assert!(hello.windows(14).any(|bytes| bytes == b"judged.invalid"), "{hello:?}");
    // OpenSSH works for users alone that have a name, and this one has none.
    let hello = first_bytes_of("ssh://git@", None)?;
    assert!(hello.starts_with(b"SSH-2.0-"), "{hello:?}");
    Ok(())
}
