#![no_main]

mod chosen;

libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::authenticate(chosen::provider(), input));
