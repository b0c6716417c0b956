//! Which rule a request gets, and with which key.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are tests")]

mod common;

use common::{Request, outcome, rules};
use turnstile_rules::{Decision, RequestFault};

fn check(lines: &[&str], expected: &[(&str, &str)]) {
    let rules = rules(lines);
    for (request, expected) in expected {
        assert_eq!(outcome(&rules, &Request::new(request)), *expected, "{request} with {lines:?}");
    }
}

#[test]
fn methods() {
    check(
        &["POST,PUT /a/{id} key=named:{id}", "* /a/{id} key=any:{id}", "PURGE /b key=b"],
        &[
            ("POST /a/1", "named:1"),
            ("PUT /a/1", "named:1"),
            ("GET /a/1", "any:1"),
            // HTTP says that methods are case-sensitive; many an upstream does not care.
            ("post /a/1", "named:1"),
            ("PURGE /b", "b"),
            ("purge /b", "b"),
            ("GET /b", "-"),
        ],
    );
}

#[test]
fn paths() {
    check(
        &[
            "* / key=root",
            "* /a key=a",
            "* /a/{x} key=one:{x}",
            "* /a/{*rest} key=tail:{rest}",
            "* /a/b key=ab",
            "* /a/{x}/c key=c:{x}",
            "* /a/{x}/{y} key=two:{x}:{y}",
            "* /a/b/{y}/d key=d:{y}",
            "* /k/{a}/{b} key={{{b}}}{b}:{a}/{a}",
        ],
        &[
            ("GET /", "root"),
            ("GET /?a=/a/b", "root"),
            ("GET /a", "a"),
            ("GET /a/b", "ab"),
            ("GET /a/x", "one:x"),
            ("GET /a/b/c", "c:b"),
            ("GET /a/x/c", "c:x"),
            // The static /a/b is entered and left again.
            ("GET /a/b/x", "two:b:x"),
            ("GET /a/b/x/d", "d:x"),
            ("GET /a/b/x/e", "tail:b/x/e"),
            ("GET /a/x/y/z", "tail:x/y/z"),
            ("GET /b", "-"),
            ("GET /A", "-"),
            ("GET /k/1/2", "{2}2:1/1"),
        ],
    );
}

/// What fits better in one respect but not in all does not hide what fits in all.
#[test]
fn a_better_partial_match_hides_nothing() {
    check(
        &[
            "GET /accounts/me key=me",
            "POST /accounts/{id} key=account:{id}",
            "DELETE /accounts/{*rest} key=tail:{rest}",
            "POST pay.example.com/other key=pay-other",
            "POST *.example.com/other/{id} key=example-other:{id}",
            "GET pay.example.com/accounts/{id} key=pay:{id}",
        ],
        &[
            ("GET x/accounts/me", "me"),
            ("POST x/accounts/me", "account:me"),
            ("DELETE x/accounts/me", "tail:me"),
            ("POST pay.example.com/accounts/me", "account:me"),
            ("POST pay.example.com/other/1", "example-other:1"),
            ("POST pay.example.com/other", "pay-other"),
            // The host is looked at before the path.
            ("GET pay.example.com/accounts/me", "pay:me"),
        ],
    );
}

#[test]
fn hosts() {
    check(
        &[
            "* pay.example.com/{id} key=exact:{id}",
            "* *.example.com/{id} key=example:{id}",
            "* *.eu.example.com/{id} key=eu:{id}",
            "* /{id} key=any:{id}",
            "* [2001:db8::1]/{id} key=v6:{id}",
        ],
        &[
            ("GET pay.example.com/1", "exact:1"),
            ("GET PAY.Example.Com:8443/1", "exact:1"),
            ("GET pay.example.com./1", "exact:1"),
            ("GET pay.example.com.:80/1", "exact:1"),
            ("GET me@pay.example.com/1", "exact:1"),
            ("GET pay%2eexample.com/1", "exact:1"),
            ("GET a.example.com/1", "example:1"),
            ("GET a.b.example.com/1", "example:1"),
            ("GET a.eu.example.com/1", "eu:1"),
            ("GET eu.example.com/1", "example:1"),
            ("GET example.com/1", "any:1"),
            ("GET notexample.com/1", "any:1"),
            ("GET [2001:DB8::1]:80/1", "v6:1"),
            ("GET /1", "any:1"),
        ],
    );
    check(&["* pay.example.com/{id} key=exact:{id}"], &[("GET other.example.com/1", "-"), ("GET /1", "-")]);
}

