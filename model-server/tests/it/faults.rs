//! Faults on demand, as a client sees them.

use std::time::Duration;

use futures::StreamExt as _;
use kage_model_server::scenario;
use kage_model_server::server::{Fixed, Options};
use serde_json::{Value, json};

use crate::clients::{ALL, Speaks};
use crate::support::{TestServer, client, events};

fn chat(text: &str) -> Value {
    Speaks::Chat.request(&[Speaks::Chat.user(text)]).1
}

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn an_error_is_in_the_words_of_its_dialect() {
    let server = TestServer::start("talk", &["429:retry-after=7"]).await;
    for speaks in ALL {
        let (path, body) = speaks.request(&[speaks.user("hi")]);
        let response = server.post(path, &body).await;
        assert_eq!(response.status(), 429, "{speaks:?}");
        assert_eq!(response.headers()["retry-after"], "7");
        let error: Value = response.json().await.unwrap();
        match speaks {
            Speaks::Anthropic => assert_eq!(error["error"]["type"], "rate_limit_error"),
            Speaks::Responses | Speaks::Chat => assert_eq!(error["error"]["code"], "rate_limit_exceeded"),
            Speaks::Gemini => assert_eq!(error["error"]["status"], "RESOURCE_EXHAUSTED"),
            Speaks::Ollama => assert!(error["error"].is_string()),
        }
    }
}

#[tokio::test]
async fn a_fault_holds_for_its_turn_and_its_count() {
    let server = TestServer::start("talk", &["500@1x2", "402@2"]).await;
    let mut statuses = Vec::new();
    for prompt in ["a", "a", "a", "b"] {
        statuses.push(server.post(CHAT, &chat(prompt)).await.status().as_u16());
    }
    assert_eq!(statuses, [500, 500, 200, 500], "each prompt has a count of its own");
    let history = [
        Speaks::Anthropic.user("KAGE-SCRIPT: [{\"text\":\"one\"}]"),
        json!({ "role": "assistant", "content": "one" }),
        Speaks::Anthropic.user("go on"),
    ];
    let (path, body) = Speaks::Anthropic.request(&history);
    assert_eq!(server.post(path, &body).await.status(), 402);
}

#[tokio::test]
async fn a_cut_stream_breaks_off_in_the_middle() {
    let server = TestServer::start("write-hello", &["cut"]).await;
    for speaks in ALL {
        let (path, body) = speaks.request(&[speaks.user("hi")]);
        let mut stream = server.post(path, &body).await.bytes_stream();
        let (mut bytes, mut broken) = (0, false);
        while let Some(next) = stream.next().await {
            match next {
                Ok(some) => bytes += some.len(),
                Err(_) => broken = true,
            }
        }
        assert!(bytes > 0 && broken, "{speaks:?}: {bytes} bytes, broken: {broken}");
    }
}

#[tokio::test]
async fn garbage_is_neither_text_nor_an_end() {
    let server = TestServer::start("talk", &["garbage"]).await;
    let bytes = server.post(CHAT, &chat("hi")).await.bytes().await.unwrap();
    assert!(bytes.starts_with(b"data: {"));
    assert!(std::str::from_utf8(&bytes).is_err());
    assert!(!bytes.ends_with(b"[DONE]\n\n"));
}

#[tokio::test]
async fn an_endless_stream_goes_on_until_the_client_goes() {
    let server = TestServer::start("write-hello", &["endless"]).await;
    for speaks in ALL {
        let (path, body) = speaks.request(&[speaks.user("hi")]);
        let mut stream = server.post(path, &body).await.bytes_stream();
        let mut bytes = 0;
        while bytes < 4 << 20 {
            bytes += stream.next().await.unwrap().unwrap().len();
        }
    }
}

#[tokio::test]
async fn a_huge_answer_is_whole_and_well_formed() {
    let server = TestServer::start("talk", &["huge:bytes=3000000"]).await;
    let text = server.post(CHAT, &chat("hi")).await.text().await.unwrap();
    let said: usize = events(&text)
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .map(str::len)
        .sum();
    assert!((3_000_000..3_001_000).contains(&said), "{said}");
    let mut whole = chat("hi");
    whole["stream"] = json!(false);
    let answer: Value = server.post(CHAT, &whole).await.json().await.unwrap();
    assert!(answer["choices"][0]["message"]["content"].as_str().unwrap().len() >= 3_000_000);
}

