#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kage_fuzz::bodies::usage(input));