#[test]
fn query_parameters() {
    check(
        &["POST /r key=r:{query.id}", "POST /two key={query.a}:{query.b}", "POST /odd key={query.filter[id]}"],
        &[
            ("POST /r?id=1", "r:1"),
            ("POST /r?x=2&id=1&y", "r:1"),
            ("POST /r?id=a+b", "r:a%20b"),
            ("POST /r?id=a%20b", "r:a%20b"),
            ("POST /r?id=a%2bb", "r:a%2Bb"),
            ("POST /r?%69d=1", "r:1"),
            ("POST /r?id=1?id=2", "r:1%3Fid%3D2"),
            ("POST /r?id=a=b", "r:a%3Db"),
            ("POST /r?id=%FF", "r:%FF"),
            ("POST /r?id=%2541", "r:%2541"),
            ("POST /r?id[]=2&id=1", "r:1"),
            ("POST /r", "! this request needs the query parameter 'id', which is missing or empty"),
            ("POST /r?id", "! this request needs the query parameter 'id', which is missing or empty"),
            ("POST /r?id=", "! this request needs the query parameter 'id', which is missing or empty"),
            ("POST /r?ID=1", "! this request needs the query parameter 'id', which is missing or empty"),
            (
                "POST /r?id=1&id=2",
                "! this request has the query parameter 'id' more than once, but it must occur exactly once",
            ),
            (
                "POST /r?id=1&id=1",
                "! this request has the query parameter 'id' more than once, but it must occur exactly once",
            ),
            (
                "POST /r?id=1&%69%64=2",
                "! this request has the query parameter 'id' more than once, but it must occur exactly once",
            ),
            (
                "POST /r?id=1&ID=2",
                "! this request has the query parameter 'id' more than once, but it must occur exactly once",
            ),
            (
                "POST /r?id=1&+id=2",
                "! this request has the query parameter 'id' more than once, but it must occur exactly once",
            ),
            (
                "POST /r?id=1&id",
                "! this request has the query parameter 'id' more than once, but it must occur exactly once",
            ),
            (
                "POST /r?id=1;x=2",
                "! the query parameter 'id' of this request can be read in more than one way: it contains a semicolon",
            ),
            (
                "POST /r?id=1&x=2;id=3",
                "! the query parameter 'id' of this request can be read in more than one way: it contains a semicolon",
            ),
            ("POST /r?id=1&x=2;y=3", "r:1"),
            (
                "POST /r?id=1%zz",
                "! the query parameter 'id' of this request can be read in more than one way: it contains an invalid percent escape",
            ),
            (
                "POST /r?id=1%00",
                "! the query parameter 'id' of this request can be read in more than one way: it contains a control character",
            ),
            (
                "POST /r?id=1+",
                "! the query parameter 'id' of this request can be read in more than one way: it contains a space at its start or end",
            ),
            (
                "POST /r?id=1#&id=2",
                "! the path of this request can be read in more than one way: it contains a fragment ('#')",
            ),
            ("POST /two?b=2&a=1", "1:2"),
            ("POST /odd?filter%5Bid%5D=7", "7"),
        ],
    );
}

#[test]
fn headers() {
    let rules = rules(&["POST /h key=tenant:{header.X-Tenant}"]);
    let check = |values: &[&[u8]], expected: &str| {
        let request = values.iter().fold(Request::new("POST /h"), |request, value| request.header("x-tenant", value));
        assert_eq!(outcome(&rules, &request), expected, "{values:?}");
    };
    check(&[b"acme"], "tenant:acme");
    check(&[b" \tacme "], "tenant:acme");
    check(&[b"a:b/c%"], "tenant:a%3Ab%2Fc%25");
    check(&[b"\xff"], "tenant:%FF");
    check(&[], "! this request needs the header 'x-tenant', which is missing or empty");
    check(&[b""], "! this request needs the header 'x-tenant', which is missing or empty");
    check(&[b"  "], "! this request needs the header 'x-tenant', which is missing or empty");
    let doubled = "! this request has the header 'x-tenant' more than once, but it must occur exactly once";
    check(&[b"a", b"b"], doubled);
    // What Envoy makes of two headers.
    check(&[b"a,b"], doubled);
    let control =
        "! the header 'x-tenant' of this request can be read in more than one way: it contains a control character";
    check(&[b"a\tb"], control);
}

#[test]
fn keys_are_bounded() {
    let rules = rules(&["POST /a/{id} key=a:{id}"]);
    let longest = turnstile_rules::KEY_MAX_BYTES - "default/a:".len();
    assert_eq!(turnstile_rules::KEY_MAX_BYTES, turnstile_core::LockKey::MAX_BYTES);
    for (len, is_guarded) in [(longest, true), (longest + 1, false)] {
        let request = Request::raw("POST", "", format!("/a/{}", "x".repeat(len)));
        match rules.decide(&request) {
            Decision::Guarded { keys, .. } => {
                assert!(is_guarded, "{len}");
                assert_eq!(keys.text().len(), turnstile_rules::KEY_MAX_BYTES);
            }
            Decision::Refused { fault, .. } => assert_eq!((fault, is_guarded), (RequestFault::KeyTooLong, false)),
            Decision::Unguarded => panic!("{len} bytes slipped past"),
        }
    }
}

/// A view that tells what it was asked for.
#[test]
fn only_what_is_needed_is_asked_for() {
    use std::borrow::Cow;
    use std::cell::RefCell;
    use turnstile_rules::{HeaderValues, RequestView};

    struct Asked(&'static str, RefCell<Vec<String>>);
    impl Asked {
        fn note(&self, what: &str) {
            self.1.borrow_mut().push(what.to_owned());
        }
    }
    impl RequestView for Asked {
        fn method(&self) -> Cow<'_, [u8]> {
            self.note("method");
            Cow::Borrowed(b"POST")
        }
        fn authority(&self) -> Cow<'_, [u8]> {
            self.note("authority");
            Cow::Borrowed(b"pay.example.com")
        }
        fn path(&self) -> Cow<'_, [u8]> {
            self.note("path");
            Cow::Borrowed(self.0.as_bytes())
        }
        fn header(&self, name: &str) -> HeaderValues<'_> {
            self.note(name);
            HeaderValues::One(Cow::Borrowed(b"acme"))
        }
    }
    let check = |lines: &[&str], path, expected: &[&str]| {
        let request = Asked(path, RefCell::default());
        rules(lines).decide(&request);
        assert_eq!(*request.1.borrow(), expected, "{path} with {lines:?}");
    };
    check(&["POST /a key={header.x-a}", "POST /b key=b"], "/b", &["path", "method"]);
    check(&["POST /a key={header.x-a}", "POST /b key=b"], "/a", &["path", "method", "x-a"]);
    check(&["POST pay.example.com/a key=a"], "/b", &["path", "method", "authority"]);
}
