//! No way around a lock by spelling: the same resource gets the same key, or the request is refused.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are tests")]

mod common;

use common::{Request, outcome, rules};

const FRAGMENT: &str = "a fragment ('#')";
const SLASH: &str = "an escaped slash";
const BACKSLASH: &str = "a backslash";
const ESCAPED_BACKSLASH: &str = "an escaped backslash";
const PARAMETER: &str = "a path parameter (';')";
const CONTROL: &str = "a control character";
const INVALID: &str = "an invalid percent escape";
const DOUBLE: &str = "a doubly escaped byte";
const PARENT: &str = "a '..' segment";
const SPACE: &str = "a segment with a space at its start or end";
const RELATIVE: &str = "no slash at its start";

fn check(lines: &[&str], targets: &[(&str, &str)]) {
    let rules = rules(lines);
    for (target, expected) in targets {
        let got = outcome(&rules, &Request::raw("POST", "pay.example.com", target));
        let ambiguous = "! the path of this request can be read in more than one way: it contains ";
        assert_eq!(got.strip_prefix(ambiguous).unwrap_or(&got), *expected, "{target:?} with {lines:?}");
    }
}

const TRANSFER: &[&str] = &["POST /accounts/{id}/transfer key=account:{id}"];

#[test]
fn harmless_spellings_get_the_same_key() {
    let same = [
        "/accounts/42/transfer",
        "/accounts/42/transfer?x=1",
        "/accounts/42/transfer?",
        "/accounts/42/transfer/",
        "/accounts/42/transfer//",
        "//accounts/42/transfer",
        "/accounts//42///transfer",
        "/./accounts/./42/transfer",
        "/accounts/42/transfer/.",
        "/accounts/42/transfer/./",
        "/accounts/42/%2e/transfer",
        "/accounts/%34%32/transfer",
        "/accounts/4%32/transfe%72",
        "/%61ccounts/42/transfer",
        "/accounts/42/transfer?a=/../b;c\\%2f",
    ];
    check(TRANSFER, &same.map(|target| (target, "account:42")));
}

#[test]
fn values_are_encoded_one_way() {
    check(
        TRANSFER,
        &[
            ("/accounts/a:b/transfer", "account:a%3Ab"),
            ("/accounts/a%3ab/transfer", "account:a%3Ab"),
            ("/accounts/a%3Ab/transfer", "account:a%3Ab"),
            ("/accounts/a%20b/transfer", "account:a%20b"),
            ("/accounts/a+b/transfer", "account:a%2Bb"),
            ("/accounts/é/transfer", "account:%C3%A9"),
            ("/accounts/%c3%a9/transfer", "account:%C3%A9"),
            ("/accounts/%ff/transfer", "account:%FF"),
            ("/accounts/%25/transfer", "account:%25"),
            ("/accounts/%25zz/transfer", "account:%25zz"),
            ("/accounts/~a.b-c_d@e/transfer", "account:~a.b-c_d@e"),
            ("/accounts/.hidden/transfer", "account:.hidden"),
            ("/accounts/.../transfer", "account:..."),
            ("/accounts/{id}/transfer", "account:%7Bid%7D"),
            ("/accounts/*/transfer", "account:%2A"),
        ],
    );
    let raw_bytes = Request::raw("POST", "", b"/accounts/\xff\x80/transfer");
    assert_eq!(outcome(&rules(TRANSFER), &raw_bytes), "account:%FF%80");
}

