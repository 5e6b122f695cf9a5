//! Whole conversations, in every dialect.

use kage_model_server::script::{Action, Script, Turn, Usage};
use serde_json::{Value, json};

use crate::clients::{ALL, Speaks, converse};
use crate::support::{TestServer, events};

#[tokio::test]
async fn write_hello_is_played_in_every_dialect() {
    let server = TestServer::start("write-hello", &[]).await;
    for speaks in ALL {
        let turns = converse(&server, speaks, "write a greeting").await;
        assert_eq!(turns.len(), 3, "{speaks:?}");
        let (name, arguments) = &turns[0].calls[0];
        let absolute = "/workspace/hello.txt";
        match speaks {
            Speaks::Anthropic => {
                assert_eq!((name.as_str(), &arguments["file_path"]), ("Write", &json!(absolute)))
            }
            Speaks::Responses => {
                assert_eq!(name, "apply_patch");
                assert!(arguments.as_str().unwrap().contains("*** Add File: hello.txt\n+Hello"));
            }
            Speaks::Chat | Speaks::Ollama => {
                assert_eq!((name.as_str(), &arguments["filePath"]), ("write", &json!(absolute)))
            }
            Speaks::Gemini => {
                assert_eq!((name.as_str(), &arguments["file_path"]), ("write_file", &json!(absolute)))
            }
        }
        let (_, shell) = &turns[1].calls[0];
        let command = shell.get("command").or(shell.get("cmd")).unwrap();
        assert_eq!(command, "cat hello.txt && wc -c hello.txt");
        if matches!(speaks, Speaks::Anthropic | Speaks::Chat) {
            assert!(shell["description"].is_string(), "a required argument that the script does not name");
        }
        assert_eq!(turns[2].text, "hello.txt is written.");
        assert_eq!(turns[2].usage, Some((1000, 50, 0)));
    }
}

#[tokio::test]
async fn a_script_in_the_prompt_goes_first() {
    let usage = Usage { input: 700, output: 9, cached_input: 300, cache_write: 100 };
    let turns = [
        Turn {
            text: Some("Both at once: \"quoted\"\nänd more".into()),
            call: vec![
                Action::Shell { command: "true".into() },
                Action::Tool {
                    name: "odd".into(),
                    arguments: json!({ "a": [1] }).as_object().unwrap().clone(),
                },
            ],
            usage: Some(usage),
            ..Turn::default()
        },
        Turn { thinking: Some("hm".into()), text: Some("End.".into()), ..Turn::default() },
    ];
    let prompt = format!("Some words.\n{}\nMore words.", Script::line(&turns));
    let server = TestServer::start("loop", &[]).await;
    for speaks in ALL {
        let said = converse(&server, speaks, &prompt).await;
        assert_eq!(said.len(), 2, "{speaks:?}");
        assert_eq!(said[0].text, "Both at once: \"quoted\"\nänd more", "{speaks:?}");
        assert_eq!(said[0].calls.len(), 2);
        assert_eq!(said[0].calls[1], ("odd".to_owned(), json!({ "a": [1] })));
        let (input, output, _) = said[0].usage.unwrap();
        let expected = if matches!(speaks, Speaks::Anthropic) { 600 } else { 700 };
        assert_eq!((input, output), (expected, 9), "{speaks:?}: what was written to the cache counts apart");
        assert!(said[1].text.ends_with("End."));
    }
    let requests = server.recorder.requests();
    assert_eq!(requests.len(), 10);
    assert_eq!(requests.iter().map(|r| r.turn.unwrap()).collect::<Vec<_>>(), [1, 2].repeat(5));
}

