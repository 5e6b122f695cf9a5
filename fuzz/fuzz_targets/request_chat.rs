#![no_main]

use kage::domain::model::Dialect;

libfuzzer_sys::fuzz_target!(|body: &[u8]| kage_fuzz::bodies::request(Dialect::Chat, body));
