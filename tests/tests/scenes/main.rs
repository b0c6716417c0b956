//! Several hosts on one store, through real proxies: each scene has one fault under steady load, and is judged by what
//! the upstream saw.

mod faults;
