//! Security events: each is there because something was done, through the API, and somebody outside was told.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::http::send;
use crate::support::provider::Provider;
use crate::support::receiver::Receiver;
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually};

/// A secret of Standard Webhooks.
pub const SECRET: &str = "whsec_a2FnZS10ZXN0cy1rZWVwLXRoaXMtcXVpZXQtMDE=";

impl TestKage {
    /// A file for `KAGE_WEBHOOKS_FILE`; its hooks find `SECRET` in `HOOK_SECRET`.
    pub fn webhooks(&mut self, table: &str) {
        let file = self.folder.join("webhooks.toml");
        std::fs::write(&file, table).expect("writes");
        self.set("KAGE_WEBHOOKS_FILE", file.to_str().expect("UTF-8"));
        self.set("HOOK_SECRET", SECRET);
        self.set("KAGE_WEBHOOKS_RETRY_SECS", "1");
        self.set("KAGE_WEBHOOKS_WITHIN_SECS", "2");
    }

    pub async fn security_events(&self, query: &str) -> Vec<Value> {
        let answer = self.get(&format!("/api/v1/security-events{query}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["events"].as_array().expect("a list").clone()
    }
}

pub fn hook(name: &str, url: &str, more: &str) -> String {
    format!("[[hook]]\nname = \"{name}\"\nurl = \"{url}\"\nsecrets = [\"env:HOOK_SECRET\"]\n{more}\n")
}

/// 25 calls of bpf(2), which nothing ordinary makes.
#[cfg(target_arch = "x86_64")]
const BURST: &str = "for n in $(seq 25); do perl -e 'syscall(321, 5, 0, 0)'; done";
#[cfg(target_arch = "aarch64")]
const BURST: &str = "for n in $(seq 25); do perl -e 'syscall(280, 5, 0, 0)'; done";

#[tokio::test]
async fn what_was_done_is_an_event_and_somebody_hears_of_it() {
    let (mut kage, provider) = (TestKage::new().await, Provider::start().await);
    provider.of(&mut kage);
    let (all, high) = (Receiver::start([]).await, Receiver::start([]).await);
    kage.webhooks(&format!(
        "{}{}",
        hook("all", &all.url(), ""),
        hook(
            "high",
            &high.url(),
            "min_severity = \"high\"\nkinds = [\"sandbox.refused_burst\", \"budget.exhausted\"]"
        )
    ));
    kage.set("KAGE_API_RATE_FAILURES", "5");
    // Another address than that of the test itself, which is not to be shut out.
    kage.set("KAGE_API_TRUSTED_PROXIES", "127.0.0.0/8");
    kage.start("serve").await;
    let hostile = "\u{1b}]0;x\u{7}";
    let settings = format!("packages/{hostile}/.claude/settings.json");
    let folder = kage.make_repository("demo", &[("README.md", b"demo\n"), (&settings, b"{\"hooks\":{}}\n")]);
    assert_eq!(kage.register("demo", &folder).await["state"], "ready");

    // Quarantine and a burst.
    let burst = kage.run(&shell(&format!("{BURST}; echo x > x"))).await;
    let burst = string(&burst["id"]);
    // A quiet run, with what is told of every run here.
    let quiet = kage.run(&shell("perl -e 'syscall(321, 5, 0, 0)'; echo y > y")).await;
    let quiet = string(&quiet["id"]);
    // A budget.
    let mut endless = crate::models::task("while ask; do :; done; sleep 600");
    endless["budget"] = json!({ "tokens": 3500 });
    let spent = kage.run(&endless).await;
    assert_eq!(spent["runs"][0]["state"], "budget_exhausted", "{spent}");
    let spent = string(&spent["id"]);
    // Keys that are none.
    for number in 0..12 {
        let guess = kage.bare_request(Method::GET, "/api/v1/tasks");
        let key = format!("kage_{number:010}_abcdefghijklmnopqrstuvwxyzABCDEF000000");
        send(guess.header("X-API-Key", key).header("X-Forwarded-For", "198.51.100.7")).await;
    }

    let kinds = |events: &[Value]| {
        let mut kinds: Vec<String> = events.iter().map(|event| string(&event["kind"]).to_owned()).collect();
        kinds.sort();
        kinds
    };
    let expected = [
        "auth.repeated_failures",
        "budget.exhausted",
        "repository.quarantined",
        "repository.quarantined",
        "repository.quarantined",
        "sandbox.refused_burst",
    ];
    let found = eventually("all of it is told", async || {
        let found = kage.security_events("").await;
        let over = |event: &Value| {
            let told = event["deliveries"].as_array().expect("a list");
            !told.is_empty() && told.iter().all(|to| to["state"] == "delivered")
        };
        let of_this = |event: &&Value| !string(&event["kind"]).starts_with("host.");
        let found: Vec<Value> = found.iter().filter(of_this).cloned().collect();
        (kinds(&found) == expected && found.iter().all(over)).then_some(found)
    })
    .await;

    // Each in its own words.
    let of = |kind: &str, task: Option<&str>| {
        let is = |event: &&Value| event["kind"] == kind && task.is_none_or(|task| event["task_id"] == task);
        found.iter().find(is).unwrap_or_else(|| panic!("{kind}: {found:#?}"))
    };
    let failures = of("auth.repeated_failures", None);
    assert_eq!(
        (&failures["subject"], &failures["severity"]),
        (&json!("address:198.51.100.7"), &json!("medium"))
    );
    let refused = of("sandbox.refused_burst", Some(burst));
    assert!(refused["details"]["count"].as_u64().is_some_and(|count| count >= 20), "{refused}");
    assert_eq!(
        (&refused["details"]["calls"][0]["call"], &refused["severity"]),
        (&json!("bpf"), &json!("high"))
    );
    let budget = of("budget.exhausted", Some(spent));
    assert!(string(&budget["details"]["message"]).contains("of 3500 tokens"), "{budget}");
    assert_eq!(budget["subject"], format!("run:{}", string(&budget["run_id"])));
    let hidden = of("repository.quarantined", Some(quiet));
    let path = string(&hidden["details"]["paths"][0]);
    assert!(path.contains(".claude") && !path.contains(char::is_control), "{hidden}");

    // Who asks for some gets some.
    assert_eq!(kinds(&kage.security_events(&format!("?task={burst}")).await), expected[4..]);
    assert_eq!(kage.security_events("?kind=budget.exhausted").await.len(), 1);
    assert!(
        kinds(&kage.security_events("?severity=high").await).contains(&"sandbox.refused_burst".to_owned())
    );
    assert!(!kinds(&kage.security_events("?severity=high").await).contains(&"budget.exhausted".to_owned()));
    assert_eq!(kage.security_events("?since=2999-01-01T00:00:00Z").await.len(), 0);
    let mut paged = Vec::new();
    let mut query = "?limit=2".to_owned();
    loop {
        let page = kage.get(&format!("/api/v1/security-events{query}")).await.json();
        paged.extend(page["events"].as_array().expect("a list").iter().map(|event| event["id"].clone()));
        let Some(next) = page["next"].as_u64() else { break };
        query = format!("?limit=2&cursor={next}");
    }
    let whole: Vec<Value> = kage.security_events("").await.iter().map(|event| event["id"].clone()).collect();
    assert_eq!(paged, whole);
    for wrong in ["?kind=budget", "?severity=loud", "?limit=0", "?limit=501", "?task=x", "?other=1"] {
        let status = kage.get(&format!("/api/v1/security-events{wrong}")).await.status;
        assert!((400..500).contains(&status), "{wrong}: {status}");
    }
    // Of everything, so nothing for a key that is limited, or has another scope.
    for rights in
        [json!({ "scopes": ["tasks:read"] }), json!({ "scopes": ["audit:read"], "repositories": ["demo"] })]
    {
        let (_, key) = kage.key_with(&rights).await;
        let asked = kage.bare_request(Method::GET, "/api/v1/security-events").header("X-API-Key", key);
        send(asked).await.problem(403);
    }

    // What came to the receivers.
    let told: BTreeMap<String, Value> = all
        .told()
        .iter()
        .map(|told| {
            assert_eq!((told.signed_by(SECRET), told.header("content-type")), (1, "application/json"));
            (told.header("webhook-id").to_owned(), told.json())
        })
        .collect();
    for event in &found {
        let told = &told[string(&event["id"])];
        assert_eq!((&told["type"], &told["timestamp"]), (&event["kind"], &event["at"]));
        let mut data = event.clone();
        data.as_object_mut().expect("an object").remove("deliveries");
        assert_eq!(told["data"], data);
    }
    let kinds: Vec<Value> = high.told().iter().map(|told| told.json()["type"].clone()).collect();
    assert_eq!(kinds, ["sandbox.refused_burst"], "a budget's end is not severe enough");

    // A person sees them, and no control character.
    let listed = kage.client(&["events", "security", "--task", quiet]).await;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(
        listed.status.success() && text.contains("repository.quarantined") && text.contains("all"),
        "{listed:?}"
    );
    assert!(!text.contains('\u{1b}'));
}
