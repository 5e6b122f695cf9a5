//! What an answer is read to have cost: as each provider sends it, however it is cut, whatever it holds.

use kage::dialect::usage::{Reading, UsageReader};
use kage::domain::model::{Dialect, ModelUsage};
use proptest::prelude::*;

use crate::corpus::bodies::read;

const ANTHROPIC: &str = "event: message_start\n\
data: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\
\"model\":\"claude-sonnet-4-5-20250929\",\"content\":[],\"stop_reason\":null,\"usage\":{\"input_tokens\":10,\
\"cache_creation_input_tokens\":200,\"cache_read_input_tokens\":3000,\"cache_creation\":{\"ephemeral_5m_input_tokens\":200},\
\"output_tokens\":1}}}\n\n\
event: ping\ndata: {\"type\": \"ping\"}\n\n\
event: content_block_delta\n\
data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\
\"text\":\"{\\\"usage\\\":{\\\"output_tokens\\\":99999}}\\n\\ndata: x\"}}\n\n\
event: message_delta\n\
data: {\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":42},\"type\":\"message_delta\"}\n\n\
event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

const RESPONSES: &str = "event: response.created\r\n\
data: {\"type\":\"response.created\",\"response\":{\"model\":\"gpt-5.5\",\"usage\":null,\"error\":null,\"status\":\"in_progress\"}}\r\n\r\n\
event: response.output_text.delta\r\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"hi\"}\r\n\r\n\
event: response.completed\r\n\
data: {\"type\":\"response.completed\",\"response\":{\"model\":\"gpt-5.5\",\"status\":\"completed\",\
\"output\":[{\"type\":\"message\",\"usage\":{\"output_tokens\":7}}],\"usage\":{\"input_tokens\":100,\
\"input_tokens_details\":{\"cached_tokens\":60},\"output_tokens\":20,\"output_tokens_details\":{\"reasoning_tokens\":5},\
\"total_tokens\":120}}}\r\n\r\n";

