//! The rows: how many contend for which keys, and what is measured besides.

use crate::bench::program::Rows;

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Row {
    /// Lock cycles, of etcd's lock service and of Turnstile.
    Cycles(Load),
    /// How long a key takes from one host to another.
    HandOver,
    /// What many owned keys weigh and cost.
    OwnedKeys,
}

/// A load of lock cycles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// For `--only` and the JSON.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// What is asked for.
    pub keys: Keys,
    /// How many ask at once.
    pub contenders: usize,
    /// How many hosts they are spread over; etcd's lock service has none.
    pub hosts: usize,
    /// Cycles per second of Turnstile, to those of etcd's lock service: at least this.
    pub to_reach: Option<f64>,
}

/// Which keys contenders ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Each has [`KEYS_OF_ONE`] keys of its own, used again and again.
    Own,
    /// Each asks for a new key every time. Turnstile's host gives up its keys as it does by default, a minute later.
    Fresh,
    /// As [`Keys::Fresh`], but keys are given up so soon that it happens within the window.
    FreshGivenUp,
    /// All want one key.
    One,
}

/// How many keys a contender of [`Keys::Own`] has.
pub const KEYS_OF_ONE: usize = 10;

impl Load {
    /// What `contender` asks for in its turn number `turn`.
    pub fn key(&self, contender: usize, turn: usize) -> String {
        match self.keys {
            Keys::Own => format!("default/acct:{contender:03}:{:07}", turn % KEYS_OF_ONE),
            Keys::Fresh | Keys::FreshGivenUp => format!("default/acct:{contender:03}:{turn:07}"),
            Keys::One => "default/acct:000:0000000".to_owned(),
        }
    }

    /// The part of the load whose turns come one after the other: a contender, or all of them if they share the key.
    pub fn lane(&self, contender: usize) -> usize {
        if self.keys == Keys::One { 0 } else { contender }
    }
}

impl Row {
    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Cycles(load) => load.title,
            Self::HandOver => "hand-over between two hosts",
            Self::OwnedKeys => "100,000 owned keys",
        }
    }
}

impl Rows for Row {
    const ALL: &'static [Self] = &[
        cycles("keys-16", "own keys again and again, 16 clients", Keys::Own, 16, 1, Some(20.0)),
        cycles("keys-64", "own keys again and again, 64 clients", Keys::Own, 64, 1, Some(20.0)),
        cycles("fresh-16", "keys never seen before, 16 clients", Keys::Fresh, 16, 1, Some(0.8)),
        cycles("fresh-64", "keys never seen before, 64 clients", Keys::Fresh, 64, 1, Some(0.8)),
        cycles("fresh-given-up", "the same, given up after 1 s", Keys::FreshGivenUp, 64, 1, Some(0.8)),
        cycles("hot-1", "one key, 1 client", Keys::One, 1, 1, None),
        cycles("hot-16", "one key, 16 clients", Keys::One, 16, 1, Some(100.0)),
        cycles("hot-256", "one key, 256 clients", Keys::One, 256, 1, None),
        cycles("hot-two-hosts", "one key, 16 clients of two hosts", Keys::One, 16, 2, None),
        cycles("hot-three-hosts", "one key, 16 clients of three hosts", Keys::One, 16, 3, Some(10.0)),
        Self::HandOver,
        Self::OwnedKeys,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Cycles(load) => load.name,
            Self::HandOver => "hand-over",
            Self::OwnedKeys => "owned-keys",
        }
    }
}

const fn cycles(
    name: &'static str,
    title: &'static str,
    keys: Keys,
    contenders: usize,
    hosts: usize,
    to_reach: Option<f64>,
) -> Row {
    Row::Cycles(Load { name, title, keys, contenders, hosts, to_reach })
}
