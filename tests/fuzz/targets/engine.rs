//! The engine as a list of operations: `check()` after every step, and a model of what clients may believe beside it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use turnstile_fuzz::script::Script;

fuzz_target!(|script: Script| script.run());