const CHAT: &str = ": keep-alive\n\n\
data: {\"model\":\"qwen3\",\"choices\":[{\"delta\":{\"content\":\"[DONE]\"},\"finish_reason\":null}]}\n\n\
data: {\"model\":\"qwen3\",\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
data:{\"choices\":[],\"usage\":{\"prompt_tokens\":50,\"completion_tokens\":8,\"total_tokens\":63,\
\"prompt_tokens_details\":{\"cached_tokens\":30}}}\n\ndata: [DONE]\n\n";

const GEMINI: &str = "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a\"}]}}],\
\"usageMetadata\":{\"promptTokenCount\":70,\"candidatesTokenCount\":1,\"totalTokenCount\":71},\"modelVersion\":\"gemini-2.5-pro\"}\r\n\r\n\
data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"b\"}]},\"finishReason\":\"STOP\"}],\
\"usageMetadata\":{\"promptTokenCount\":70,\"cachedContentTokenCount\":40,\"candidatesTokenCount\":6,\
\"thoughtsTokenCount\":9,\"toolUsePromptTokenCount\":5,\"totalTokenCount\":90},\"modelVersion\":\"gemini-2.5-pro\"}\r\n\r\n";

const OLLAMA: &str = "{\"model\":\"llama3\",\"message\":{\"role\":\"assistant\",\"content\":\"a\"},\"done\":false}\n\
{\"model\":\"llama3\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\",\
\"prompt_eval_count\":26,\"eval_count\":29}\n";

fn streams() -> [(Dialect, &'static str, &'static str, ModelUsage); 5] {
    let usage =
        |input, output, cached_input, cache_write| ModelUsage { input, output, cached_input, cache_write };
    [
        (Dialect::Anthropic, ANTHROPIC, "claude-sonnet-4-5-20250929", usage(3210, 42, 3000, 200)),
        (Dialect::Responses, RESPONSES, "gpt-5.5", usage(100, 20, 60, 0)),
        (Dialect::Chat, CHAT, "qwen3", usage(50, 13, 30, 0)),
        (Dialect::Gemini, GEMINI, "gemini-2.5-pro", usage(75, 15, 40, 0)),
        (Dialect::Ollama, OLLAMA, "llama3", usage(26, 29, 0, 0)),
    ]
}

#[test]
fn each_stream_is_read_in_full() {
    for (dialect, text, model, usage) in streams() {
        let expected =
            Reading { usage: Some(usage), complete: true, error: None, model: Some(model.to_owned()) };
        for step in [1, 2, 3, 5, 64, text.len()] {
            assert_eq!(read(dialect, true, text.as_bytes(), step), expected, "{dialect} by {step}");
        }
        let bare = text.trim_end();
        assert_eq!(
            read(dialect, true, bare.as_bytes(), 9),
            expected,
            "{dialect} without its last line's end"
        );
        for (from, to) in [("\r\n", "\n"), ("\n", "\r\n"), ("\n", "\r")] {
            // A line of JSON ends with a line feed.
            if dialect != Dialect::Ollama {
                let other = text.replace("\r\n", "\n").replace(from, to);
                assert_eq!(read(dialect, true, other.as_bytes(), 7), expected, "{dialect} {to:?}");
            }
        }
    }
}

#[test]
fn a_stream_that_broke_off_is_not_complete() {
    for (dialect, text, _, whole) in streams() {
        for end in 0..text.len() / 2 {
            let reading = read(dialect, true, &text.as_bytes()[..end], 16);
            assert!(!reading.complete, "{dialect} after {end}");
            let usage = reading.usage.unwrap_or_default();
            assert!(usage.input <= whole.input && usage.output <= whole.output);
        }
    }
    let begun = ANTHROPIC.find("event: ping").unwrap();
    let reading = read(Dialect::Anthropic, true, &ANTHROPIC.as_bytes()[..begun], 4);
    assert_eq!(reading.usage.map(|usage| (usage.input, usage.output)), Some((3210, 1)));
}

#[test]
fn whole_answers_are_read_too() {
    let cases = [
        (
            Dialect::Anthropic,
            r#"{"type":"message","model":"c","content":[{"type":"text","text":"x"}],
            "usage":{"input_tokens":1,"cache_read_input_tokens":2,"output_tokens":3}}"#,
            (3, 3, 2),
        ),
        (
            Dialect::Responses,
            r#"{"id":"r","object":"response","status":"incomplete","model":"c",
            "error":null,"usage":{"input_tokens":4,"input_tokens_details":{"cached_tokens":1},"output_tokens":5}}"#,
            (4, 5, 1),
        ),
        (
            Dialect::Chat,
            r#"{"object":"chat.completion","model":"c","choices":[{"finish_reason":"stop",
            "message":{"content":"x"}}],"usage":{"prompt_tokens":6,"completion_tokens":7,"total_tokens":13}}"#,
            (6, 7, 0),
        ),
        (
            Dialect::Gemini,
            r#"{"candidates":[{"finishReason":"MAX_TOKENS"}],"modelVersion":"c",
            "usageMetadata":{"promptTokenCount":8,"candidatesTokenCount":9}}"#,
            (8, 9, 0),
        ),
        (Dialect::Ollama, r#"{"model":"c","done":true,"prompt_eval_count":10,"eval_count":11}"#, (10, 11, 0)),
    ];
    for (dialect, text, (input, output, cached_input)) in cases {
        let usage = Some(ModelUsage { input, output, cached_input, cache_write: 0 });
        let expected = Reading { usage, complete: true, error: None, model: Some("c".to_owned()) };
        for step in [1, 10, 1000] {
            assert_eq!(read(dialect, false, text.as_bytes(), step), expected, "{dialect}");
        }
        let cut = &text.as_bytes()[..text.len() - 1];
        assert_eq!(
            read(dialect, false, cut, 5),
            Reading::default(),
            "{dialect}: half an answer says nothing"
        );
    }
}

#[test]
fn turns_of_one_call_are_added_up() {
    let text = "data: {\"type\":\"message_delta\",\"usage\":{\"input_tokens\":5,\"output_tokens\":6,\"iterations\":[\
        {\"type\":\"compaction\",\"input_tokens\":180000,\"output_tokens\":3500},\
        {\"type\":\"message\",\"input_tokens\":5,\"output_tokens\":6}]}}\n\n";
    let usage = read(Dialect::Anthropic, true, text.as_bytes(), 11).usage.unwrap();
    assert_eq!((usage.input, usage.output), (180_005, 3_506));
}

