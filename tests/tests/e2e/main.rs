//! Turnstile as its users meet it: the shipped Envoy configuration and filter in a real Envoy, a real host, and an
//! application behind them that records who was in it when.

mod clusters;
mod delays;
mod endings;
mod faults;
mod hostile;
mod modes;
mod reentry;
mod replies;
mod serialise;
mod shipped;
mod table;
mod turns;