#[tokio::test]
async fn a_drip_says_everything_in_the_end() {
    let plain = TestServer::start("talk", &[]).await.post(CHAT, &chat("hi")).await.bytes().await.unwrap();
    let server = TestServer::start("talk", &["drip:bytes=50,ms=1"]).await;
    let mut stream = server.post(CHAT, &chat("hi")).await.bytes_stream();
    let (mut all, mut most) = (Vec::new(), 0);
    while let Some(bit) = stream.next().await {
        let bit = bit.unwrap();
        most = most.max(bit.len());
        all.extend_from_slice(&bit);
    }
    assert_eq!(all, plain);
    assert!(most < plain.len(), "it came in pieces");
}

#[tokio::test]
async fn usage_can_be_missing_and_an_error_can_come_late() {
    let server = TestServer::start("talk", &["no-usage"]).await;
    let text = server.post(CHAT, &chat("hi")).await.text().await.unwrap();
    assert!(text.contains("[DONE]") && !text.contains("usage"));
    let server = TestServer::start("talk", &["stream-error"]).await;
    let (path, body) = Speaks::Anthropic.request(&[Speaks::Anthropic.user("hi")]);
    let text = server.post(path, &body).await.text().await.unwrap();
    assert_eq!(events(&text).last().unwrap()["error"]["type"], "overloaded_error");
}

#[tokio::test]
async fn redirects_resets_and_silence() {
    let server = TestServer::start("talk", &["redirect"]).await;
    let response = server.post(CHAT, &chat("hi")).await;
    assert_eq!(response.status(), 307);
    assert_eq!(response.headers()["location"], "http://redirected.invalid/v1/chat/completions");

    let server = TestServer::start("talk", &["reset"]).await;
    let url = format!("{}{CHAT}", server.url);
    assert!(client().post(&url).json(&chat("hi")).send().await.is_err());

    let server = TestServer::start("talk", &["silent"]).await;
    let url = format!("{}{CHAT}", server.url);
    let asked = client().post(&url).json(&chat("hi")).timeout(Duration::from_millis(300)).send().await;
    assert!(asked.unwrap_err().is_timeout());
    assert_eq!(server.recorder.requests()[0].fault.as_deref(), Some("silent"));
}

#[tokio::test]
async fn an_answer_can_be_laid_down() {
    let fixed =
        Fixed { status: 402, headers: vec![("x-should-retry".into(), "false".into())], body: b"{}".to_vec() };
    let options = Options {
        faults: vec!["fixed".parse().unwrap()],
        fixed: Some(fixed),
        ..Options::new(scenario::find("talk").unwrap())
    };
    let server = TestServer::with(options).await;
    let response = server.post(CHAT, &chat("hi")).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-should-retry"]),
        (402, &"false".parse().unwrap())
    );
    assert_eq!(response.bytes().await.unwrap(), "{}");
}

#[tokio::test]
async fn a_key_can_be_required() {
    let options =
        Options { require_key: Some("planted".into()), ..Options::new(scenario::find("talk").unwrap()) };
    let server = TestServer::with(options).await;
    for speaks in ALL {
        let (path, body) = speaks.request(&[speaks.user("hi")]);
        let (header, value) = match speaks {
            Speaks::Anthropic => ("x-api-key", "planted"),
            Speaks::Gemini => ("x-goog-api-key", "planted"),
            _ => ("authorization", "Bearer planted"),
        };
        let url = format!("{}{path}", server.url);
        let with = client().post(&url).header(header, value).json(&body).send().await.unwrap();
        assert_eq!(with.status(), 200, "{speaks:?}");
        assert_eq!(client().post(&url).json(&body).send().await.unwrap().status(), 401);
    }
}

#[tokio::test]
async fn a_script_that_cannot_be_read_is_refused() {
    let server = TestServer::start("talk", &[]).await;
    let response = server.post(CHAT, &chat("KAGE-SCRIPT: [{\"txt\":1}]")).await;
    assert_eq!(response.status(), 400);
    assert!(response.text().await.unwrap().contains("KAGE-SCRIPT"));
}