#[test]
fn errors_are_heard() {
    let cases = [
        (
            Dialect::Anthropic,
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"busy\\u001b[1m\"}}\n\n",
        ),
        (Dialect::Responses, "data: {\"type\":\"error\",\"code\":\"x\",\"message\":\"busy[1m\"}\n\n"),
        (
            Dialect::Responses,
            "data: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"x\",\"message\":\"busy[1m\"}}}\n\n",
        ),
        (Dialect::Chat, "data: {\"error\":{\"message\":\"busy[1m\",\"code\":429}}\n\n"),
        (Dialect::Chat, "data: {\"error\":\"busy[1m\"}\n\n"),
        (Dialect::Gemini, "data: {\"error\":{\"code\":503,\"message\":\"busy[1m\"}}\n\n"),
        (Dialect::Ollama, "{\"error\":\"busy[1m\"}\n"),
    ];
    for (dialect, text) in cases {
        if dialect == Dialect::Gemini {
            assert!(read(dialect, true, text.as_bytes(), 3).complete);
        }
        let reading = read(dialect, true, text.as_bytes(), 3);
        assert_eq!(reading.error.as_deref(), Some("busy[1m"), "{dialect}");
        assert_eq!((reading.usage, reading.complete), (None, true), "{dialect}");
    }
}

#[test]
fn counts_that_make_no_sense_do_no_harm() {
    for number in ["-5", "1e99", "99999999999999999999", "1.5", "\"12\"", "null", "[1]", "NaN"] {
        let text = format!(
            "data: {{\"usage\":{{\"prompt_tokens\":{number},\"completion_tokens\":2}},\"choices\":[]}}\n\n"
        );
        let usage = read(Dialect::Chat, true, text.as_bytes(), 8).usage.unwrap_or_default();
        assert!(usage.input <= 1 << 53, "{number}");
        assert!(usage.total() < u64::MAX, "{number}");
    }
}

#[test]
fn an_event_may_follow_at_a_boundary_only() {
    for (dialect, text, ..) in streams() {
        let mut reader = UsageReader::new(dialect, true);
        assert!(reader.at_boundary());
        let cut = text.len() / 3;
        reader.feed(&text.as_bytes()[..cut]);
        assert!(!reader.at_boundary(), "{dialect}");
        reader.feed(&text.as_bytes()[cut..]);
        assert!(reader.at_boundary(), "{dialect}");
    }
}

#[test]
fn megabytes_without_a_line_end_are_read_through() {
    let mut reader = UsageReader::new(Dialect::Responses, true);
    reader.feed(b"data: {\"type\":\"response.completed\",\"response\":{\"output\":[{\"text\":\"");
    for _ in 0..2_000 {
        reader.feed(&[b'x'; 16 * 1024]);
    }
    reader.feed(b"\"}],\"usage\":{\"input_tokens\":1,\"output_tokens\":2}}}\n\n");
    let reading = reader.finish();
    assert_eq!(reading.usage.map(|usage| usage.total()), Some(3), "usage is the last thing in a long line");
    assert!(reading.complete);
}

proptest! {
    #[test]
    fn cuts_change_nothing(which in 0usize..5, cuts in prop::collection::vec(1usize..40, 1..60)) {
        let (dialect, text, ..) = streams()[which];
        let mut reader = UsageReader::new(dialect, true);
        let mut rest = text.as_bytes();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, left) = rest.split_at((*cut).min(rest.len()));
            reader.feed(piece);
            reader.feed(b"");
            rest = left;
        }
        prop_assert_eq!(reader.finish(), read(dialect, true, text.as_bytes(), text.len()));
    }

    #[test]
    fn noise_is_no_error_of_ours(which in 0usize..5, stream: bool, noise: Vec<u8>, at in 0usize..400) {
        let (dialect, text, ..) = streams()[which];
        let mut bytes = text.as_bytes().to_vec();
        bytes.splice(at.min(bytes.len())..at.min(bytes.len()), noise);
        prop_assert_eq!(read(dialect, stream, &bytes, 1), read(dialect, stream, &bytes, 4096));
    }
}
