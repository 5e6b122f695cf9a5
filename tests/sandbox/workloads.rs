//! Proof of need: what developers' tools are refused is a checked-in list, so that the profile is neither too narrow for them
//! nor wider than they need without anybody noticing. `KAGE_WRITE_GOLDEN=1` writes the lists anew.

use std::path::Path;

use kage::domain::limits::Limits;

use crate::support::World;

/// A Debian with git, compilers, Python and Node (`scripts/image dev`).
fn image() -> String {
    std::env::var("KAGE_TEST_DEV_IMAGE").unwrap_or_else(|_| "kage-dev:trixie".to_owned())
}

async fn refused_to(tool: &str, script: &str) {
    let world = World::of(&image()).await;
    let script = format!(
        "exec >/workspace/out 2>&1\nset -eu\nexport HOME=/home/agent LANG=C.UTF-8\nmkdir w; cd w\n{script}\necho done"
    );
    let mut spec = world.spec(&script);
    spec.limits = Limits { memory_bytes: 1 << 30, pids: 256, tmp_bytes: 256 << 20, ..Limits::default() };
    let ended = world.run(&spec).await;
    let said = std::fs::read_to_string(spec.workspace.join("out")).unwrap_or_default();
    assert!(ended.exit_code == 0 && said.ends_with("done\n"), "{tool}: {ended:?}\n{said}");
    let found: String = world.refused(&spec).keys().map(|kind| format!("{kind}\n")).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/sandbox/refused/{tool}.txt"));
    if std::env::var_os("KAGE_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &found).expect("is written");
    }
    let expected = std::fs::read_to_string(&path).expect("a list for each workload");
    assert_eq!(found, expected, "{tool} was refused other calls than {}", path.display());
}

#[tokio::test]
async fn git() {
    let script = "git init -q -b main; git config user.name a; git config user.email a@b; echo x >x; git add -A; git commit -qm one; \
                  git switch -qc b; echo y >>x; git commit -qam two; git switch -q main; git merge -q --no-ff -m m b; git log --stat -p; \
                  git stash list; git gc -q --aggressive --prune=now; git fsck; git clone -q . ../copy; git -C ../copy pull -q; \
                  git worktree add -q ../tree b; git archive HEAD | tar t; git grep -n y; git blame x; git bisect start";
    refused_to("git", script).await;
}

#[tokio::test]
async fn make() {
    let script = r#"cat >a.c <<'END'
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
static void *one(void *x) { return x; }
int main(void) { pthread_t t; if (pthread_create(&t, 0, one, 0)) return 1; pthread_join(t, 0); return system("true") || puts("ok") < 0; }
END
cat >b.cc <<'END'
#include <filesystem>
#include <iostream>
#include <thread>
int main() { std::thread t([] {}); t.join(); for (auto &e : std::filesystem::directory_iterator(".")) std::cout << e.path() << '\n'; }
END
printf 'all: a b liba.a\n\t./a\n\t./b\na: a.c\n\t$(CC) -O2 -g -pthread -o $@ $<\nb: b.cc\n\t$(CXX) -O2 -std=c++20 -o $@ $<\nliba.a: a.c\n\t$(CC) -c $< -o a.o\n\tar rcs $@ a.o\n' >Makefile
make -j2; strip a; objdump -d a | head -5; make -n"#;
    refused_to("make", script).await;
}

#[tokio::test]
async fn cargo() {
    let script = r#"cargo new --quiet --vcs git --name one a; cd a
cat >src/lib.rs <<'END'
use std::{collections::HashMap, io::Write, net, process, sync::mpsc, thread, time};
pub fn one() -> usize {
    let (sender, receiver) = mpsc::channel();
    let threads: Vec<_> = (0..4).map(|n| { let s = sender.clone(); thread::spawn(move || s.send(n).unwrap()) }).collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    drop(sender);
    let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    stream.set_read_timeout(Some(time::Duration::from_millis(1))).unwrap();
    stream.write_all(b"x").unwrap();
    assert!(process::Command::new("true").status().unwrap().success());
    let seen: HashMap<u32, ()> = receiver.iter().map(|n| (n, ())).collect();
    seen.len()
}
#[test]
fn works() { assert_eq!(one(), 4); }
END
printf 'fn main() { println!("cargo:rerun-if-changed=build.rs"); }\n' >build.rs
cargo build --offline --quiet; cargo test --offline --quiet; cargo build --offline --quiet --release; cargo doc --offline --quiet; ./target/release/one; cargo clean --quiet"#;
    refused_to("cargo", script).await;
}

