//! Turnstile's host service: holds the locks in a store and serves sessions to proxies.

pub mod admin;
pub mod api;
pub mod clock;
pub mod config;
pub mod driver;
mod fields;
pub mod guard;
mod http_client;
pub mod operator;
pub mod plugin_file;
mod port;
pub mod service;
pub mod sessions;
pub mod store;
pub mod wire;