#[tokio::test]
async fn answers_in_one_piece_say_the_same() {
    let server = TestServer::start("talk", &[]).await;
    let text = "Nothing to do here.";
    let ask = |path: &'static str, body: Value| {
        let server = &server;
        async move { server.post(path, &body).await.json::<Value>().await.unwrap() }
    };
    let user = json!([{ "role": "user", "content": "hi" }]);
    let answer = ask("/v1/messages", json!({ "model": "m", "messages": user })).await;
    assert_eq!(answer["content"][0]["text"], text);
    assert_eq!((&answer["stop_reason"], &answer["usage"]["output_tokens"]), (&json!("end_turn"), &json!(50)));
    let answer = ask("/responses", json!({ "model": "m", "input": "hi" })).await;
    assert_eq!(answer["output"][0]["content"][0]["text"], text);
    assert_eq!(answer["usage"]["total_tokens"], 1050);
    let answer = ask("/chat/completions", json!({ "model": "m", "messages": user })).await;
    assert_eq!(answer["choices"][0]["message"]["content"], text);
    assert_eq!(answer["usage"]["prompt_tokens"], 1000);
    let contents = json!([{ "role": "user", "parts": [{ "text": "hi" }] }]);
    let answer = ask("/v1beta/models/m:generateContent", json!({ "contents": contents })).await;
    assert_eq!(answer["candidates"][0]["content"]["parts"][0]["text"], text);
    assert_eq!(answer["usageMetadata"]["candidatesTokenCount"], 50);
    let answer = ask("/api/chat", json!({ "model": "m", "messages": user, "stream": false })).await;
    assert_eq!((&answer["message"]["content"], &answer["eval_count"]), (&json!(text), &json!(50)));
    let answer = ask("/v1/messages/count_tokens", json!({ "model": "m", "messages": user })).await;
    assert!(answer["input_tokens"].as_u64().unwrap() > 5);
}

#[tokio::test]
async fn a_client_without_tools_gets_an_edit_block() {
    let server = TestServer::start("write-hello", &[]).await;
    let messages = json!([
        { "role": "system", "content": "Answer with *SEARCH/REPLACE blocks*." },
        { "role": "user", "content": "an example" }, { "role": "assistant", "content": "of an answer" },
        { "role": "user", "content": "write hello" },
    ]);
    let response = server.post("/v1/chat/completions", &json!({ "model": "m", "messages": messages })).await;
    let answer: Value = response.json().await.unwrap();
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(
        text.starts_with(
            "hello.txt\n```\n<<<<<<< SEARCH\n=======\nHello from the shadow clone.\n>>>>>>> REPLACE\n```"
        ),
        "{text}"
    );
}

#[tokio::test]
async fn tools_of_another_name_are_found_by_their_schema() {
    let server = TestServer::start("write-hello", &[]).await;
    let schema = json!({
        "type": "object",
        "properties": {
            "path": { "type": "string" }, "contents": { "type": "string" }, "mode": { "enum": ["w", "a"] },
            "dry": { "type": "boolean" }, "lines": { "type": "integer", "minimum": 3 },
        },
        "required": ["path", "contents", "mode", "dry", "lines"],
    });
    let tools = json!([{ "type": "function", "function": { "name": "put", "parameters": schema } }]);
    let system = "You are an agent.\nWorking directory: /srv/code\n";
    let messages = json!([{ "role": "system", "content": system }, { "role": "user", "content": "go" }]);
    let body = json!({ "model": "m", "messages": messages, "tools": tools });
    let answer: Value = server.post("/v1/chat/completions", &body).await.json().await.unwrap();
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(call["name"], "put");
    let expected = json!({
        "path": "/srv/code/hello.txt", "contents": "Hello from the shadow clone.\n", "mode": "w", "dry": false,
        "lines": 3,
    });
    assert_eq!(arguments, expected);
}

#[tokio::test]
async fn a_patch_goes_where_the_schema_wants_it() {
    let server = TestServer::start("write-hello", &[]).await;
    let schema = json!({ "type": "object", "properties": { "patchText": { "type": "string" } }, "required": ["patchText"] });
    let tools = json!([{ "type": "function", "function": { "name": "apply_patch", "parameters": schema } }]);
    let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "go" }], "tools": tools });
    let answer: Value = server.post("/v1/chat/completions", &body).await.json().await.unwrap();
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert!(
        arguments["patchText"].as_str().unwrap().starts_with("*** Begin Patch\n*** Add File: hello.txt\n")
    );
}

#[tokio::test]
async fn a_shell_that_takes_a_list_gets_one() {
    let server = TestServer::start("loop", &[]).await;
    let schema = json!({ "type": "object", "properties": { "command": { "type": "array" } } });
    let tool = json!({ "type": "function", "name": "shell", "parameters": schema });
    let group = json!({ "type": "namespace", "name": "box", "tools": [tool] });
    let body = json!({ "model": "m", "stream": true, "input": "go", "tools": [group] });
    let text = server.post("/v1/responses", &body).await.text().await.unwrap();
    let done = events(&text).into_iter().find(|event| event["type"] == "response.output_item.done").unwrap();
    assert_eq!(done["item"]["namespace"], "box");
    let arguments: Value = serde_json::from_str(done["item"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments["command"], json!(["/bin/sh", "-c", "date >> loop.txt"]));
}