#[test]
fn ambiguous_spellings_are_refused() {
    check(
        TRANSFER,
        &[
            // Escaped separators: whether they split or not.
            ("/accounts/4%2F2/transfer", SLASH),
            ("/accounts/4%2f2/transfer", SLASH),
            ("/accounts%2F42%2ftransfer", SLASH),
            ("/accounts/42%2Ftransfer", SLASH),
            ("/accounts\\42\\transfer", BACKSLASH),
            ("\\accounts/42/transfer", RELATIVE),
            ("/\\accounts/42/transfer", BACKSLASH),
            ("/accounts/4\\2/transfer", BACKSLASH),
            ("/accounts%5C42%5Ctransfer", ESCAPED_BACKSLASH),
            ("/accounts%5c42/transfer", ESCAPED_BACKSLASH),
            ("/accounts/4%5c2/transfer", ESCAPED_BACKSLASH),
            ("/accounts\\4%2F2/transfer", BACKSLASH),
            // Path parameters.
            ("/accounts/42;v=1/transfer", PARAMETER),
            ("/accounts/42/transfer;jsessionid=7", PARAMETER),
            ("/accounts;x/42/transfer", PARAMETER),
            ("/accounts/42%3Bv/transfer", PARAMETER),
            ("/;/accounts/42/transfer", PARAMETER),
            ("/x/..;/accounts/42/transfer", PARAMETER),
            ("/accounts/42/x/..;/transfer", PARAMETER),
            ("/accounts/42/transfer/;", PARAMETER),
            ("/accounts/42/transfer/;/", PARAMETER),
            // Parents.
            ("/accounts/7/../42/transfer", PARENT),
            ("/x/../accounts/42/transfer", PARENT),
            ("/../accounts/42/transfer", PARENT),
            ("/x/%2e%2E/accounts/42/transfer", PARENT),
            ("/accounts/../transfer", PARENT),
            ("/x%2f..%2faccounts/42/transfer", SLASH),
            ("/accounts/42/transfer/x/..", PARENT),
            // Decoding twice.
            ("/accounts/%2534/transfer", DOUBLE),
            ("/%2561ccounts/42/transfer", DOUBLE),
            ("/accounts/42/tr%25%36%31nsfer", DOUBLE),
            ("/accounts/42/tr%2525252561nsfer", DOUBLE),
            ("/accounts%252F42/transfer", DOUBLE),
            ("/accounts/%252e%252e/accounts/42/transfer", DOUBLE),
            ("/accounts/42/tr%u0061nsfer", INVALID),
            ("/accounts/42/tr%25u0061nsfer", DOUBLE),
            // Escapes that are none.
            ("/accounts/%zz/transfer", INVALID),
            ("/accounts/42%/transfer", INVALID),
            ("/accounts/42%2/transfer", INVALID),
            // Control characters, NUL, spaces.
            ("/accounts/4%002/transfer", CONTROL),
            ("/accounts/42/transfer%00", CONTROL),
            ("/accounts/42/transfer%00/more", CONTROL),
            ("/accounts/42/transfer%00.json", CONTROL),
            ("/accounts/4%00/transfer;v", CONTROL),
            ("/accounts/4%3F2/transfer%00.json", "an escaped '?'"),
            ("/accounts/42/tran%0asfer", CONTROL),
            ("/accounts/42/transfer%0d%0a", CONTROL),
            ("/accounts/42/transfer\u{1}", CONTROL),
            ("/accounts/42%7f/transfer", CONTROL),
            ("/accounts/42/transfer%20", SPACE),
            ("/accounts/42/transfer/%20", SPACE),
            ("/accounts/%2042/transfer", SPACE),
            ("/accounts/42 /transfer", SPACE),
            ("/accounts/42/%20transfer", SPACE),
            // Queries and fragments in disguise.
            ("/accounts/42/transfer%3Fx", "an escaped '?'"),
            ("/accounts/4%3F2/transfer", "an escaped '?'"),
            ("/accounts/42/transfer%23", "an escaped '#'"),
            ("/accounts/42/transfer#", FRAGMENT),
            ("/accounts/42/transfer#/more", FRAGMENT),
            ("/accounts/4#2/transfer", FRAGMENT),
            ("/accounts/42/transfer?x#y", FRAGMENT),
            ("/accounts/42/transfer#x?y", FRAGMENT),
            // Targets that are no plain paths.
            ("http://pay.example.com/accounts/42/transfer", RELATIVE),
            ("http://pay.example.com:80/accounts/42/transfer?x", RELATIVE),
            ("accounts/42/transfer", RELATIVE),
            (";p/accounts/:///transfer", RELATIVE),
            ("\\accounts/://transfer", RELATIVE),
            ("?/accounts", "-"),
        ],
    );
}

#[test]
fn what_no_reader_takes_for_the_endpoint_stays_unguarded() {
    check(
        TRANSFER,
        &[
            ("", "-"),
            ("*", "-"),
            ("/", "-"),
            ("/accounts/42", "-"),
            ("/accounts/42/transfers", "-"),
            ("/accounts/42/transfer/more", "-"),
            ("/accounts//transfer", "-"),
            ("/accounts/./transfer", "-"),
            ("/Accounts/42/transfer", "-"),
            ("/files/a%2Fb", "-"),
            ("/files/a;v=1", "-"),
            ("/files/100%", "-"),
            ("/x?/accounts/42/transfer", "-"),
            ("http://pay.example.com", "-"),
            ("/accounts/42/transfer.", "-"),
        ],
    );
}

/// A reader that resolves within the matched tail still finds the file, so such a path must not slip past.
#[test]
fn parents_do_not_climb_out_of_a_tail() {
    check(
        &["POST /files/{*path} key=file:{path}"],
        &[
            ("/files/a/b", "file:a/b"),
            ("/files/a//b/./c/", "file:a/b/c"),
            ("/files/a%2fb", SLASH),
            ("/files/../b", PARENT),
            ("/files/a/../../b", PARENT),
            ("/x/../files/a", PARENT),
            ("/files", "-"),
            ("/files/", "-"),
        ],
    );
}

#[test]
fn static_segments_are_compared_in_canonical_form() {
    check(
        &["POST /caf%c3%a9/a:b/{id} key=x:{id}"],
        &[("/café/a:b/1", "x:1"), ("/caf%C3%A9/a%3ab/1", "x:1"), ("/cafe/a:b/1", "-")],
    );
    check(&["POST /café/{id} key=x:{id}"], &[("/caf%C3%A9/1", "x:1")]);
}

/// So that one request cannot keep the filter busy, very long ambiguous paths are not read in every way.
#[test]
fn overlong_ambiguous_paths_are_refused() {
    let long = format!("/{}%2f", "x".repeat(10_000));
    check(TRANSFER, &[(&long, SLASH), (&long.replace("%2f", ""), "-")]);
    check(&["GET /accounts/{id}/transfer key=account:{id}"], &[(&long, "-")]);
    check(&["POST other.example.com/accounts/{id} key=account:{id}"], &[(&long, "-")]);
    let just_fits = format!("/{}%2f", "x".repeat(2_000));
    check(TRANSFER, &[(&just_fits, "-")]);
}
