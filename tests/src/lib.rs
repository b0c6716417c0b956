//! Harness of Turnstile's tests: real components started and watched, and load with a recorded history.

pub mod artifacts;
pub mod behave;
pub mod bench;
pub mod bootstrap;
pub mod checker;
pub mod demo;
pub mod envoy;
pub mod etcd;
pub mod host;
pub mod http;
pub mod link;
pub mod load;
pub mod ports;
pub mod preference;
pub mod process;
pub mod proxy_wasm;
pub mod scene;
pub mod scripted_host;
pub mod session_client;
pub mod stage;
pub mod upstream;
pub mod wait;
pub mod wall_clock;
pub mod world;
