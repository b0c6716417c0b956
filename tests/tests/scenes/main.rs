//! Several hosts on one store, through real proxies: each scene has one fault under steady load, and is judged by what
//! the upstream saw. `cargo xtask test -p turnstile-tests --test scenes` plays them all and prints a line for each (see
//! `turnstile_tests::scene` for what its numbers mean); `sqlite` or `etcd` behind it plays those on one store.
//!
//! `plays` says what happens to hosts, on any store; the other files say on which store it happens, and what happens
//! to the store.

mod etcd_cluster;
mod etcd_hosts;
mod etcd_operator;
mod plays;
mod sqlite;
mod wall_clock;
