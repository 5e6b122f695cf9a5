//! The API dies while clients follow.

use crate::support::tasks::{shell, string};
use crate::watcher::Watcher;
use crate::world::{apart, assert_result, numbered};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_go_on_exactly_where_they_were() {
    let (mut kage, mut roles) = apart(&[]).await;
    let task = kage.submit(&shell(&numbered(20_000, 500))).await;
    let id = string(&task["id"]);
    let watchers = [Watcher::follow(&kage, id), Watcher::follow(&kage, id), Watcher::follow(&kage, id)];
    for (place, text) in ["line 900\n", "line 4000\n", "line 9000\n", "line 14000\n"].into_iter().enumerate()
    {
        kage.says(id, "shell", text).await;
        if place % 2 == 0 {
            kage.process(roles.api).kill_9();
        } else {
            // Streams end at once: a graceful shutdown must not wait for clients that follow.
            assert!(kage.process(roles.api).terminate().await.success());
        }
        roles.api = kage.start("api").await;
    }
    // One client's own connection breaks, besides.
    watchers[0].cut.cancel();
    for watcher in watchers {
        let seen = watcher.end().await;
        assert!(seen.breaks >= 4, "{}", seen.breaks);
        seen.assert_lines("shell", 20_000);
    }
    assert_result(&kage, &kage.task(id).await, 20_000);
}