#[tokio::test]
async fn java() {
    let script = r#"cat >Main.java <<'END'
import com.sun.net.httpserver.HttpServer;
import java.net.*;
import java.net.http.*;
import java.nio.file.*;
import java.util.concurrent.*;
public class Main {
    public static void main(String[] arguments) throws Exception {
        var server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
        server.createContext("/", e -> { e.sendResponseHeaders(200, 1); e.getResponseBody().write('x'); e.close(); });
        server.start();
        var uri = URI.create("http://127.0.0.1:" + server.getAddress().getPort());
        var answer = HttpClient.newHttpClient().send(HttpRequest.newBuilder(uri).build(), HttpResponse.BodyHandlers.ofString());
        if (!answer.body().equals("x")) throw new Error(answer.toString());
        server.stop(0);
        try (var pool = Executors.newFixedThreadPool(4)) { pool.submit(() -> System.gc()).get(); }
        try (var pool = Executors.newVirtualThreadPerTaskExecutor()) { pool.submit(() -> { Thread.sleep(5); return null; }).get(); }
        var watcher = FileSystems.getDefault().newWatchService();
        Path.of(".").register(watcher, StandardWatchEventKinds.ENTRY_CREATE);
        Files.writeString(Files.createTempFile("a", "b"), "text");
        if (new ProcessBuilder("true").start().waitFor() != 0) throw new Error();
    }
}
END
javac -d classes Main.java; java -cp classes Main; jar --create --file main.jar -C classes .; java -cp main.jar -Xmx128m Main; jar tf main.jar"#;
    refused_to("java", script).await;
}

#[tokio::test]
async fn python() {
    let script = r#"cat >p.py <<'END'
import asyncio, concurrent.futures, hashlib, http.server, os, shutil, signal, sqlite3, subprocess, tempfile, threading, time, urllib.request
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
assert urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/p.py").status == 200
assert subprocess.run(["true"]).returncode == 0 and os.system("true") == 0
with concurrent.futures.ThreadPoolExecutor(4) as pool: list(pool.map(hashlib.sha256, [b"x"] * 8))
data = sqlite3.connect("d.db"); data.execute("create table t(a)"); data.execute("insert into t values (1)"); data.commit()
async def main():
    p = await asyncio.create_subprocess_exec("echo", "x", stdout=-1); assert (await p.communicate())[0] == b"x\n"
    await asyncio.sleep(0.01)
asyncio.run(main())
with tempfile.TemporaryDirectory() as d: shutil.copytree(".", d + "/c")
signal.setitimer(signal.ITIMER_REAL, 0.01); signal.signal(signal.SIGALRM, lambda *a: None); time.sleep(0.05)
pid = os.fork()
if pid == 0: os._exit(0)
os.waitpid(pid, 0); os.sched_getaffinity(0); os.getloadavg()
END
python3 p.py
python3 -m venv --without-pip v; v/bin/python -c 'import sys; print(sys.prefix)'
printf 'def test_it(tmp_path):\n    (tmp_path / "x").write_text("y")\n    assert 1 + 1 == 2\n' >test_it.py; python3 -m pytest -q test_it.py
python3 -m compileall -q . ; python3 -m pip --version"#;
    refused_to("python", script).await;
}

#[tokio::test]
async fn node() {
    let script = r#"cat >n.mjs <<'END'
import { execFileSync, spawn } from "node:child_process";
import { createServer, get } from "node:http";
import { readFileSync, writeFileSync, watch, cpSync, mkdirSync } from "node:fs";
import { networkInterfaces, cpus } from "node:os";
import { scryptSync } from "node:crypto";
import { gzipSync } from "node:zlib";
import { Worker } from "node:worker_threads";
networkInterfaces(); cpus(); scryptSync("a", "b", 32); gzipSync("x".repeat(100000));
writeFileSync("f", "x"); mkdirSync("d"); cpSync("f", "d/f"); execFileSync("true");
const watcher = watch("d", () => watcher.close()); writeFileSync("d/g", "y");
await new Promise(done => spawn("cat", [], { stdio: ["pipe", "inherit", "inherit"] }).on("exit", done).stdin.end("cat\n"));
await new Promise(done => new Worker("process.exit(0)", { eval: true }).on("exit", done));
const server = createServer((_, answer) => answer.end("ok")).listen(0, "127.0.0.1");
await new Promise(done => server.on("listening", done));
await new Promise(done => get({ port: server.address().port, host: "127.0.0.1" }, answer => answer.resume().on("end", done)));
await fetch(`http://127.0.0.1:${server.address().port}/`).then(answer => answer.text());
server.close(); server.closeAllConnections();
setTimeout(() => process.exit(0), 200);
END
node n.mjs
printf 'import test from "node:test";\ntest("it", () => {});\n' >t.test.mjs; node --test t.test.mjs"#;
    refused_to("node", script).await;
}

#[tokio::test]
async fn npm() {
    let script = r#"npm config set update-notifier false; npm init -y >/dev/null; mkdir lib; echo '{"name":"lib","version":"1.0.0"}' >lib/package.json
npm pkg set scripts.test='node -e "process.exit(0)"'; npm test; npm install --offline --no-audit --no-fund ./lib; npm ls; npm pack; npm run"#;
    refused_to("npm", script).await;
}
